"""The README's pictures of the dashboard, taken of the laptop study's results in a real Chromium.

    python docs/screenshots.py                  # the README's two, into docs/
    python docs/screenshots.py --all FOLDER     # every page, light and dark, to look at
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

PORT = 8599
PAGES = {
    "answer": "",
    "study": "study?cell=laptop/regularized/16384/width64",
    "runs": "runs?recipes=distilled",
    "laws": "laws?",
    "sql": "sql?query=FROM+recipe_summary",
}


def shoot(browser: Browser, name: str, file: Path, scheme: str, height: int) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": height}, color_scheme=scheme)
    path = PAGES[name]
    page.goto(f"http://127.0.0.1:{PORT}/{path}{'&' if '?' in path else '?'}study=laptop")
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=120_000)
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')", timeout=120_000)
    page.wait_for_timeout(1500)  # charts fade in
    page.screenshot(path=file)
    page.close()
    print(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="every page, light and dark")
    arguments = parser.parse_args()
    docs = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        command, database = [sys.executable, "-m", "dataeff"], str(Path(folder) / "laptop.duckdb")
        subprocess.run([*command, "import", "laptop", "--database", database], check=True, stdout=subprocess.DEVNULL)
        environment = {**os.environ, "STREAMLIT_SERVER_HEADLESS": "true"}
        server = subprocess.Popen([*command, "app", "--database", database, "--port", str(PORT)], env=environment)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/_stcore/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            if arguments.all:
                arguments.all.mkdir(parents=True, exist_ok=True)
                for name in PAGES:
                    for scheme in ("light", "dark"):
                        shoot(browser, name, arguments.all / f"{name}-{scheme}.png", scheme, 1700)
            else:
                shoot(browser, "answer", docs / "answer.png", "light", 1150)
                shoot(browser, "study", docs / "study.png", "dark", 1500)
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
