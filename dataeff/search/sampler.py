"""Coordinate descent as an Optuna sampler: the trials of a study are the results, the sampler says what comes next.

A COMPLETE trial is a result (infinite when diverged) and a PRUNED one counts as diverged. A FAIL trial is as if deleted,
so its point may be asked for again. RUNNING and WAITING trials are in flight: a trial whose process died blocks
its point until someone tells it FAIL, as Optuna's heartbeat does.

`optimize` and `ask` may be called from many threads. It does not coordinate processes: two that ask one storage in the
same instant may get the same point.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NoReturn

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import TrialPruned
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dataeff.errors import InputError, OffGridError
from dataeff.search.coordinate_descent import Certificate, certificate, walk
from dataeff.specs.grid import Grid, Point


def distributions(grid: Grid) -> dict[str, CategoricalDistribution]:
    """Return the search space of `grid`, for `study.ask(fixed_distributions=...)` and `optuna.trial.create_trial`."""
    return {name: CategoricalDistribution(tuple(values)) for name, values in grid.axes.items()}


class CoordinateDescentSampler(BaseSampler):
    """Walk a grid to a certified local minimum.

    The objective calls `trial.suggest_categorical(name, values)` for every axis of the grid, or the caller asks with
    `distributions(grid)`. `starts` are points, as values (the middle of the grid unless given); `width` is the number of
    neighbours polled at a time. Who asks for more trials than the stage needs gets the free points nearest to the best.
    `optimize` stops by itself when the certificate is no longer open; should a trial then in flight end better still, another
    `optimize` goes on from it.
    Raises `OffGridError` for a start, a result or a parameter that is not on the grid, `InputError` for a study that
    does not minimise one objective or when every point is run or running.
    """

    def __init__(self, grid: Grid, starts: Sequence[Mapping[str, Any]] = (), width: int = 2) -> None:
        self.grid, self.width = grid, width
        self.starts = tuple(grid.point(values) for values in starts)
        self._lock = threading.RLock()
        # Optuna stores a trial's parameters only after `sample_relative` has returned.
        self._handed_out: dict[tuple[str, int], Point] = {}  # by study and trial number

    def __reduce__(self) -> tuple[Any, ...]:
        starts = [self.grid.values(point) for point in self.starts]
        return type(self), (self.grid, starts, self.width)  # what is handed out belongs to the threads of one process

    def _needed(self, results: Mapping[Point, float]) -> list[Point]:
        """Return the points that `walk` needs next when all `results` count, on the path or not."""
        return walk(results.get, self.grid, self.starts, self.width, others=results.keys)[1]

    def certificate(self, study: Study) -> Certificate:
        """Return the certificate of the study's results."""
        return certificate(self._read(study)[0], self.grid)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(distributions(self.grid))

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if list(study.directions) != [StudyDirection.MINIMIZE]:
            wanted = ", ".join(direction.name.lower() for direction in study.directions)
            raise InputError(f"the study's direction is {wanted}: the loss is minimised; create it with direction='minimize'")
        with self._lock:
            results, in_flight = self._read(study)
            best = certificate(results, self.grid).best
            centres = (self.starts or (self.grid.middle,)) if best is None else (best,)
            nearest = sorted(product(*map(range, self.grid.shape)), key=lambda p: min(math.dist(p, centre) for centre in centres))
            points = [*self._needed(results), *nearest]
            point = next((point for point in points if point not in results and point not in in_flight), None)
            if point is None:
                message = f"all {self.grid.size} points of the grid are run or running; there is none left to ask for"
                raise TrialPruned(message) if _stop(study) else InputError(message)  # another error would end running workers
            self._handed_out[study.study_name, trial.number] = point
        return self.grid.values(point)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> NoReturn:
        raise OffGridError(
            f"{param_name} is not an axis of the grid; valid: {', '.join(self.grid.names)}. Add it to the grid, or fix it"
        )

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Stop `optimize` once nothing is needed. Runs before the trial's state is stored, so its result is added here."""
        results, point = self._read(study)[0], self._point(trial)
        if point is not None and state in (TrialState.COMPLETE, TrialState.PRUNED):
            results.setdefault(point, values[0] if state == TrialState.COMPLETE and values else math.inf)
        if not self._needed(results):
            _stop(study)

    def _read(self, study: Study) -> tuple[dict[Point, float], set[Point]]:
        """Return the results and the points in flight. Of several results of one point the first counts."""
        results: dict[Point, float] = {}
        in_flight: set[Point] = set()
        with self._lock:
            for trial in study.get_trials(deepcopy=False):
                key = (study.study_name, trial.number)
                if trial.state.is_finished():
                    self._handed_out.pop(key, None)
                point = self._point(trial) or self._handed_out.get(key)
                if point is None or trial.state == TrialState.FAIL:
                    continue
                if not trial.state.is_finished():
                    in_flight.add(point)
                else:
                    results.setdefault(point, trial.values[0] if trial.state == TrialState.COMPLETE else math.inf)
        return results, in_flight

    def _point(self, trial: FrozenTrial) -> Point | None:
        """Return the trial's point, or None while it lacks an axis. `fixed_params` is where `enqueue_trial` puts values."""
        values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        return self.grid.point(values) if all(name in values for name in self.grid.names) else None


def _stop(study: Study) -> bool:
    """Stop the running `study.optimize`; return False when there is none, as under ask and tell."""
    try:
        study.stop()
    except RuntimeError:  # what Optuna raises outside `optimize`, and all it raises here
        return False
    return True
