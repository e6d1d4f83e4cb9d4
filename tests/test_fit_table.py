"""`dataeff fit`: laws for anyone's table, with no study at all."""

from __future__ import annotations

import json

import duckdb
import pytest

from tests.conftest import dataeff

LAW = (0.05, 1.02, 3.43)
N = (0.15, 0.3, 0.6, 1.4)


@pytest.fixture
def losses(tmp_path):
    """Two recipes: one on a known law, one whose last point rises."""
    a, alpha, e = LAW
    rows = [("lawful", n, a / n**alpha + e) for n in N]
    rows += [("rising", n, loss) for n, loss in zip(N, (3.83752, 3.78538, 3.74974, 3.76432), strict=True)]
    file = tmp_path / "losses.csv"
    file.write_text("recipe,billions,val_loss\n" + "".join(f"{r},{n},{y}\n" for r, n, y in rows))
    return file


def fit(*arguments, cwd):
    done = dataeff("fit", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_known_law_is_found_in_csv_and_in_parquet_and_groups_are_fitted_apart(losses, tmp_path):
    duckdb.sql(f"COPY (FROM '{losses}') TO '{tmp_path}/losses.parquet'")
    for name in ("losses.csv", "losses.parquet"):
        lawful, rising = json.loads(fit(name, "--x", "billions", "--y", "val_loss", "-g", "recipe", "--format=json", cwd=tmp_path))
        assert (lawful["a"], lawful["alpha"], lawful["limit"]) == pytest.approx(LAW, abs=1e-4)
        assert lawful["points"] == 4 and "one degree of freedom" in lawful["interval"]
        assert "y rises at x = 1.4" in rising["doubts"]


def test_a_query_on_the_database_is_a_table_too(finished, tmp_path):
    query = "from best_run where recipe = 'standard' order by seed_tokens"
    arguments = ("--x", "parameters_total", "--y", "val_loss", "-g", "seed_tokens", "--format=json")
    rows = json.loads(fit(query, *arguments, cwd=finished))
    assert [row["seed_tokens"] for row in rows] == [1024, 2048]
    assert all(row["points"] == 3 and "passes through" in row["doubts"] for row in rows)


def test_points_and_laws_are_drawn(losses, tmp_path):
    fit(losses, "--x", "billions", "--y", "val_loss", "-g", "recipe", "--plot", "laws.svg", cwd=tmp_path)
    drawn = (tmp_path / "laws.svg").read_text()
    assert "lawful" in drawn and "billions" in drawn and "val_loss" in drawn


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (None, ("--x", "billion", "--y", "val_loss"), "did you mean 'billions'"),
        (None, ("--x", "billions", "--y", "val_loss", "--form", "pwer"), "did you mean 'power'"),
        (None, ("--x", "billions", "--y", "val_loss", "--form", "additive"), "the variables n, d"),
        (None, ("--x", "billions", "--y", "val_loss"), "x must differ"),  # two recipes at once
        (("3.43", "-3.43"), ("--x", "billions", "--y", "val_loss", "-g", "recipe"), None),
    ],
)
def test_nonsense_is_told_with_its_remedy(losses, change, arguments, said):
    done = dataeff("fit", losses, *arguments, cwd=losses.parent)
    assert (done.returncode == 2) == (said is not None)
    if said:
        assert said in done.stderr


def test_a_group_that_cannot_be_fitted_says_why_beside_those_that_can(losses):
    losses.write_text(losses.read_text() + "short,1,3\nshort,2,nan\nshort,3,2\nshort,4,2\n")
    rows = json.loads(fit(losses, "--x", "billions", "--y", "val_loss", "-g", "recipe", "--format=json", cwd=losses.parent))
    assert rows[2]["limit"] is None and "row 1: (2, nan)" in rows[2]["doubts"]
