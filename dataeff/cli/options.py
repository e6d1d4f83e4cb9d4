"""The command line: reads arguments, calls the library, prints, and exits.

Exit codes: 0 done, 1 a run or the database failed, 2 bad input, 130 stopped by Ctrl-C. Nothing heavy (torch, optuna,
sqlmodel) is imported before a command needs it, so that `--help` answers at once. Answers go to standard output,
progress and errors to standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

import dataeff
from dataeff.errors import DataeffError

app = typer.Typer(
    name="dataeff",
    help="Which training recipe gets the lowest loss out of a fixed amount of text?\n\n"
    "Declare a study in TOML, run it, and ask the DuckDB file what came out.",
    epilog="Start with: dataeff run quickstart, then: dataeff answer quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyArgument = Annotated[str, Argument(metavar="STUDY", help="a study file, or the name of a built-in study")]
DATABASE_HELP = "the DuckDB file; its runs lie beside it, in NAME.files/"
DatabaseOption = Annotated[Path, Option("--database", "-d", envvar="DATAEFF_DATABASE", dir_okay=False, help=DATABASE_HELP)]
JsonOption = Annotated[bool, Option("--json", help="print rows as JSON")]
CsvOption = Annotated[bool, Option("--csv", help="print rows as CSV")]
PlotOption = Annotated[Path | None, Option("--plot", help="draw a chart of it to this .svg, .png or .html file")]
DEFAULT_DATABASE = Path("dataeff.duckdb")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"dataeff {dataeff.__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[bool, Option("--version", is_eager=True, callback=_print_version, help="print the version, exit")] = False,
    debug: Annotated[bool, Option("--debug", help="show the traceback of an error; works after a command too")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: turns `DataeffError` into a message and an exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments)
    except (DataeffError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        expected = isinstance(error, DataeffError)
        remedy = "" if expected else "; check the path, its permissions and the space on its disk, then try again"
        print(f"dataeff: {error}{remedy}", file=sys.stderr)
        sys.exit(error.exit_code if expected else 1)
