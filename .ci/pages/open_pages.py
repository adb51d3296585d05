"""Opens pages in headless Chromium and prints their console messages: open_pages.py BROWSER PAGE...

A copy of each page gets a script that clicks its buttons, opens its cards and changes its choices, so that errors of event
handlers appear too. Any message in the console is a failure: the pages write none. The check first opens a page that
throws, and one without errors, to show that it can see the difference.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--enable-logging=stderr", "--log-level=0",
    "--virtual-time-budget=4000", "--dump-dom",
)  # fmt: skip
CONSOLE = re.compile(r":CONSOLE[(:]\d+\)?\] (.*)")
USE = """<script>
addEventListener("load", async () => {
  const pause = () => new Promise(done => setTimeout(done, 150));
  for (const card of document.querySelectorAll("details")) card.open = true;
  await pause(); // cards fill in their images when they open
  for (const image of document.images) {
    if (image.getAttribute("src") && image.complete && !image.naturalWidth) console.error("broken image", image.alt);
  }
  for (const image of [...document.querySelectorAll(".shot img")].slice(0, 3)) { image.click(); await pause(); document.body.click(); }
  for (const select of document.querySelectorAll("select")) for (let i = select.options.length - 1; i >= 0; i--) {
    select.selectedIndex = i; select.dispatchEvent(new Event("change", {bubbles: true}));
  }
  for (const box of document.querySelectorAll("input[type=checkbox]")) { box.click(); box.click(); }
  for (const button of document.querySelectorAll("button")) { button.click(); button.click(); }
  await pause();
  document.documentElement.dataset.used = "yes";
});
</script>"""


def messages(browser: str, page: str) -> list[str]:
    """Returns the console messages of a page after its controls were used; raises RuntimeError if it was not opened."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(page.replace("</body>", f"{USE}</body>") if "</body>" in page else page + USE, encoding="utf-8")
        command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", copy.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if 'data-used="yes"' not in done.stdout:
            raise RuntimeError(f"the browser did not run the page: {done.stderr[-600:]}")
        return CONSOLE.findall(done.stderr)


def main() -> None:
    browser, *paths = sys.argv[1:]
    if not paths:
        sys.exit("no pages")
    page = '<!doctype html><meta charset="utf-8"><body><button>x</button>{}</body>'
    throws = "<script>document.querySelector('button').addEventListener('click', () => undefinedName())</script>"
    if messages(browser, page.format("")) or not messages(browser, page.format(throws)):
        sys.exit("the browser does not report errors of a page: the check would pass whatever happens")
    failed = False
    for path in paths:
        found = messages(browser, Path(path).read_text(encoding="utf-8"))
        failed |= bool(found)
        print(f"{path}: {len(found)} messages in the console")
        for message in found[:10]:
            print(f"  {message}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
