"""How long the dashboard's queries take on a database far larger than a study's: 100,000 runs, 10 million metric rows.

    python benchmarks/dashboard.py [--database FILE]

The database is made by SQL in a temporary folder, in half a minute, or kept in FILE, which `dataeff app --database FILE` shows.
Seconds are medians of 5, from opening the file to Python values, as of a page's first visit; a page keeps them until the file
is written again. The peer is MLflow's client on its SQLite store (where mlflow-skinny is installed) with the same runs, their
parameters and losses, put there by SQL; of curves it holds the eight long ones alone. Both give what one page of a table needs,
but of a curve MLflow gives every point, and dataeff at most 4,000. Where there is a Chromium, the pages are clicked through
twice: seconds from a click until the page stands still, on a server that has just begun.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.reports import answer, laws, progress, runs, search
from dataeff.study.fits import renew_fits

PORT = 8612
RUNS, POINTS, LONG, LONG_POINTS = 100_000, 31, 8, 30_000

# Cells of 6 x 8 x 7 grid points, of which the search tried nearly all; runs follow one law with noise, and 1 of 50 diverged.
BUILD = f"""
CREATE TEMP TABLE made AS
WITH numbered AS (SELECT range AS i, range // 320 AS cell, range % 320 AS point FROM range({RUNS})),
placed AS (
    SELECT *, cell % 4 AS recipe, cell // 4 % 8 AS budget, cell // 32 % 10 AS size,
        [point // 56, point // 7 % 8, point % 7]::INTEGER[] AS coordinates FROM numbered
)
SELECT *, left(md5(i::VARCHAR), 16) AS run_id,
    ['standard', 'regularized', 'ensemble', 'distilled'][recipe + 1] || cell // 320 AS recipe_name,
    (1_000_000 * power(2, budget))::BIGINT AS seed_tokens, (20_000_000 * power(1.6, size))::BIGINT AS parameters,
    [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2][coordinates[1] + 1] AS lr,
    [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4][coordinates[2] + 1] AS weight_decay, (2 ** coordinates[3])::BIGINT AS epochs,
    if(hash(i) % 50 = 0, NULL, 2.5 + 0.8 * power(1.6, -0.3 * size) + 1.2 * power(2, -0.3 * budget)
        + 0.03 * list_sum([(coordinates[1] - 3)**2, (coordinates[2] - 4)**2, (coordinates[3] - 3)**2])
        + 0.002 * (hash(i, 1) % 1000) / 1000) AS val_loss,
    if(i < {LONG}, {LONG_POINTS}, {POINTS}) AS points
FROM placed;

INSERT INTO study BY NAME SELECT 'synthetic' AS name, 'How fast is the dashboard?' AS question, 'standard0' AS baseline,
    '' AS text, now() AS started_at, now() AS updated_at,
    json_object('recipes', json_group_object(recipe_name, json_object())) AS spec
FROM (SELECT DISTINCT recipe_name FROM made ORDER BY ALL);

INSERT INTO cell BY NAME
SELECT 'synthetic/' || recipe_name || '/' || seed_tokens || '/s' || size AS cell_id, 'synthetic' AS study,
    recipe_name AS recipe, 'N' AS recipe_limit, 'single' AS objective, 'logits' AS averaging, 1 AS members, seed_tokens,
    's' || size AS size, parameters AS parameters_total, parameters AS parameters_non_embedding, '[]' AS starts,
    '{{"lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2], "weight_decay": [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4],
      "epochs": [1, 2, 4, 8, 16, 32, 64]}}' AS axes, [6, 8, 7] AS shape, 'certified' AS state, 'made up' AS reason,
    cell_id AS origin, arg_min(coordinates, val_loss) AS best, min(val_loss) AS best_loss, now() AS search_ended_at,
    0 AS runs_left, 0 AS flops_left, [] AS neighbours_missing, [] AS edges
FROM made GROUP BY recipe_name, seed_tokens, size, parameters;

INSERT INTO trial
SELECT 'synthetic/' || recipe_name || '/' || seed_tokens || '/s' || size, run_id, 'search', point, coordinates FROM made;

INSERT INTO run BY NAME
SELECT run_id, if(val_loss IS NULL, 'diverged', 'finished') AS status, 'c0ffee' AS corpus, 'synthetic' AS corpus_name,
    seed_tokens, parameters AS parameters_total, parameters AS parameters_non_embedding, parameters AS parameters_active,
    256 AS hidden, 4 AS layers, 4 AS heads, 4 AS kv_heads, 1024 AS feed_forward, 512 AS vocabulary, 64 AS context_length, lr,
    weight_decay, epochs, 8 AS batch_size, 'adamw' AS optimizer, 0 AS dropout, 'same' AS "order", 'float32' AS "precision",
    0 AS train_seed, 0 AS data_seed, 1 AS trainer_version, val_loss, 0.01 AS val_loss_standard_error,
    val_loss - 0.2 AS train_loss, points AS steps, seed_tokens * epochs AS tokens_seen,
    6.0 * parameters * seed_tokens * epochs AS training_flops, 60 AS wall_seconds, 1e5 AS tokens_per_second, 'cpu' AS device,
    'here' AS host, '2.13.0' AS torch_version, now() AS started_at, now() AS ended_at,
    json_object('lr', lr, 'weight_decay', weight_decay, 'epochs', epochs, 'seed_tokens', seed_tokens) AS spec,
    1 AS experts, 1 AS loops
