"""A study writes while four browsers look at every page of it: no error on either side. Ten minutes, run by `make test-slow`."""

from __future__ import annotations

import time

import pytest

from dataeff.records.store import Database
from tests.app.conftest import Tab
from tests.conftest import TINY, dataeff, start_study, write_tiny_study

MINUTES = 10
PAGES = ("", "study", "runs", "laws", "sql")


@pytest.mark.slow
def test_a_study_and_four_browsers_share_the_file(serve, chromium, tmp_path):
    study, begin, rounds, seen = write_tiny_study(tmp_path), time.monotonic(), 0, 0
    running = start_study(tmp_path)
    tabs = [Tab(chromium, serve(tmp_path / "dataeff.duckdb"), scheme) for scheme in ("light", "dark") * 2]
    while time.monotonic() - begin < 60 * MINUTES:
        if running.poll() is not None:
            assert running.returncode == 0
            rounds += 1  # the study asks for two seeds more, and for nothing it has
            study.write_text(TINY.replace("seeds = [0, 1]", f"seeds = {[2 * rounds, 2 * rounds + 1]}"))
            running = start_study(tmp_path)
        for place, tab in enumerate(tabs):
            tab.open(f"{PAGES[(seen + place) % len(PAGES)]}?study=tiny")
        seen += 1
    running.terminate()
    running.wait(60)
    assert rounds >= 2 and seen >= len(PAGES)
    done = dataeff("run", "tiny.toml", cwd=tmp_path)  # what was stopped goes on, and nothing is lost
    assert done.returncode == 0, done.stderr
    with Database(tmp_path / "dataeff.duckdb").read() as connection:
        doubled = connection.execute("SELECT count(*) - count(DISTINCT run_id) FROM run").fetchone()
        lost = connection.execute("SELECT count(*) FROM trial ANTI JOIN run USING (run_id)").fetchone()
    assert doubled == lost == (0,)
