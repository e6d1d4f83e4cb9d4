"""Launching a study: the loop that joins search, execution and records.

    wanted by a cell's search -> recorded already? take it : train it -> tell the search -> write it down

Everything that matters is on disk when it is told: a run is a result.json, the database is written from those, and
the search is replayed from the database. So this loop may be killed at any moment. The points a study trains do not
depend on how many workers there are or which finishes first: a cell starts only when the cells it starts from have
ended, and moves only when its stage is complete.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from dataeff.data.tokens import Tokens, build_tokens
from dataeff.errors import DatabaseBusyError, StudyError, StudyRunningError
from dataeff.execution.base import Ended, Executor, Job, Progressed
from dataeff.planning.plan import starts_of, typical_flops, typical_runs
from dataeff.records.recorder import Recorder
from dataeff.records.store import Database
from dataeff.search.coordinate_descent import Certificate
from dataeff.search.tune import CellSearch, Proposal, open_storage
from dataeff.specs.grid import Point
from dataeff.specs.result import RunFolder, RunResult, Store, load_fact
from dataeff.specs.run import RunSpec
from dataeff.specs.study import Cell, Study

ATTEMPTS = 2  # tries at a run that fails or is killed, in one launch
FLUSH_SECONDS = 2.0  # between write transactions, so that writing costs the workers next to nothing
LAST_FLUSH_SECONDS = 10.0  # for a launch that is told to stop while another program holds the database


@dataclass
class CellProgress:
    """Where one cell stands, for whoever watches."""

    cell: Cell
    search: CellSearch | None = None  # None while it waits for the cells it starts from
    trained: int = 0
    reused: int = 0
    repeats_left: int = 0  # runs of the optimum under the other seeds
    certificate: Certificate | None = None

    @property
    def state(self) -> str:
        """waiting | searching | certified | boundary | open"""
        if self.search is None:
            return "waiting"
        return self.certificate.state if self.certificate else "searching"

    @property
    def running(self) -> int:
        return len(self.search.in_flight) if self.search else 0


@dataclass
class Waiter:
    """Who wants a run: a search's proposal, or a repeat of a cell's optimum under another seed."""

    progress: CellProgress
    point: Point
    proposal: Proposal | None


@dataclass
class Wanted:
    """A run under way and everyone who waits for it."""

    spec: RunSpec
    waiters: list[Waiter] = field(default_factory=list)
    tries: int = 0


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
        self.study, self.spec, self.executor = study, study.spec, executor
        self.store = Store.beside(Path(database))
        self.recorder = Recorder(Database(database))
        Database(database).require_usable()  # before minutes are spent on tokens
        self.tokens = build_tokens(self.spec.corpus, self.spec.tokenizer, study.directory, self.store, on_progress)
        check_budgets(study, self.tokens)
        self.cells = {cell.id: CellProgress(cell) for cell in self.spec.cells}
        self.running: dict[str, Wanted] = {}
        self.latest: dict[str, Progressed] = {}
        self.failures: list[str] = []
        self.stopping = False
        self.database_busy_since: float | None = None
        self.began = time.monotonic()
        self.trained = 0  # runs, each counted once however many cells wanted it
        self.flops_trained = 0
        self._last_flush = -math.inf
        self._lock = self._claim()
        try:
            self._storage = open_storage(storage or self.store.path / "optuna.log")
            self._losses = self.recorder.begin(
                study, self.spec.cells, self.tokens.fingerprint, self.tokens.name, self.tokens.vocabulary
            )
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
                self._flush(0.2, now=not self.running)
                if on_change:
                    on_change(self)
                if not self.running and (self.database_busy_since is None or self.stopping):
                    break
                happened = self.executor.events(timeout=0.25)
                for event in happened:
                    if isinstance(event, Progressed):
                        self.latest[event.run_id] = event
                    else:
                        self._end(event)
                if any(isinstance(event, Ended) for event in happened):
                    self._advance()
            self.recorder.flush(LAST_FLUSH_SECONDS)  # writes only what a stopped launch could not write above
        finally:
            self._lock.release()

    def stop(self) -> None:
        """End soon and cleanly: running jobs write a checkpoint, nothing new is started."""
        self.stopping = True
        self.executor.stop()

    # -- the search ---------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Open every cell that can start, submit what the searches want, close those that have ended."""
        changed = not self.stopping
        while changed:
            changed = False
            for progress in self.cells.values():
                if progress.search is None and self._can_start(progress.cell):
                    self._open(progress)
                    changed = True
                if progress.state == "searching":
                    for proposal in progress.search.propose():
                        self._want(progress, proposal.point, proposal)
                    self._note_taken_over(progress)
                    if progress.search.ended:
                        self._close(progress)
                        changed = True

    def _can_start(self, cell: Cell) -> bool:
        """Whether the cells it starts from have ended; one that failed has no optimum to start from until it is tried again."""
        others = [self.cells[other] for other in cell.waits_for]
        return all(other.certificate is not None and other.search.failed is None for other in others)

    def _open(self, progress: CellProgress) -> None:
        cell = progress.cell
        optima = {other: self._optimum(self.cells[other]) for other in cell.waits_for}
        starts = starts_of(cell, optima, self.spec.recipes[cell.recipe].start)
        self.recorder.search_opened(cell, starts)
        progress.search = CellSearch(
            cell,
            starts,
            self._storage,
            lambda point: self._recorded(self._run_spec(cell, point, self.spec.seeds[0])),
            self.spec.resources.points_in_flight,
            self.spec.resources.max_runs_per_cell,
        )

    @staticmethod
    def _optimum(progress: CellProgress) -> dict[str, float] | None:
        best = progress.certificate.best if progress.certificate else None
        return progress.cell.grid.values(best) if best is not None else None

    def _note_taken_over(self, progress: CellProgress) -> None:
        """Write down the trials that the search took from the records."""
        noted = progress.trained + progress.reused
        for point in list(progress.search.results)[noted:]:
            progress.reused += 1
            self._note(progress, point, self.spec.seeds[0], "search")

    def _close(self, progress: CellProgress) -> None:
        """The search has ended: keep its certificate, and repeat its optimum under the other seeds."""
        progress.certificate = progress.search.certificate
        self.recorder.search_ended(progress.cell, progress.search.stopped)
        best = None if progress.search.failed else progress.certificate.best
        for seed in self.spec.seeds[1:] if best is not None else ():
            if self._recorded(self._run_spec(progress.cell, best, seed)) is None:
                progress.repeats_left += 1
                self._want(progress, best, None, seed)
            else:
                self._note(progress, best, seed, "replicate")

    # -- the runs -----------------------------------------------------------------------------------------------

    def _run_spec(self, cell: Cell, point: Point, seed: int) -> RunSpec:
        return self.spec.run_spec(cell, point, seed, self.tokens.fingerprint, self.tokens.vocabulary)

    def _recorded(self, spec: RunSpec) -> float | None:
        """The loss of a run that is a fact already: in the database, or in a run folder not yet ingested."""
        loss = self._losses.get(spec.run_id)
        if loss is None:
            folder = self.store.run(spec.run_id)
            if folder.result.exists():
                loss = self._take(folder)
        return loss

    def _take(self, folder: RunFolder) -> float:
        result = load_fact(RunResult, folder.result)
        self.recorder.run(folder)
        loss = math.inf if result.val_loss is None else result.val_loss
        self._losses[result.run_id] = loss
        return loss

    def _want(self, progress: CellProgress, point: Point, proposal: Proposal | None, seed: int | None = None) -> None:
        spec = self._run_spec(progress.cell, point, self.spec.seeds[0] if seed is None else seed)
        wanted = self.running.setdefault(spec.run_id, Wanted(spec))
        wanted.waiters.append(Waiter(progress, point, proposal))
        if len(wanted.waiters) == 1:
            self._submit(wanted)

    def _submit(self, wanted: Wanted) -> None:
        wanted.tries += 1
        folder = self.store.run(wanted.spec.run_id)
        self.executor.submit(Job(wanted.spec, folder.path, self.tokens.folder, self.spec.resources.evaluations))

    def _end(self, event: Ended) -> None:
        """A job has ended: tell everyone who waited, or try it once more."""
        wanted = self.running[event.run_id]
        self.latest.pop(event.run_id, None)
        if event.outcome in ("finished", "diverged"):
            del self.running[event.run_id]
            loss = self._take(self.store.run(event.run_id))
            self.trained += event.trained
            self.flops_trained += wanted.spec.training_flops * event.trained
            for waiter in wanted.waiters:
                self._tell(waiter, wanted.spec, loss, event.trained)
            return
        folder = self.store.run(event.run_id)
        if folder.spec.exists():  # a worker that died before it began left nothing to record
            self.recorder.run(folder)
        interrupted = self.stopping and event.outcome == "preempted"
        if not self.stopping and event.outcome in ("failed", "killed", "preempted") and wanted.tries < ATTEMPTS:
            self._submit(wanted)
            return
        del self.running[event.run_id]
        reason = None if interrupted else f"run {event.run_id}: {event.outcome}: {event.reason}"
        if reason:
            self.failures.append(reason)
        for waiter in wanted.waiters:
            if waiter.proposal:
                waiter.progress.search.give_up(waiter.proposal, reason)
            else:
                waiter.progress.repeats_left -= 1

    def _tell(self, waiter: Waiter, spec: RunSpec, loss: float, trained: bool) -> None:
        progress = waiter.progress
        progress.trained += trained and waiter.proposal is not None
        progress.reused += not trained and waiter.proposal is not None
        if waiter.proposal:
            progress.search.tell(waiter.proposal, loss)
        else:
            progress.repeats_left -= 1
        self._note(progress, waiter.point, spec.train_seed, "search" if waiter.proposal else "replicate")

    def _note(self, progress: CellProgress, point: Point, seed: int, role: str) -> None:
        run_id = self._run_spec(progress.cell, point, seed).run_id
        number = list(progress.search.results).index(point)
        self.recorder.trial(progress.cell, run_id, role, number, point)

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

    # -- for whoever watches ------------------------------------------------------------------------------------

    @property
    def states(self) -> Counter[str]:
        """Number of cells in each state."""
        return Counter(progress.state for progress in self.cells.values())

    @property
    def tokens_per_second(self) -> float:
        return sum(event.tokens_per_second for event in self.latest.values())

    def seconds_left(self) -> float | None:
        """Estimate from the FLOPs trained so far and the typical length of a search; None until ten runs were trained."""
        elapsed = time.monotonic() - self.began
        if self.trained < 10:
            return None
        left = 0.0
        for progress in self.cells.values():
            repeats = progress.repeats_left if progress.certificate else len(self.spec.seeds) - 1
            done = len(progress.search.results) if progress.search else 0
            runs = repeats + (0 if progress.certificate else max(1, typical_runs(progress.cell) - done))
            left += runs * typical_flops(self.spec, progress.cell, self.tokens.vocabulary)
        return left / self.flops_trained * elapsed


def check_budgets(study: Study, tokens: Tokens) -> None:
    """Raise `StudyError` when a budget is larger than the corpus, or the validation split too small."""
    largest, step = study.spec.seed_tokens[-1], study.spec.training.batch_size * study.spec.training.context_length
    if largest > tokens.train_tokens:
        raise StudyError(
            f"{study.place_of('seed_tokens')}seed_tokens {largest} is more than corpus '{study.spec.corpus.name}' has: "
            f"{tokens.train_tokens} training tokens; use at most {tokens.train_tokens // step * step}, or a larger corpus"
        )
    tokens.validation(study.spec.training.validation_sequences, study.spec.training.context_length)
