#!/usr/bin/env bash
# Installs the wheel into an environment of its own and trains two steps in an empty folder: .ci/wheel_smoke.sh FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=${1:?the folder to work in}
mkdir -p "$work/run"

pip wheel -q --no-deps -w "$work" .
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "$work"/dv2_jax-*.whl
export PATH="$work/venv/bin:$PATH"
unset PYTHONPATH
cd "$work/run"
for command in train evaluate compare export export-evaluation chat serve report compile-ahead tools tools-index tools-shell; do
  "dv2-$command" --help >"$command.txt" || { cat "$command.txt"; echo "dv2-$command --help fails" >&2; exit 1; }
done
dv2-train --config=rl --config.rl.steps=2 --config.rl.prompts_per_step=4 --config.rl.group_size=2 \
  --config.rl.minibatches=1 --config.task.eval_size=10 --config.run.name=smoke
test -s runs/smoke/summary.json
test -s runs/smoke/export/model.safetensors
