"""A kind of job that trains nothing, defined in one file and known nowhere else: the sum of numbers and of its inputs' sums."""

from __future__ import annotations

import os
import signal
from multiprocessing import parent_process
from typing import ClassVar

import torch

from dataeff.facts.job import Context, Fact, Job, Progress
from dataeff.facts.store import JobFolder, Store, load_fact, write_atomically
from dataeff.specs.spec import Input


class TotalResult(Fact):
    total: int
    numbers_read: int  # in the attempt that ended
    evaluations: int
    threads: int
    store: str


class Total(Job):
    kind: ClassVar[str] = "total"
    Result: ClassVar[type[Fact]] = TotalResult

    numbers: list[int]
    parts: list[Input] = []
    mine: int | None = None  # the worker that reads this number is killed, once
    too_large: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("total.txt",)

    def run(self, folder: JobFolder, store: Store, context: Context) -> TotalResult:
        if self.too_large:
            torch.empty(2**50)
        state = folder.checkpoint / "sum.txt"
        done, total = map(int, state.read_text().split()) if state.exists() else (0, 0)
        for place, number in enumerate(self.numbers[done:], start=done + 1):
            if number == self.mine and parent_process() and not (folder.path / "exploded").exists():
                write_atomically(folder.path / "exploded", "")
                os.kill(os.getpid(), signal.SIGKILL)
            total += number
            write_atomically(state, f"{place} {total}")
            context.on_progress(Progress(self.id, place, len(self.numbers), 1.0))
        total += sum(load_fact(TotalResult, store.folder(each.job).result).total for each in self.parts)
        write_atomically(folder.path / "total.txt", str(total))
        return TotalResult(
            total=total,
            numbers_read=len(self.numbers) - done,
            evaluations=context.evaluations,
            threads=torch.get_num_threads(),
            store=str(store.path),
        )
