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
        printed = fit(name, "--x", "billions", "--y", "val_loss", "-g", "recipe", "--format=json", cwd=tmp_path)
        lawful, rising = json.loads(printed)
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
    ("arguments", "said"),
    [
        (("--x", "billion", "--y", "val_loss"), "did you mean 'billions'"),
        (("--x", "billions", "--y", "val_loss", "--form", "pwer"), "did you mean 'power'"),
        (("--x", "billions", "--y", "val_loss", "--form", "additive"), "the variables n, d"),
        (("--x", "billions", "--y", "val_loss"), "x must differ"),  # two recipes at once
        (("--x", "billions", "--y", "val_loss"), "--group"),
        (("--x", "billions", "--y", "recipe"), "holds VARCHAR, not numbers"),
        (("--x", "billions", "--y", "val_loss", "-g", "recipe", "--sd", "-1"), "--sd -1: a standard deviation"),
    ],
)
def test_nonsense_is_told_with_its_remedy_in_one_line(losses, arguments, said):
    done = dataeff("fit", losses, *arguments, cwd=losses.parent)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr) <= 300 and done.stderr.count("\n") == 1


def test_a_group_that_cannot_be_fitted_says_why_beside_those_that_can_and_rows_without_numbers_are_counted(losses):
    losses.write_text(losses.read_text() + "short,1,3\nshort,2,nan\nshort,3,2\nalmost,,2\n" + "".join(
        f"almost,{n},{y}\n" for n, y in ((1, 4), (2, "nan"), (4, 3.1), (8, 2.8), (16, 2.7))))  # fmt: skip
    rows = json.loads(fit(losses, "--x", "billions", "--y", "val_loss", "-g", "recipe", "--format=json", cwd=losses.parent))
    assert [row["recipe"] for row in rows] == ["almost", "lawful", "rising", "short"]
    assert rows[3]["limit"] is None and rows[3]["doubts"].startswith("2 points: ") and rows[3]["left_out"] == 1
    assert (rows[0]["points"], rows[0]["left_out"]) == (4, 2) and rows[0]["limit"] is not None
