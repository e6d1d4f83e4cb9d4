"""The executor that runs jobs in this process, one after another: for debugging, notebooks and tests."""

from dataeff.execution.base import Event, Executor
from dataeff.execution.worker import run_job


class InlineExecutor(Executor):
    """Runs each job inside `events()`; progress is reported after the fact."""

    def events(self, timeout: float) -> list[Event]:
        if self._stopped or not self._requests:
            return self._end_waiting()
        events: list[Event] = []
        events.append(run_job(self._requests.popleft(), "auto", events.append, lambda: self._stopped))
        return events