FROM made ORDER BY i;

INSERT INTO metric
SELECT run_id, step, seed_tokens * epochs * step // points, name, CASE name WHEN 'lr' THEN lr * (1 - step / points)
    WHEN 'gradient_norm' THEN 1 / sqrt(step) ELSE coalesce(val_loss, 9) + 3 / step END + 1e-4 * (hash(i, step) % 1000)
FROM made, (VALUES ('train_loss'), ('gradient_norm'), ('lr')) AS names(name), range(1, points + 1) AS steps(step)
ORDER BY i, name, step;

INSERT INTO evaluation
SELECT run_id, points * part // 4, seed_tokens * epochs * part // 4, 'validation', val_loss + 0.1 * (4 - part), 0.01
FROM made, range(1, 5) AS parts(part) WHERE val_loss IS NOT NULL ORDER BY i, part;

INSERT INTO attempt BY NAME
SELECT run_id AS job_id, 'train' AS kind, 1 AS number, now() AS started_at, now() AS ended_at,
    if(val_loss IS NULL, 'diverged', 'finished') AS outcome, 'here' AS host, 1 AS process_id, 'cpu' AS device FROM made;
"""


def median(ask: Callable[[], Any]) -> float:
    """Return the median of the seconds that five calls take."""
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def build(path: Path) -> None:
    begin = time.perf_counter()
    with Database(path).write() as connection:
        connection.execute(BUILD)
    with Database(path).read() as connection:
        counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("run", "metric")]
    print(f"{counts[0]:,} runs and {counts[1]:,} metric rows, made in {time.perf_counter() - begin:.0f} s\n")


def long_and_short(database: Database) -> tuple[list[str], list[str]]:
    """Return the ids of five runs with long curves, and of five with short ones."""
    with database.read() as connection:
        ids = [row[0] for row in connection.execute("SELECT run_id FROM run ORDER BY steps DESC, rowid LIMIT 100").fetchall()]
    return ids[:5], ids[-5:]


def runs_page(database: Database) -> dict[str, Callable[[Any], Any]]:
    """Return the queries of the Runs page: a function of a connection by what it gives."""
    found = runs.matching("synthetic")
    long, short = long_and_short(database)

    def table(sort: str, offset: int = 0) -> Callable[[Any], Any]:
        return lambda c: queries.records(c, runs.table_query(found, sort, 500, offset))

    return {
        "studies to choose from": queries.study_names,
        "recipes, D and sizes to choose from": lambda c: queries.records(c, runs.FACETS, ["synthetic"]),
        "500 runs of least loss": table("val_loss"),
        "500 runs in the midst, by recipe": table("recipes", 50_000),
        "curves of 5 runs": lambda c: runs.curves(c, short),
        "curves of 5 runs of 30,000 points": lambda c: runs.curves(c, long),
        "the same, smoothed": lambda c: runs.curves(c, long, smoothing=5, log_x=True),
        "one run's page": lambda c: queries.job_details(c, short[0]),
        "its neighbours": lambda c: queries.records(c, runs.NEIGHBOURS, [short[0]]),
    }


def other_pages(database: Database) -> dict[str, Callable[[Any], Any]]:
    """Return what the other pages ask: a function of a connection by page."""
    renew_fits(database)
    with database.read() as connection:
        cell = queries.records(connection, progress.CELLS, ["synthetic"])[0]["cell_id"]
    return {
        "Answer": lambda c: answer.study_answer(c, "synthetic"),
        "Study: how it stands": lambda c: queries.records(c, progress.STANDING, ["synthetic"]),
        "Study: its cells": lambda c: queries.records(c, progress.CELLS, ["synthetic"]),
        "Study: what failed": lambda c: queries.records(c, progress.FAILURES, ["synthetic"]),
        "Study: one cell's grid": lambda c: search.cell_search(c, cell),
        "Answer: ratios": lambda c: queries.records(c, laws.RATIOS, ["synthetic"]),
        "Laws: over N": lambda c: laws.study_laws(c, "synthetic", "N"),
        "fits, when nothing is stale": lambda _: renew_fits(database),
    }


def load_mlflow(database: Database, folder: Path) -> tuple[Any, str]:
    """Return MLflow's client on a store with the runs of the database, and their experiment. Raises `ImportError` without it."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("synthetic", artifact_location=str(folder))
    store = sqlite3.connect(folder / "mlflow.db")
    with database.read() as connection, store:
        for table, text in {
            "runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri, "
            "experiment_id)": f"""SELECT run_id, run_id, 'LOCAL', 'me', if(status = 'finished', 'FINISHED', 'FAILED'), 0, 1,
                'active', '', {experiment} FROM run""",
            "params (run_uuid, key, value)": """UNPIVOT (SELECT run_id, lr::VARCHAR AS lr, weight_decay::VARCHAR AS weight_decay,
                epochs::VARCHAR AS epochs, seed_tokens::VARCHAR AS D, parameters_total::VARCHAR AS N FROM run)
                ON * EXCLUDE run_id""",
            "latest_metrics (run_uuid, key, value, timestamp, step, is_nan)": """SELECT run_id, 'val_loss', val_loss, 0, steps, 0
                FROM run WHERE val_loss IS NOT NULL""",
            "metrics (run_uuid, key, value, timestamp, step, is_nan)": f"""SELECT run_id, name, value, 0, step, 0
                FROM metric SEMI JOIN (FROM run WHERE steps >= {LONG_POINTS}) USING (run_id) WHERE name = 'train_loss'""",
        }.items():
            rows = connection.execute(text).fetchall()
            store.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    store.execute("ANALYZE")
    store.close()
    return client, experiment


