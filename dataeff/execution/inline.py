"""The executor that trains in this process, one job after another: for debugging, notebooks and tests."""

from __future__ import annotations

from collections import deque

from dataeff.execution.base import Ended, Event, Job


class InlineExecutor:
    """Trains each job inside `events()`; progress is reported after the fact."""

    slots = 1

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._stopped = False

    def __enter__(self) -> InlineExecutor:
        from dataeff.execution.worker import use_one_thread

        use_one_thread()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def events(self, timeout: float) -> list[Event]:
        from dataeff.execution.worker import run_job

        if not self._jobs:
            return []
        job, happened = self._jobs.popleft(), []
        if self._stopped:
            return [Ended(job.id, "preempted", "stopped before it started", trained=False)]
        happened.append(run_job(job, "auto", happened.append, lambda: self._stopped))
        return happened

    def stop(self) -> None:
        self._stopped = True
