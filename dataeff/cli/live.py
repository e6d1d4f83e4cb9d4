"""The live view of a launch, and bars for what takes long before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from dataeff.reports.text import count, duration

if TYPE_CHECKING:
    from dataeff.study.launch import Launch

# In the order in which cells are shown where there is no room for all.
STATE_STYLE = dict(searching="cyan", blocked="red", open="red", boundary="yellow", waiting="dim", certified="green")


def _view(launch: Launch, height: int | None = None) -> Group:
    """The cells, as many as `height` lines hold, and the summary."""
    states = list(launch.states.values())
    if height is not None and len(states) > (room := max(1, height - 7)):
        states = sorted(states, key=lambda state: list(STATE_STYLE).index(state.state))[:room]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    axes = Text(" ".join(states[0].cell.grid.names), no_wrap=True, overflow="ellipsis")
    for name in ("recipe", "D", "size", "state", "val_loss", axes, "runs", "wanted"):
        right = name in ("D", "val_loss", "runs", "wanted")
        table.add_column(name, justify="right" if right else "left", no_wrap=name is not axes)  # without room the axes give way
    for state in states:
        cell, loss, point = state.cell, "-", ""
        if state.certificate is not None and state.certificate.best is not None:
            loss = f"{state.certificate.loss:.4f}"
            point = " ".join(f"{value:g}" for value in cell.grid.values(state.certificate.best).values())
        table.add_row(
            cell.recipe,
            str(cell.seed_tokens),
            cell.size.name,
            Text(state.state, style=STATE_STYLE[state.state]),
            loss,
            Text(point, no_wrap=True, overflow="ellipsis"),
            str(sum(use.role != "ensemble" for use in state.uses)),
            str(len(state.wanted) or ""),
        )
    left_out = len(launch.states) - len(states)
    return Group(table, Text((f"({left_out} more cells)\n" if left_out else "") + summary_line(launch)))


def summary_line(launch: Launch) -> str:
    """Return cells by state, runs, speed, time spent and left; further lines for a busy database and a stopping launch."""
    queue, left = launch.queue, launch.seconds_left()
    running = min(queue.executor.slots, len(queue.running))
    queued = len(queue) - running
    text = "cells: " + ", ".join(f"{n} {state}" for state, n in launch.counts.items())
    text += f"\nruns: {launch.trained} trained, {launch.reused} reused, {running} running"
    if queued:
        text += f", {queued} queued"
    if queue.latest:
        text += f", {count(sum(progress.tokens_per_second for progress in queue.latest.values()))} tokens/s"
    text += f"; {duration(time.monotonic() - launch.began)} so far"
    if left and len(queue):
        text += f", about {duration(left)} left"
    if launch.database_busy_since is not None:
        waited = duration(time.monotonic() - launch.database_busy_since)
        text += f"\nthe database file is held by another program for {waited}; results wait in their folders"
    if launch.stopping:
        text += "\nstopping: running jobs write a checkpoint; Ctrl-C again ends them at once"
    return text


@contextmanager
def stage_bars(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield what shows a stage's progress (its name, done, in all) as a bar on a terminal."""
    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


@contextmanager
def live_view(console: Console, launch: Launch) -> Iterator[Callable[[Launch], None]]:
    """Yield what shows the launch, cheap enough to be called often: a table on a terminal, a line every 15 s elsewhere.

    At the end the final table and what went wrong are printed for good.
    """
    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
    last = time.monotonic()

    def show(launch: Launch) -> None:
        nonlocal last
        if time.monotonic() - last < (0.25 if live else 15):
            return
        last = time.monotonic()
        if live:
            live.update(_view(launch, console.height))
        else:
            console.print(summary_line(launch).replace("\n", "; "), soft_wrap=True)

    try:
        with live or nullcontext():
            yield show
    finally:
        console.print(_view(launch))
        for state in launch.states.values():
            if state.state == "blocked":
                console.print(f"{state.cell.id} cannot be trained: {state.reason}", markup=False, soft_wrap=True)
        for failure in launch.failures:
            console.print(Text(failure, style="red"), soft_wrap=True)
