"""What is left of a search, as a rule of thumb, and what a plan costs here.

A search decides as it goes, so what is missing is an estimate. Costs are training FLOPs (`ModelSpec.training_flops_per_token`);
evaluating ensembles and sampling are left out. The speed of a size is the median of its recorded runs; a size never run
takes the median of all; with no run at all a stated assumption is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataeff.specs.study import Cell
from dataeff.study.demand import Demand

if TYPE_CHECKING:
    from dataeff.study.resolve import CellState

# Assumed FLOP/s of a worker before anything was recorded: a CPU core on tiny models, measured at 1.5e10 to 4e10 on a
# 2020s server core; a GPU at 40% of an H100's dense bfloat16 peak of 9.9e14.
ASSUMED_CPU_FLOPS = 2e10
ASSUMED_GPU_FLOPS = 4e14


def typical_points(cell: Cell, limit: int | None = None) -> int:
    """Points the search of a cell typically needs: the start, its neighbours on the tuned axes, and a move or two.

    A rule of thumb, not a bound: the quickstart's searches took 6.0 runs on two axes and 8.9 on three, on average.
    """
    return min(cell.grid.size, limit or cell.grid.size, 1 + 3 * sum(length > 1 for length in cell.grid.shape))


def typical_flops(demand: Demand, cell: Cell) -> float:
    """Training FLOPs of a run in the middle of the cell's grid."""
    epochs, teacher = cell.grid.values(cell.grid.middle)["epochs"], demand.recipe(cell).teacher
    synthetic = teacher.share if teacher and teacher.kind == "samples" and teacher.share < 1 else 0.0
    tokens = cell.seed_tokens * epochs / (1 - synthetic)
    return tokens * demand.study.model(cell.size, demand.vocabulary).training_flops_per_token


@dataclass(frozen=True)
class Speed:
    """Training FLOP/s of one worker, by the parameters of a model; `source` says what it rests on."""

    by_parameters: Mapping[int, float]
    usual: float
    source: str

    @classmethod
    def of(cls, recorded: Mapping[int, float], has_gpu: bool) -> Speed:
        if recorded:
            usual = sorted(recorded.values())[len(recorded) // 2]
            return cls(recorded, usual, "median of the recorded runs of each size")
        assumed = ASSUMED_GPU_FLOPS if has_gpu else ASSUMED_CPU_FLOPS
        return cls({}, assumed, f"assumed {assumed:.0e} FLOP/s a worker; no run is recorded yet")

    def seconds(self, demand: Demand, state: CellState) -> float:
        """Return the seconds that one worker needs for what a cell lacks."""
        parameters = demand.study.model(state.cell.size, demand.vocabulary).parameters_total
        return state.flops_left / self.by_parameters.get(parameters, self.usual)
