"""The executor of one machine: a pool of warm worker processes, one a GPU, or one a CPU core with one thread each.

A worker is started once and runs many jobs, so that importing torch is paid once. Workers are spawned, never
forked: a forked CUDA context or thread pool is broken. A worker that dies is replaced, and its job ends as `killed`.
"""

import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from filelock import FileLock, Timeout

from dataeff.execution.base import Ended, Event, Executor, Request
from dataeff.execution.worker import worker_main
from dataeff.facts.store import mark_killed_attempts


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
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return len(usable_gpus()) or (1 if apple else cores)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    gpu: str | None
    request: Request | None = None
    asked_to_stop: bool = False


def _start(gpu: str | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker_main, args=(theirs, gpu), daemon=True, name="dataeff-worker")
    # Ctrl-C reaches the whole process group, and the controller decides. A blocked signal stays blocked in the child, from
    # its first instruction on; the resource tracker would unblock it, so it is started before.
    resource_tracker.ensure_running()
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    theirs.close()
    return _Worker(process, ours, gpu)


class LocalExecutor(Executor):
    def __init__(self, workers: int | None = None) -> None:
        super().__init__()
        self.slots = workers or default_workers()
        self._gpus = usable_gpus()
        self._workers: list[_Worker] = []

    def __exit__(self, *exception: object) -> None:
        self.stop()
        for worker in self._workers:
            worker.connection.close()
            worker.process.join(timeout=5 if worker.request is None else 0)
            worker.process.kill()
            worker.process.join()
        self._workers.clear()

    def submit(self, request: Request) -> None:
        super().submit(request)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._requests and not self._stopped:
            worker = next((w for w in self._workers if w.request is None), None)
            if worker is None and len(self._workers) == self.slots:
                return
            if worker is None:
                used = [worker.gpu for worker in self._workers]
                worker = _start(min(self._gpus, key=used.count, default=None))  # the least used GPU
                self._workers.append(worker)
            try:
                worker.connection.send(self._requests[0])
                worker.request = self._requests.popleft()
            except BrokenPipeError:  # it died while idle: the job has not begun, another worker takes it
                self._workers.remove(worker)

    def events(self, timeout: float) -> list[Event]:
        busy = {worker.connection: worker for worker in self._workers if worker.request is not None}
        events: list[Event] = self._end_waiting() if self._stopped else []
        for worker in [worker for worker in busy.values() if self._stopped and not worker.asked_to_stop]:
            worker.asked_to_stop = True
            with suppress(BrokenPipeError):  # already gone: its pipe is found closed below
                worker.connection.send(None)
        for connection in wait(list(busy), timeout=0 if events else timeout):
            worker = busy[connection]
            try:
                event = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                event = self._end_dead_worker(worker)
            if isinstance(event, Ended):
                worker.request = None
            events.append(event)
        self._dispatch()
        return events

    def _end_dead_worker(self, worker: _Worker) -> Ended:
        worker.process.join(timeout=5)
        self._workers.remove(worker)
        folder = worker.request.folder
        with suppress(Timeout, OSError), FileLock(folder.lock, timeout=1):
            mark_killed_attempts(folder)  # else, taken by another study's worker or unwritable, the next attempt does it
        code = worker.process.exitcode
        hint = " (signal 9: often the system's out-of-memory killer)" if code == -9 else ""
        return Ended(worker.request.id, "killed", f"worker process {worker.process.pid} ended with exit code {code}{hint}")
