"""The command line: reads arguments, calls the library, prints, and exits.

Exit codes: 0 done, 1 a run or the database failed, 2 bad input, 130 stopped by Ctrl-C. Nothing heavy (torch, optuna,
sqlmodel) is imported before a command needs it, so that `--help` answers at once. Answers go to standard output,
progress and errors to standard error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dataeff.errors import DataeffError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from dataeff.records.store import Database
    from dataeff.specs.study import Study

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

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="a study file, or the name of a built-in study")]
DatabaseOption = Annotated[
    Path,
    typer.Option(
        "--database",
        "-d",
        envvar="DATAEFF_DATABASE",
        dir_okay=False,
        help="the DuckDB file; its runs lie beside it, in NAME.files/",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print rows as JSON")]
CsvOption = Annotated[bool, typer.Option("--csv", help="print rows as CSV")]
DEFAULT_DATABASE = Path("dataeff.duckdb")


def _console(error: bool = False) -> Console:
    from rich.console import Console

    piped = not (sys.stderr if error else sys.stdout).isatty()
    return Console(stderr=error, highlight=False, width=10_000 if piped else None)  # what is piped is not to be cut


def _load(name: str) -> Study:
    from dataeff.specs.study import Study

    return Study.load(name)


def _name(study: str) -> str:
    """The name of a recorded study, given that or its file."""
    return _load(study).spec.name if Path(study).suffix == ".toml" else study


def _database(path: Path) -> Database:
    from dataeff.records.store import Database

    return Database(path)


def _show(columns: list[str], rows: list[Any], as_json: bool, as_csv: bool) -> None:
    from dataeff.terminal import print_rows, write_rows

    if as_json and as_csv:
        raise InputError("--json and --csv: rows are printed in one form; give one of them")
    if as_json or as_csv:
        write_rows(columns, rows, "json" if as_json else "csv")
    else:
        print_rows(_console(), columns, rows)


def _print_version(wanted: bool) -> None:
    if wanted:
        from dataeff import __version__

        print(f"dataeff {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and exit")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error; works after a command too")] = False,
) -> None:
    pass


@app.command()
def plan(study: StudyArgument, database: DatabaseOption = DEFAULT_DATABASE, as_json: JsonOption = False) -> None:
    """Say what a study would train and what that would cost.

    Nothing is trained. The first plan of a corpus tokenizes it, as `run` would.

    \b
    Example: dataeff plan laptop
    """
    from dataeff.price import ASSUMED_GPU_FLOPS, price
    from dataeff.terminal import BuildProgress

    with BuildProgress(_console(error=True)) as progress:
        priced = price(_load(study), _database(database), progress)
    columns = ["recipe", "seed_tokens", "size", "parameters_total", "grid", "state", "recorded", "expected", "flops", "hours"]
    if as_json:
        _show(columns, priced.rows, True, False)
        return
    from dataeff.terminal import count, duration, print_rows

    long = priced.seconds > 1000 * 3600
    shown = [
        (r, d, size, count(n), *rest, count(f), count(f / ASSUMED_GPU_FLOPS / 3600) if long else duration(h * 3600))
        for r, d, size, n, *rest, f, h in priced.rows
    ]
    print_rows(_console(), [*columns[:-1], "GPU hours" if long else "time"], shown)
    if not priced.runs:
        print("\nnothing to train: every search has ended")
        return
    print(
        f"\nabout {priced.runs} runs to train, {count(priced.flops)} FLOPs: {duration(priced.seconds)} on {priced.workers} "
        f"worker{'s' * (priced.workers > 1)} here, or {priced.flops / ASSUMED_GPU_FLOPS / 3600:,.2g} GPU hours at "
        f"{ASSUMED_GPU_FLOPS:.0e} FLOP/s (an H100 at 40%)\nspeed here: {priced.speed}\n"
        "expected runs are an estimate: a search decides as it goes and ends when its optimum is certified"
        + (f"\n{priced.note}" if priced.note else "")
    )


@app.command()
def run(
    study: StudyArgument,
    database: DatabaseOption = DEFAULT_DATABASE,
    workers: Annotated[int | None, typer.Option(min=1, help="worker processes; default one a GPU, else one a CPU core")] = None,
    executor: Annotated[str, typer.Option(help="local (worker processes) or inline (this process)")] = "local",
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL; default a journal in NAME.files/optuna.log")] = None,
) -> None:
    """Train what a study is missing and print its answer.

    Every run is recorded. Stop it with Ctrl-C, or kill it, at any moment; the same command goes on where it was.

    \b
    Example: dataeff run quickstart
    Example: DATAEFF_DATABASE=~/runs.duckdb dataeff run mine.toml --workers 1
    """
    from dataeff.errors import nearest

    executors = ("local", "inline")
    if executor not in executors:
        raise InputError(f"--executor {executor}: no such executor; {nearest(executor, executors)}")
    loaded = _load(study)
    stopped = _launch(loaded, database, workers, executor, storage)
    if stopped:
        raise typer.Exit(130)
    _print_answer(loaded.spec.name, database)


def _launch(study: Study, database: Path, workers: int | None, executor: str, storage: str | None) -> bool:
    """Run the study under the live view; return whether it was stopped. Raises `DataeffError` if runs failed."""
    import signal

    import optuna

    from dataeff.execution.inline import InlineExecutor
    from dataeff.execution.local import LocalExecutor
    from dataeff.launch import Launch
    from dataeff.terminal import BuildProgress, LiveView

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = _console(error=True)
    with InlineExecutor() if executor == "inline" else LocalExecutor(workers) as pool, LiveView(console) as view:
        with BuildProgress(console) as progress:
            launch = Launch(study, database, pool, storage, progress)
        console.print(f"{study.spec.name}: {study.spec.question}\n{pool.slots} worker(s), {database}", soft_wrap=True)
        if taken_out := launch.recorder.taken_out:
            console.print(f"the study has changed: {taken_out} cells of its earlier text are recorded anew; runs stay")

        def interrupt(number: int, frame: object) -> None:
            if launch.jobs.stopping:
                raise KeyboardInterrupt
            launch.jobs.stop()

        previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            launch.run(view.show)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            view.finish(launch)
    if launch.fits_failed:
        console.print(f"intervals are as they were: {launch.fits_failed}", markup=False)
    if launch.jobs.stopping:
        console.print("stopped; the same command goes on where this ended")
    elif launch.jobs.failures:
        raise DataeffError(f"{len(launch.jobs.failures)} run(s) failed, see above; `dataeff run` tries them again")
    return launch.jobs.stopping


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(help="name of a recorded study; all of them when left out")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show the recorded studies, or the cells of one.

    \b
    Example: dataeff status quickstart
    """
    from dataeff.records import queries

    with _database(database).read() as connection:
        columns, rows = queries.studies(connection) if study is None else queries.cells(connection, study)
    if study is None or as_json or as_csv:
        _show(columns, rows, as_json, as_csv)
        return
    from dataeff.terminal import print_cells

    print_cells(_console(), columns, rows)


