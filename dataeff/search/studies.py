"""The Optuna study of each cell: built from what is recorded, then asked and told.

Optuna's storage is a mirror that `optuna-dashboard` opens. A study is made anew when a launch first meets its cell, and
whenever the cell's grid or starts have changed, so there is no state to reconcile: the records are the truth.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState, create_trial

from dataeff.errors import InputError
from dataeff.search.sampler import CoordinateDescentSampler, distributions
from dataeff.specs.grid import Grid, Point


class _Journal(BaseJournalBackend):
    """A journal file of one writer. It is not synced: the next launch writes it anew."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w")  # noqa: SIM115 - open as long as the launch
        self._logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        return iter(self._logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._logs += logs
        self._file.writelines(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._file.flush()


def open_storage(location: Path | str) -> BaseStorage:
    """Open an Optuna storage: a URL such as postgresql://..., or a journal file, which is begun anew.

    Raises `InputError` for a URL that cannot be opened.
    """
    if isinstance(location, Path):
        return JournalStorage(_Journal(location))
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return RDBStorage(location)
    except (ImportError, SQLAlchemyError) as error:
        raise InputError(f"the Optuna storage {location} cannot be opened: {error}") from error


@dataclass
class _Search:
    study: optuna.Study
    grid: Grid
    starts: tuple[Point, ...]
    told: set[Point]
    asked: dict[Point, optuna.Trial]


class CellStudies:
    """The Optuna studies of one launch, by cell id."""

    def __init__(self, storage: BaseStorage, width: int) -> None:
        self._storage, self._width = storage, width
        self._searches: dict[str, _Search] = {}

    def update(
        self, cell_id: str, grid: Grid, starts: Sequence[Point], results: Mapping[Point, float], needed: Iterable[Point]
    ) -> None:
        """Tell a cell's study the results it lacks, and ask it for the points that are needed."""
        search = self._searches.get(cell_id)
        if search is None or (search.grid, search.starts) != (grid, tuple(starts)) or not search.told <= results.keys():
            search = self._searches[cell_id] = self._create(cell_id, grid, tuple(starts))
        space, news = distributions(grid), []
        for point, loss in results.items():
            value, state = (loss, TrialState.COMPLETE) if loss < math.inf else (None, TrialState.PRUNED)
            if point in search.asked:
                search.study.tell(search.asked.pop(point), value, state=state)
            elif point not in search.told:
                news.append(create_trial(state=state, value=value, params=grid.values(point), distributions=space))
        search.study.add_trials(news)
        search.told |= results.keys()
        for _ in [point for point in needed if point not in search.asked]:
            trial = search.study.ask(space)  # the sampler hands out the points of the stage, in order
            search.asked[grid.point(trial.params)] = trial

    def close(self) -> None:
        """End the trials that have no result."""
        for search in self._searches.values():
            for trial in search.asked.values():
                search.study.tell(trial, state=TrialState.FAIL)
            search.asked.clear()

    def _create(self, cell_id: str, grid: Grid, starts: tuple[Point, ...]) -> _Search:
        with suppress(KeyError):  # where there is none of this name
            optuna.delete_study(study_name=cell_id, storage=self._storage)
        sampler = CoordinateDescentSampler(grid, [grid.values(point) for point in starts], self._width)
        study = optuna.create_study(storage=self._storage, study_name=cell_id, sampler=sampler)
        return _Search(study, grid, starts, set(), {})
