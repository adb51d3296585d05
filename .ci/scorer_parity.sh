#!/usr/bin/env bash
# Compares the official scorers of VLMEvalKit's benchmarks with the package ms-vlmeval itself, on synthetic predictions.
# The package gets an environment of its own, with what its scoring functions need and mocks for the rest; the comparison
# runs with the `python` of the caller. Arguments are passed on (--count=N predictions per rule, --store).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# pandas below 3: the kit stores a truth value in a column of floats. The parser of LaTeX is the one that we use.
latex=$(grep '^latex2sympy2_extended==' constraints.txt)
install=(env -u PIP_CONSTRAINT -u PYTHONPATH PIP_DISABLE_PIP_VERSION_CHECK=1 "$work/venv/bin/pip" install --quiet)
"${install[@]}" --no-deps ms-vlmeval==0.0.20
"${install[@]}" numpy 'pandas<3' pillow requests validators huggingface_hub sty tabulate portalocker timeout-decorator levenshtein \
  tqdm openpyxl xlsxwriter python-dotenv termcolor regex networkx num2words sympy "$latex" 2>"$work/pip.log" || {
  cat "$work/pip.log" >&2 # it also lists the packages of ms-vlmeval that are left out
  exit 1
}
python -m tests.evaluation.scorers.parity_with_kit "$work/venv/bin/python" "$@"
