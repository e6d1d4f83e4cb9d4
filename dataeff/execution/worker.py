"""One job, start to end, in the process that trains it; and the loop of a warm worker process.

A worker holds the run folder's lock while it trains, so that two studies that want the same run train it once. It
stops, with a checkpoint, when it is told to or when its controller is gone.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from filelock import FileLock, Timeout

from dataeff.data.tokens import open_samples, open_tokens
from dataeff.errors import DataeffError
from dataeff.execution.attempts import end_attempt, start_attempt
from dataeff.execution.base import Ended, Event, Job, Progressed
from dataeff.specs.ensemble import EnsembleResult, EnsembleSpec, SampleResult, SampleSpec
from dataeff.specs.result import RunFolder, RunResult, load_fact, write_atomically
from dataeff.specs.run import RunSpec
from dataeff.training.checkpoint import load_member
from dataeff.training.device import describe_device, pick_device
from dataeff.training.ensemble import evaluate_ensemble
from dataeff.training.sample import sample
from dataeff.training.trainer import OutOfMemory, Preempted, Progress, train


def use_one_thread() -> None:
    """Give this process one CPU thread for tensor work.

    Two workers of two threads each on two cores were measured 3-7x slower than of one thread each. Called after all
    imports, because importing a numerical library can set the count again.
    """
    torch.set_num_threads(1)


def run_job(job: Job, device: str, emit: Callable[[Event], None], should_stop: Callable[[], bool]) -> Ended:
    """Train `job` unless its result is there, and return how it ended."""
    folder = job.folder
    lock = FileLock(folder.lock)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5, poll_interval=0.02)
            except Timeout:
                if should_stop():
                    return Ended(job.id, "preempted", "stopped while another process was at the same job", trained=False)
        return _run_locked(job, folder, device, emit, should_stop)
    except (OSError, DataeffError) as error:
        return Ended(job.id, "failed", f"the run folder {folder.path} cannot be used: {error}")
    finally:
        lock.release()


def _run_locked(
    job: Job, folder: RunFolder, device: str, emit: Callable[[Event], None], should_stop: Callable[[], bool]
) -> Ended:
    if folder.result.exists():
        status = load_fact(RunResult, folder.result).status if isinstance(job.spec, RunSpec) else "finished"
        return Ended(job.id, status, trained=False)
    write_atomically(folder.spec, job.spec.model_dump_json(indent=1))  # an attempt needs it to say what was tried
    attempt = start_attempt(
        folder, job.id, f"{describe_device(pick_device(device))}, {torch.get_num_threads()} CPU thread(s)"
    )

    def report(progress: Progress) -> None:
        emit(Progressed(job.id, progress.step, progress.steps, progress.tokens_per_second, progress.train_loss))

    try:
        result = _work(job, device, report, should_stop)
        outcome, reason = (result.status, result.reason) if isinstance(result, RunResult) else ("finished", None)
    except Preempted as error:
        outcome, reason = "preempted", str(error)
    except OutOfMemory as error:
        outcome, reason = "out_of_memory", str(error)
    except Exception as error:  # whatever it was, it is this attempt's outcome; the traceback is kept beside it
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
        write_atomically(folder.attempts / f"{attempt.number:04d}.txt", traceback.format_exc())
    end_attempt(folder, attempt, outcome, reason)
    return Ended(job.id, outcome, reason)


def _work(
    job: Job, device: str, report: Callable[[Progress], None], should_stop: Callable[[], bool]
) -> RunResult | EnsembleResult | SampleResult:
    spec, store, folder = job.spec, job.store, job.folder
    if isinstance(spec, SampleSpec):
        return sample(spec, folder, store, device=device, on_progress=report, should_stop=should_stop)
    tokens = open_tokens(job.tokens)
    if isinstance(spec, EnsembleSpec):
        length = load_fact(RunSpec, store.run(spec.members[0]).spec).model.context_length
        validation = tokens.validation(spec.validation_sequences, length)
        return evaluate_ensemble(spec, folder, store, validation, device=device, should_stop=should_stop)
    teachers = spec.teacher_logits.members if spec.teacher_logits else []
    return train(
        spec,
        folder,
        tokens.train(spec.seed_tokens),
        tokens.validation(spec.validation_sequences, spec.model.context_length),
        device=device,
        evaluations=job.evaluations,
        on_progress=report,
        should_stop=should_stop,
        synthetic=open_samples(store.samples(spec.synthetic.samples)) if spec.synthetic else None,
        teachers=[load_member(store, member, pick_device(device)) for member in teachers],
    )


class _Controller:
    """The worker's end of the pipe: jobs come in, events go out, and silence means the controller is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stopped = False

    def receive(self) -> Job | None:
        try:
            return None if self._stopped else self._connection.recv()
        except EOFError:
            return None

    def send(self, event: Event) -> None:
        try:
            self._connection.send(event)
        except BrokenPipeError:
            self._stopped = True

    def should_stop(self) -> bool:
        # Nothing is sent to a busy worker but the order to stop; a closed pipe is readable too.
        self._stopped = self._stopped or self._connection.poll()
        return self._stopped


def worker_main(connection: Connection, gpu: str | None) -> None:
    """Train jobs from `connection` one after another until it says None or closes."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    use_one_thread()
    controller = _Controller(connection)
    while (job := controller.receive()) is not None:
        controller.send(run_job(job, "auto", controller.send, controller.should_stop))