@app.command()
def answer(
    study: StudyArgument,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    plot: Annotated[Path | None, typer.Option(help="draw the answer to this .svg, .png or .html file")] = None,
) -> None:
    """Print the table a study exists for.

    Limits, asymptotes and data efficiency, each with its interval.

    \b
    Example: dataeff answer quickstart
    Example: dataeff answer quickstart --plot answer.svg
    """
    if plot:
        from dataeff.reports.charts import require_chart_suffix

        require_chart_suffix(plot)
    name = _name(study)
    _print_answer(name, database, as_json, as_csv)
    if plot:
        from dataeff.reports.charts import limits_chart, save_chart
        from dataeff.reports.frames import study_limits

        with _database(database).read() as connection:
            found = study_limits(connection, name)
        save_chart(limits_chart(**found), plot)
        print(f"drawn to {plot}", file=sys.stderr)


def _renew_fits(database: Path, study: str | None = None) -> None:
    """Bring intervals up to date where the file can be written; where not, the rows say which are not."""
    from dataeff.errors import DatabaseError
    from dataeff.fits import renew_fits

    try:
        renew_fits(_database(database), study)
    except DatabaseError as error:
        print(f"dataeff: intervals are as they were: {error}", file=sys.stderr)


def _print_answer(name: str, database: Path, as_json: bool = False, as_csv: bool = False) -> None:
    from dataeff.reports.answer import answer_rows, answer_table, answer_text
    from dataeff.terminal import print_rows

    _renew_fits(database, name)
    with _database(database).read() as connection:
        columns, rows = answer_rows(connection, name)
        question, answers, doubts = answer_text(connection, name, columns, rows)
    if as_json or as_csv:
        _show(columns, rows, as_json, as_csv)
    else:
        console = _console()
        print_rows(console, *answer_table(columns, rows))
        console.print("\n".join(["", question, *answers, "", *doubts]), markup=False)


