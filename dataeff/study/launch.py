"""Launching a study: resolve, submit what is wanted, wait, record.

    resolve(demand, results) -> jobs wanted -> queue -> executor -> results -> resolve what has changed

Everything that matters is a fact on disk when it is learned, and the states of all cells are a function of the facts. So this
loop may be killed at any moment: the next launch begins where the facts are.
"""

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from dataeff.data.tokens import OnProgress, build_tokens
from dataeff.errors import DatabaseBusyError, DataeffError, SchemaError, StudyError
from dataeff.execution.base import Executor
from dataeff.facts.job import Job
from dataeff.facts.store import Store, load_fact, write_atomically
from dataeff.laws.judge import next_pair
from dataeff.records.claims import read_claims
from dataeff.records.store import Database
from dataeff.search.studies import CellStudies, open_storage
from dataeff.specs.study import Study
from dataeff.study.demand import Demand
from dataeff.study.fits import renew_fits
from dataeff.study.index import (
    StudyFact,
    index_jobs,
    index_studies,
    index_study,
    lock_study,
    rebuild,
    record_folders,
    study_file,
    write_cells,
)
from dataeff.study.keep import prune_weights
from dataeff.study.queue import JobEnd, Queue
from dataeff.study.resolve import CellState, Resolution
from dataeff.work.train import Train

FIRST_WRITE_SECONDS = 60.0
FLUSH_SECONDS = 2.0  # between write transactions, so that writing costs the workers next to nothing
LAST_FLUSH_SECONDS = 10.0  # for a launch that is stopped while another program holds the database
FIT_SECONDS = 60.0  # between fits of the study as it stands, or twenty times what they take


