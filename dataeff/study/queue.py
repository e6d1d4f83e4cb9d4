"""The jobs of a launch that are not done: each is submitted when its inputs are there, and tried again when it fails.

What two ask for is made once. An input whose result is recorded but whose weights or tokens are gone is made again. Nothing
here knows of studies or searches.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dataeff.errors import InputError
from dataeff.execution.base import Ended, Executor, Request
from dataeff.facts.job import Fact, Job, Progress
from dataeff.facts.store import Store, load_fact
from dataeff.study.results import Failure

ATTEMPTS = 2  # tries at a job that fails or is killed, in one launch; one that does not fit into memory has one


@dataclass(frozen=True)
class JobEnd:
    """How a job left the queue: with a result, which `worked` is False for if it was there already; or with a failure; or,
    without either, interrupted.
    """

    job: Job
    result: Fact | None = None
    worked: bool = False
    failure: Failure | None = None


class Queue:
    """Jobs by id: submitted ones are in `running`, the others wait for inputs."""

    def __init__(self, executor: Executor, store: Store, evaluations: int = 4) -> None:
        self.executor, self.store, self.evaluations = executor, store, evaluations
        self.running: dict[str, Job] = {}
        self.latest: dict[str, Progress] = {}
        self.stopping = False
        self._waiting: dict[str, tuple[Job, set[str]]] = {}  # and the inputs it lacks
        self._tries: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.running) + len(self._waiting)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self.running or job_id in self._waiting

    def needs(self, job_id: str) -> bool:
        """Whether a job in the queue lacks this one as an input."""
        return any(job_id in lacking for _, lacking in self._waiting.values())

    def add(self, job: Job) -> None:
        """Have a job made, and before it what it lacks of its inputs. Raises `InputError` for an input known by its id alone."""
        if job.id in self or self.stopping:
            return
        lacking = {each.id: each.job for each in job.inputs if each.job is None or not self.store.is_complete(each.job)}
        for input_id, needed in lacking.items():
            if needed is None:
                raise InputError(f"job {job.id} has the input {input_id}, of which only the id is known; give the job itself")
            self.add(needed)
        if lacking:
            self._waiting[job.id] = job, set(lacking)
        else:
            self._submit(job)

    def stop(self) -> None:
        """End soon and cleanly: running jobs write a checkpoint, nothing new is started."""
        self.stopping = True
        self.executor.stop()

    def wait(self, timeout: float) -> list[JobEnd]:
        """Return what has ended, waiting at most `timeout` seconds for it."""
        ended: list[JobEnd] = []
        for event in self.executor.events(timeout):
            if isinstance(event, Progress):
                self.latest[event.id] = event
            else:
                ended += self._end(event)
        if self.stopping:
            self._waiting.clear()
        return ended

    def _submit(self, job: Job) -> None:
        self.running[job.id] = job
        self._tries[job.id] += 1
        self.executor.submit(Request(job, self.store, self.evaluations))

    def _end(self, event: Ended) -> list[JobEnd]:
        job = self.running.pop(event.id)
        self.latest.pop(event.id, None)
        if event.outcome in ("finished", "diverged"):
            result = load_fact(job.Result, self.store.folder(job).result)
            return [JobEnd(job, result, event.trained), *self._release(job, job.useless(result))]
        if not self.stopping and event.outcome in ("failed", "killed", "preempted") and self._tries[job.id] < ATTEMPTS:
            self._submit(job)
            return []
        interrupted = self.stopping and event.outcome == "preempted"
        return self._give_up(job, None if interrupted else Failure(event.outcome, event.reason or "no reason given"))

    def _release(self, job: Job, useless: str | None) -> list[JobEnd]:
        """Submit what waited for this job alone; where no job can read it, give up what waits for it."""
        given_up: list[JobEnd] = []
        for waiting, lacking in self._waiting_for(job):
            lacking.discard(job.id)
            if useless:
                given_up += self._give_up(waiting, Failure("failed", useless))
            elif not lacking:
                del self._waiting[waiting.id]
                self._submit(waiting)
        return given_up

    def _give_up(self, job: Job, failure: Failure | None) -> list[JobEnd]:
        self._waiting.pop(job.id, None)
        given_up = [JobEnd(job, failure=failure)]
        for waiting, _ in self._waiting_for(job):
            why = Failure("failed", f"its input {job.id}: {failure.outcome}: {failure.reason}") if failure else None
            given_up += self._give_up(waiting, why)
        return given_up

    def _waiting_for(self, job: Job) -> Iterator[tuple[Job, set[str]]]:
        """Yield each job that waits for this one when its turn comes, and the inputs it lacks."""
        for job_id in sorted(each for each, (_, lacking) in self._waiting.items() if job.id in lacking):
            if job_id in self._waiting:
                yield self._waiting[job_id]
