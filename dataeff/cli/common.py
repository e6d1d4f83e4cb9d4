"""What commands share: their options, one way to print or write rows, one line for each error.

Exit codes: 0 done, 1 a run or the database failed, 2 bad input, 130 stopped by Ctrl-C. Nothing heavy (torch, optuna,
sqlmodel) is imported before a command needs it, so that `--help` answers at once. Results go to standard output,
progress and errors to standard error.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

import dataeff
from dataeff.errors import DataeffError, InputError, StudyError
from dataeff.reports.text import cell_text

if TYPE_CHECKING:
    from dataeff.records.store import Database
    from dataeff.specs.study import Study

app = typer.Typer(
    help="Which training recipe gets the lowest loss out of a fixed amount of text?\n\n"
    "Declare a study in TOML, run it, and query the results in DuckDB.",
    epilog="Start with: dataeff run quickstart. For a study of your own: dataeff init",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
HERE = "dataeff.duckdb"
VARIABLE = "DATAEFF_DATABASE"
Rows = Sequence[Sequence[Any]]


def command(*examples: str, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command, with examples at the end of its help."""
    return app.command(name, epilog="\n".join(["\b", *(f"Example: dataeff {example}" for example in examples)]))


def _database(text: str) -> Database:
    from dataeff.records.store import Database

    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        fault = "this is a folder;" if path.is_dir() else f"there is no folder {path.parent}; create it, or"
        raise InputError(f"{path}: {fault} name another file with --database")
    return Database(path)


def _output(text: str) -> Path:
    if not text.endswith((".csv", ".json", ".parquet")):
        raise InputError(f"-o {text}: the suffix decides how rows are written; valid: .csv, .json, .parquet")
    return Path(text)


def load_study(text: str) -> Study:
    """Return a study by its file, or by its name: NAME.toml in this folder comes before a built-in study."""
    from dataeff.specs.study import Study

    file = Path(f"{text}.toml")
    return Study.load(file if file.is_file() and not Path(text).is_file() else text)


def _study_name(text: str) -> str:
    return load_study(text).spec.name if text.endswith(".toml") else text


def _studies(incomplete: str) -> list[str]:
    from dataeff.specs.study import carried_studies

    names = [*map(str, Path().glob("*.toml")), *(file.stem for file in Path().glob("*.files/studies/*.json")), *carried_studies()]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


