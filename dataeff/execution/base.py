"""What an executor is: something that turns jobs into facts in run folders and says when each has ended.

`submit(job)` never blocks; `events(timeout)` returns what has happened since. The executor does not know studies,
searches or the database: it may be replaced by a fleet without any of them noticing. An outcome is never guessed:
a job ends with the outcome its attempt has on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dataeff.specs.ensemble import EnsembleSpec, SampleSpec
from dataeff.specs.result import Outcome, RunFolder, Store
from dataeff.specs.run import RunSpec


@dataclass(frozen=True)
class Job:
    """One run to train, ensemble to evaluate or text to sample: what, in which store, from which token folder."""

    spec: RunSpec | EnsembleSpec | SampleSpec
    store: Store
    tokens: Path
    evaluations: int

    @property
    def folder(self) -> RunFolder:
        return self.store.folder_of(self.spec)

    @property
    def id(self) -> str:
        return self.folder.id


@dataclass(frozen=True)
class Progressed:
    """A job under way; steps of a sampling are its tokens. Losses in nats per token."""

    id: str
    step: int
    steps: int
    tokens_per_second: float
    train_loss: float | None


@dataclass(frozen=True)
class Ended:
    """A job's end. `outcome` finished or diverged means result.json is there; `trained` is False when it already was."""

    id: str
    outcome: Outcome
    reason: str | None = None
    trained: bool = True


Event = Progressed | Ended


class Executor(Protocol):
    """Runs jobs. A context manager: leaving it stops every process it started."""

    slots: int  # jobs that run at the same time

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exception: object) -> None: ...

    def submit(self, job: Job) -> None:
        """Take the job; it starts as soon as a slot is free."""

    def events(self, timeout: float) -> list[Event]:
        """Return what happened, waiting at most `timeout` seconds for the first event."""

    def stop(self) -> None:
        """Ask every job to end soon: running ones write a checkpoint, waiting ones never start."""
