"""Jobs without a study: plan a graph of jobs, make what is missing, record it."""

from collections.abc import Iterable, Sequence

from dataeff.errors import TrainingError
from dataeff.execution.base import Executor
from dataeff.facts.job import Fact, Job
from dataeff.facts.store import Store, load_fact
from dataeff.records.store import Database
from dataeff.study.index import record_folders
from dataeff.study.queue import Queue


def missing_jobs(jobs: Iterable[Job], store: Store) -> list[Job]:
    """Return what making these jobs takes, each after its inputs; their `flops` are the cost. What is there is left out."""
    missing: dict[str, Job] = {}

    def visit(job: Job, complete: bool) -> None:
        if job.id in missing or complete:
            return
        for each in job.inputs:
            if each.job:
                visit(each.job, store.is_complete(each.job))
        missing[job.id] = job

    for job in jobs:
        visit(job, store.has_result(job))
    return list(missing.values())


def make_jobs(jobs: Sequence[Job], database: Database, executor: Executor) -> list[Fact]:
    """Make jobs and all they need, record what came of them, and return their results in the order asked.

    Stopped or killed at any moment, the next call goes on from what is there. Raises `TrainingError` for what has no result,
    once all else is made and recorded.
    """
    store = Store.beside(database.path)
    queue, failures = Queue(executor, store), []
    for job in missing_jobs(jobs, store):
        queue.add(job)
    while len(queue):
        ended = queue.wait(0.25)
        failures += [event for event in ended if event.result is None]
        if ended:
            with database.write() as connection:
                record_folders(connection, [(event.job.kind, store.folder(event.job)) for event in ended])
    if failures:
        reasons = ((end.job, end.failure.reason if end.failure else "interrupted") for end in failures)
        raise TrainingError("; ".join(f"{job.kind} {job.id}: {reason}" for job, reason in reasons))
    return [load_fact(job.Result, store.folder(job).result) for job in jobs]