# Options, by what a command is given: a `Database`, the name or file of a study to load, the name of a recorded one, paths.
_study = {"metavar": "STUDY", "autocompletion": _studies}
_about = "the DuckDB file; runs are kept next to it, in NAME.files/"
_to_file = Option("--output", "-o", metavar="FILE", parser=_output, help="write rows to a .csv, .json or .parquet file")
DatabaseFile = Annotated[Any, Option("--database", "-d", metavar="FILE", envvar=VARIABLE, parser=_database, help=_about)]
StudyFile = Annotated[str, Argument(help="a study's name or file", **_study)]
StudyName = Annotated[str, Argument(parser=_study_name, help="a study's name or file", **_study)]
AnyStudy = Annotated[str | None, Argument(parser=_study_name, help="its name or file; all if left out", **_study)]
OutputFile = Annotated[Path | None, _to_file]
Format = Annotated[Literal["table", "json", "csv"], Option("--format", help="how rows are printed")]
PlotFile = Annotated[Path | None, Option("--plot", metavar="FILE", help="draw a chart to a .svg, .png or .html file")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dataeff {dataeff.__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    database: Annotated[Path | None, Option("--database", "-d", help="the DuckDB file; works after a command too")] = None,
    version: Annotated[bool, Option("--version", is_eager=True, callback=_print_version, help="print the version, exit")] = False,
    debug: Annotated[bool, Option("--debug", help="show an error's traceback; works after a command too")] = False,
) -> None:
    os.environ |= {VARIABLE: str(database)} if database else {}  # every command reads it


def show_rows(
    columns: Sequence[str], rows: Any, output: Path | None, form: str, table: Callable | None = None, document: Any = None
) -> None:
    """Print rows, or write them to `output`, as its suffix says.

    A command that shows more than rows gives `table`, which prints it, and `document` for JSON. For Parquet, rows may be Arrow.
    """
    if output and form != "table":
        raise InputError(f"-o {output} --format {form}: the suffix decides how a file is written; leave --format out")
    form = output.suffix[1:] if output else form
    if form == "table":
        table() if table else print_table(columns, rows)
    elif form == "parquet":
        _write_parquet(columns, rows, output)
    else:
        objects = document or [dict(zip(columns, row, strict=True)) for row in rows]
        text = _json(objects, indent=1) if form == "json" else _csv(columns, rows)
        output.write_text(text, encoding="utf-8") if output else sys.stdout.write(text)
    if output:
        print(f"written to {output}", file=sys.stderr)


def _write_parquet(columns: Sequence[str], rows: Any, output: Path) -> None:
    """Write rows by way of DuckDB, whose Parquet has intervals and maps; HUGEINT becomes DECIMAL(38, 0)."""
    import duckdb
    import pyarrow

    try:
        if not isinstance(rows, pyarrow.Table):
            rows = pyarrow.table([[row[i] for row in rows] for i in range(len(columns))], columns)
        duckdb.connect().from_arrow(rows).write_parquet(str(output))
    except (duckdb.Error, pyarrow.ArrowException, OverflowError) as error:
        raise InputError(f"{output} cannot be written: {error}; cast the column to VARCHAR, or write .csv or .json") from error


def _csv(columns: Sequence[str], rows: Rows) -> str:
    text = io.StringIO()
    plain = ([_json(value).strip() if isinstance(value, (dict, list)) else value for value in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows([columns, *plain])
    return text.getvalue()


def _json(value: object, indent: int | None = None) -> str:
    """Return strict JSON: NaN and infinity become null."""
    try:
        return json.dumps(json.loads(json.dumps(value, default=str), parse_constant=lambda name: None), indent=indent) + "\n"
    except TypeError as error:
        raise InputError(f"these rows cannot be JSON: {error}; cast the column to VARCHAR") from error


def table_text(columns: Sequence[str], rows: Rows, width: int = sys.maxsize) -> str:
    """Return rows as a table; as records where all but the last column is wider than `width`, or a text has lines.

    rich would take a millisecond a row, and minutes for the runs of a large database.
    """
    texts = [[cell_text(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    if sum(widths[:-1]) + 2 * len(widths) + min(widths[-1], 20) > width or any("\n" in text for row in texts for text in row):
        size = max(map(len, columns))
        texts = [[text.replace("\n", "\n" + " " * (size + 2)) for text in row] for row in texts]
        records = ([f"{name:>{size}}  {text}" for name, text in zip(columns, row, strict=True)] for row in texts)
        return "\n\n".join(map("\n".join, records))
    sides = [">" if all(isinstance(row[i], (int, float, type(None))) for row in rows) else "<" for i in range(len(columns))]
    lines = (zip(row, sides, widths, strict=True) for row in [columns, *texts])
    return "\n".join("  ".join(f"{text:{side}{size}}" for text, side, size in line).rstrip() for line in lines)


def print_table(columns: Sequence[str], rows: Rows, title: str = "") -> None:
    """Print a table, as much of it as anyone reads on a terminal."""
    most, width = (500, shutil.get_terminal_size().columns) if sys.stdout.isatty() else (len(rows), sys.maxsize)
    print(f"\n{title}\n" * bool(title) + table_text(columns, rows[:most], width))
    if len(rows) > most or not rows:
        print(f"({most} of {len(rows):,} rows; -o FILE writes all)" if rows else "(no rows)")


def main() -> None:
    """Entry point: turns an error into one line and an exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"] or ["--help"]
    try:
        sys.exit(app(args=arguments, prog_name="dataeff", standalone_mode=False))
    except typer.Abort:
        sys.exit("dataeff: nothing was changed")
    except Exception as error:
        if "--debug" in sys.argv or not (hasattr(error, "format_message") or isinstance(error, (DataeffError, OSError))):
            raise
        print(f"dataeff: {_message(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _message(error: Any) -> str:
    """Return an error as one line, or a line for each mistake in a study file, of 300 characters at most with "dataeff: "."""
    text = re.sub(r"\s*LINE \d+:.*?\^", "", str(error), flags=re.DOTALL)  # of DuckDB
    if hasattr(error, "format_message"):  # typer does not export these classes
        path = error.ctx.command_path if error.ctx else "dataeff"
        text = error.format_message().replace("Value error, ", "")
        text += f"{'' if text[-1] in '.?!' else '.'} See: {path} --help"
    elif isinstance(error, OSError):
        text += "; check the path, its permissions and the space on its disk, then try again"
    lines = text.splitlines() if isinstance(error, StudyError) else [" ".join(text.split())]
    return "\n".join(line if len(line) <= 290 else f"{line[:180]} ... {line[-105:]}" for line in lines)
