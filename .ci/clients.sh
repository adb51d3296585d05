#!/usr/bin/env bash
# Runs unmodified clients against our server, each in an environment of its own, and compares their answers and scores with
# those of `evaluate` on the same questions: .ci/clients.sh [FOLDER]
# `python` is the one that has dv2_jax installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
work=${1:-$(mktemp -d)}
if [ $# = 0 ]; then trap 'rm -rf "$work"' EXIT; fi
mkdir -p "$work/rows"
small="--config.engine.slots=8 --config.engine.prefill_rows=4 --config.engine.page_size=512 --config.engine.pages=24"

install() { # NAME FLAGS... -- PACKAGES...: an environment without our constraints, which are of other versions
  local venv=$work/$1
  shift
  python3 -m venv "$venv"
  env -u PIP_CONSTRAINT -u PIP_BUILD_CONSTRAINT "$venv/bin/pip" install -q "$@"
}
install_kit() {
  install vlmeval --no-deps ms-vlmeval==0.0.20
  env -u PIP_CONSTRAINT "$work/vlmeval/bin/pip" install -q numpy pandas pillow requests validators huggingface_hub sty \
    tabulate portalocker datasets timeout-decorator levenshtein joblib python-dotenv termcolor sympy regex networkx \
    num2words tqdm openpyxl xlsxwriter
}
install openai openai==3.57.0 & openai_installed=$!
install inspect inspect-ai==0.3.285 openai==3.57.0 & inspect_installed=$!
install_kit & kit_installed=$!

python .ci/clients/make_rows.py "$work/rows"
cd "$work"
python -m dv2_jax.serve --config="$root/configs/serve.py" --config.serve.port=0 --config.run.root="$work/runs" $small \
  2>"$work/serve.log" & server=$!
stop() { kill -TERM "$server" 2>/dev/null || true; wait "$server" || true; }
trap 'stop; [ $# != 0 ] || rm -rf "$work"' EXIT

python -m dv2_jax.evaluate --config="$root/configs/evaluate.py" --config.run.root="$work/runs" $small \
  --config.eval.benchmarks=rows/rows.jsonl,vstar,treebench --config.eval.data=rows --config.eval.tool_sets=all \
  >"$work/evaluate.log" 2>&1 || { cat "$work/evaluate.log"; exit 1; }
for _ in $(seq 300); do
  if grep -q '^serving' "$work/serve.log" || ! kill -0 "$server" 2>/dev/null; then break; fi
  sleep 1
done
url=$(sed -n 's/^serving .* at \(http[^ ]*\).*/\1/p' "$work/serve.log")
[ -n "$url" ] || { cat "$work/serve.log" >&2; echo "the server did not start" >&2; exit 1; }

cd "$work/rows"
wait "$openai_installed"
"$work/openai/bin/python" "$root/.ci/clients/openai_checks.py" "$url" .

wait "$inspect_installed"
cp "$root/.ci/clients/inspect_task.py" .
DV2_BASE_URL=$url DV2_API_KEY=none "$work/inspect/bin/inspect" eval inspect_task.py --model openai-api/dv2/dv2 \
  --display none --log-format json --log-dir logs

wait "$kit_installed"
LMUData=$PWD "$work/vlmeval/bin/python" "$root/.ci/clients/run_vlmeval.py" --data TinyMCQ TreeBench --model dv2 \
  --base-url "$url" --judge exact_matching --api-nproc 4 --api-mode --work-dir out >"$work/vlmeval.log" 2>&1 ||
  { cat "$work/vlmeval.log"; exit 1; }
"$work/vlmeval/bin/python" "$root/.ci/clients/kit_results.py" .

cd "$work"
python "$root/.ci/clients/compare.py" runs/evaluate rows
kill -TERM "$server"
wait "$server"
echo "openai, inspect-ai and VLMEvalKit measured what evaluate measured"
