"""The Study page, in a browser: what it says is what SQL says, of studies that ended, failed or are under way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

from dataeff.facts.job import Attempt
from dataeff.facts.store import Store, write_atomically
from dataeff.records.queries import records
from dataeff.records.store import Database
from dataeff.reports import progress, search
from dataeff.reports.charts import chart_bytes
from dataeff.reports.theme import themed
from tests.conftest import dataeff, start_study, write_tiny_study

COUNTS = """SELECT count_if(state = 'certified') || ' of ' || count(*), count_if(state = 'boundary')::VARCHAR,
    count_if(state NOT IN ('certified', 'boundary'))::VARCHAR FROM certificate"""
OPEN = "laptop/joint/16384/width128"


def metrics(shown) -> dict[str, str]:
    return dict(re.split("\n+", text) for text in shown.page.locator("[data-testid=stMetric]").all_inner_texts())


def labels(shown) -> list[str]:
    return sorted(shown.page.locator("svg.marks .mark-text.role-mark text").all_text_contents())


def test_counts_certificate_and_marks_are_those_of_sql(tab, finished):
    cell = "tiny/regularized/2048/b"
    with Database(finished / "dataeff.duckdb").read() as connection:
        states = connection.execute(COUNTS).fetchone()
        (recorded,) = connection.execute("SELECT count(DISTINCT run_id) FROM trial JOIN run USING (run_id)").fetchone()
        numbers = connection.execute("SELECT number FROM trial WHERE cell_id = $1 AND role = 'search'", [cell]).fetchall()
        (reason,) = connection.execute("SELECT reason FROM certificate WHERE cell_id = $1", [cell]).fetchone()
    shown = tab(finished / "dataeff.duckdb").open(f"study?cell={cell}")
    found = metrics(shown)
    assert tuple(found[state] for state in ("certified", "boundary", "open")) == states
    assert (found["runs"], found["under way"]) == (str(recorded), "0")
    assert "20 of 20 searches have ended." in shown.text
    assert "regularized, D = 2,048 tokens, b" in shown.text
    assert reason in shown.text
    assert labels(shown) == sorted(str(number) for (number,) in numbers)


def test_the_url_of_an_open_cell_marks_what_its_certificate_lacks(tab, laptop):
    with Database(laptop).read() as connection:
        (missing,) = connection.execute("SELECT neighbours_missing FROM certificate WHERE cell_id = $1", [OPEN]).fetchone()
    shown = tab(laptop, "dark").open(f"study?recipe=joint&state=open&cell={OPEN}")
    assert labels(shown).count("?") == missing == 2
    assert "Its search has not ended." in shown.text
    assert "Importance" in shown.text  # PED-ANOVA of the points that were run


def test_a_cell_tuned_for_the_limit_shows_its_single_models_too(tab, laptop):
    cell = "laptop/joint/32768/width128"
    with Database(laptop).read() as connection:
        points = search.cell_search(connection, cell)["points"]
    best = min((p for p in points if p["loss"] is not None), key=lambda p: p["loss"])
    single = min((p for p in points if p["single"] is not None), key=lambda p: p["single"])
    assert best["is_best"] and best["at"] != single["at"]  # ensembles want other hyper-parameters
    assert single["x"] > best["x"]  # more weight decay
    shown = tab(laptop).open(f"study?cell={cell}&value=single")
    assert shown.page.get_by_role("radio", name="mean of single models").is_checked()
    assert shown.charts == 2


def test_a_chosen_row_is_in_the_url_and_leads_to_its_best_run(tab, laptop):
    with Database(laptop).read() as connection:
        by = "ORDER BY seed_tokens, parameters_total"
        rows = connection.execute(f"SELECT cell_id, run_id FROM best_run WHERE recipe = 'regularized' {by}").fetchall()
    shown = tab(laptop).open("study?recipe=regularized")
    table = shown.page.locator("[data-testid=stDataFrame]:visible").first.bounding_box()
    for column, row in ((15, 3), (420, 4)):  # its mark, or anywhere in the row
        shown.page.mouse.click(table["x"] + column, table["y"] + 18 + 35 * row)
        cell, run = rows[row - 1]
        shown.page.wait_for_url(re.compile("cell=" + cell.replace("/", "%2F")))
    shown.look().page.get_by_text(f"Best run {run[:8]}").click()
    shown.page.wait_for_url(re.compile(f"runs.*run={run}"))
    shown.look()


def test_an_ensemble_leads_to_the_search_it_follows(tab, laptop):
    shown = tab(laptop).open("study?cell=laptop/ensemble/4096/width16")
    assert shown.charts == 0
    shown.page.get_by_text("The search it follows: regularized/4096/width16").click()
    shown.page.wait_for_selector("svg.marks")
    assert "regularized, D = 4,096 tokens, width16" in shown.look().text


def test_notes_are_kept_across_a_rebuild(tab, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "noted")
    shown = tab(folder / "dataeff.duckdb").open("study")
    shown.page.get_by_text("Notes").first.click()
    shown.page.get_by_role("textbox", name="Notes").fill("seed 1 is odd")
    shown.page.keyboard.press("Control+Enter")
    shown.page.get_by_text("Notes: seed 1 is odd").wait_for()
    done = dataeff("rebuild", cwd=folder)
    assert done.returncode == 0, done.stderr
    shown.open("study")
    assert "Notes: seed 1 is odd" in shown.text


@pytest.fixture(scope="session")
def failed(finished, tmp_path_factory):
    """A copy of a database in which attempts failed or were killed, and beside which two never ended."""
    path = tmp_path_factory.mktemp("failed") / "failed.duckdb"
    shutil.copy(finished / "dataeff.duckdb", path)
    child = subprocess.Popen(["true"])
    child.wait()
    with Database(path).write() as connection:
        connection.execute(
            """INSERT INTO attempt BY NAME SELECT unnest([
                {job_id: 'a1', number: 1, outcome: 'out_of_memory', reason: 'CUDA out of memory', process_id: 1},
                {job_id: 'a1', number: 2, outcome: 'failed', reason: 'the disk is full', process_id: 2},
                {job_id: 'd4', number: 1, outcome: 'running', reason: NULL, process_id: 4},
                {job_id: 'd4', number: 2, outcome: 'killed', reason: 'signal 9', process_id: 5}], max_depth := 2),
                now() - INTERVAL 2 DAY AS started_at, 'far' AS host, 'cpu' AS device, 'train' AS kind"""
        )
        connection.execute("""UPDATE cell SET search_ended_at = NULL, state = 'searching', runs_left = 3, flops_left = 1e9
            WHERE recipe = 'standard' AND size = 'c'""")
    old = time.time() - 3600
    for name, host, process in (("b2", socket.gethostname(), child.pid), ("c3", "far", 3)):
        folder = Store.beside(path).run(name)
        attempt = Attempt(job_id=name, number=1, started_at="2026-01-01T00:00:00Z", host=host, process_id=process, device="cpu")
        write_atomically(folder.spec, json.dumps({"lr": 0.01, "epochs": 4, "train_seed": 0, "seed_tokens": 1024}))
        write_atomically(folder.attempts / "0001.json", attempt.model_dump_json())
        os.utime(folder.attempts / "0001.json", (old, old))
    return path


def test_attempts_whose_process_is_gone_are_told_from_those_under_way(failed):
    found = {attempt["run_id"]: attempt for attempt in progress.under_way(Store.beside(failed), {"another"})}
    assert {run_id: (attempt["alive"], attempt["live"]) for run_id, attempt in found.items()} == {
        "b2": (False, False),
        "c3": (None, False),
    }
    assert found["b2"]["sign"].startswith("killed: its process is gone")
    assert found["c3"]["sign"].startswith("on another machine; last sign")
    assert found["b2"]["job"] == "run, lr 0.01, epochs 4, train_seed 0"
    assert progress.under_way(Store.beside(failed), {"b2", "c3"}) == []


def test_failures_are_counted_by_how_they_ended(tab, failed):
    shown = tab(failed).open("study")
    assert "1 failed, 1 out of memory, 2 killed; 2 of their runs have no result yet" in shown.text
    assert "Unfinished attempts: 2" in shown.text
    assert metrics(shown)["under way"] == "0"
    assert "18 of 20 searches have ended. About 6 runs are left" in shown.text


@pytest.mark.slow
def test_a_page_opened_before_follows_a_study_from_its_beginning_to_its_end(tab, tmp_path):
    write_tiny_study(tmp_path)
    shown = tab(tmp_path / "dataeff.duckdb").open("study")
    study = start_study(tmp_path)
    try:
        shown.page.get_by_text("searches have ended").wait_for()  # by itself, as all that follows
        before = int(metrics(shown.look())["runs"])
        study.wait()
        shown.page.get_by_text("20 of 20 searches have ended.").wait_for()
        assert int(metrics(shown.look())["runs"]) > before
    finally:
        if study.poll() is None:
            study.send_signal(signal.SIGKILL)
            study.wait()


def test_missing_neighbours_are_one_step_from_the_optimum_and_were_not_run(laptop):
    with Database(laptop).read() as connection:
        found = search.cell_search(connection, OPEN)
    points = found["points"]
    # run: weight decay 0.2 to 6.4 at 32 epochs, and (1.6, 16); the best of them is (0.8, 32)
    assert {(p["x"], p["y"]) for p in points if p["state"] == "missing"} == {(0.8, 16), (0.8, 64)}
    assert [(p["x"], p["y"]) for p in points if p["is_best"]] == [(0.8, 32)]
    assert len(points) == 9 * 8
    searched = {run["number"] for run in found["runs"] if run["role"] == "search"}
    assert searched == {p["number"] for p in points if p["state"] == "run"}


def test_every_missing_neighbour_of_every_cell_is_marked(laptop):
    with Database(laptop).read() as connection:
        for cell in records(connection, progress.CELLS, ["laptop"])[::30]:
            points = search.cell_search(connection, cell["cell_id"])["points"]
            assert sum(p["state"] == "missing" for p in points) == cell["neighbours_missing"]
            assert [p["loss"] for p in points if p["is_best"]] == [pytest.approx(cell["best_loss"])]


def test_importances_name_the_axis_that_decides():
    at = [(x, y) for x in range(6) for y in range(6)]
    points = [{"at": place, "loss": (place[0] - 2) ** 2 + 0.001 * place[1]} for place in at]
    shares = {row["axis"]: row["importance"] for row in search.importances(["lr", "epochs"], points)}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["lr"] > 0.7
    assert search.importances(["lr", "epochs"], points[:4]) == []


def test_a_search_of_one_axis_is_one_row(finished, tmp_path):
    path = tmp_path / "one.duckdb"
    shutil.copy(finished / "dataeff.duckdb", path)
    with Database(path).write() as connection:  # what is left of a search when all but one axis is fixed
        connection.execute("""UPDATE cell SET axes = '{"lr": [0.003, 0.01, 0.03]}', shape = [3], best = [1],
            neighbours_missing = [[2]] WHERE cell_id = 'tiny/standard/1024/a'""")
        connection.execute("DELETE FROM trial WHERE cell_id = 'tiny/standard/1024/a' AND (role <> 'search' OR number > 1)")
        connection.execute("UPDATE trial SET coordinates = [number] WHERE cell_id = 'tiny/standard/1024/a'")
        points = search.cell_search(connection, "tiny/standard/1024/a")["points"]
        assert not records(connection, progress.STANDING, ["tiny"])[0]["flops_left"]
        assert records(connection, progress.FAILURES, ["tiny"]) == []
    chart = search.search_chart(["lr"], points)
    assert [(point["x"], point["state"]) for point in points] == [(0.003, "run"), (0.01, "run"), (0.03, "missing")]
    assert chart_bytes(themed(chart), "svg").count(b"<text") >= 6  # three values, three marks
