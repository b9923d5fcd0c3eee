"""The README's pictures, from the shipped models: `python -m tests.e2e.screenshots [FOLDER]`."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from .conftest import CHROMIUM_ARGS, PATIENCE_S, REPO, SERVE, free_port
from .test_compare import generate, wait_done

SHOTS = (("compare", 1440, 1000, "light"),)


def main() -> None:
    """Play one prompt with all three models, and draw the page as SHOTS say, JPEG at quality 85."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else REPO / "assets" / "pictures"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        studio = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(free_port()), folder], cwd=REPO, stdout=subprocess.PIPE, text=True
        )
        try:
            url = re.search(r"http://\S+", studio.stdout.readline())[0]
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_ARGS)
            for name, width, height, theme in SHOTS:
                page = browser.new_page(viewport={"width": width, "height": height})
                page.set_default_timeout(1000 * PATIENCE_S)
                page.goto(f"{url}?__theme={theme}")
                page.wait_for_selector("#tm-history .tm-takes, #tm-history .tm-empty")
                generate(page, seconds="8")
                wait_done(page)
                page.screenshot(path=target / f"{name}.jpg", type="jpeg", quality=85)
                print(target / f"{name}.jpg")
            browser.close()
        finally:
            studio.terminate()
            studio.wait(30)


if __name__ == "__main__":
    main()
