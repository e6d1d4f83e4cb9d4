"""What is known so far about the points of a study: the losses of its runs and the limits of its ensembles.

A fact is a result, whoever made it: in the database, or in a folder not yet ingested. Samples are on disk alone. Nothing is
trained or written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dataeff.errors import InputError
from dataeff.laws.fit import fit_power_law
from dataeff.specs.demand import Demand
from dataeff.specs.ensemble import EnsembleResult, EnsembleSpec, SampleSpec
from dataeff.specs.grid import Point
from dataeff.specs.result import RunFolder, RunResult, Store, load_fact
from dataeff.specs.run import RunSpec
from dataeff.specs.study import Cell

NO_LIMIT = {"points_do_not_fall", "alpha_at_lower_bound", "alpha_at_upper_bound", "e_at_zero"}  # as the SQL has it


def limit_of_members(curve: list[tuple[int, float]], members: int) -> float:
    """Return what a search for the limit minimises: E of the law L = A / K^alpha + E over the curve (K, loss), or the loss of
    all members where the points show no limit (the view `ensemble_asymptote` does the same); inf where that is not finite.
    """
    if not curve or curve[-1][0] < members:
        return math.inf
    try:
        fit = fit_power_law(*zip(*curve, strict=True))
    except InputError:  # fewer than three points
        return curve[-1][1]
    return curve[-1][1] if NO_LIMIT & set(fit.warnings) else fit.law.e


class Facts:
    """What is recorded beside a database. `found` is told of every fact met on disk that the database may lack."""

    def __init__(
        self,
        store: Store,
        losses: dict[str, float],
        ensembles: dict[str, EnsembleResult],
        found: Callable[[RunFolder], None] = lambda folder: None,
    ) -> None:
        self._store, self._losses, self._ensembles, self._found = store, losses, ensembles, found
        self._samples: set[str] = set()

    def has(self, spec: RunSpec | EnsembleSpec | SampleSpec) -> bool:
        """Return whether the spec's result is there."""
        if isinstance(spec, RunSpec):
            return self.loss(spec) is not None
        if isinstance(spec, EnsembleSpec):
            return self.ensemble(spec) is not None
        folder = self._store.folder_of(spec)
        if folder.id not in self._samples and folder.result.exists():
            self._samples.add(folder.id)
            self._found(folder)
        return folder.id in self._samples

    def loss(self, spec: RunSpec) -> float | None:
        """Return the validation loss of a run in nats per token, inf if it diverged, None if it is not recorded."""
        run_id = spec.run_id
        if run_id not in self._losses:
            folder = self._store.folder_of(spec)
            if not folder.result.exists():
                return None
            loss = load_fact(RunResult, folder.result).val_loss
            self._losses[run_id] = math.inf if loss is None else loss
            self._found(folder)
        return self._losses[run_id]

    def ensemble(self, spec: EnsembleSpec) -> EnsembleResult | None:
        """Return the losses of an ensemble and its subsets, None if it is not recorded."""
        ensemble_id, folder = spec.ensemble_id, self._store.folder_of(spec)
        if ensemble_id not in self._ensembles and folder.result.exists():
            self._ensembles[ensemble_id] = load_fact(EnsembleResult, folder.result)
            self._found(folder)
        return self._ensembles.get(ensemble_id)

    def value(self, demand: Demand, cell: Cell, point: Point) -> float | None:
        """Return what the search of a cell minimises at a point, inf where a run diverged, None if it is not all recorded."""
        losses = [self.loss(run) for run in demand.searched(cell, point)]
        if None in losses:
            return None
        if demand.recipe(cell).objective == "single" or math.inf in losses:
            return max(losses)
        result = self.ensemble(demand.ensemble(cell, point))
        recipe = demand.recipe(cell)
        return limit_of_members(result.curve(recipe.averaging), recipe.members) if result else None
