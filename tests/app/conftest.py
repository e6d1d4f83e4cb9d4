"""The dashboard as a user has it: `dataeff app` on a real database, and a real Chromium that looks at it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], str]]:
    """Return a function from a database to the address of its dashboard; one server a database, all stopped at the end."""
    servers: dict[Path, tuple[str, subprocess.Popen[bytes]]] = {}

    def start(database: Path) -> str:
        if database not in servers:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = [sys.executable, "-m", "dataeff", "app", "--database", str(database), "--port", str(port)]
            environment = {**os.environ, "STREAMLIT_SERVER_HEADLESS": "true"}
            servers[database] = f"http://127.0.0.1:{port}", subprocess.Popen(command, env=environment)
            waiting = urllib.request.Request(f"http://127.0.0.1:{port}/_stcore/health")
            for _ in range(600):
                try:
                    urllib.request.urlopen(waiting, timeout=1)
                    break
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    assert servers[database][1].poll() is None, "the server has ended"
                    try:
                        servers[database][1].wait(0.1)
                    except subprocess.TimeoutExpired:
                        pass
        return servers[database][0]

    yield start
    for _, server in servers.values():
        server.terminate()
        server.wait(20)


class Tab:
    """A page of the dashboard in the browser. `look` waits until it has been drawn and has nothing to complain about."""

    def __init__(self, chromium, address: str, scheme: str = "light") -> None:
        self.address, self.complaints = address, []
        self.page = chromium.new_page(viewport={"width": 1400, "height": 1400}, color_scheme=scheme)
        self.page.set_default_timeout(60_000)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"{request.url} failed"))

    def _hear(self, said) -> None:
        if said.type == "error" and "/_stcore/" not in said.location["url"]:  # Streamlit looks for itself below a page's address
            self.complaints.append(said.text)

    def open(self, path: str = "") -> Tab:
        self.complaints.clear()  # what the page before it was still loading was given up
        self.page.goto(f"{self.address}/{path}")
        return self.look()

    def look(self) -> Tab:
        self.page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
        self.page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
        assert not self.complaints
        assert self.page.locator("[data-testid=stException]").count() == 0, self.text
        return self

    @property
    def text(self) -> str:
        return self.page.locator("[data-testid=stMain]").inner_text()

    @property
    def charts(self) -> int:
        return self.page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg.marks").count()


@pytest.fixture
def tab(serve, chromium) -> Iterator[Callable[..., Tab]]:
    """Return a function from a database (and a colour scheme) to a browser tab on its dashboard."""
    opened: list[Tab] = []

    def open_tab(database: Path, scheme: str = "light") -> Tab:
        opened.append(Tab(chromium, serve(database), scheme))
        return opened[-1]

    yield open_tab
    for each in opened:
        each.page.close()


@pytest.fixture(scope="session")
def empty(tmp_path_factory) -> Path:
    """A database file that nobody has made yet."""
    return tmp_path_factory.mktemp("empty") / "none.duckdb"


@pytest.fixture(scope="session")
def laptop(tmp_path_factory) -> Path:
    """A database with the results of the laptop study that come along."""
    from dataeff.records.exchange import import_study
    from dataeff.records.store import Database
    from dataeff.study.fits import renew_fits
    from tests.conftest import EIGHT_RECIPES

    path = tmp_path_factory.mktemp("laptop") / "laptop.duckdb"
    import_study(Database(path), EIGHT_RECIPES)
    renew_fits(Database(path))
    return path
