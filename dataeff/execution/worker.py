"""One job, start to end, in the process that runs it; and the loop of a warm worker process.

A worker holds the lock of the job's folder while it runs it, so that two studies that want the same job run it once. It
stops, with a checkpoint, when it is asked to or when its controller is gone. It knows no kind of job.
"""

import os
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

from filelock import FileLock, Timeout

from dataeff.errors import DataeffError, OutOfMemory, Preempted
from dataeff.execution.base import Ended, Event, Request
from dataeff.facts.job import Context, Fact, Outcome, Progress
from dataeff.facts.store import end_attempt, load_fact, start_attempt, write_atomically

PROGRESS_SECONDS = 0.25  # at least, between two reports of a job


def run_job(request: Request, device: str, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> Ended:
    """Run a job unless its result and outputs are there, and return how it ended."""
    lock = FileLock(request.folder.lock)
    try:
        request.folder.path.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5, poll_interval=0.02)
            except Timeout:
                if should_stop():
                    return Ended(request.id, "preempted", "stopped while another process was at the same job", trained=False)
        if request.store.is_complete(request.job):
            return Ended(request.id, *_outcome(load_fact(request.job.Result, request.folder.result)), trained=False)
        context = Context(device, request.evaluations, _at_intervals(emit), should_stop)
        return _run_locked(request, context)
    except (OSError, DataeffError) as error:
        return Ended(request.id, "failed", f"the folder {request.folder.path} cannot be used: {error}")
    finally:
        lock.release()


def _outcome(result: Fact) -> tuple[Outcome, str | None]:
    return getattr(result, "status", "finished"), getattr(result, "reason", None)


def _at_intervals(emit: Callable[[Event], None]) -> Callable[[Progress], None]:
    """Return a function that emits the first and the last progress of a job, and those between at least 0.25 seconds apart."""
    last = -PROGRESS_SECONDS

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS or progress.step == progress.steps:
            last = now
            emit(progress)

    return report


def _run_locked(request: Request, context: Context) -> Ended:
    from dataeff.training.device import computing_on, describe_device, pick_device  # torch, which a controller does not need

    job, folder = request.job, request.folder
    if not folder.spec.exists():
        write_atomically(folder.spec, job.model_dump_json(indent=1))  # an attempt needs it to say what was tried
    device = pick_device(context.device)
    attempt = start_attempt(folder, describe_device(device))
    try:
        with computing_on(device):
            result = job.run(folder, request.store, context)
        if not folder.result.exists():  # where only outputs were missing, the result stays as it was
            write_atomically(folder.result, result.model_dump_json(indent=1))
        shutil.rmtree(folder.checkpoint, ignore_errors=True)
        outcome, reason = _outcome(result)
    except (Preempted, OutOfMemory) as error:
        outcome, reason = "preempted" if isinstance(error, Preempted) else "out_of_memory", str(error)
    except Exception as error:  # whatever it was, it is this attempt's outcome; the traceback is kept beside it
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
        write_atomically(folder.attempts / f"{attempt.number:04d}.txt", traceback.format_exc())
    end_attempt(folder, attempt, outcome, reason)
    return Ended(job.id, outcome, reason)


def worker_main(connection: Connection, gpu: str | None) -> None:
    """Run requests from `connection` one after another until it says None or closes: then the controller is gone."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    def emit(event: Event) -> None:
        with suppress(ConnectionError):  # a closed pipe ends the job, see below
            connection.send(event)

    with suppress(EOFError, ConnectionError):
        while (request := connection.recv()) is not None:
            # Nothing is sent to a busy worker but the order to stop, and a closed pipe can be read too: `poll` is true then.
            emit(run_job(request, "auto", emit, connection.poll))
