"""Half-done is impossible: a study killed at any moment and run again ends as if it had never been killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import duckdb
import pytest

from tests.conftest import dataeff, start_study, write_tiny_study


def recorded(folder: Path) -> dict[str, float | None]:
    """Run id -> loss of every row of `run`, from a plain DuckDB connection; two rows of one run would be an error."""
    with duckdb.connect(folder / "dataeff.duckdb", read_only=True) as connection:
        rows = connection.execute("SELECT run_id, val_loss FROM run").fetchall()
        assert connection.execute("SELECT count(*), count(DISTINCT (cell_id, run_id)) FROM trial").fetchone() == (
            (n := connection.execute("SELECT count(*) FROM trial").fetchone()[0]),
            n,
        )
    assert len({run_id for run_id, _ in rows}) == len(rows)
    return dict(rows)


def results(folder: Path) -> dict[str, str]:
    """Run id -> when its result was made, for every result on disk."""
    files = (folder / "dataeff.files" / "runs").glob("*/result.json")
    return {file.parent.name: json.loads(file.read_text())["ended_at"] for file in files}


def workers_of(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def kill_until_done(folder: Path, kills: int, seed: int) -> int:
    """Run the study, killing it `kills` times at random; return how many kills hit a living study."""
    choose, hits, seen = random.Random(seed), 0, results(folder)
    for _ in range(kills):
        process = start_study(folder)
        try:
            process.wait(timeout=choose.uniform(0.5, 6))
            break
        except subprocess.TimeoutExpired:
            hits += 1
        if choose.random() < 0.3 and (workers := workers_of(process)):
            os.kill(choose.choice(workers), signal.SIGKILL)  # a worker alone: the controller must cope
            try:
                process.wait(timeout=choose.uniform(0.1, 2))
            except subprocess.TimeoutExpired:
                pass
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = results(folder)
        assert seen.items() <= now.items(), "a recorded run was lost or trained again"
        seen = now
    done = dataeff("run", "tiny.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert seen.items() <= results(folder).items(), "a recorded run was trained again"
    return hits


def check_against(finished: Path, folder: Path) -> None:
    assert recorded(folder) == recorded(finished)  # the same run ids, and bitwise the same losses
    assert results(folder).keys() == recorded(folder).keys()
    with duckdb.connect(folder / "dataeff.duckdb", read_only=True) as connection:
        ended = connection.execute(
            """SELECT job_id, count(*) FILTER (outcome IN ('finished', 'diverged')) FROM attempt
            WHERE kind = 'train' GROUP BY job_id"""
        ).fetchall()
    assert {run_id for run_id, _ in ended} == recorded(folder).keys()
    assert {n for _, n in ended} <= {0, 1}  # 0: killed between result.json and the attempt's own end


def test_a_study_killed_at_random_moments_ends_as_the_uninterrupted_one(finished, tmp_path):
    write_tiny_study(tmp_path)
    assert kill_until_done(tmp_path, kills=5, seed=time.time_ns()) >= 1
    check_against(finished, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_study_killed_at_many_random_moments_ends_as_the_uninterrupted_one(finished, tmp_path, seed):
    write_tiny_study(tmp_path)
    kill_until_done(tmp_path, kills=12, seed=seed)
    check_against(finished, tmp_path)


def test_a_finished_study_run_again_trains_nothing(finished):
    before = results(finished)
    again = dataeff("run", "tiny.toml", cwd=finished)
    assert again.returncode == 0, again.stderr
    assert results(finished) == before
    assert "0 trained" in again.stderr


def test_the_same_runs_whatever_the_number_of_workers(finished, tmp_path):
    write_tiny_study(tmp_path)
    done = dataeff("run", "tiny.toml", "--executor", "inline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert recorded(tmp_path) == recorded(finished)


def test_a_lost_database_and_a_lost_optuna_journal_are_rebuilt_from_the_run_folders(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dataeff.duckdb").unlink()
    (tmp_path / "dataeff.files" / "optuna" / "tiny.log").unlink()
    before = results(tmp_path)
    again = dataeff("run", "tiny.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) == before
    assert recorded(tmp_path) == recorded(finished)


def test_a_torn_optuna_journal_is_written_anew(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    journal = tmp_path / "dataeff.files" / "optuna" / "tiny.log"
    journal.write_bytes(journal.read_bytes()[:-7])
    again = dataeff("run", "tiny.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert recorded(tmp_path) == recorded(finished)


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(finished, tmp_path):
    write_tiny_study(tmp_path)
    process = start_study(tmp_path, stderr=subprocess.PIPE)
    wait_for(lambda: len(results(tmp_path)) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopped" in stderr
    assert recorded(tmp_path).keys() == results(tmp_path).keys()
    assert dataeff("run", "tiny.toml", cwd=tmp_path).returncode == 0
    assert recorded(tmp_path) == recorded(finished)


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
