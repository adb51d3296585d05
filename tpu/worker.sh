#!/usr/bin/env bash
# Runs on every host of a slice. Called by launch.py through ssh; works on any Linux machine.
#
#   worker.sh install                        installs Python, the package and its TPU dependencies in .venv
#   worker.sh copy gs://FROM TO              copies a folder or a file into the repository
#   worker.sh start [TOOLS ARGS] -- ARGS     starts `python -m dv2_jax.train ARGS` in the background; with TOOLS ARGS it
#                                            starts a tools service first, without them the trainer starts its own
#   worker.sh status | logs | stop
#
# DV2_PYTHON: interpreter (default: that of .venv). DV2_STATE: folder of process ids and logs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${DV2_PYTHON:-.venv/bin/python}"
state="${DV2_STATE:-$HOME/dv2_jax_worker}"
mkdir -p "$state"

alive() { # NAME: tests if the process group of NAME is running
  [[ -f "$state/$1.pid" ]] && kill -0 -- "-$(cat "$state/$1.pid")" 2>/dev/null
}

background() { # NAME COMMAND...: runs it in its own process group; stores the group's id and the exit code
  local name="$1"; shift
  rm -f "$state/$name.exit" "$state/$name.pid"
  : >"$state/$name.log"
  # The group leader writes its own id: reading it afterwards would race with a command that exits immediately.
  setsid bash -c 'echo $$ >"$1"; shift; exit_file="$1"; shift; code=0; "$@" || code=$?; echo "$code" >"$exit_file"' \
    _ "$state/$name.pid" "$state/$name.exit" "$@" >"$state/$name.log" 2>&1 </dev/null &
}

end() { # NAME SECONDS: sends SIGTERM to the group, and SIGKILL after SECONDS
  alive "$1" || return 0
  local group; group="$(cat "$state/$1.pid")"
  kill -TERM -- "-$group" 2>/dev/null || true
  for ((i = 0; i < 5 * $2; i++)); do alive "$1" || return 0; sleep 0.2; done
  kill -KILL -- "-$group" 2>/dev/null || true
}

case "${1:-}" in
  install)
    # The TPU images have Python 3.10; uv installs a newer one without changing the system.
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
    .venv/bin/python -c 'import importlib.metadata as m; print("jax", m.version("jax"), "libtpu", m.version("libtpu"))'
    ;;
  copy)
    mkdir -p "$(dirname "$3")"
    gcloud storage rsync --recursive "$2" "$3" 2>/dev/null || gcloud storage cp "$2" "$3"
    ;;
  start)
    shift
    tools=()
    while [[ $# -gt 0 && "$1" != "--" ]]; do tools+=("$1"); shift; done
    shift
    if alive trainer; then echo "$(hostname) runs already"; exit 0; fi
    where=()
    if [[ ${#tools[@]} -gt 0 ]]; then
      end tools 10
      background tools "$python" -m tools_service --host 127.0.0.1 --port 0 "${tools[@]}"
      for ((i = 0; i < 600; i++)); do
        address="$(sed -n 's/^listening on \([^ ,]*\).*/\1/p' "$state/tools.log" | head -1)"
        [[ -n "$address" || -f "$state/tools.exit" ]] && break
        sleep 0.2
      done
      if [[ -z "$address" ]]; then echo "$(hostname): the tools service did not start:"; tail -20 "$state/tools.log"; exit 1; fi
      where=("--config.tools.address=$address") # on loopback: no call leaves the machine
    fi
    background trainer "$python" -m dv2_jax.train "$@" "${where[@]}"
    for ((i = 0; i < 50; i++)); do [[ -f "$state/trainer.pid" ]] && break; sleep 0.1; done
    echo "$(hostname) started"
    ;;
  status)
    if [[ -f "$state/trainer.exit" ]]; then
      [[ "$(cat "$state/trainer.exit")" == 0 ]] && word=done || word=failed
    elif alive trainer; then word=running
    else word=stopped # not started here, or the machine was rebooted
    fi
    echo "$(hostname) $word"
    ;;
  logs)
    for name in tools trainer; do
      if [[ -f "$state/$name.log" ]]; then echo "== $(hostname) $name"; cat "$state/$name.log"; fi
    done
    ;;
  stop)
    end trainer 120 # a checkpoint is written first
    end tools 10
    ;;
  *)
    echo "usage: worker.sh install | copy FROM TO | start [TOOLS ARGS] -- ARGS | status | logs | stop" >&2
    exit 2
    ;;
esac
