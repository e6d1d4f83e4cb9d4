"""What a study would run, what is already there, and what the rest would cost; nothing is trained or written.

A search decides as it goes, so what is missing is an estimate: each cell's path is replayed over the recorded runs as
far as they reach, and the rest is priced at the typical number of runs of a search on a grid of that many axes.
Costs are FLOPs (see `ModelSpec.training_flops_per_token`) and hours at a stated speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dataeff.search.coordinate_descent import certificate, next_points
from dataeff.specs.grid import Point
from dataeff.specs.study import Cell, StudySpec

Recorded = Callable[[Cell, Point], float | None]


def typical_runs(axes: int) -> int:
    """Runs a search typically needs on `axes` tuned axes: the start, its neighbours, and a move or two.

    A rule of thumb, not a bound: the quickstart's searches took 6.0 runs on two axes and 8.9 on three, on average.
    """
    return 1 + 3 * axes


@dataclass(frozen=True)
class CellPlan:
    """One cell: runs its search has, runs it is likely to need still, and their training FLOPs."""

    cell: Cell
    state: str  # waiting | open | boundary | certified
    recorded: int
    expected: int
    flops_left: float


def starts_of(cell: Cell, optima: Mapping[str, Mapping[str, float] | None], start: object) -> tuple[Point, ...]:
    """Return where the search of `cell` starts, given the optima of the cells it waits for (None: they have none).

    `start` is the recipe's: "neighbour", "middle" or the values of a point. No usable optimum means the middle.
    """
    if isinstance(start, dict):
        fixed = {name: values[0] for name, values in cell.grid.axes.items() if len(values) == 1}
        return (cell.grid.point({**fixed, **start}),)
    found = [cell.grid.nearest(values) for other in cell.waits_for if (values := optima.get(other)) is not None]
    if start == "middle":
        found = [cell.grid.middle, *found]
    return tuple(dict.fromkeys(found)) or (cell.grid.middle,)


def plan(study: StudySpec, vocabulary: int, recorded: Recorded) -> list[CellPlan]:
    """Return the plan of every cell, in the order they can start. Nothing is trained."""
    optima: dict[str, Mapping[str, float] | None] = {}
    plans = []
    for cell in study.cells:
        results: dict[Point, float] = {}
        waiting = any(other not in optima for other in cell.waits_for)
        if not waiting:
            starts = starts_of(cell, optima, study.recipes[cell.recipe].start)
            results, ended = _replay(cell, starts, recorded, study.resources.points_in_flight)
            state = certificate(results, cell.grid)
            if ended:
                optima[cell.id] = cell.grid.values(state.best) if state.best else None
        tuned = sum(length > 1 for length in cell.grid.shape)
        limit = min(cell.grid.size, study.resources.max_runs_per_cell or cell.grid.size)
        expected = 0 if cell.id in optima else max(1, min(limit, typical_runs(tuned)) - len(results))
        epochs = cell.grid.values(cell.grid.middle)["epochs"]
        flops = cell.seed_tokens * epochs * study.model(cell.size, vocabulary).training_flops_per_token
        repeats = 0 if cell.id in optima else len(study.seeds) - 1
        plans.append(
            CellPlan(cell, "waiting" if waiting else state.state, len(results), expected + repeats, (expected + repeats) * flops)
        )
    return plans


def _replay(cell: Cell, starts: tuple[Point, ...], recorded: Recorded, width: int) -> tuple[dict[Point, float], bool]:
    """Follow the search as far as recorded runs reach; the flag says whether it reached its end."""
    results: dict[Point, float] = {}
    while wanted := next_points(results, cell.grid, starts, width=width):
        known = {point: loss for point in wanted if (loss := recorded(cell, point)) is not None}
        results |= known
        if len(known) < len(wanted):
            return results, False
    return results, True
