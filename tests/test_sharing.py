"""Writers and readers share the database file all day."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest

from tests.conftest import dataeff, start_study, write_tiny_study
from tests.test_durability import recorded, wait_for


@pytest.mark.slow
def test_eight_readers_beside_a_running_study_get_no_error(finished, tmp_path):
    write_tiny_study(tmp_path)
    study = start_study(tmp_path, stderr=subprocess.PIPE)
    wait_for(lambda: (tmp_path / "dataeff.duckdb").exists() or study.poll() is not None)
    errors: list[str] = []
    reads = [0] * 8

    def read_with_dataeff(place: int) -> None:
        from dataeff.records.store import Database

        while study.poll() is None:
            if place < 2:  # the command line itself, and six processes' worth of its reading
                done = dataeff("sql", "select count(*) from run", "--format=json", cwd=tmp_path)
                if done.returncode:
                    errors.append(done.stderr)
            else:
                code = (
                    "import sys; from dataeff.records.store import Database\n"
                    f"for _ in range(50):\n    with Database({str(tmp_path / 'dataeff.duckdb')!r}).read() as c:"
                    " c.execute('from best_run').fetchall()"
                )
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
                if done.returncode:
                    errors.append(done.stderr)
            reads[place] += 1
        assert Database  # imported once, so that a broken import is told here

    threads = [threading.Thread(target=read_with_dataeff, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stderr = study.stderr.read()
    assert study.wait() == 0, stderr
    assert not errors, errors[0]
    assert min(reads) > 0
    assert recorded(tmp_path) == recorded(finished)


def test_a_shell_that_holds_the_file_open_does_not_stop_a_study(finished, tmp_path):
    """A plain read-only DuckDB connection, held while the study trains: results wait in their run folders."""
    write_tiny_study(tmp_path)
    study = start_study(tmp_path, stderr=subprocess.PIPE)
    runs = Path(tmp_path / "dataeff.files" / "runs")
    wait_for(lambda: (tmp_path / "dataeff.duckdb").exists() and any(runs.glob("*/result.json")))
    held = None
    while held is None:
        try:
            held = duckdb.connect(tmp_path / "dataeff.duckdb", read_only=True)
        except duckdb.IOException:
            continue
    before = len(list(runs.glob("*/result.json")))
    wait_for(lambda: len(list(runs.glob("*/result.json"))) >= before + 5)
    held.close()
    _, stderr = study.communicate(timeout=120)
    assert study.returncode == 0, stderr
    assert recorded(tmp_path) == recorded(finished)
