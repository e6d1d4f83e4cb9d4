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

from dataeff.search.coordinate_descent import Certificate, certificate
from dataeff.search.sampler import CoordinateDescentSampler, distributions
from dataeff.specs.grid import Point
from dataeff.specs.study import Cell

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
    """
    if isinstance(location, str) and "://" in location:
        return RDBStorage(location)
    path = Path(location)
    path.parent.mkdir(parents=True, exist_ok=True)

    def journal() -> JournalStorage:
        return JournalStorage(JournalFileBackend(str(path), _JournalLock(path)))

    try:
        storage = journal()
        complete = not path.stat().st_size or path.read_bytes()[-1:] == b"\n"
    except ValueError:  # a line that is not JSON, json.JSONDecodeError included
        complete = False
    if not complete:
        path.replace(path.with_suffix(".broken"))
        storage = journal()
    return storage


@dataclass(frozen=True)
class Proposal:
    """A point to train, and the Optuna trial that waits for its loss."""

    point: Point
    trial: optuna.Trial


class CellSearch:
    """The search of one cell. `results` holds the loss of every point it has, inf for a diverged run, in the order they came."""

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
        self.starts = tuple(starts)
        self.results: dict[Point, float] = {}
        self.in_flight: set[Point] = set()
        self.stopped: str | None = None  # why the search ended before its certificate
        self._recorded = recorded
        self._max_runs = max_runs
        self._sampler = CoordinateDescentSampler(cell.grid, [cell.grid.values(p) for p in starts] or None, width)
        self._study = self._open(storage)

    def _open(self, storage: BaseStorage) -> optuna.Study:
        study = optuna.create_study(storage=storage, study_name=self.cell.id, sampler=self._sampler, load_if_exists=True)
        for trial in study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                point = self.cell.grid.point(trial.params) if set(trial.params) == set(self.cell.grid.names) else None
                loss = math.inf if trial.state == TrialState.PRUNED else trial.value
                if point is None or self._recorded(point) != loss:
                    optuna.delete_study(study_name=self.cell.id, storage=storage)
                    return optuna.create_study(storage=storage, study_name=self.cell.id, sampler=self._sampler)
                self.results[point] = loss
        return study

    def propose(self) -> list[Proposal]:
        """Return the points to train now; what is recorded already is taken over as a trial instead."""
        if self.stopped:
            return []
        wanted = self._pending()
        while known := [(p, loss) for p in wanted if (loss := self._recorded(p)) is not None]:
            for point, loss in known:
                self._add(point, loss)
            wanted = self._pending()
        if self._max_runs is not None and len(wanted) > (left := self._max_runs - len(self.results) - len(self.in_flight)):
            wanted = wanted[: max(0, left)]
            if not wanted and not self.in_flight:
                self.stopped = f"its {self._max_runs} runs are used up"
        proposals = []
        for _ in wanted:
            trial = self._study.ask(distributions(self.cell.grid))
            proposals.append(Proposal(self.cell.grid.point(trial.params), trial))
            self.in_flight.add(proposals[-1].point)
        return proposals

    def _pending(self) -> list[Point]:
        return [self.cell.grid.point(values) for values in self._sampler.pending(self._study)]

    def _add(self, point: Point, loss: float) -> None:
        finite = math.isfinite(loss)
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if finite else TrialState.PRUNED,
                params=self.cell.grid.values(point),
                distributions=distributions(self.cell.grid),
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
        """Report that a proposed point has no result. With a reason the search ends `open`; without, it was only interrupted."""
        self.in_flight.discard(proposal.point)
        self._study.tell(proposal.trial, state=TrialState.FAIL)
        self.stopped = self.stopped or reason

    @property
    def ended(self) -> bool:
        """Whether nothing is in flight and nothing more will be proposed."""
        return not self.in_flight and (self.stopped is not None or not self._pending())

    @property
    def certificate(self) -> Certificate:
        """The state of the cell's optimum by the results so far."""
        return certificate(self.results, self.cell.grid)