def compare(database: Database, folder: Path) -> None:
    """Print dataeff beside MLflow where both can answer."""
    try:
        client, experiment = load_mlflow(database, folder)
    except ImportError:
        print("\nMLflow is not compared: it is not installed (pip install mlflow-skinny)")
        return
    long, _ = long_and_short(database)
    best, some = runs.matching("synthetic"), runs.matching("synthetic") + " AND epochs = 8 AND val_loss < 4"
    some_of_theirs = "params.epochs = '8' and metrics.val_loss < 4"

    def ours(ask: Callable[[Any], Any]) -> Any:
        with database.read() as connection:
            return ask(connection)

    def table(found: str) -> Callable[[], Any]:
        return lambda: ours(lambda c: queries.query(c, runs.table_query(found, "val_loss", 1000)))

    def theirs(condition: str) -> Callable[[], Any]:
        return lambda: client.search_runs([experiment], condition, max_results=1000, order_by=["metrics.val_loss ASC"])

    tasks = {
        "1,000 runs of least loss": (table(best), theirs("")),
        "1,000 with 8 epochs, loss below 4": (table(some), theirs(some_of_theirs)),
        "training curves of 5 long runs": (
            lambda: ours(lambda c: runs.curves(c, long)),
            lambda: [client.get_metric_history(run_id, "train_loss") for run_id in long],
        ),
    }
    assert {row[0] for row in table(some)()[1]} == {run.info.run_id for run in theirs(some_of_theirs)()}
    print(f"\n{'seconds':<40}{'dataeff':>9}{'MLflow':>9}")
    for name, (one, other) in tasks.items():
        print(f"{name:<40}{median(one):>9.3f}{median(other):>9.3f}")


STANDS_STILL = """() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    && !document.querySelector('[data-testid=stSkeleton]')
    && document.querySelector('[data-testid=stMain]').innerText.length > 20"""


def click_through(path: Path, chromium: str) -> None:
    """Print how long each page takes to show in a browser."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "dataeff", "app", "--no-browser", "--port", str(PORT), "--database", str(path)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 1000})

        def seconds(go: Callable[[], Any]) -> float:
            began = time.perf_counter()
            go()
            page.wait_for_timeout(50)  # until the script has begun
            page.wait_for_function(STANDS_STILL, timeout=120_000)
            return time.perf_counter() - began

        try:
            for _ in range(300):
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/_stcore/health", timeout=1)
                    break
                time.sleep(0.1)
            print(f"\nin Chromium: seconds{'first':>29}{'again':>9}")
            print(f"{'Answer, the first page of the server':<40}{seconds(lambda: page.goto(f'http://127.0.0.1:{PORT}/')):>9.2f}")
            names, links = ("Study", "Runs", "Laws", "SQL", "Answer"), page.locator("[data-testid=stSidebar] a")
            rounds = [[seconds(links.filter(has_text=name).first.click) for name in names] for _ in "12"]
            for name, first, again in zip(names, *rounds, strict=True):
                print(f"{name:<40}{first:>9.2f}{again:>9.2f}")
        finally:
            browser.close()
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", type=Path, help="keep the database in this file; made unless it is there")
    given = parser.parse_args().database
    with tempfile.TemporaryDirectory() as folder:
        path = given or Path(folder) / "dashboard.duckdb"
        if not path.exists():
            build(path)
        database = Database(path)
        for page, asked in {"Runs": runs_page(database), "other": other_pages(database)}.items():
            print(f"{page + ' pages: seconds':<40}{'median':>9}")
            for name, ask in asked.items():

                def once(ask: Callable[[Any], Any] = ask) -> None:
                    with database.read() as connection:
                        ask(connection)

                print(f"{name:<40}{median(once):>9.3f}")
        compare(database, Path(folder))
        if chromium := shutil.which("chromium") or shutil.which("chromium-browser"):
            click_through(path, chromium)


if __name__ == "__main__":
    main()
