"""Launching a study: the loop that joins search, execution and records.

    wanted by a cell's search -> recorded already? take it : train it -> tell the search -> write it down
    a cell's optimum          -> its repeats, or its members and their ensemble; a teacher's samples before its student

Everything that matters is on disk when it is told: a run is a result.json, the database is written from those, and
the search is replayed from the database. So this loop may be killed at any moment. The points a study trains do not
depend on how many workers there are or which finishes first: a cell starts only when the cells it starts from have
ended, and moves only when its stage is complete.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from dataeff.data.tokens import Tokens, build_tokens
from dataeff.errors import DatabaseBusyError, DataeffError, StudyError, StudyRunningError
from dataeff.execution.base import Executor
from dataeff.facts import Facts
from dataeff.fits import renew_fits
from dataeff.jobs import Done, Failed, Jobs
from dataeff.planning.plan import typical_flops, typical_points
from dataeff.records.recorder import Recorder
from dataeff.records.store import Database
from dataeff.search.coordinate_descent import Certificate
from dataeff.search.tune import CellSearch, Proposal, open_storage
from dataeff.specs.demand import Demand
from dataeff.specs.ensemble import EnsembleSpec, SampleSpec
from dataeff.specs.grid import Point
from dataeff.specs.result import Store
from dataeff.specs.run import RunSpec
from dataeff.specs.study import Cell, Study

FLUSH_SECONDS = 2.0  # between write transactions, so that writing costs the workers next to nothing
FIT_SECONDS = 60.0  # between fits of the study as it stands, or twenty times what they take
LAST_FLUSH_SECONDS = 10.0  # for a launch that is told to stop while another program holds the database


@dataclass
class CellProgress:
    """Where one cell stands, for whoever watches."""

    cell: Cell  # as declared, until it is placed
    search: CellSearch | None = None  # None while it waits for the cells it starts from, and for its teacher
    trained: int = 0
    reused: int = 0
    repeats_left: int = 0  # what is still to be made of the optimum: runs under other seeds, and their ensemble
    certificate: Certificate | None = None
    noted: set[Point] = field(default_factory=set)
    samples: SampleSpec | None = None  # of its teacher
    follows: CellProgress | None = None  # where nothing is tuned: the cell whose optimum, and certificate, is this one's
    blocked: str | None = None  # why it can never start

    @property
    def state(self) -> str:
        """waiting | blocked | searching | certified | boundary | open"""
        if self.search is None:
            return "blocked" if self.blocked else "waiting"
        if self.certificate is None:
            return "searching"
        return self.follows.state if self.follows and self.certificate.state == "certified" else self.certificate.state

    @property
    def running(self) -> int:
        return len(self.search.in_flight) if self.search else 0

    @property
    def optimum(self) -> dict[str, float] | None:
        best = self.certificate.best if self.certificate else None
        return None if best is None else self.cell.grid.values(best)

    def number(self, point: Point) -> int:
        """Return the place of a point in the order of the search, from 0."""
        return list(self.search.results).index(point)

    @property
    def ended(self) -> bool:
        """Whether its search has; one that failed has no optimum until it is tried again."""
        return self.certificate is not None and self.search.failed is None


class Launch:
    """One launch of a study. `run()` returns when every cell has ended or `stop()` was called."""

    def __init__(
        self,
        study: Study,
        database: Path | str,
        executor: Executor,
        storage: str | None = None,
        on_progress: Callable[[str, int, int | None], None] | None = None,
    ) -> None:
        """Prepare: build or find the tokens, check the budgets, open the records. `storage` is an Optuna URL.

        Raises `StudyError`, `CorpusError` or `DatabaseError` before anything is trained.
        """
        self.study, self.spec = study, study.spec
        self.store = Store.beside(Path(database))
        self.database = Database(database)
        self.recorder = Recorder(self.database)
        self.database.require_usable()  # before minutes are spent on tokens
        self.tokens = build_tokens(self.spec.corpus, self.spec.tokenizer, study.directory, self.store, on_progress)
        check_budgets(study, self.tokens)
        self.cells = {cell.id: CellProgress(cell) for cell in self.spec.cells}
        self.database_busy_since: float | None = None
        self.began = time.monotonic()
        self._last_flush = -math.inf
        self._last_fit, self._fit_pause = self.began, FIT_SECONDS
        self.fits_failed: str | None = None  # why the intervals are not those of the runs there are
        self.demand = Demand(self.spec, self.tokens.fingerprint, self.tokens.vocabulary, self.tokens.separator)
        self._lock = self._claim()
        try:
            self._storage = open_storage(storage or self.store.path / "optuna.log")
            found = self.recorder.fact
            self.facts = Facts(self.store, *self.recorder.begin(study, self.demand, self.tokens.name), found)
            evaluations = self.spec.resources.evaluations
            self.jobs = Jobs(executor, self.store, self.facts, self.tokens.folder, evaluations, found)
        except BaseException:
            self._lock.release()  # a notebook keeps the traceback, and with it this object
            raise

    def _claim(self) -> FileLock:
        """Hold the study for as long as this object lives: two launches would fail each other's trials."""
        lock = FileLock(self.store.path / f"{self.spec.name}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StudyRunningError(
                f"study {self.spec.name} is being run by another process on {self.store.path}; wait for it, stop it, or give "
                "this study another name"
            ) from None
        return lock

    def run(self, on_change: Callable[[Launch], None] | None = None) -> None:
        """Train what is missing. Raises `DatabaseError` when the results cannot be written down in the end."""
        try:
            self._advance()
            while True:
                self._flush(0.2, now=not self.jobs.running)
                if time.monotonic() - self._last_fit > self._fit_pause:
                    self._fit(0.2)
                if on_change:
                    on_change(self)
                if not self.jobs.running and (self.database_busy_since is None or self.jobs.stopping):
                    break
                if self.jobs.wait(timeout=0.25):
                    self._advance()
            self.recorder.flush(LAST_FLUSH_SECONDS)  # writes only what a stopped launch could not write above
            if not self.jobs.stopping:
                self._fit(LAST_FLUSH_SECONDS)
        finally:
            self._lock.release()

    # -- the search ---------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Open every cell that can start, submit what the searches want, close those that have ended."""
        changed = not self.jobs.stopping
        while changed:
            changed = False
            for progress in self.cells.values():
                if progress.state == "waiting" and self._can_start(progress):
                    self._open(progress)
                    changed = True
                if progress.state == "searching":
                    for proposal in progress.search.propose():
                        self._try(progress, proposal)
                        changed |= proposal.point not in progress.search.in_flight  # a fact since, made by another study
                    for point in progress.search.results:
                        if point not in progress.noted:
                            self._note(progress, point)
                    if progress.search.ended:
                        self._close(progress)
                        changed = True

    def _can_start(self, progress: CellProgress) -> bool:
        """Whether the cells it starts from have ended, and the members of its teacher are there. A cell whose base or teacher
        turns out to have nothing to give is blocked.
        """
        cell = progress.cell
        ended = all(self.cells[other].ended for other in (cell.neighbour, cell.base, cell.teacher) if other)
        if ended and cell.base and self.demand.recipe(cell).tune is not None and self.cells[cell.base].optimum is None:
            progress.blocked = f"its base {cell.base} has no optimum"
        if ended and cell.teacher:
            teacher = self.cells[cell.teacher]
            best = teacher.certificate.best
            members = self.demand.members(teacher.cell, best) if best is not None else []
            if not members or self._diverged(members):
                progress.blocked = f"its teacher {cell.teacher} has {'a diverged member' if members else 'no optimum'}"
            ended = all(self.facts.has(member) for member in members)
        if progress.blocked:
            self.recorder.note(cell, progress.blocked)
        return ended and not progress.blocked

    def _open(self, progress: CellProgress) -> None:
        optima = {other: self.cells[other].optimum for other in (progress.cell.neighbour, progress.cell.base) if other}
        cell, starts, note = self.demand.place(progress.cell, optima)
        if cell.teacher:
            teacher = self.cells[cell.teacher]
            names = self.demand.member_names(teacher.cell, teacher.certificate.best)
            cell, progress.samples = self.demand.taught(cell, names)
        if cell.base and cell.grid.size == 1 and self.demand.recipe(cell).tune == []:
            progress.follows = self.cells[cell.base]
        progress.cell = cell
        self.recorder.search_opened(cell, starts, note)
        progress.search = CellSearch(
            cell,
            starts,
            self._storage,
            lambda point: self.facts.value(self.demand, cell, point),
            self.spec.resources.points_in_flight,
            self.spec.resources.max_runs_per_cell,
        )

    def _try(self, progress: CellProgress, proposal: Proposal) -> None:
        """Have a proposed point trained and, where its objective is a limit, its members' ensemble evaluated."""
        search, cell, point = progress.search, progress.cell, proposal.point

        def give_up(reason: str | None) -> None:
            search.give_up(proposal, reason)

        def judge(trained: int) -> None:
            search.tell(proposal, self.facts.value(self.demand, cell, point))
            self._note(progress, point, trained)

        def trained_all(trained: int) -> None:
            if self._judged_by(cell, point):
                self._evaluate(progress, point, lambda _: judge(trained), give_up)
            else:
                judge(trained)

        self._train(progress, self.demand.searched(cell, point), trained_all, give_up)

    def _judged_by(self, cell: Cell, point: Point) -> list[EnsembleSpec]:
        """The ensemble that a point's objective is read off, once its members are there; a diverged one has none."""
        if self.demand.recipe(cell).objective == "single" or self._diverged(self.demand.searched(cell, point)):
            return []
        return [self.demand.ensemble(cell, point)]

    def _diverged(self, runs: Sequence[RunSpec]) -> bool:
        return any(self.facts.loss(run) == math.inf for run in runs)

    def _close(self, progress: CellProgress) -> None:
        """The search has ended: keep its certificate, and repeat its optimum under other seeds, or gather its members."""
        cell = progress.cell
        progress.certificate = progress.search.certificate
        self.recorder.search_ended(cell, progress.search.stopped)
        best = None if progress.search.failed else progress.certificate.best
        if best is None:
            return
        repeats, ensemble = self.demand.repeats(cell, best), self.demand.ensemble(cell, best)
        role = "member" if len(self.demand.members(cell, best)) > 1 else "replicate"
        progress.repeats_left = len(repeats) + (ensemble is not None)

        def repeated(run: RunSpec) -> Done:
            def note(trained: int) -> None:
                progress.repeats_left -= 1
                self.recorder.trial(cell, run.run_id, role, progress.number(best), best)

            return note

        def gathered(trained: int) -> None:
            if self._diverged(self.demand.members(cell, best)):
                self.recorder.note(cell, "a member of the optimum diverged: it has no ensemble")
                return
            self._evaluate(progress, best, evaluated, lambda reason: None)

        def evaluated(trained: int) -> None:
            progress.repeats_left -= 1
            self.recorder.ensemble(cell, ensemble.ensemble_id, progress.number(best), best)

        for run in repeats:
            self._train(progress, [run], repeated(run), lambda reason: None)
        if ensemble:
            self._train(progress, self.demand.members(cell, best), gathered, lambda reason: None)

    def _note(self, progress: CellProgress, point: Point, trained: int = 0) -> None:
        """Write down the runs, and the ensemble, that a point of a search used."""
        cell, number = progress.cell, progress.number(point)
        runs = self.demand.searched(cell, point)
        for place, run in enumerate(runs):
            self.recorder.trial(cell, run.run_id, "member" if place else "search", number, point)
        for ensemble in self._judged_by(cell, point):
            self.recorder.ensemble(cell, ensemble.ensemble_id, number, point)
        progress.noted.add(point)
        progress.trained += trained
        progress.reused += len(runs) - trained

    # -- what a point takes -------------------------------------------------------------------------------------

    def _train(self, progress: CellProgress, runs: Sequence[RunSpec], done: Done, failed: Failed, weights: bool = False) -> None:
        """Have runs of a cell trained; those of a taught cell need their teacher's samples, or its weights, first."""
        if not self.jobs.missing(runs, weights):
            done(0)
            return

        def ready(_: int) -> None:
            self.jobs.make(runs, done, failed, weights)

        if progress.cell.teacher is None:
            ready(0)
            return
        teacher = self.cells[progress.cell.teacher]
        members = self.demand.members(teacher.cell, teacher.certificate.best)
        if progress.samples is None:
            self._train(teacher, members, ready, failed, weights=True)
        elif self.facts.has(progress.samples):
            ready(0)
        else:
            self._train(teacher, members, lambda _: self.jobs.make([progress.samples], ready, failed), failed, weights=True)

    def _evaluate(self, progress: CellProgress, point: Point, done: Done, failed: Failed) -> None:
        """Have the ensemble of a point's members evaluated, from their weights: what was imported has none."""
        ensemble, members = self.demand.ensemble(progress.cell, point), self.demand.members(progress.cell, point)
        if self.facts.has(ensemble):
            done(0)
        else:
            self._train(progress, members, lambda _: self.jobs.make([ensemble], done, failed), failed, weights=True)

    # -- the records --------------------------------------------------------------------------------------------

    def _flush(self, wait: float, now: bool) -> None:
        """Write what is pending. A database held by a reader never holds up training: it is tried again later."""
        if not now and time.monotonic() - self._last_flush < FLUSH_SECONDS:
            return
        try:
            self.recorder.flush(wait)
            self.database_busy_since = None
        except DatabaseBusyError:
            self.database_busy_since = self.database_busy_since or time.monotonic()
        self._last_flush = time.monotonic()

    def _fit(self, wait: float) -> None:
        """Renew the study's fits. What cannot be renewed now stays marked as stale, and training goes on."""
        begin, self.fits_failed = time.monotonic(), None
        try:
            renew_fits(self.database, self.spec.name, wait)
        except DataeffError as error:
            self.fits_failed = str(error)
        self._last_fit = time.monotonic()
        self._fit_pause = max(FIT_SECONDS, 20 * (self._last_fit - begin))

    # -- for whoever watches ------------------------------------------------------------------------------------

    @property
    def states(self) -> Counter[str]:
        """Number of cells in each state."""
        return Counter(progress.state for progress in self.cells.values())

    def seconds_left(self) -> float | None:
        """Estimate from the FLOPs trained so far and the typical length of a search; None until ten runs were trained."""
        elapsed = time.monotonic() - self.began
        if self.jobs.trained < 10:
            return None
        left = 0.0
        for progress in self.cells.values():
            cell, runs = progress.cell, progress.repeats_left
            if progress.certificate is None:
                done = len(progress.search.results) if progress.search else 0
                each = len(self.demand.searched(cell, cell.grid.middle))
                runs = each * max(1, typical_points(cell) - done)
                runs += len(self.demand.repeats(cell, cell.grid.middle)) if each == 1 else 0
            left += runs * typical_flops(self.demand, cell)
        return left / self.jobs.flops_trained * elapsed


def check_budgets(study: Study, tokens: Tokens) -> None:
    """Raise `StudyError` when a budget is larger than the corpus, or the validation split too small."""
    largest, step = study.spec.seed_tokens[-1], study.spec.training.batch_size * study.spec.training.context_length
    if largest > tokens.train_tokens:
        raise StudyError(
            f"{study.place_of('seed_tokens')}seed_tokens {largest} is more than corpus '{study.spec.corpus.name}' has: "
            f"{tokens.train_tokens} training tokens; use at most {tokens.train_tokens // step * step}, or a larger corpus"
        )
    stated = study.spec.tokenizer.vocabulary
    if study.spec.tokenizer.kind == "hugging_face" and stated not in (None, tokens.vocabulary):
        raise StudyError(
            f"{study.place_of('tokenizer')}tokenizer.vocabulary {stated} is not what {study.spec.tokenizer.name} has: "
            f"{tokens.vocabulary}; state that, or leave it out"
        )
    tokens.validation(study.spec.training.validation_sequences, study.spec.training.context_length)
