"""What a study would run, what is already there, and what the rest would cost; nothing is trained or written.

A search decides as it goes, so what is missing is an estimate: each cell's path is replayed over the recorded runs as
far as they reach, and the rest is priced at the typical number of runs of a search on a grid of that many axes.
Costs are training FLOPs (see `ModelSpec.training_flops_per_token`); evaluating ensembles and sampling are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dataeff.search.coordinate_descent import certificate, next_points, replay
from dataeff.specs.demand import Demand, Optima
from dataeff.specs.grid import Point
from dataeff.specs.run import RunSpec
from dataeff.specs.study import Cell


def typical_points(cell: Cell) -> int:
    """Points the search of a cell typically needs: the start, its neighbours on the tuned axes, and a move or two.

    A rule of thumb, not a bound: the quickstart's searches took 6.0 runs on two axes and 8.9 on three, on average.
    """
    return min(cell.grid.size, 1 + 3 * sum(length > 1 for length in cell.grid.shape))


def typical_flops(demand: Demand, cell: Cell) -> float:
    """Training FLOPs of a run in the middle of the cell's grid."""
    epochs, teacher = cell.grid.values(cell.grid.middle)["epochs"], demand.recipe(cell).teacher
    synthetic = teacher.share if teacher and teacher.kind == "samples" and teacher.share < 1 else 0.0
    tokens = cell.seed_tokens * epochs / (1 - synthetic)
    return tokens * demand.study.model(cell.size, demand.vocabulary).training_flops_per_token


@dataclass(frozen=True)
class CellPlan:
    """One cell: points its search has, runs it is likely to need still, and their training FLOPs."""

    cell: Cell
    state: str  # waiting | new | open | boundary | certified
    recorded: int
    expected: int
    flops_left: float


def plan(
    demand: Demand, value: Callable[[Cell, Point], float | None], loss: Callable[[RunSpec], float | None]
) -> list[CellPlan]:
    """Return the plan of every cell, in the order they can start. Nothing is trained.

    `value` gives what a cell's search minimises at a point, None where that is not recorded; `loss` that of a run.
    """
    optima: dict[str, dict[str, float] | None] = {}
    teachers: dict[str, list[str]] = {}
    plans, states = [], {}
    width, limit = demand.study.resources.points_in_flight, demand.study.resources.max_runs_per_cell
    for cell in demand.study.cells:
        results: dict[Point, float] = {}
        state, ended = "waiting", False
        repeats = len(demand.repeats(cell, cell.grid.middle))
        if _can_start(demand, cell, optima, teachers):
            placed, starts, _ = demand.place(cell, optima)
            if cell.teacher:
                placed, _ = demand.taught(placed, teachers[cell.teacher])
            results = replay(lambda point, placed=placed: value(placed, point), placed.grid, starts, width, limit)
            found = certificate(results, placed.grid)
            state = found.state if results else "new"
            if cell.base and demand.recipe(cell).tune == [] and state == "certified":
                state = states[cell.base]
            if ended := not next_points(results, placed.grid, starts, width=width, limit=limit):
                optima[cell.id] = placed.grid.values(found.best) if found.best else None
                missing = [run for run in demand.repeats(placed, found.best) if loss(run) is None] if found.best else []
                repeats = len(missing)
                members = demand.members(placed, found.best) if found.best else []
                if members and all((loss(run) or math.inf) < math.inf for run in members):
                    teachers[cell.id] = demand.member_names(placed, found.best)
        states[cell.id] = state
        each = len(demand.searched(cell, cell.grid.middle))
        left = 0 if ended else max(1, min(limit or cell.grid.size, typical_points(cell)) - len(results))
        expected = left * each + (repeats if ended or each == 1 else 0)
        plans.append(CellPlan(cell, state, len(results), expected, expected * typical_flops(demand, cell)))
    return plans


def _can_start(demand: Demand, cell: Cell, optima: Optima, teachers: dict[str, list[str]]) -> bool:
    followed = cell.base if demand.recipe(cell).tune is not None else None
    starts = all(other in optima for other in (cell.neighbour, cell.base) if other)
    return starts and (not followed or optima[followed] is not None) and (cell.teacher is None or cell.teacher in teachers)
