"""The views `grid_point`, `best_run` and `certificate`, against brute force and the search's own certificate."""

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


def brute_force(grid, results, best):
    """State by the definition, given the best point: certified, boundary or open."""
    loss = results[best]
    plateau, grew = {best}, True
    while grew:
        more = {p for p, v in results.items() if v == loss and any(math.dist(p, q) == 1 for q in plateau)} - plateau
        plateau |= more
        grew = bool(more)
    everywhere = itertools.product(*(range(length) for length in grid.shape))
    missing = {p for p in everywhere if p not in results and any(math.dist(p, q) == 1 for q in plateau)}
    natural = {"weight_decay": 0.0, "epochs": 1.0}
    on_edge = any(
        len(values) > 1 and (i == len(values) - 1 or (i == 0 and values[0] != natural.get(name)))
        for (name, values), i in zip(grid.axes.items(), best, strict=True)
    )
    return ("open" if missing else "boundary" if on_edge else "certified"), len(missing)


def test_the_certificate_is_that_of_brute_force_and_of_the_search(recorded):
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
        assert row["state"] == twin.state
        assert (row["coordinates"] and tuple(row["coordinates"])) == twin.best
        assert row["val_loss"] == twin.loss
        if twin.best is None:
            assert row["neighbours_missing"] is None
            assert row["reason"] in ("every run of the search diverged", "no run of the search has finished")
            continue
        assert brute_force(grid, results, twin.best) == (row["state"], row["neighbours_missing"])
        assert row["neighbours_in_grid"] == len(grid.neighbours(twin.best))
        assert row["neighbours_run"] == sum(p in results for p in grid.neighbours(twin.best))
        assert row["edges"] == [f"{axis} {side}" for axis, side in twin.edges]
        assert row["ties"] == twin.ties
        assert row["margin"] == (None if twin.margin in (None, math.inf) else twin.margin)
    assert seen == {"certified", "boundary", "open"}


def test_the_reason_of_a_boundary_names_the_edge(recorded):
    recorded.cell({(0,): 3.2, (1,): 3.1, (2,): 3.0}, axes={"lr": [1e-3, 3e-3, 1e-2]})
    (row,) = recorded.rows("FROM certificate")
    assert (row["state"], row["edges"]) == ("boundary", ["lr upper"])
    assert "an edge of the grid (lr upper): the optimum may lie outside" in row["reason"]


def test_natural_edges_are_no_boundary(recorded):
    recorded.cell({(0,): 3.0, (1,): 3.1}, axes={"weight_decay": [0.0, 0.1]}, parameters=1)
    recorded.cell({(0,): 3.0, (1,): 3.1}, axes={"weight_decay": [0.1, 0.2]}, parameters=2)
    assert [row["state"] for row in recorded.rows("FROM certificate ORDER BY parameters_total")] == ["certified", "boundary"]


def test_neighbours_within_the_noise_are_counted_once_there_is_a_noise_estimate(recorded):
    axes = {"lr": [1e-3, 3e-3, 1e-2]}
    losses = {(0,): 3.5, (1,): 3.0, (2,): 3.015}
    recorded.cell(losses, axes=axes)
    assert recorded.rows("SELECT within_noise FROM certificate") == [{"within_noise": None}]
    recorded.trial("study/standard/1000000/1000000000", "replicate", (1,), 3.014)
    (row,) = recorded.rows("FROM certificate")
    assert (row["within_noise"], row["state"]) == (1, "certified")
    assert "1 within the run-to-run noise" in row["reason"]


def test_the_best_run_is_averaged_with_its_replicates_and_counts_what_diverged(recorded):
    recorded.cell(
        {(0,): 3.5, (1,): 3.0, (2,): math.inf}, axes={"lr": [1e-3, 3e-3, 1e-2]}, replicates=[((1,), 3.2), ((1,), math.inf)]
    )
    (row,) = recorded.rows("FROM best_run")
    assert (row["val_loss"], row["val_loss_mean"], row["seeds"], row["runs"], row["diverged"]) == (3.0, 3.1, 2, 5, 2)


def test_a_trial_whose_run_is_not_recorded_counts_as_not_run(recorded):
    cell = recorded.cell({(0,): 3.0, (1,): 3.1}, axes={"weight_decay": [0.0, 0.1]})
    recorded.connection.execute("DELETE FROM run WHERE val_loss = 3.1")
    assert recorded.rows(f"SELECT state, reason FROM certificate WHERE cell_id = '{cell}'") == [
        {"state": "open", "reason": "1 of 1 neighbours were not run"}
    ]
