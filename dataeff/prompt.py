"""The SQL prompt: history, completion of table and column names, one fresh read-only connection a query."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory

from dataeff.errors import DataeffError
from dataeff.records import queries
from dataeff.terminal import print_rows

if TYPE_CHECKING:
    from rich.console import Console

    from dataeff.records.store import Database

HISTORY = Path.home() / ".dataeff_history"


def prompt(database: Database, console: Console) -> None:
    """Read queries until end of input or `.quit`. A query ends with a semicolon and may take several lines."""
    with database.read() as connection:
        words = queries.names(connection)
    console.print("SQL, read-only. A query ends with ;   .tables lists tables and views   .quit or Ctrl-D leaves")
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(HISTORY)), completer=WordCompleter(words, ignore_case=True)
    )
    lines: list[str] = []
    while True:
        try:
            line = session.prompt("dataeff> " if not lines else "    ...> ")
        except KeyboardInterrupt:
            lines.clear()
            continue
        except EOFError:
            return
        if not lines and line.strip() in (".quit", ".exit", "quit", "exit"):
            return
        if not lines and line.startswith(".") and line.strip() != ".tables":
            console.print(f"{line.strip()} is no command; valid: .tables, .quit", style="red", markup=False)
            continue
        if not lines and line.strip() == ".tables":
            line = "select table_name, table_type from information_schema.tables order by all;"
        lines.append(line)
        if line.rstrip().endswith(";"):
            text = "\n".join(lines)
            lines.clear()
            try:
                with database.read() as connection:
                    columns, rows = queries.query(connection, text)
                print_rows(console, columns, rows)
            except DataeffError as error:
                console.print(str(error), style="red", markup=False)
            except (KeyboardInterrupt, RuntimeError):  # the second is how DuckDB tells of Ctrl-C
                console.print("interrupted", style="red")
