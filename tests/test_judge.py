"""`dataeff judge` on the tiny study, with claims added to its record."""

from __future__ import annotations

import json
import shutil

import duckdb
import pytest

from tests.conftest import dataeff

CLAIMS = {
    "decay": {"better": "regularized", "than": "standard", "at": 2048, "by": 0.0},
    "margin": {"better": "regularized", "than": "standard", "at": 2048, "by": 5.0},
}


@pytest.fixture(scope="module")
def claimed(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("claimed")
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    with duckdb.connect(folder / "dataeff.duckdb") as connection:
        spec = json.loads(connection.execute("SELECT spec FROM study").fetchone()[0])
        connection.execute("UPDATE study SET spec = $1", [json.dumps(spec | {"claims": CLAIMS})])
    return folder


def test_a_row_a_claim_has_the_difference_of_its_pairs(claimed):
    done = dataeff("judge", "tiny", "--format", "json", cwd=claimed)
    assert done.returncode == 0, done.stderr
    decay, margin = json.loads(done.stdout)
    query = """SELECT arg_min(val_loss, best_loss) FROM cell JOIN trial USING (cell_id) JOIN run USING (run_id)
        WHERE role = 'replicate' AND cell.seed_tokens = 2048 AND recipe IN ('standard', 'regularized')
        GROUP BY recipe ORDER BY recipe"""
    with duckdb.connect(claimed / "dataeff.duckdb", read_only=True) as connection:
        (regularized,), (standard,) = connection.execute(query).fetchall()
    assert decay["difference"] == pytest.approx(standard - regularized) == margin["difference"]
    assert decay["pairs"] == 1 and decay["state"] == "undecided" and "two pairs" in decay["reason"]
    assert margin["e_against"] > 1 > margin["e_for"]


def test_a_study_is_named_by_its_file_too_and_rows_are_written(claimed):
    done = dataeff("judge", "tiny.toml", "-o", "claims.csv", cwd=claimed)
    assert done.returncode == 0 and (claimed / "claims.csv").read_text().splitlines()[1].startswith("decay,")
    assert "margin" in dataeff("judge", "tiny", cwd=claimed).stdout


def test_a_study_without_claims_is_told_how_to_declare_one(finished):
    done = dataeff("judge", "tiny", cwd=finished)
    assert done.returncode == 2 and "declares no claim" in done.stderr and "[claims.mine]" in done.stderr
