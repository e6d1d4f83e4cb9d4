"""Every page, in a browser, on databases of every kind: no exception, no error in the console."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

PAGES = ("", "study", "runs", "ensembles", "data_efficiency", "laws", "sql?query=FROM+recipe_summary")
BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "dashboard.py"


@pytest.mark.parametrize("kind", ["empty", "a whole study", "open cells"])
def test_no_page_complains(tab, request, kind):
    database = {
        "empty": lambda: request.getfixturevalue("empty"),
        "a whole study": lambda: request.getfixturevalue("finished") / "dataeff.duckdb",
        "open cells": lambda: request.getfixturevalue("laptop"),
    }[kind]()
    shown = tab(database, "dark" if kind == "open cells" else "light")
    for page in PAGES:
        text = shown.open(page).page.inner_text("body")
        assert kind != "empty" or page.startswith("sql") or "dataeff run quickstart" in text


@pytest.mark.slow
def test_no_page_complains_of_a_hundred_thousand_runs_and_each_is_there_soon(tab, tmp_path):
    """The second visit, with the queries cached, as of a page that is looked at while a study rests. Seconds are printed."""
    spec = importlib.util.spec_from_file_location("dashboard", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.build(tmp_path / "large.duckdb")
    shown = tab(tmp_path / "large.duckdb")
    for page in PAGES:
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            shown.open(page)
            seconds.append(time.perf_counter() - begin)
        print(f"{page or 'answer':<35} first {seconds[0]:.1f} s, again {seconds[1]:.1f} s")
