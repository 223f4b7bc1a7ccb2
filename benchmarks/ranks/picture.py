"""One request's waterfall: as `decant waterfall` prints it, and as a person sees it on the server's page."""

import shutil
import subprocess
import sys
from pathlib import Path

from ranks.served import Served

_WIDTH, _HEIGHT = 1100, 900
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
_LIMIT_MS = 30_000


def write_waterfall(served: Served, request_id: str, folder: Path) -> list[str]:
    """Writes waterfall.png into the folder; the lines are those of the text."""
    picture = folder / "waterfall.png"
    _draw(f"{served.base_url}/#requests/{request_id}", picture)
    command = [sys.executable, "-m", "decant", "waterfall", request_id, "--base-url", f"{served.base_url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return ["```text", *done.stdout.rstrip().splitlines(), "```", "", f"The page: {picture}"]


def _draw(address: str, picture: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("there is no chromium on the PATH to draw the page with")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.set_default_timeout(_LIMIT_MS)
        page.goto(address)
        shown = page.locator(".waterfall").first
        shown.wait_for()
        page.locator("#detail").screenshot(path=picture)
        browser.close()
