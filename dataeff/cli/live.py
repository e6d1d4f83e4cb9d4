"""How far a launch is, and what takes long before it, on standard error."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from dataeff.cli.common import table_text
from dataeff.reports.text import count, duration

if TYPE_CHECKING:
    from dataeff.study.launch import Launch

STATES = ("searching", "blocked", "open", "boundary", "waiting", "certified")  # the first come first where room is short
COLUMNS = ("recipe", "D", "size", "state", "loss", "runs", "to run", "optimum")


def show_stage(stage: str, done: int, total: int | None) -> None:
    """Show how far a stage is, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{stage}: {f'{done / total:.0%}' if total else count(done)}", end="\r" * (done == total), file=sys.stderr)


class LiveView:
    """Shows a launch whenever it is called: a table in place on a terminal, a line every 15 s elsewhere."""

    def __init__(self) -> None:
        self.last, self.height, self.in_place = time.monotonic(), 0, sys.stderr.isatty()

    def __call__(self, launch: Launch) -> None:
        if time.monotonic() - self.last > (0.25 if self.in_place else 15):
            self.last, size = time.monotonic(), shutil.get_terminal_size()
            text = _view(launch, size.lines - 7) if self.in_place else _summary(launch).replace("\n", "; ")
            self._print([line[: size.columns - 1] if self.in_place else line for line in text.splitlines()])

    def _print(self, lines: list[str]) -> None:
        print(f"\033[{self.height}F\033[J" * (self.height > 0) + "\n".join(lines), file=sys.stderr)
        self.height = len(lines) * self.in_place

    def end(self, launch: Launch) -> None:
        """Print the table, and what went wrong, for good."""
        blocked = [state for state in launch.states.values() if state.state == "blocked"]
        self._print([_view(launch), *(f"{s.cell.id} cannot be trained: {s.reason}" for s in blocked), *launch.failures])


def _view(launch: Launch, room: int | None = None) -> str:
    """The cells, those in `room` lines that matter most, and the summary. A loss is that of a single model."""
    states, rows = list(launch.states.values()), []
    if room and len(states) > room:
        states = sorted(states, key=lambda state: STATES.index(state.state))[:room]
    for state in states:
        cell, point = state.cell, {} if state.best is None else state.cell.grid.values(state.best)
        loss = f"{state.certificate.loss:.4f}" if point and launch.demand.recipe(cell).members == 1 else ""
        runs, optimum = sum(use.role != "ensemble" for use in state.uses), " ".join(f"{k} {v:g}" for k, v in point.items())
        rows.append((cell.recipe, cell.seed_tokens, cell.size.name, state.state, loss, runs, len(state.wanted), optimum))
    left_out = len(launch.states) - len(states)
    return f"{table_text(COLUMNS, rows)}\n" + f"({left_out} more cells)\n" * (left_out > 0) + _summary(launch)


def _summary(launch: Launch) -> str:
    queue, left, now = launch.queue, launch.seconds_left(), time.monotonic()
    running = min(queue.executor.slots, len(queue.running))
    text = "cells: " + ", ".join(f"{n} {state}" for state, n in launch.counts.items())
    text += f"\nruns: {launch.trained} trained, {launch.reused} reused, {running} running, {len(queue) - running} queued"
    text += f"; {duration(now - launch.began)} so far" + (f", about {duration(left)} left" if left and len(queue) else "")
    if launch.database_busy_since is not None:
        held = duration(now - launch.database_busy_since)
        text += f"\nanother program has held the database for {held}; results wait in their folders"
    if launch.stopping and running:
        text += "\nstopping: running jobs write a checkpoint; Ctrl-C again ends them at once"
    return text
