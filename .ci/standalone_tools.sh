#!/usr/bin/env bash
# Installs the tools service alone into a fresh environment, checks size and time, and runs a cell and a search in it.
# Usage: .ci/standalone_tools.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
work=${1:-$(mktemp -d)}
if [ $# = 0 ]; then trap 'rm -rf "$work"' EXIT; fi
mkdir -p "$work"
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

python3 -m venv "$work/venv"
started=$SECONDS
"$work/venv/bin/pip" install -q -c "$root/constraints.txt" "$root/packaging/tools_service"
seconds=$((SECONDS - started))
size=$(du -sm "$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" | cut -f1)
echo "standalone tools service: $size MB in $seconds s"
if [ "$size" -ge 300 ]; then
  echo "site-packages has $size MB; the limit is 300 MB: make the largest packages extras" >&2
  exit 1
fi

cd "$work" # not the repository: the installed package is meant
cat >corpus.jsonl <<'CORPUS'
{"title": "Iron", "text": "Iron melts at 1538 °C."}
CORPUS
"$work/venv/bin/dv2-tools-index" text corpus.jsonl --output facts
"$work/venv/bin/python" - <<'PROGRAM'
import importlib.util, os, sys
import tools_service
from tools_service.client import ExecRequest, Status, TextSearchRequest, ToolsClient, start_local_service

assert "site-packages" in tools_service.__file__, tools_service.__file__
heavy = [name for name in ("jax", "torch", "cv2", "pandas", "scipy", "pyarrow", "dv2_jax") if importlib.util.find_spec(name)]
assert heavy == [], heavy
service = start_local_service(text_index="facts", log_path="log.txt")
print("\n".join(service.banner))
client = ToolsClient(service.address)
plot = "import matplotlib.pyplot as plt, numpy as np\nplt.plot(np.arange(9) ** 2)\nplt.show()\n6 * 7"
client.submit([ExecRequest("cell", "s", plot, 30.0), TextSearchRequest("search", "melting point of iron", 3)])
results = {}
while client.pending():
    results |= {result.request_id: result for result in client.poll(1.0)}
client.close()
service.stop()
assert results["cell"].status is Status.OK and results["cell"].stdout == "42\n" and len(results["cell"].images) == 1, results
assert results["search"].items[0].title == "Iron", results
try:
    start_local_service(image_index="facts", log_path="image.txt")
except RuntimeError as error:
    assert "pip install 'dv2-tools-service[images]'" in str(error) and "Traceback" not in str(error), error
else:
    raise AssertionError("an image index needs OpenCV")
print("a cell with a figure and a search were answered")
PROGRAM
