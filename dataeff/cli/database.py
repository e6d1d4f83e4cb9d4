"""Commands on what is recorded: runs, show, sql, fit, export, import, rebuild."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from dataeff.cli.common import console, open_database, print_json, print_table, renew, show_rows, study_name
from dataeff.cli.options import DEFAULT_DATABASE, CsvOption, DatabaseOption, JsonOption, PlotOption, StudyArgument, app
from dataeff.errors import DataeffError, InputError, nearest
from dataeff.reports.text import cell_text
from dataeff.share import shared_folder

if TYPE_CHECKING:
    from dataeff.records.store import Database


@app.command()
def runs(
    where: Annotated[list[str] | None, Option("--where", "-w", help="a SQL condition, such as 'lr < 0.01'; repeatable")] = None,
    sort: Annotated[str, Option("--sort", "-s", help="a column; a minus before it sorts descending")] = "val_loss",
    columns: Annotated[str | None, Option("--columns", "-c", help="comma-separated columns, or 'all'")] = None,
    limit: Annotated[int, Option("--limit", "-n", min=0, help="rows at most; 0 for all")] = 50,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """List runs, filtered and sorted by any column.

    \b
    Example: dataeff runs --where "weight_decay > 1" --sort=-val_loss --limit 10
    Example: dataeff runs --limit 0 --columns run_id,lr,epochs,val_loss --csv > runs.csv
    """
    from dataeff.records import queries

    chosen = None if columns is None else [name.strip() for name in columns.split(",")]
    with open_database(database).read() as connection:
        names, rows = queries.runs(connection, where or [], sort, chosen, limit)
    show_rows(names, rows, as_json, as_csv)


@app.command()
def show(
    job_id: Annotated[str, Argument(metavar="ID", help="the id of a run or another job, or the beginning of one")],
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
) -> None:
    """Show one run, or another job: its row, losses, attempts, cells.

    \b
    Example: dataeff show 4f2a
    """
    from dataeff.records import queries

    with open_database(database).read() as connection:
        details = queries.job_details(connection, job_id.strip())
    if as_json:
        print_json(details)
        return
    kind, row = details.pop("kind"), details.pop("row")
    for name, value in {"kind": kind, **row}.items():
        if name != "spec" or kind != "train":
            print(f"{name:>25}  {cell_text(value)}")
    for title, rows in details.items():
        if rows or title == "attempts":
            print()
            print_table(list(rows[0]) if rows else [], [list(row.values()) for row in rows], title)


@app.command()
def sql(
    query: Annotated[str | None, Argument(help="one SQL query; a prompt when left out; - reads standard input")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    parquet: Annotated[Path | None, Option(help="write the rows to this Parquet file")] = None,
) -> None:
    """Ask the database in SQL, read-only. Tables and views are described in db/README.md.

    \b
    Example: dataeff sql "select recipe, seed_tokens, limit_loss, e_low, e_high from asymptote"
    Example: dataeff sql "from run where epochs >= 8" --parquet runs.parquet
    """
    from dataeff.records import queries

    if query is None and sys.stdin.isatty():
        _prompt(open_database(database))
        return
    text = sys.stdin.read() if query in (None, "-") else query
    with open_database(database).read() as connection:
        columns, rows = queries.query(connection, text)
    if parquet:
        import pyarrow.parquet

        table = pyarrow.table({name: [row[i] for row in rows] for i, name in enumerate(columns)})
        pyarrow.parquet.write_table(table, parquet)
        print(f"{len(rows)} rows written to {parquet}", file=sys.stderr)
    else:
        show_rows(columns, rows, as_json, as_csv)


def _prompt(database: Database) -> None:
    """Run queries until end of input or `.quit`. A query ends with a semicolon and may take several lines."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import FileHistory

    from dataeff.records import queries

    tables = "select table_name, table_type from information_schema.tables order by all"
    leave = (".quit", ".exit", "quit", "exit")

    def incomplete() -> bool:
        text = get_app().current_buffer.text.strip()
        return text not in ("", *leave) and not text.startswith(".") and not text.endswith(";")

    with database.read() as connection:
        completer = WordCompleter(queries.names(connection), ignore_case=True)
    print("SQL, read-only. A query ends with ;   .tables lists tables and views   .quit or Ctrl-D leaves")
    session = PromptSession(history=FileHistory(str(Path.home() / ".dataeff_history")), completer=completer)
    while True:
        try:
            text = session.prompt("dataeff> ", multiline=Condition(incomplete), prompt_continuation="    ...> ").strip()
            if text in leave:
                return
            if text.startswith(".") and text != ".tables":
                raise InputError(f"{text} is no command; valid: .tables, .quit")
            if text:
                with database.read() as connection:
                    print_table(*queries.query(connection, tables if text == ".tables" else text))
        except EOFError:
            return
        except DataeffError as error:
            console().print(str(error), style="red", markup=False)
        except (KeyboardInterrupt, RuntimeError):  # DuckDB turns Ctrl-C into a RuntimeError
            console().print("interrupted", style="red")