@app.command()
def report(
    study: StudyArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the file to write; default STUDY.html or STUDY.md")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="html (one file that needs no network) or md (charts as PNG)")
    ] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
) -> None:
    """Write a study's answer to a file, with figures.

    Also what is in doubt, how it was done, what it cost, and the SQL behind each number.

    \b
    Example: dataeff report quickstart -o report.html
    Example: dataeff report quickstart --format md
    """
    from dataeff.reports.export import require_report_form, study_report, write_report

    name = _name(study)
    form = form or (output.suffix[1:] if output else "html")
    require_report_form(form)
    _renew_fits(database, name)
    with _database(database).read() as connection:
        made = study_report(connection, name)
    for file in write_report(made, output or Path(f"{name}.{form}"), form):
        print(file)


@app.command()
def runs(
    where: Annotated[
        list[str] | None, typer.Option("--where", "-w", help="a SQL condition, such as 'lr < 0.01'; all given must hold")
    ] = None,
    sort: Annotated[str, typer.Option("--sort", "-s", help="a column; a minus before it sorts downwards")] = "val_loss",
    columns: Annotated[str | None, typer.Option("--columns", "-c", help="comma-separated columns, or 'all'")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="rows at most; 0 for all")] = 50,
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
    with _database(database).read() as connection:
        names, rows = queries.runs(connection, where or [], sort, chosen, limit)
    _show(names, rows, as_json, as_csv)


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="a run id or the beginning of one")],
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
) -> None:
    """Show one run: spec, losses, cost, attempts, cells.

    \b
    Example: dataeff show 4f2a
    """
    from dataeff.records import queries

    with _database(database).read() as connection:
        found = queries.run_details(connection, run_id.strip())
    if as_json:
        import json

        print(json.dumps(found, default=str, indent=1))
        return
    from dataeff.terminal import cell_text, print_rows

    for name, value in found["run"].items():
        if name != "spec":
            print(f"{name:>25}  {cell_text(value)}")
    for title in ("evaluations", "attempts", "cells"):
        rows = found[title]
        print()
        print_rows(_console(), list(rows[0]) if rows else [], [list(row.values()) for row in rows], title)


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(help="one SQL query; a prompt when left out; - reads standard input")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    parquet: Annotated[Path | None, typer.Option(help="write the rows to this Parquet file")] = None,
) -> None:
    """Ask the database in SQL, read-only. Tables and views are described in db/README.md.

    \b
    Example: dataeff sql "select recipe, seed_tokens, limit_loss, e_low, e_high from asymptote"
    Example: dataeff sql "from run where epochs >= 8" --parquet runs.parquet
    """
    from dataeff.records import queries
    from dataeff.terminal import write_rows

    opened = _database(database)
    if query is None and sys.stdin.isatty():
        from dataeff.prompt import prompt

        prompt(opened, _console())
        return
    text = sys.stdin.read() if query in (None, "-") else query
    with opened.read() as connection:
        columns, rows = queries.query(connection, text)
    if parquet:
        write_rows(columns, rows, "parquet", parquet)
        print(f"{len(rows)} rows written to {parquet}", file=sys.stderr)
    else:
        _show(columns, rows, as_json, as_csv)


