"""What the command line prints: tables, rows as JSON, CSV or Parquet, numbers people can read, and the live view.

Pure presentation: it is given rows and a `Launch` to look at, and decides nothing.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dataeff.launch import CellProgress, Launch

STATE_STYLE = dict(certified="green", boundary="yellow", open="red", searching="cyan", blocked="red", waiting="dim")
NUMERIC_SIGNIFICANT = 5


def count(number: float) -> str:
    """Return a count people can read: 16384 -> 16.4k, 209715200 -> 210M, 1.2e18 -> 1.2e+18."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if scale <= abs(number) < scale * 1e3:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}" if abs(number) >= 1e15 or number != int(number) else f"{int(number)}"


def duration(seconds: float) -> str:
    """Return seconds as 42 s, 3 min 20 s, 5.2 h or 3.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"


def cell_text(value: Any) -> str:
    """Return one value of a result as text: losses to five digits, lists and JSON as they are, NULL as such."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.{NUMERIC_SIGNIFICANT}g}"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def print_rows(console: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print a table; one too wide for the terminal is printed as records, so that nothing is cut off."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    numeric = [all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(columns))]
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    texts = [[cell_text(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in texts)]) for i, name in enumerate(columns)]
    if sum(widths) + 2 * len(widths) > console.width and console.is_terminal:
        longest = max(len(name) for name in columns)
        for number, row in enumerate(texts, start=1):
            console.print(Text(f"-- row {number} of {len(rows)}", style="dim"))
            for name, value in zip(columns, row, strict=True):
                console.print(Text(f"{name:>{longest}}  {value}"), soft_wrap=True)
        return
    for row in texts:
        table.add_row(*(Text(value, style="dim" if value == "NULL" else "") for value in row))
    console.print(table)
    if not rows:
        console.print(Text("(no rows)", style="dim"))


def write_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str, path: Path | None = None) -> None:
    """Write rows to standard output as json (a list of objects) or csv, or to `path` as parquet."""
    if form == "json":
        json.dump([dict(zip(columns, row, strict=True)) for row in rows], sys.stdout, default=str, indent=1)
        sys.stdout.write("\n")
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({name: [row[i] for row in rows] for i, name in enumerate(columns)})
        pyarrow.parquet.write_table(table, path)


def print_cells(console: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print the cells of a study as a table that fits a terminal, and below it why some are not certified."""
    shown = ("recipe", "seed_tokens", "size", "state", "val_loss", "margin", "lr", "weight_decay", "epochs", "runs")
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    print_rows(console, shown, [[record[name] for name in shown] for record in records])
    for record in records:
        if record["state"] != "certified":
            where = f"{record['recipe']}, D = {record['seed_tokens']}, {record['size']}"
            console.print(f"{record['state']}: {where}: {record['reason']}", markup=False)


def _cell_row(progress: CellProgress) -> list[str | Text]:
    cell, search = progress.cell, progress.search
    state = progress.state
    certificate = progress.certificate or (search.certificate if search and search.results else None)
    known = certificate is not None and certificate.best is not None
    return [
        cell.recipe,
        str(cell.seed_tokens),
        cell.size.name,
        Text(state, style=STATE_STYLE[state]),
        f"{certificate.loss:.4f}" if known else "-",
        " ".join(f"{value:g}" for value in cell.grid.values(certificate.best).values()) if known else "",
        str(progress.trained + progress.reused),
        str(progress.running or ""),
    ]


def _view(launch: Launch, height: int | None = None) -> Group:
    """The cells and the summary; of more cells than `height` lines hold, those that are being searched come first."""
    cells = list(launch.cells.values())
    left_out = ""
    if height is not None and len(cells) > (room := max(1, height - 7)):
        order = {"searching": 0, "blocked": 1, "open": 1, "boundary": 2}
        shown = {progress.cell.id for progress in sorted(cells, key=lambda progress: order.get(progress.state, 3))[:room]}
        left_out = f"({len(cells) - room} more cells)\n"
        cells = [progress for progress in cells if progress.cell.id in shown]
    axes = " ".join(cells[0].cell.grid.names)
    headers = ("recipe", "D", "size", "state", "val_loss", axes, "runs", "running")
    rows = [_cell_row(progress) for progress in cells]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for i, name in enumerate(headers):
        width = max([len(name), *(len(row[i]) for row in rows)])
        kept = None if name == axes else width  # where there is no room, the axes give way
        right = name in ("D", "val_loss", "runs", "running")
        table.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=kept)
    for row in rows:
        table.add_row(*row)
    return Group(table, Text(left_out + summary_line(launch)))


def summary_line(launch: Launch) -> str:
    """Return one line: cells by state, runs, speed, time spent and left."""
    cells = ", ".join(f"{n} {state}" for state, n in launch.states.items())
    reused = sum(p.reused for p in launch.cells.values())
    speed = f", {count(launch.jobs.tokens_per_second)} tokens/s" if launch.jobs.latest else ""
    left = launch.seconds_left()
    tail = f", about {duration(left)} left" if left and launch.jobs.running else ""
    busy = ""
    if launch.database_busy_since is not None:
        waited = duration(time.monotonic() - launch.database_busy_since)
        busy = f"\nthe database file is held by another program for {waited}; results wait in their run folders"
    stopping = "\nstopping: running jobs write a checkpoint; Ctrl-C again ends them at once" if launch.jobs.stopping else ""
    elapsed = duration(time.monotonic() - launch.began)
    running = min(launch.jobs.executor.slots, len(launch.jobs.running))
    queued = f", {len(launch.jobs.running) - running} queued" if len(launch.jobs.running) > running else ""
    runs = f"runs: {launch.jobs.trained} trained, {reused} reused, {running} running{queued}{speed}"
    return f"cells: {cells}\n{runs}; {elapsed} so far{tail}{busy}{stopping}"


class BuildProgress:
    """Shows the building of tokens as a bar; nothing where it takes no time or nobody watches."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BuildProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage)
        self._bars.update(self._tasks[stage], completed=done, total=total)


class LiveView:
    """Shows a launch while it runs: a table on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._last = time.monotonic()

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, launch: Launch) -> None:
        """Draw the launch as it stands; cheap enough to be called often."""
        now = time.monotonic()
        if self._live and now - self._last > 0.25:
            self._live.update(_view(launch, self._console.height))
            self._last = now
        elif not self._live and now - self._last > 15:
            self._console.print(summary_line(launch).replace("\n", "; "), soft_wrap=True)
            self._last = now

    def finish(self, launch: Launch) -> None:
        """Print the final table and what went wrong, for good."""
        self.__exit__()
        self._console.print(_view(launch))
        for progress in launch.cells.values():
            if progress.blocked:
                self._console.print(f"{progress.cell.id} cannot be trained: {progress.blocked}", markup=False, soft_wrap=True)
        for failure in launch.jobs.failures:
            self._console.print(Text(failure, style="red"), soft_wrap=True)
