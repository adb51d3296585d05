#!/usr/bin/env bash
# Opens pages in headless Chromium, uses their controls, and fails on errors in the console: .ci/pages.sh PAGE...
# Skipped with a message where there is no browser; `apt-get install chromium` brings one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
browser=${BROWSER_BINARY:-$(type -P chromium chromium-browser google-chrome chrome | head -1 || true)}
if [ -z "$browser" ]; then
  echo "pages: skipped, there is no Chromium (set BROWSER_BINARY, or apt-get install chromium)"
  exit 0
fi
exec python3 .ci/pages/open_pages.py "$browser" "$@"
