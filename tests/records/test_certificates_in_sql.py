"""The views `grid_point`, `best_run` and `certificate`: what they make of the certificate that a cell stores."""

from __future__ import annotations

import itertools
import math
import random

from dataeff.search.coordinate_descent import certificate
from dataeff.specs.grid import Grid

AXES = {"lr": (1e-3, 3e-3, 1e-2), "weight_decay": (0.0, 0.1, 0.2), "epochs": (1.0, 2.0)}


def cases():
    """Random results on small grids: few levels of loss so that ties are common, gaps, divergence, natural edges, fixed axes."""
    draw = random.Random(0)
    for _ in range(150):
        grid = Grid({name: values[draw.randint(0, 1) :][: draw.randint(1, 3)] for name, values in AXES.items()})
        levels = draw.choice([2, 4, 100])
        kept = draw.choice([0.5, 0.9, 1.0])
        results = {
            point: draw.choice([math.inf, 3.0 + draw.randrange(levels) / 7, 3.0 + draw.randrange(levels) / 7])
            for point in itertools.product(*(range(length) for length in grid.shape))
            if draw.random() < kept
        }
        yield grid, results


def test_the_views_show_the_stored_certificate_and_count_the_neighbours_in_the_grid(recorded):
    tried = list(cases())
    for i, (grid, results) in enumerate(tried):
        recorded.cell(results, axes={name: list(values) for name, values in grid.axes.items()}, parameters=i + 1)
    rows = recorded.rows(
        "SELECT * EXCLUDE seeds FROM best_run JOIN certificate USING (cell_id) ORDER BY best_run.parameters_total"
    )
    seen = set()
    for (grid, results), row in zip(tried, rows, strict=True):
        twin = certificate(results, grid)
        seen.add(row["state"])
        assert row["state"] == (twin.state if results else "searching")
        assert (row["coordinates"] and tuple(row["coordinates"])) == twin.best
        assert row["val_loss"] == twin.loss
        assert row["reason"] == (twin.reason if results else "no run of the search has finished")
        if twin.best is None:
            assert (row["neighbours_in_grid"], row["neighbours_missing"]) == (None, None)
            continue
        assert row["neighbours_in_grid"] == len(grid.neighbours(twin.best))
        assert row["neighbours_run"] == sum(p in results for p in grid.neighbours(twin.best))
        assert row["neighbours_missing"] == len(twin.missing)
        assert row["edges"] == [f"{axis} {side}" for axis, side in twin.edges]
        assert row["ties"] == twin.ties
        assert row["margin"] == (None if twin.margin in (None, math.inf) else twin.margin)
    assert seen == {"certified", "boundary", "open", "searching"}


def test_what_is_neither_certified_nor_boundary_counts_as_open(recorded):
    recorded.cell({(0,): 3.0, (1,): 3.1}, axes={"weight_decay": [0.0, 0.1]}, parameters=1)
    recorded.cell({(0,): 3.0, (1,): 3.1}, axes={"weight_decay": [0.1, 0.2]}, parameters=2)
    for i, state in enumerate(("waiting", "blocked", "searching", "open"), 3):
        cell = recorded.cell({}, parameters=i)
        recorded.connection.execute("UPDATE cell SET state = $1 WHERE cell_id = $2", [state, cell])
    assert recorded.rows("SELECT cells, certified, boundary, open FROM asymptote") == [
        {"cells": 6, "certified": 1, "boundary": 1, "open": 4}
    ]


def test_neighbours_within_the_noise_are_counted_once_there_is_a_noise_estimate(recorded):
    axes = {"lr": [1e-3, 3e-3, 1e-2]}
    losses = {(0,): 3.5, (1,): 3.0, (2,): 3.015}
    recorded.cell(losses, axes=axes)
    assert recorded.rows("SELECT within_noise FROM certificate") == [{"within_noise": None}]
    recorded.trial("study/standard/1000000/1000000000", "replicate", (1,), 3.014)
    (row,) = recorded.rows("FROM certificate")
    assert (row["within_noise"], row["state"]) == (1, "certified")
    assert "1 within the run-to-run noise" in row["reason"]


def test_the_runs_that_repeat_an_optimum_estimate_it_and_what_diverged_is_counted(recorded):
    recorded.cell(
        {(0,): 3.5, (1,): 3.0, (2,): math.inf}, axes={"lr": [1e-3, 3e-3, 1e-2]}, replicates=[((1,), 3.2), ((1,), math.inf)]
    )
    (row,) = recorded.rows("FROM best_run")
    assert (row["val_loss"], row["val_loss_mean"], row["seeds"], row["runs"], row["diverged"]) == (3.0, 3.2, 1, 5, 2)


def test_points_of_the_best_loss_say_how_many_neighbours_the_certificate_lacks(recorded):
    recorded.cell({(0,): 3.0, (1,): 3.0, (2,): 3.1}, axes={"lr": [1, 2, 3, 4]})
    assert recorded.rows("SELECT coordinates, is_best, edges, missing FROM grid_point ORDER BY coordinates") == [
        {"coordinates": [0], "is_best": False, "edges": None, "missing": 0},
        {"coordinates": [1], "is_best": True, "edges": [], "missing": 0},
        {"coordinates": [2], "is_best": False, "edges": None, "missing": None},
    ]


def test_an_optimum_whose_run_is_not_recorded_has_no_best_run(recorded):
    cell = recorded.cell({(0,): 3.0, (1,): 3.1}, axes={"weight_decay": [0.0, 0.1]})
    recorded.connection.execute("DELETE FROM run WHERE val_loss = 3.0")
    assert recorded.rows("SELECT run_id, val_loss, reason IS NULL AS unsaid FROM best_run") == [
        {"run_id": None, "val_loss": None, "unsaid": False}
    ]
    assert recorded.rows(f"SELECT run_id, state FROM certificate WHERE cell_id = '{cell}'") == [
        {"run_id": None, "state": "certified"}
    ]
