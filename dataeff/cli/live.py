"""How far a launch is, and what takes long before it, on standard error."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress import Progress
from rich.text import Text

from dataeff.cli.common import table_text
from dataeff.reports.text import duration

if TYPE_CHECKING:
    from dataeff.study.launch import Launch

STATES = ("searching", "blocked", "open", "boundary", "waiting", "certified")  # the first come first where room is short
COLUMNS = ("recipe", "D", "size", "state", "loss", "runs", "to run", "optimum")


class StageBars(Progress):
    """Bars, on a terminal, for what takes long before a launch. It is called with a stage, how much is done, and of how much."""

    def __init__(self) -> None:
        super().__init__(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if not self.tasks or self.tasks[-1].description != stage:
            self.add_task(stage)
        self.update(self.task_ids[-1], completed=done, total=total)


class LiveView(Live):
    """Shows a launch whenever it is called: its cells in place on a terminal, a line every 15 s elsewhere."""

    def __init__(self) -> None:
        super().__init__(console=Console(stderr=True), auto_refresh=False, transient=True)
        self.last = time.monotonic()

    def __call__(self, launch: Launch) -> None:
        on_terminal = sys.stderr.isatty()  # where rich redirects it, too
        if time.monotonic() - self.last < (0.25 if on_terminal else 15):
            return
        self.last = time.monotonic()
        if on_terminal:
            self.start()
            text = f"{_summary(launch)}\n{_cells(launch, self.console.height)}"
            self.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            print(_summary(launch).replace("\n", "; "), file=sys.stderr)

    def end(self, launch: Launch) -> None:
        """Print the cells, the summary, and what went wrong, for good."""
        self.stop()
        blocked = [state for state in launch.resolution.states.values() if state.state == "blocked"]
        blocked = [f"{state.cell.id} cannot be trained: {state.reason}" for state in blocked]
        print(_cells(launch), _summary(launch), *blocked, *launch.failures, sep="\n", file=sys.stderr)


def _cells(launch: Launch, height: int | None = None) -> str:
    """The cells; or those in `height` lines that matter most. A loss is that of a single model."""
    states, rows = list(launch.resolution.states.values()), []
    if height:
        states = sorted(states, key=lambda state: STATES.index(state.state))[:height]
    for state in states:
        cell, point = state.cell, {} if state.best is None else state.cell.grid.values(state.best)
        loss = f"{state.certificate.loss:.4f}" if point and launch.demand.recipe(cell).members == 1 else ""
        runs, optimum = sum(not use.is_ensemble for use in state.uses), " ".join(f"{k} {v:g}" for k, v in point.items())
        rows.append((cell.recipe, cell.seed_tokens, cell.size.name, state.state, loss, runs, len(state.wanted), optimum))
    return table_text(COLUMNS, rows)


def _summary(launch: Launch) -> str:
    queue, left, now = launch.queue, launch.seconds_left(), time.monotonic()
    running = min(queue.executor.slots, len(queue.running))
    counts = Counter(state.state for state in launch.resolution.states.values())
    text = "cells: " + ", ".join(f"{n} {state}" for state, n in counts.items())
    text += f"\nruns: {launch.trained} trained, {launch.reused} reused, {running} running, {len(queue) - running} queued"
    text += f"; {duration(now - launch.began)} so far" + (f", about {duration(left)} left" if left and len(queue) else "")
    if launch.database_busy_since is not None:
        held = duration(now - launch.database_busy_since)
        text += f"\nanother program has held the database for {held}; results wait in their folders"
    if launch.queue.stopping and running:
        text += "\nstopping: running jobs write a checkpoint; Ctrl-C again ends them at once"
    return text