class Launch:
    """One launch of a study. `run()` returns when nothing is left that can be done, or after `stop()`."""

    def __init__(
        self,
        study: Study,
        database: Path | str,
        executor: Executor,
        storage: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Prepare: build or find the tokens, check the budgets, index the store. `storage` is an Optuna URL.

        Raises `StudyError`, `CorpusError` or `DatabaseError` before anything is trained.
        """
        self.study, self.spec = study, study.spec
        self.database = Database(database)
        self.store = Store.beside(self.database.path)
        self.previous: Path | None = None  # where a database that another version wrote was moved to
        try:
            self.database.require_usable()
        except SchemaError:
            self.previous = rebuild(self.database)
        self.demand = build_demand(study, self.store, on_progress)
        self.began = time.monotonic()
        self.trained = self.flops_trained = 0
        self.failures: list[str] = []
        self._trained_ids: set[str] = set()
        self._used_ids: set[str] = set()  # runs of cells
        self.database_busy_since: float | None = None
        self.fits_failed: str | None = None  # why the intervals are not those of the runs there are
        self._done: dict[str, Job] = {}  # to be recorded
        self._changed: dict[str, CellState] = {}
        self._last_flush, self._last_fit, self._fit_pause = -math.inf, self.began, FIT_SECONDS
        self._lock = lock_study(self.store, self.spec.name).lock
        try:
            optuna_storage = open_storage(storage or self.store.path / "optuna" / f"{self.spec.name}.log")
            self._studies = CellStudies(optuna_storage, self.spec.resources.points_in_flight)
            self.resolution, self.cells_deleted = self._index()
        except BaseException:
            self._lock.release()  # a notebook keeps the traceback, and with it this object
            raise
        self.queue = Queue(executor, self.store, self.spec.resources.evaluations)

    def _index(self) -> tuple[Resolution, int]:
        """Record the study and what the store has of it; return how it stands, and how many cells it has no longer."""
        name, now = self.spec.name, datetime.now(UTC)
        file = study_file(self.store, name)
        before = load_fact(StudyFact, file) if file.exists() else None
        known = {each for each, claim in self.spec.claims.items() if before and claim == before.spec.claims.get(each)}
        since = {each: before.claims_since.get(each, now) if each in known else now for each in self.spec.claims}
        times = {"started_at": before.started_at if before else now, "updated_at": now, "claims_since": since}
        corpus = {key: getattr(self.demand, key) for key in ("corpus", "vocabulary", "separator")}
        fact = StudyFact(spec=self.spec, text=self.study.source, **corpus, **times)
        with self.database.write(FIRST_WRITE_SECONDS) as connection:
            row = connection.execute("SELECT imported_from FROM study WHERE name = $1", [name]).fetchone()
            if row and row[0]:
                raise StudyError(
                    f"study {name} of this database was imported from {row[0]}, and a launch would replace it; give this "
                    "study another name, or name another file with --database"
                )
            write_atomically(file, fact.model_dump_json(indent=1))
            index_jobs(connection, self.store)
        return index_study(self.database, fact, FIRST_WRITE_SECONDS)

    @property
    def reused(self) -> int:
        """Number of runs that cells use and this launch did not train."""
        return len(self._used_ids - self._trained_ids)

    def stop(self) -> None:
        """End soon and cleanly: running jobs write a checkpoint, nothing new is started."""
        self.queue.stop()

    def run(self, on_change: Callable[["Launch"], None] | None = None) -> None:
        """Train what is missing. Raises `DatabaseError` when the results cannot be written down in the end."""
        try:
            self._submit(self.resolution.states.values())
            while True:
                self._flush(0.2, now=not len(self.queue))
                if time.monotonic() - self._last_fit > self._fit_pause:
                    self._fit(0.2)
                if on_change:
                    on_change(self)
                idle = not len(self.queue) and (self.database_busy_since is None or self.queue.stopping)
                if idle and not self._ask_for_pairs():
                    break
                if ended := self.queue.wait(timeout=0.25):
                    self._learn(ended)
            self._write(LAST_FLUSH_SECONDS)  # only what a stopped launch could not write above
            if not self.queue.stopping:
                if self.trained:
                    index_studies(self.database, self.demand.corpus)
                self._fit(LAST_FLUSH_SECONDS)
        finally:
            self._studies.close()
            self._lock.release()

    def _submit(self, states: Iterable[CellState]) -> None:
        """Have what these cells want made, and show Optuna where they stand."""
        for state in states:
            self._used_ids |= {use.job_id for use in state.uses if not use.is_ensemble}
            if state.starts:
                cell = state.cell
                self._studies.update(cell.id, cell.grid, state.starts, state.results, state.points_wanted)
            for job in state.wanted:
                self.queue.add(job)

    def _learn(self, ended: list[JobEnd]) -> None:
        """Take in how jobs ended, and go on from there."""
        results, surfaces = self.resolution.results, []
        for event in ended:
            job = event.job
            if event.result:
                surfaces.append(results.add(job, event.result))
                self._done[job.id] = job
                if isinstance(job, Train):
                    self.trained += event.worked
                    self.flops_trained += job.flops * event.worked
                    self._trained_ids |= {job.id} if event.worked else set()
            elif event.failure:
                results.failures[job.id] = event.failure
                self._done[job.id] = job
                self.failures.append(f"{job.kind} {job.id}: {event.failure.outcome}: {event.failure.reason}")
        changed = self.resolution.update([event.job.id for event in ended], filter(None, surfaces))
        self._changed |= {state.cell.id: state for state in changed}
        self._submit(changed)
        prune_weights(self.spec.resources.keep, self.resolution, self.queue, changed)

    def _ask_for_pairs(self) -> bool:
        """Have the next pairs of undecided claims trained, those worth most a FLOP, one a claim, while executors are idle; return
        whether there is any.
        """
        if self.queue.stopping or not (self.spec.claims and self.spec.resources.claim_pairs):
            return False
        with self.database.read(LAST_FLUSH_SECONDS) as connection:
            claims = {claim.name: claim for claim in read_claims(connection, self.spec.name)}
        tried = {name: sum(draw >= self.spec.draws for draw in claim.draws) for name, claim in claims.items()}
        most = self.spec.resources.claim_pairs
        left = {name: claim for name, claim in claims.items() if len(claim.cells) == 2 and tried[name] < most}
        flops = {name: self.resolution.pair_flops(claim.cells, tried[name]) for name, claim in left.items()}
        while len(self.queue) < self.queue.executor.slots:
            name = next_pair({each: claim.differences for each, claim in left.items()}, flops)
            if name is None:
                break
            changed = self.resolution.ask(left.pop(name).cells, tried[name] + 1)  # one that cannot be had is not asked for twice
            self._changed |= {state.cell.id: state for state in changed}
            self._submit(changed)
        return len(self.queue) > 0

    # -- the records --------------------------------------------------------------------------------------------

    def _flush(self, wait: float, now: bool) -> None:
        """Write what is pending. A database held by a reader never holds up training: it is tried again later."""
        if not now and time.monotonic() - self._last_flush < FLUSH_SECONDS:
            return
        try:
            self._write(wait)
            self.database_busy_since = None
        except DatabaseBusyError:
            self.database_busy_since = self.database_busy_since or time.monotonic()
        self._last_flush = time.monotonic()

    def _write(self, timeout: float) -> None:
        if not (self._done or self._changed):
            return
        names = {self.demand.corpus: self.spec.corpus.name}
        with self.database.write(timeout) as connection:
            record_folders(connection, [(job.kind, self.store.folder(job)) for job in self._done.values()], names)
            write_cells(connection, self.demand, self._changed.values())
        self._done, self._changed = {}, {}

    def _fit(self, wait: float) -> None:
        """Renew the study's fits. What cannot be renewed now stays marked as stale, and training goes on."""
        begin, self.fits_failed = time.monotonic(), None
        try:
            renew_fits(self.database, self.spec.name, wait)
        except DataeffError as error:
            self.fits_failed = str(error)
        self._last_fit = time.monotonic()
        self._fit_pause = max(FIT_SECONDS, 20 * (self._last_fit - begin))

    # -- for progress displays ----------------------------------------------------------------------------------

    def seconds_left(self) -> float | None:
        """Estimate from the FLOPs trained so far; None until ten runs were trained."""
        if self.trained < 10:
            return None
        left = sum(state.flops_left for state in self.resolution.states.values())
        return left / self.flops_trained * (time.monotonic() - self.began)


def build_demand(study: Study, store: Store, on_progress: OnProgress | None = None) -> Demand:
    """Build or find the tokens of a study, and return what it asks for on them.

    Raises `StudyError` when a budget is larger than the corpus, or the validation split too small; `CorpusError`.
    """
    corpus, tokenizer, training = study.spec.corpus, study.spec.tokenizer, study.spec.training
    tokens = build_tokens(corpus, tokenizer, study.directory, store, on_progress)
    largest, step = study.spec.seed_tokens[-1], training.batch_size * training.context_length
    if largest > tokens.train_tokens:
        raise StudyError(
            f"{study.place_of('seed_tokens')}seed_tokens {largest} is more than corpus '{corpus.name}' has: "
            f"{tokens.train_tokens} training tokens; use at most {tokens.train_tokens // step * step}, or a larger corpus"
        )
    if tokenizer.kind == "hugging_face" and tokenizer.vocabulary not in (None, tokens.vocabulary):
        raise StudyError(
            f"{study.place_of('tokenizer')}tokenizer.vocabulary {tokenizer.vocabulary} is not what {tokenizer.name} has: "
            f"{tokens.vocabulary}; state that, or leave it out"
        )
    tokens.validation(training.validation_sequences, training.context_length)
    return Demand(study.spec, tokens.fingerprint, tokens.vocabulary, tokens.separator)
