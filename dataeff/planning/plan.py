"""What a study would run, what is already there, and what the rest would cost; nothing is trained or written.

A search decides as it goes, so what is missing is an estimate: each cell's path is replayed over the recorded runs as
far as they reach, and the rest is priced at the typical number of runs of a search on a grid of that many axes.
Costs are FLOPs (see `ModelSpec.training_flops_per_token`) and hours at a stated speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dataeff.search.coordinate_descent import certificate, next_points, replay
from dataeff.specs.grid import Point
from dataeff.specs.study import Cell, StudySpec

Recorded = Callable[[Cell, Point, int], float | None]  # loss of the run of a cell's point under a seed


def typical_runs(cell: Cell) -> int:
    """Runs the search of a cell typically needs: the start, its neighbours on the tuned axes, and a move or two.

    A rule of thumb, not a bound: the quickstart's searches took 6.0 runs on two axes and 8.9 on three, on average.
    """
    return 1 + 3 * sum(length > 1 for length in cell.grid.shape)


def typical_flops(study: StudySpec, cell: Cell, vocabulary: int) -> float:
    """Training FLOPs of a run in the middle of the cell's grid."""
    epochs = cell.grid.values(cell.grid.middle)["epochs"]
    return cell.seed_tokens * epochs * study.model(cell.size, vocabulary).training_flops_per_token


@dataclass(frozen=True)
class CellPlan:
    """One cell: runs its search has, runs it is likely to need still, and their training FLOPs."""

    cell: Cell
    state: str  # waiting | new | open | boundary | certified
    recorded: int
    expected: int
    flops_left: float


def starts_of(cell: Cell, optima: Mapping[str, Mapping[str, float] | None], start: object) -> tuple[Point, ...]:
    """Return where the search of `cell` starts, given the optima of the cells it waits for (None: they have none).

    `start` is the recipe's: "neighbour", "middle" or the values of a point. Optima come after it; with none, the middle.
    """
    found = [cell.grid.nearest(values) for other in cell.waits_for if (values := optima.get(other)) is not None]
    if start == "middle":
        found = [cell.grid.middle, *found]
    elif isinstance(start, dict):
        fixed = {name: values[0] for name, values in cell.grid.axes.items() if len(values) == 1}
        found = [cell.grid.point({**fixed, **start}), *found]
    return tuple(dict.fromkeys(found)) or (cell.grid.middle,)


def plan(study: StudySpec, vocabulary: int, recorded: Recorded) -> list[CellPlan]:
    """Return the plan of every cell, in the order they can start. Nothing is trained."""
    optima: dict[str, Mapping[str, float] | None] = {}
    plans = []
    width, limit = study.resources.points_in_flight, study.resources.max_runs_per_cell
    for cell in study.cells:
        results: dict[Point, float] = {}
        state, repeats = "waiting", len(study.seeds) - 1
        if all(other in optima for other in cell.waits_for):
            starts = starts_of(cell, optima, study.recipes[cell.recipe].start)
            results = replay(lambda point, cell=cell: recorded(cell, point, study.seeds[0]), cell.grid, starts, width, limit)
            found = certificate(results, cell.grid)
            state = found.state if results else "new"
            if not next_points(results, cell.grid, starts, width=width, limit=limit):
                optima[cell.id] = cell.grid.values(found.best) if found.best else None
                missing = [seed for seed in study.seeds[1:] if found.best and recorded(cell, found.best, seed) is None]
                repeats = len(missing)
        likely = min(cell.grid.size, limit or cell.grid.size, typical_runs(cell))
        expected = repeats + (0 if cell.id in optima else max(1, likely - len(results)))
        flops = expected * typical_flops(study, cell, vocabulary)
        plans.append(CellPlan(cell, state, len(results), expected, flops))
    return plans