@app.command()
def fit(
    table: Annotated[str, typer.Argument(help="a CSV or Parquet file, or a SQL query on the database")],
    x: Annotated[list[str], typer.Option("--x", help="column of the resource; once a variable where the form has several")],
    y: Annotated[str, typer.Option("--y", help="column of the loss")],
    form: Annotated[str, typer.Option(help="power, reciprocal, power_without_floor, exponential, additive, ...")] = "power",
    group: Annotated[list[str] | None, typer.Option("--group", "-g", help="column whose values are fitted apart")] = None,
    sd: Annotated[float | None, typer.Option(help="known standard deviation of one y, such as run-to-run noise")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    plot: Annotated[Path | None, typer.Option(help="draw points and laws to this .svg, .png or .html file")] = None,
) -> None:
    """Fit a scaling law to a table of losses.

    One row a group: parameters, the limit with its 90% interval, and what is doubtful. No study is needed.

    \b
    Example: dataeff fit losses.csv --x parameters --y val_loss --group recipe
    Example: dataeff fit "from best_run where recipe = 'regularized'" --x parameters_total --y val_loss_mean -g seed_tokens
    """
    from dataeff.fit_table import fit_table, law_on_a_grid

    if plot:
        from dataeff.reports.charts import require_chart_suffix

        require_chart_suffix(plot)
    fitted = fit_table(table, form, x, y, group or [], _database(database), sd)
    drawn = [law_on_a_grid(*named) for named in fitted.fits] if plot else []
    _show(fitted.columns, fitted.rows, as_json, as_csv)
    if plot:
        from dataeff.reports.charts import laws_chart, save_chart

        points, laws = ([record for each in drawn for record in each[i]] for i in (0, 1))
        save_chart(laws_chart(points, laws, x[0], y), plot)
        print(f"drawn to {plot}", file=sys.stderr)


@app.command()
def corpora(database: DatabaseOption = DEFAULT_DATABASE, as_json: JsonOption = False, as_csv: CsvOption = False) -> None:
    """List tokenized corpora and what teachers sampled.

    \b
    Example: dataeff corpora
    """
    from dataeff.data.tokens import built_tokens, drawn_samples
    from dataeff.specs.result import Store

    columns = ["name", "fingerprint", "train_tokens", "validation_tokens", "train_bytes", "vocabulary"]
    columns += ["tokens_per_second", "folder"]
    store = Store.beside(database)
    rows: list[list[Any]] = [
        [t.name, t.fingerprint, t.train_tokens, t.validation_tokens, t.train_bytes, t.vocabulary, None, str(t.folder)]
        for t in built_tokens(store)
    ]
    for folder, drawn in drawn_samples(store):
        tokens = drawn.sequences * drawn.context_length
        rows.append(["samples", drawn.fingerprint, tokens, 0, None, None, drawn.tokens_per_second, str(folder.path)])
    _show(columns, rows, as_json, as_csv)


@app.command("export")
def export_rows(
    study: StudyArgument,
    target: Annotated[Path, typer.Argument(help="a new folder (of Parquet files; NAME.csv: of CSV files) or NAME.duckdb")],
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
) -> None:
    """Write the rows of one study to files of their own.

    \b
    Example: dataeff export quickstart quickstart-results
    Example: dataeff export quickstart quickstart.results.duckdb
    """
    from dataeff.records.exchange import export_study

    counts = export_study(_database(database), _name(study), target)
    _show(["table", "rows"], list(counts.items()), as_json, False)
    print(f"written to {target}", file=sys.stderr)


@app.command("import")
def import_rows(
    source: Annotated[
        str,
        typer.Argument(
            help="a folder that `export` wrote, or a study whose results come along; with --study a table of runs: a file (.csv, "
            ".tsv, .parquet, .json, .jsonl), mlflow:URI#EXPERIMENT or wandb:ENTITY/PROJECT"
        ),
    ],
    study: Annotated[str | None, typer.Option(metavar="NAME", help="record the table's rows as runs of this study")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="COLUMN=SOURCE", help="a column of run, recipe, size or members; a source's column or SQL"),
    ] = None,
    ignored: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="COLUMN", help="a column to keep in `spec` alone; * is any text")
    ] = None,
    where: Annotated[str | None, typer.Option(help="a SQL condition on the source's columns, such as 'members = 1'")] = None,
    baseline: Annotated[str | None, typer.Option(metavar="RECIPE", help="whose data law measures data efficiency")] = None,
    limits: Annotated[
        list[str] | None, typer.Option("--limit", metavar="RECIPE=LIMIT", help="best (over sizes; the default) or N (asymptote)")
    ] = None,
    question: Annotated[str | None, typer.Option(help="what the study asks")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
) -> None:
    """Add an exported study, or runs trained elsewhere.

    What is there already stays as it is. Columns of a table that are named as those of table `run` (db/README.md, with units)
    map by themselves; every other one is to be mapped or ignored.

    \b
    Example: dataeff import laptop
    Example: dataeff import runs.csv --study mine --map lr="learning rate" --map "recipe='standard'" --ignore "Notes*"
    Example: dataeff import "mlflow:sqlite:///mlflow.db#scaling" --study mine --map "seed_tokens=tokens_m * 1e6" --limit tuned=N
    """
    from dataeff.errors import nearest
    from dataeff.records.exchange import import_study
    from dataeff.share import shared_folder

    carried = {folder.name: folder for folder in shared_folder("studies").iterdir() if folder.is_dir()}
    folder = Path(source) if Path(source).is_dir() else carried.get(source)
    options = {"study": study, "map": columns, "ignore": ignored, "where": where, "baseline": baseline, "limit": limits}
    given = [f"--{name}" for name, value in {**options, "question": question}.items() if value is not None]
    if folder is not None:
        if given:
            raise InputError(f"{source} is an exported study, which comes in as it is; leave out {', '.join(given)}")
        added = import_study(_database(database), folder)
        _renew_fits(database)
        _show(["table", "new_rows"], list(added.items()), as_json, False)
        return
    from dataeff.records.external import Import, import_runs
    from dataeff.sources import is_source, read_source

    if not is_source(source):
        raise InputError(f"there is no folder {source}, and no results of that name come along; {nearest(source, carried)}")
    if study is None:
        raise InputError(f"{source} is a table of runs; say with --study NAME which study they become")
    wanted = Import(
        study, _pairs("--map", columns), ignored or (), where or "true", baseline, _pairs("--limit", limits), question
    )
    counts = import_runs(_database(database), read_source(source), wanted)
    _renew_fits(database, study)
    _show(["what", "count"], list(counts.items()), as_json, False)


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value) or name in pairs:
            raise InputError(f"{option} {text}: give NAME=VALUE, each name once")
        pairs[name] = value
    return pairs