@app.command()
def fit(
    table: Annotated[str, Argument(help="a CSV or Parquet file, or a SQL query on the database")],
    x: Annotated[list[str], Option("--x", help="x column; repeat for forms with several variables")],
    y: Annotated[str, Option("--y", help="column of the loss")],
    form: Annotated[str, Option(help="power, reciprocal, power_without_floor, exponential, additive, ...")] = "power",
    group: Annotated[list[str] | None, Option("--group", "-g", help="column whose values are fitted apart")] = None,
    sd: Annotated[float | None, Option(help="known standard deviation of one y, such as run-to-run noise")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    plot: PlotOption = None,
) -> None:
    """Fit a scaling law to a table of losses.

    One row a group: parameters, the limit with its 90% interval, and what is doubtful. No study is needed.

    \b
    Example: dataeff fit losses.csv --x parameters --y val_loss --group recipe
    Example: dataeff fit "from best_run where recipe = 'regularized'" --x parameters_total --y val_loss_mean -g seed_tokens
    """
    from dataeff.reports.fit_table import fit_table, law_on_a_grid

    fitted = fit_table(table, form, x, y, group or [], open_database(database), sd)
    if plot:
        from dataeff.reports.charts import laws_chart, save_chart

        drawn = [law_on_a_grid(*named) for named in fitted.fits]
        points, laws = ([record for each in drawn for record in each[i]] for i in (0, 1))
        save_chart(laws_chart(points, laws, x[0], y), plot)
        print(f"drawn to {plot}", file=sys.stderr)
    show_rows(fitted.columns, fitted.rows, as_json, as_csv)


@app.command("export")
def export_rows(
    study: StudyArgument,
    target: Annotated[Path, Argument(help="a new folder (of Parquet files; NAME.csv: of CSV files) or NAME.duckdb")],
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
) -> None:
    """Write the rows of one study to files of their own.

    \b
    Example: dataeff export quickstart quickstart-results
    Example: dataeff export quickstart quickstart.results.duckdb
    """
    from dataeff.records.exchange import export_study

    counts = export_study(open_database(database), study_name(study), target)
    show_rows(["table", "rows"], list(counts.items()), as_json)
    print(f"written to {target}", file=sys.stderr)


@app.command("import")
def import_rows(
    source: Annotated[str, Argument(help="an exported folder, a study with bundled results, or a table of runs")],
    study: Annotated[str | None, Option(metavar="NAME", help="record the table's rows as runs of this study")] = None,
    columns: Annotated[list[str] | None, Option("--map", metavar="COLUMN=SOURCE", help="SOURCE: a column or SQL")] = None,
    ignored: Annotated[list[str] | None, Option("--ignore", metavar="COLUMN", help="kept in spec alone; * is any text")] = None,
    where: Annotated[str | None, Option(help="a SQL condition on the source's columns, such as 'members = 1'")] = None,
    baseline: Annotated[str | None, Option(metavar="RECIPE", help="whose data law measures data efficiency")] = None,
    limits: Annotated[list[str] | None, Option("--limit", metavar="RECIPE=LIMIT", help="best (default) or N (asymptote)")] = None,
    question: Annotated[str | None, Option(help="what the study asks")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
) -> None:
    """Add an exported study, or runs trained elsewhere.

    What is there already stays as it is. A table is a file (.csv, .tsv, .parquet, .json, .jsonl), mlflow:URI#EXPERIMENT or
    wandb:ENTITY/PROJECT. Its columns that are named as those of table `run` (db/README.md, with units) map by themselves;
    every other one is to be mapped, to a column of run, recipe, size or members, or ignored.

    \b
    Example: dataeff import laptop
    Example: dataeff import runs.csv --study mine --map lr="learning rate" --map "recipe='standard'" --ignore "Notes*"
    Example: dataeff import "mlflow:sqlite:///mlflow.db#scaling" --study mine --map "seed_tokens=tokens_m * 1e6" --limit tuned=N
    """
    from dataeff.records.exchange import import_study
    from dataeff.records.imports import Import, import_runs
    from dataeff.records.sources import is_source, read_source
    from dataeff.study.index import index_studies

    carried = {folder.name: folder for folder in shared_folder("studies").iterdir() if folder.is_dir()}
    folder = Path(source) if Path(source).is_dir() else carried.get(source)
    options = {"study": study, "map": columns, "ignore": ignored, "where": where, "baseline": baseline, "limit": limits}
    given = [f"--{name}" for name, value in {**options, "question": question}.items() if value is not None]
    if folder is not None:
        if given:
            raise InputError(f"{source} is an exported study, which comes in as it is; leave out {', '.join(given)}")
        added = import_study(open_database(database), folder)
        index_studies(open_database(database))
        renew(database)
        show_rows(["table", "new_rows"], list(added.items()), as_json)
        return
    if not is_source(source):
        raise InputError(f"there is no folder {source}, and no bundled results of that name; {nearest(source, carried)}")
    if study is None:
        raise InputError(f"{source} is a table of runs; say with --study NAME which study they become")
    mapped, limit_of = _pairs("--map", columns), _pairs("--limit", limits)
    request = Import(study, mapped, ignored or (), where or "true", baseline, limit_of, question)
    counts = import_runs(open_database(database), read_source(source), request)
    renew(database, study)
    show_rows(["what", "count"], list(counts.items()), as_json)


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value) or name in pairs:
            raise InputError(f"{option} {text}: give NAME=VALUE, each name once")
        pairs[name] = value
    return pairs


@app.command()
def rebuild(database: DatabaseOption = DEFAULT_DATABASE) -> None:
    """Make the database anew from the files beside it.

    Every run, ensemble, sample, study and import is a file in NAME.files/; the database is an index of them. The file that
    was there is kept as NAME.previous1.duckdb.

    \b
    Example: dataeff rebuild
    """
    from dataeff.cli.live import stage_bars
    from dataeff.study.index import rebuild as make_anew

    with stage_bars(console(error=True)) as progress:
        previous = make_anew(open_database(database), lambda done, total: progress("index jobs", done, total))
    print(f"{database} is rebuilt" + (f"; what was there is now {previous}" if previous else ""), file=sys.stderr)
