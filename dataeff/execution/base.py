"""What an executor is: something that turns jobs into facts in their folders and says when each has ended.

`submit(request)` never blocks; `events(timeout)` returns what has happened since. The executor does not know studies,
searches, the database or what kinds of jobs there are: it may be replaced by a fleet without any of them noticing. An
outcome is never guessed: a job ends with the outcome its attempt has on disk.
"""

from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dataeff.facts.job import Job, Outcome, Progress
from dataeff.facts.store import JobFolder, Store


@dataclass(frozen=True)
class Request:
    """A job to run, and the store that holds its inputs and takes its result: an absolute path, wherever the worker runs."""

    job: Job
    store: Store
    evaluations: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", Store(self.store.path.resolve()))

    @property
    def folder(self) -> JobFolder:
        return self.store.folder(self.job)

    @property
    def id(self) -> str:
        return self.job.id


@dataclass(frozen=True)
class Ended:
    """A job's end. `outcome` finished or diverged means result.json is there; `trained` is False when it already was."""

    id: str
    outcome: Outcome
    reason: str | None = None
    trained: bool = True


Event = Progress | Ended


class Executor(AbstractContextManager):
    """Runs jobs. Leaving the context stops every process it started."""

    slots = 1  # jobs that run at the same time

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._stopped = False

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def submit(self, request: Request) -> None:
        """Take the job; it starts as soon as a slot is free. Its inputs must be there."""
        self._requests.append(request)

    def events(self, timeout: float) -> list[Event]:
        """Return what happened, waiting at most `timeout` seconds for the first event."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ask every job to end soon: running ones write a checkpoint, waiting ones never start. A signal handler may call it, so
        the work is left to the next `events()`.
        """
        self._stopped = True

    def _end_waiting(self) -> list[Event]:
        ended = [Ended(each.id, "preempted", "stopped before it started", trained=False) for each in self._requests]
        self._requests.clear()
        return ended
