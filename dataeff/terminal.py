"""What the command line prints: tables, rows as JSON, CSV or Parquet, numbers people can read, and the live view.

Pure presentation: it is given rows and a `Launch` to look at, and decides nothing.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dataeff.launch import CellProgress, Launch

STATE_STYLE = {"certified": "green", "boundary": "yellow", "open": "red", "searching": "cyan", "waiting": "dim"}
NUMERIC_SIGNIFICANT = 5


def count(number: float | None) -> str:
    """Return a count people can read: 16384 -> 16.4k, 209715200 -> 210M, 1.2e18 -> 1.2e+18."""
    if number is None:
        return "-"
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if scale <= abs(number) < scale * 1e3:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}" if abs(number) >= 1e15 or number != int(number) else f"{int(number)}"


def duration(seconds: float | None) -> str:
    """Return seconds as 42 s, 3 min 20 s, 5.2 h or 3.1 days; `-` for None."""
    if seconds is None:
        return "-"
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
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({name: [row[i] for row in rows] for i, name in enumerate(columns)})
        pyarrow.parquet.write_table(table, path)


def point_text(values: Mapping[str, float]) -> str:
    """Return hyper-parameters as `lr=0.003 weight_decay=0.8 epochs=16`."""
    return " ".join(f"{name}={value:g}" for name, value in values.items())


def _cell_row(progress: CellProgress) -> list[str | Text]:
    cell, search = progress.cell, progress.search
    state = progress.state
    certificate = progress.certificate or (search.certificate if search and search.results else None)
    known = certificate is not None and certificate.best is not None
    best = f"{certificate.loss:.4f}" if known else "-"
    where = point_text(cell.grid.values(certificate.best)) if known else ""
    return [
        cell.recipe,
        count(cell.seed_tokens),
        cell.size.name,
        Text(state, style=STATE_STYLE[state]),
        best,
        where,
        str(progress.trained),
        str(progress.reused),
        str(progress.running or ""),
    ]


def _view(launch: Launch) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("recipe", "D", "size", "state", "val_loss", "at", "trained", "reused", "running"):
        table.add_column(name, justify="left" if name in ("recipe", "size", "state", "at") else "right", no_wrap=True)
    for progress in launch.cells.values():
        table.add_row(*_cell_row(progress))
    return Group(table, Text(summary_line(launch)))


def summary_line(launch: Launch) -> str:
    """Return one line: cells by state, runs, speed, time spent and left."""
    cells = ", ".join(f"{n} {state}" for state, n in launch.states.items())
    reused = sum(p.reused for p in launch.cells.values())
    speed = f", {count(launch.tokens_per_second)} tokens/s" if launch.latest else ""
    left = launch.seconds_left()
    tail = f", about {duration(left)} left" if left and launch.running else ""
    busy = ""
    if launch.database_busy_since is not None:
        waited = duration(time.monotonic() - launch.database_busy_since)
        busy = f"\nthe database file is held by another program for {waited}; results wait in their run folders"
    stopping = "\nstopping: running jobs write a checkpoint; Ctrl-C again ends them at once" if launch.stopping else ""
    elapsed = duration(time.monotonic() - launch.began)
    runs = f"runs: {launch.trained} trained, {reused} reused, {len(launch.running)} in flight{speed}"
    return f"cells: {cells}\n{runs}; {elapsed} so far{tail}{busy}{stopping}"


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
            self._live.update(_view(launch))
            self._last = now
        elif not self._live and now - self._last > 15:
            self._console.print(summary_line(launch).replace("\n", "; "), soft_wrap=True)
            self._last = now

    def finish(self, launch: Launch) -> None:
        """Print the final table and what went wrong, for good."""
        self.__exit__()
        self._console.print(_view(launch))
        for failure in launch.failures:
            self._console.print(Text(failure, style="red"), soft_wrap=True)
