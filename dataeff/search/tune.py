"""One cell's search as an Optuna study: what to train next, what came back, how it stands.

Optuna calculates and shows; the recorded runs are the truth. On opening, the Optuna study is reconciled with them:
trials that agree stay, a trial left running by a killed process is failed, and a study that contradicts the records
is built anew. A point whose run is recorded, by whichever study, is added as a trial and never trained again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dataeff.errors import InputError
from dataeff.search.coordinate_descent import Certificate, certificate, next_points, replay
from dataeff.search.sampler import CoordinateDescentSampler, distributions
from dataeff.specs.grid import Point
from dataeff.specs.study import Cell

_TOLD = (TrialState.COMPLETE, TrialState.PRUNED)

Recorded = Callable[[Point], float | None]  # loss of a point's run, inf if it diverged, None if it is not recorded


class _JournalLock:
    """The operating system's lock on a file: a killed process lets go of it. Optuna's own locks are files, which stay:
    a later start waits half a minute for them, or for ever where the journal's path is relative.
    """

    def __init__(self, journal: Path) -> None:
        self._lock = FileLock(journal.with_name(journal.name + ".lock"))

    def acquire(self) -> bool:
        self._lock.acquire(poll_interval=0.005)
        return True

    def release(self) -> None:
        self._lock.release()


def open_storage(location: Path | str) -> BaseStorage:
    """Open an Optuna storage: a URL such as postgresql://..., or a journal file that `optuna-dashboard FILE` can show.

    A journal cut short by a kill is set aside and a new one begun: nothing is lost, the runs are the record.
    Raises `InputError` for a URL that cannot be opened.
    """
    if isinstance(location, str):
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return RDBStorage(location)
        except (ImportError, SQLAlchemyError) as error:
            raise InputError(f"the Optuna storage {location} cannot be opened: {error}") from error
    location.parent.mkdir(parents=True, exist_ok=True)
    lock = _JournalLock(location)

    def journal() -> JournalStorage:
        return JournalStorage(JournalFileBackend(str(location), lock))

    lock.acquire()  # whoever is writing finishes its line first
    try:
        torn = location.exists() and location.stat().st_size > 0 and location.read_bytes()[-1:] != b"\n"
    finally:
        lock.release()
    try:
        if not torn:
            return journal()
    except ValueError:  # a line that is not JSON, json.JSONDecodeError included
        pass
    location.replace(location.with_suffix(".broken"))
    return journal()


@dataclass(frozen=True)
class Proposal:
    """A point to train, and the Optuna trial that waits for its loss."""

    point: Point
    trial: optuna.Trial


class CellSearch:
    """The search of one cell. `results` holds the loss of every point of its path, inf for a diverged run, as they came."""

    def __init__(
        self,
        cell: Cell,
        starts: Sequence[Point],
        storage: BaseStorage,
        recorded: Recorded,
        width: int = 2,
        max_runs: int | None = None,
    ) -> None:
        self.cell = cell
        self.results: dict[Point, float] = {}
        self.in_flight: set[Point] = set()
        self.failed: str | None = None  # why a point has no result: the search cannot go on
        self._recorded = recorded
        self._path = {"starts": tuple(starts), "width": width, "limit": max_runs}
        self._sampler = CoordinateDescentSampler(cell.grid, [cell.grid.values(p) for p in starts] or None, width)
        self._space = distributions(cell.grid)
        self._reconcile(storage)

    def _reconcile(self, storage: BaseStorage) -> None:
        """Open the Optuna study if its trials are on the recorded path, else build it anew; add what it lacks."""
        recorded = replay(self._recorded, self.cell.grid, **self._path)
        study = optuna.create_study(storage=storage, study_name=self.cell.id, sampler=self._sampler, load_if_exists=True)
        trials = study.get_trials(deepcopy=False)
        told = {self._point(trial): self._loss(trial) for trial in trials if trial.state in _TOLD}
        if any(trial.params and trial.distributions != self._space for trial in trials) or not told.items() <= recorded.items():
            optuna.delete_study(study_name=self.cell.id, storage=storage)
            study = optuna.create_study(storage=storage, study_name=self.cell.id, sampler=self._sampler)
            trials, told = [], {}
        for trial in trials:
            if trial.state == TrialState.RUNNING:  # its process is gone: one study is launched once at a time
                study.tell(trial.number, state=TrialState.FAIL)
        self._study, self.results = study, told
        for point, loss in recorded.items():
            if point not in told:
                self._add(point, loss)

    def _point(self, trial: optuna.trial.FrozenTrial) -> Point | None:
        return self.cell.grid.point(trial.params) if trial.distributions == self._space else None

    @staticmethod
    def _loss(trial: optuna.trial.FrozenTrial) -> float:
        return trial.value if trial.state == TrialState.COMPLETE else math.inf

    def _take_over(self) -> None:
        """Add what is recorded by now to the path, whoever trained it."""

        def known(point: Point) -> float | None:
            return self.results[point] if point in self.results else self._recorded(point)

        for point, loss in replay(known, self.cell.grid, **self._path).items():
            if point not in self.results and point not in self.in_flight:
                self._add(point, loss)

    def propose(self) -> list[Proposal]:
        """Return the points to train now; what is recorded already is taken over as a trial instead."""
        if self.failed:
            return []
        self._take_over()
        proposals = []
        for _ in self._wanted():
            trial = self._study.ask(self._space)  # the sampler hands out the points of the stage, in order
            proposals.append(Proposal(self.cell.grid.point(trial.params), trial))
            self.in_flight.add(proposals[-1].point)
        return proposals

    def _wanted(self) -> list[Point]:
        return next_points(self.results, self.cell.grid, in_flight=self.in_flight, **self._path)

    def _add(self, point: Point, loss: float) -> None:
        finite = math.isfinite(loss)
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if finite else TrialState.PRUNED,
                params=self.cell.grid.values(point),
                distributions=self._space,
                value=loss if finite else None,
            )
        )
        self.results[point] = loss

    def tell(self, proposal: Proposal, loss: float) -> None:
        """Report the loss of a proposed point, in nats per token; inf for a diverged run."""
        self.in_flight.discard(proposal.point)
        self.results[proposal.point] = loss
        if math.isfinite(loss):
            self._study.tell(proposal.trial, loss)
        else:
            self._study.tell(proposal.trial, state=TrialState.PRUNED)

    def give_up(self, proposal: Proposal, reason: str | None) -> None:
        """Report that a proposed point has no result. With a reason the search has failed; without, it was interrupted."""
        self.in_flight.discard(proposal.point)
        self._study.tell(proposal.trial, state=TrialState.FAIL)
        self.failed = self.failed or reason

    @property
    def ended(self) -> bool:
        """Whether nothing is in flight and nothing more will be proposed."""
        return not self.in_flight and (self.failed is not None or not self._wanted())

    @property
    def stopped(self) -> str | None:
        """Why the search ended without its certificate; None when it did not."""
        limit = self._path["limit"]
        if self.failed is None and limit is not None and len(self.results) >= limit and self.certificate.state == "open":
            return f"its {limit} runs are used up"
        return self.failed

    @property
    def certificate(self) -> Certificate:
        """The state of the cell's optimum by the results so far."""
        return certificate(self.results, self.cell.grid)
