"""What several commands do: open a database, renew its fits, print rows as a table, JSON or CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataeff.errors import DatabaseError, InputError, SchemaError
from dataeff.reports.text import cell_text

if TYPE_CHECKING:
    from rich.console import Console

    from dataeff.records.store import Database


def study_name(study: str) -> str:
    """The name of a recorded study, given that or its file."""
    from dataeff.specs.study import Study

    return Study.load(study).spec.name if Path(study).suffix == ".toml" else study


def open_database(path: Path) -> Database:
    from dataeff.records.store import Database

    return Database(path)


def renew(database: Path, study: str | None = None) -> None:
    """Bring intervals up to date where the file can be written; where not, the rows say which are not."""
    from dataeff.study.fits import renew_fits

    try:
        renew_fits(open_database(database), study)
    except SchemaError:
        raise
    except DatabaseError as error:
        print(f"dataeff: the intervals were not renewed: {error}", file=sys.stderr)


def console(error: bool = False) -> Console:
    from rich.console import Console

    piped = not (sys.stderr if error else sys.stdout).isatty()
    return Console(stderr=error, highlight=False, width=10_000 if piped else None)  # what is piped is not to be cut


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool = False, as_csv: bool = False) -> None:
    """Print rows as a table, as JSON (a list of objects) or as CSV."""
    if as_json and as_csv:
        raise InputError("--json and --csv: rows are printed in one form; give one of them")
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *rows])
    else:
        print_table(columns, rows)


def print_json(value: object) -> None:
    print(json.dumps(value, default=str, indent=1))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print a table; one too wide for the terminal is printed as records, so that nothing is cut off."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        numeric = all(isinstance(row[i], (int, float, type(None))) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    texts = [[cell_text(value) for value in row] for row in rows]
    for row in texts:
        table.add_row(*(Text(value, style="dim" if value == "NULL" else "") for value in row))
    if out.is_terminal and table.__rich_measure__(out, out.options.update(width=10_000)).maximum > out.width:
        longest = max(map(len, columns))
        for number, row in enumerate(texts, start=1):
            out.print(Text(f"-- row {number} of {len(rows)}", style="dim"))
            for name, value in zip(columns, row, strict=True):
                out.print(Text(f"{name:>{longest}}  {value}"), soft_wrap=True)
        return
    out.print(table)
    if not rows:
        out.print(Text("(no rows)", style="dim"))
