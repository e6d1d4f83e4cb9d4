"""`dataeff fit`: laws for anyone's table, with no study at all."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pytest
from scipy.optimize import curve_fit

from dataeff.laws.forms import Additive, DataConstrained, Overfitting
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
        (("--x", "billions", "--y", "val_loss", "--sd", "noise"), "no column 'noise'"),
        (("--x", "billions", "--y", "val_loss", "--loss", "hubre"), "did you mean 'huber'"),
        (("--x", "billions", "--y", "val_loss", "--fix", "alpha"), "--fix alpha: give a parameter and a number"),
        (("--x", "billions", "--y", "val_loss", "--fix", "alpha=9"), "--fix: alpha = 9 cannot be held"),
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


def json_of(file, *arguments):
    (row,) = json.loads(fit(file, *arguments, "--format=json", cwd=file.parent))
    return row


def test_hubers_loss_has_an_interval_and_least_squares_moved_by_a_few_runs_says_so(tmp_path):
    random, truth, file = np.random.default_rng(0), Additive(482, 0.348, 2085, 0.366, 1.817), tmp_path / "runs.csv"
    n, d = 10 ** random.uniform([[7.5], [9]], [[10], [11.5]], (2, 120))
    cut_short = np.argsort(d)[:6]
    y = truth(n, d) * np.exp(0.002 * random.normal(size=120) + 0.1 * np.isin(np.arange(120), cut_short))
    file.write_text("n,d,loss\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(n, d, y, strict=True)))
    columns = ("--x", "n", "--x", "d", "--y", "loss", "--form", "additive")
    squares, huber = json_of(file, *columns), json_of(file, *columns, "--loss", "huber")
    assert huber["limit_low"] < 1.817 < huber["limit_high"] and "400 resamples" in huber["interval"]
    assert not squares["limit_low"] < 1.817 < squares["limit_high"]
    assert f"--loss huber gives the limit {huber['limit']:.4f}" in squares["doubts"]
    held = json_of(file, *columns, "--loss", "huber", "--fix", "alpha=0.348")
    assert held["alpha"] == 0.348 and held["limit_high"] - held["limit_low"] < huber["limit_high"] - huber["limit_low"]


def test_rows_count_by_the_error_that_a_column_gives_and_more_scatter_than_that_is_told(tmp_path):
    random, x, file = np.random.default_rng(1), np.geomspace(0.1, 10, 8), tmp_path / "losses.csv"
    errors = np.where(np.arange(8) < 4, 0.05, 0.001)
    for scale, widened in ((0.8, False), (10.0, True)):
        y = 0.3 * x**-0.5 + 3 + scale * errors * random.choice([-1, 1], 8)
        file.write_text("x,y,error\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(x, y, errors, strict=True)))
        row = json_of(file, "--x", "x", "--y", "y", "--sd", "error")
        best, covariance = curve_fit(lambda x, a, alpha, e: a * x**-alpha + e, x, y, (0.3, 0.5, 3), errors, absolute_sigma=True)
        assert row["limit"] == pytest.approx(best[2], abs=1e-4)
        assert ("times the given sd" in (row["doubts"] or "")) == widened
        if not widened:
            assert row["limit_high"] - row["limit_low"] == pytest.approx(2 * 1.645 * np.sqrt(covariance[2, 2]), rel=0.3)


def test_losses_over_one_to_k_members_are_told_to_share_their_noise(tmp_path):
    (file := tmp_path / "members.csv").write_text("k,loss\n" + "".join(f"{k},{0.2 / k + 3}\n" for k in range(1, 7)))
    assert "share their noise" in json_of(file, "--x", "k", "--y", "loss")["doubts"]


def test_the_laws_of_repeated_data_are_fitted_from_a_table_of_three_variables_with_intervals(tmp_path):
    random, file = np.random.default_rng(2), tmp_path / "repeated.csv"
    n, unique = 10 ** random.uniform([[7], [8]], [[9.5], [10]], (2, 80))
    d = unique * 2.0 ** random.integers(0, 7, 80)
    for name, form in (("data_constrained", DataConstrained), ("overfitting", Overfitting)):
        last = (15.4, 5.3) if form is DataConstrained else (1e-4,)
        y = form(521, 0.353, 1488, 0.353, 1.87, *last)(n, d, unique) * np.exp(0.003 * random.normal(size=80))
        file.write_text("n,d,u,y\n" + "".join(f"{a},{b},{c},{e}\n" for a, b, c, e in zip(n, d, unique, y, strict=True)))
        row = json_of(file, "--x", "n", "--x", "d", "--x", "u", "--y", "y", "--form", name, "--fix", "alpha=0.353")
        assert row["limit_low"] < 1.87 < row["limit_high"] < row["limit_low"] + 0.1
        assert row["alpha"] == 0.353 and row["points"] == 80
