"""The executor of one machine: a pool of warm worker processes, one a GPU, or one a CPU core with one thread each.

A worker is started once and trains many runs, so that importing torch is paid once. Workers are spawned, never
forked: a forked CUDA context or thread pool is broken. A worker that dies is replaced, and its job ends as `killed`.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
from collections import deque
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from filelock import FileLock, Timeout

from dataeff.execution.attempts import close_dead_attempts
from dataeff.execution.base import Ended, Event, Job


def usable_gpus() -> list[str]:
    """Return the NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def default_workers() -> int:
    """One worker a GPU; one on Apple silicon, whose GPU they would share; else one a CPU core this process may use."""
    if gpus := usable_gpus():
        return len(gpus)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    gpu: str | None
    job: Job | None = None
    told_to_stop: bool = False


def _enter(connection: Connection, gpu: str | None) -> None:
    """The child's first function: importing the worker, and torch with it, is left to the child."""
    from dataeff.execution.worker import worker_main

    worker_main(connection, gpu)


def _start(gpu: str | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_enter, args=(theirs, gpu), daemon=True, name="dataeff-worker")
    # Ctrl-C reaches the whole process group, and the controller decides. A blocked signal stays blocked in the child, from
    # its first instruction on; the resource tracker would unblock it, so it is started before.
    resource_tracker.ensure_running()
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    theirs.close()
    return _Worker(process, ours, gpu)


class LocalExecutor:
    """Warm worker processes on this machine."""

    def __init__(self, workers: int | None = None) -> None:
        self.slots = workers or default_workers()
        self._gpus = usable_gpus()
        self._workers: list[_Worker] = []
        self._jobs: deque[Job] = deque()
        self._stopped = False

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        for worker in self._workers:
            worker.connection.close()
            worker.process.join(timeout=5 if worker.job is None else 0)
            worker.process.kill()
            worker.process.join()
        self._workers.clear()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._jobs and not self._stopped:
            worker = next((w for w in self._workers if w.job is None), None)
            if worker is None:
                if len(self._workers) == self.slots:
                    return
                held = [worker.gpu for worker in self._workers]
                worker = _start(min(self._gpus, key=held.count, default=None))  # the least used GPU
                self._workers.append(worker)
            worker.job = self._jobs.popleft()
            try:
                worker.connection.send(worker.job)
            except BrokenPipeError:  # it died while idle: the job has not begun, another worker takes it
                self._jobs.appendleft(worker.job)
                self._workers.remove(worker)

    def events(self, timeout: float) -> list[Event]:
        happened: list[Event] = []
        if self._stopped:
            happened += [Ended(job.id, "preempted", "stopped before it started", trained=False) for job in self._jobs]
            self._jobs.clear()
            self._tell_to_stop()
        busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
        for connection in wait(list(busy), timeout=0 if happened else timeout):
            worker = busy[connection]
            try:
                event = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                event = self._bury(worker)
            if isinstance(event, Ended):
                worker.job = None
            happened.append(event)
        self._dispatch()
        return happened

    def _bury(self, worker: _Worker) -> Ended:
        """Take a dead worker out of the pool and say how its job ended."""
        worker.process.join(timeout=5)
        self._workers.remove(worker)
        folder = worker.job.folder
        try:
            with FileLock(folder.lock, timeout=1):
                close_dead_attempts(folder)
        except (Timeout, OSError):  # taken over by another study's worker, or unwritable: the next attempt closes it
            pass
        code = worker.process.exitcode
        hint = " (signal 9: often the system's out-of-memory killer)" if code == -9 else ""
        return Ended(worker.job.id, "killed", f"worker process {worker.process.pid} ended with exit code {code}{hint}")

    def stop(self) -> None:
        # May be called by a signal handler, in the middle of anything: the telling is left to the next `events()`.
        self._stopped = True

    def _tell_to_stop(self) -> None:
        for worker in self._workers:
            if worker.job is not None and not worker.told_to_stop:
                worker.told_to_stop = True
                try:
                    worker.connection.send(None)
                except BrokenPipeError:  # already gone; its pipe says so below
                    continue
