#!/usr/bin/env bash
# Exports an evaluation in every format and reads each file with the tool that it is for: .ci/exports.sh RUN
# RUN is a run directory of `python -m dv2_jax.evaluate`. The tools get environments of their own (an existing one with
# inspect-ai: INSPECT_PYTHON); `python` has the project.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD run=$(realpath "${1:?the run directory of an evaluation}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
install() { env -u PIP_CONSTRAINT -u PYTHONPATH "$@" --quiet 2>&1 | grep -v '^WARNING\|^ERROR: pip.s dep\|^every-eval-ever\|^ms-vlmeval' || true; }

for format in inspect every_eval_ever vlmevalkit; do
  python -m dv2_jax.export_evaluation "$run" --format=$format --output="$work/$format" >/dev/null
done

inspect=${INSPECT_PYTHON:-$work/inspect-venv/bin/python}
if [ ! -x "$inspect" ]; then
  python3 -m venv "$work/inspect-venv"
  install "$inspect" -m pip install inspect-ai==0.3.285
fi
env -u PYTHONPATH "$inspect" .ci/exports/read_inspect.py "$run" "$work"/inspect/*.json

cd "$work/every_eval_ever"
mapfile -t files < <(find data -type f)
newer=""
for found in $(type -aP python3.14 python3.13 python3.12 python3) "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python3; do
  if "$found" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then newer=$found; break; fi
done
if [ -n "$newer" ]; then
  "$newer" -m venv "$work/schema-venv"
  install "$work/schema-venv/bin/pip" install --no-deps every-eval-ever==0.3.0
  install "$work/schema-venv/bin/pip" install 'pydantic>=2.12.5' 'jsonschema>=4.26' 'rich<15' requests
  env -u PYTHONPATH "$work/schema-venv/bin/python" -m every_eval_ever.validator.cli "${files[@]}" | tail -5
else
  echo "no Python 3.12 for the validator of every-eval-ever: its schemas alone are checked"
  install "$inspect" -m pip download --no-deps --python-version 3.12 --only-binary :all: -d "$work" every-eval-ever==0.3.0
  "$inspect" "$root/.ci/exports/validate_schemas.py" "$work"/every_eval_ever-*.whl "${files[@]}"
fi
cd "$root"

if [ -f tests/evaluation/scorers/kit_import.py ]; then
  python .ci/exports/make_kit_run.py "$work/kit"
  python -m dv2_jax.export_evaluation "$work/kit/run" --format=vlmevalkit --output="$work/kit/export"
  python3 -m venv "$work/kit-venv"
  install "$work/kit-venv/bin/python" -m pip install --no-deps ms-vlmeval==0.0.20
  install "$work/kit-venv/bin/python" -m pip install numpy 'pandas<3' pillow requests validators huggingface_hub sty tabulate portalocker \
    timeout-decorator levenshtein tqdm openpyxl xlsxwriter python-dotenv termcolor regex networkx num2words sympy latex2sympy2_extended
  env -u PYTHONPATH "$work/kit-venv/bin/python" .ci/exports/score_with_kit.py tests/evaluation/scorers/kit_import.py \
    "$work"/kit/export/*/*.xlsx "$work/kit/data/VStarBench.tsv" "$work/kit/verdicts.json"
fi
