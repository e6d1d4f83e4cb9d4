"""Jobs: what a launch is having made, and who is told when it is there.

Anyone may ask for runs, ensembles and samples together. What is a fact already is not made again, what two ask for is made
once, and a job that fails is tried once more. Whoever asked is told when all of it is there, or when some of it has no
result. Nothing here knows of studies or searches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataeff.execution.base import Ended, Executor, Job, Progressed
from dataeff.facts import Facts
from dataeff.specs.ensemble import EnsembleSpec, SampleSpec
from dataeff.specs.result import RunFolder, Store
from dataeff.specs.run import RunSpec

Asked = RunSpec | EnsembleSpec | SampleSpec
Done = Callable[[int], None]  # told how many runs were trained for it
Failed = Callable[[str | None], None]  # told why, None for an interruption
NAMES = {RunSpec: "run", EnsembleSpec: "ensemble", SampleSpec: "samples"}
ATTEMPTS = 2  # tries at a job that fails or is killed, in one launch


@dataclass
class Awaited:
    """Facts that are awaited together: who is told when all are there, or when one of them has no result."""

    left: int
    done: Done
    failed: Failed
    trained: int = 0
    broken: bool = False

    def one_done(self, trained: bool) -> None:
        self.trained += trained
        self.left -= 1
        if not self.left and not self.broken:
            self.done(self.trained)

    def one_failed(self, reason: str | None) -> None:
        if not self.broken:
            self.broken = True
            self.failed(reason)


@dataclass
class Wanted:
    """A job under way and everyone who waits for it."""

    spec: Asked
    waiters: list[Awaited] = field(default_factory=list)
    tries: int = 0


class Jobs:
    """The jobs of one launch. `trained` counts runs, each once whoever asked; `found` is told of folders with news."""

    def __init__(
        self, executor: Executor, store: Store, facts: Facts, tokens: Path, evaluations: int, found: Callable[[RunFolder], None]
    ) -> None:
        self.executor = executor
        self.running: dict[str, Wanted] = {}
        self.latest: dict[str, Progressed] = {}
        self.failures: list[str] = []
        self.stopping = False
        self.trained = 0
        self.flops_trained = 0
        self._store, self._facts, self._tokens, self._evaluations, self._found = store, facts, tokens, evaluations, found

    @property
    def tokens_per_second(self) -> float:
        return sum(event.tokens_per_second for event in self.latest.values())

    def stop(self) -> None:
        """End soon and cleanly: running jobs write a checkpoint, nothing new is started."""
        self.stopping = True
        self.executor.stop()

    def wait(self, timeout: float) -> bool:
        """Take in what happened, waiting at most `timeout` seconds for it; return whether a job has ended."""
        happened = self.executor.events(timeout)
        for event in happened:
            if isinstance(event, Progressed):
                self.latest[event.id] = event
            else:
                self._end(event)
        return any(isinstance(event, Ended) for event in happened)

    def missing(self, specs: Sequence[Asked], weights: bool = False) -> list[Asked]:
        """What of `specs` is no fact yet, or lacks the weights that are asked for."""
        folder = self._store.folder_of
        return [spec for spec in specs if not self._facts.has(spec) or (weights and not folder(spec).weights.exists())]

    def make(self, specs: Sequence[Asked], done: Done, failed: Failed, weights: bool = False) -> None:
        """Have what is missing of `specs` made, then call `done` with how many runs that trained; at once if none is."""
        missing = self.missing(specs, weights)
        if not missing:
            done(0)
            return
        awaited = Awaited(len(missing), done, failed)
        for spec in missing:
            wanted = self.running.setdefault(self._store.folder_of(spec).id, Wanted(spec))
            wanted.waiters.append(awaited)
            if len(wanted.waiters) == 1:
                self._submit(wanted)

    def _submit(self, wanted: Wanted) -> None:
        wanted.tries += 1
        self.executor.submit(Job(wanted.spec, self._store, self._tokens, self._evaluations))

    def _end(self, event: Ended) -> None:
        """Tell everyone who waited for a job that has ended, or try it once more."""
        wanted = self.running[event.id]
        is_run = isinstance(wanted.spec, RunSpec)
        self.latest.pop(event.id, None)
        if event.outcome in ("finished", "diverged"):
            del self.running[event.id]
            self._facts.has(wanted.spec)  # reads it, and has it recorded
            if is_run:
                self.trained += event.trained
                self.flops_trained += wanted.spec.training_flops * event.trained
            for waiter in wanted.waiters:
                waiter.one_done(event.trained and is_run)
            return
        folder = self._store.folder_of(wanted.spec)
        if is_run and folder.spec.exists():  # a worker that died before it began left nothing to record
            self._found(folder)
        interrupted = self.stopping and event.outcome == "preempted"
        if not self.stopping and event.outcome in ("failed", "killed", "preempted") and wanted.tries < ATTEMPTS:
            self._submit(wanted)
            return
        del self.running[event.id]
        reason = None if interrupted else f"{NAMES[type(wanted.spec)]} {event.id}: {event.outcome}: {event.reason}"
        if reason:
            self.failures.append(reason)
        for waiter in wanted.waiters:
            waiter.one_failed(reason)