@app.command("app")
def serve(
    database: DatabaseOption = DEFAULT_DATABASE,
    port: Annotated[int, typer.Option(help="of the page, on this machine only (127.0.0.1)")] = 8501,
) -> None:
    """Open the dashboard in a browser.

    \b
    Example: dataeff app --database dataeff.duckdb
    """
    from dataeff.share import shared_folder

    _database(database).require_usable()
    page = shared_folder("app") / "main.py"
    options = [
        "--server.address=127.0.0.1",
        f"--server.port={port}",
        "--browser.gatherUsageStats=false",
        "--client.toolbarMode=minimal",
        "--theme.light.primaryColor=#0072B2",
        "--theme.dark.primaryColor=#56B4E9",
    ]
    environment = {**os.environ, "DATAEFF_DATABASE": str(database.resolve())}
    os.execve(sys.executable, [sys.executable, "-m", "streamlit", "run", str(page), *options], environment)


@app.command()
def doctor(database: DatabaseOption = DEFAULT_DATABASE, as_json: JsonOption = False) -> None:
    """Check versions, devices, file system and database.

    \b
    Example: dataeff doctor
    """
    from dataeff.doctor import examine

    findings = examine(database)
    _show(["check", "state", "finding"], [list(finding) for finding in findings], as_json, False)
    if any(state == "bad" for _, state, _ in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: turns `DataeffError` into a message and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments)
    except DataeffError as error:
        if debug:
            raise
        print(f"dataeff: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        print(f"dataeff: {error}; check the path, its permissions and the space on its disk, then try again", file=sys.stderr)
        sys.exit(1)
