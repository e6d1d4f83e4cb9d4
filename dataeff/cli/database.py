"""Commands on what is recorded: runs, show, sql, fit, export, import, rebuild, doctor, audit."""

import os
import platform
import shutil
import signal
import subprocess
import sys
from code import InteractiveConsole
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

import dataeff
from dataeff.cli import common
from dataeff.cli.common import HERE, DatabaseFile, Format, OutputFile, PlotFile, StudyName, command, show_rows
from dataeff.errors import DataeffError, InputError, NotFoundError, QueryError, nearest
from dataeff.share import shared_folder

JOB = Argument(metavar="ID", help="the id of a run or another job, or the beginning of one")
QUERY = Argument(help="one query; a prompt if left out; - reads standard input")
TARGET = Argument(help="a new folder (of Parquet files; NAME.csv: of CSV files) or NAME.duckdb")


@command('runs --where "weight_decay > 1" --sort=-val_loss --limit 10', "runs --limit 0 --columns all -o runs.parquet")
def runs(
    where: Annotated[list[str] | None, Option("--where", "-w", help="a SQL condition, such as 'lr < 0.01'; repeatable")] = None,
    sort: Annotated[str, Option("--sort", "-s", help="a column; a minus before it sorts descending")] = "val_loss",
    columns: Annotated[str | None, Option("--columns", "-c", help="comma-separated columns, or 'all'")] = None,
    limit: Annotated[int, Option("--limit", "-n", min=0, help="rows at most; 0 for all")] = 50,
    output: OutputFile = None,
    form: Format = "table",
    database: DatabaseFile = HERE,
) -> None:
    """List runs, filtered and sorted by any column."""
    from dataeff.records import queries

    with database.read() as connection:
        result = queries.runs(connection, where or [], sort, columns and columns.replace(" ", "").split(","), limit)
    show_rows(*result, output, form)


@command("show 4f2a")
def show(job_id: Annotated[str, JOB], output: OutputFile = None, form: Format = "table", database: DatabaseFile = HERE) -> None:
    """Show one run or other job with its attempts."""
    from dataeff.records import queries

    with database.read() as connection:
        details = queries.job_details(connection, job_id)
    columns, row = zip(*{"kind": details["kind"], **details["row"]}.items(), strict=True)

    def print_details() -> None:
        print(common.table_text(columns, [row], width=0))
        for title, rows in details.items():
            if isinstance(rows, list) and rows:
                common.print_table(list(rows[0]), [list(each.values()) for each in rows], title)

    show_rows(columns, [row], output, form, print_details, details)


@command('sql "from recipe_summary"', 'sql "from run where epochs >= 8" -o runs.parquet')
def sql(
    query: Annotated[str | None, QUERY] = None, output: OutputFile = None, form: Format = "table", database: DatabaseFile = HERE
) -> None:
    """Query the database in SQL.

    Tables and views are described in db/README.md. A query changes nothing and reaches no files; for those, use DuckDB itself.
    """
    import duckdb

    if query is None and sys.stdin.isatty():
        import readline  # noqa: F401 - gives input() editing and a history

        sys.ps1, sys.ps2 = "dataeff> ", "    ...> "
        return _Prompt({"database": database.path}).interact("Queries end with ;   Ctrl-C stops one   Ctrl-D leaves", exitmsg="")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # DuckDB may not notice Ctrl-C for minutes
    text = sys.stdin.read() if query in (None, "-") else query
    with database.read() as connection:
        try:
            connection.execute("SET enable_external_access = false; SET python_enable_replacements = false")
            *first, last = connection.extract_statements(text) or [None]
            if last is None or last.type.name not in ("SELECT", "EXPLAIN") or any(each.query for each in first):  # PIVOT is two
                raise QueryError("the database is read-only here: give one SELECT, FROM, PIVOT, DESCRIBE or EXPLAIN")
            result = connection.execute(text)
            names = [column[0] for column in result.description]
            names = [f"{name}_{i}" if name in names[:i] else name for i, name in enumerate(names)]
            to_parquet = output and output.suffix == ".parquet"
            rows = result.to_arrow_table().rename_columns(names) if to_parquet else result.fetchall()
        except (duckdb.Error, OverflowError) as error:  # Python's times end before DuckDB's
            raise QueryError(f"the query failed: {error}") from error
    show_rows(names, rows, output, form)


class _Prompt(InteractiveConsole):
    def runsource(self, source: str, *_: str) -> bool:
        """Run a query in a process of its own, which Ctrl-C ends; return whether it goes on in the next line."""
        if whole := source.rstrip().endswith(";"):
            arguments = [sys.executable, "-m", "dataeff", "sql", "-", "--database", self.locals["database"]]
            subprocess.run(arguments, input=source, text=True)
        return not whole and bool(source.strip())


@command(
    "fit losses.csv --x parameters --y val_loss --group recipe",
    "fit runs.csv --x n --x d --y loss --form additive --loss huber --fix alpha=0.35",
    "fit \"from best_run where recipe = 'regularized'\" --x parameters_total --y val_loss_mean -g seed_tokens",
)
def fit(
    table: Annotated[str, Argument(help="a CSV or Parquet file, or a SQL query on the database")],
    x: Annotated[list[str], Option("--x", help="x column; repeat for forms with several variables")],
    y: Annotated[str, Option("--y", help="column of the loss")],
    law: Annotated[str, Option("--form", help="power, reciprocal, power_without_floor, exponential, additive, ...")] = "power",
    group: Annotated[list[str] | None, Option("--group", "-g", help="column whose values are fitted apart")] = None,
    sd: Annotated[str | None, Option(help="known standard deviation of y (run-to-run noise): a number or a column")] = None,
    loss: Annotated[str, Option(help="least_squares, or huber (of log y), which outliers move less")] = "least_squares",
    fixed: Annotated[list[str] | None, Option("--fix", metavar="PARAMETER=VALUE", help="hold a parameter of the form")] = None,
    output: OutputFile = None,
    form: Format = "table",
    plot: PlotFile = None,
    database: DatabaseFile = HERE,
) -> None:
    """Fit a scaling law to any table of losses.

    One row a group: parameters, the limit with its 90% interval, and caveats. No study is needed.
    """
    from dataeff.reports.fit_table import Law, fit_table, points_and_laws

    asked = Law(law, loss, dict(_constant(text) for text in fixed or []))
    columns, rows, fits = fit_table(table, asked, x, y, group or [], database, sd)
    if plot:
        from dataeff.reports.charts import laws_chart, save_chart

        save_chart(laws_chart(*points_and_laws(fits), x[0], y), plot)
    show_rows(columns, rows, output, form)


def _constant(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise InputError(f"--fix {text}: give a parameter and a number, as in --fix alpha=0.35") from None


@command("export quickstart quickstart-results", "export quickstart results.duckdb")
def export(study: StudyName, target: Annotated[Path, TARGET], database: DatabaseFile = HERE) -> None:
    """Write all rows of a study to files, to be imported elsewhere."""
    from dataeff.records.exchange import export_study

    counts = export_study(database, study, target)
    print(f"{target}: " + ", ".join(f"{table} {rows:,}" for table, rows in counts.items()))


@command(
    "import laptop",
    'import runs.csv --study mine --map lr="learning rate" --map "recipe=\'standard\'" --ignore "Notes*"',
    'import "mlflow:sqlite:///mlflow.db#scaling" --study mine --map "seed_tokens=tokens_m * 1e6" --limit tuned=N',
    name="import",
)
def import_rows(
    source: Annotated[str, Argument(help="an exported folder or .duckdb file, bundled results, or a table of runs")],
    study: Annotated[str | None, Option(metavar="NAME", help="record the table's rows as runs of this study")] = None,
    columns: Annotated[list[str] | None, Option("--map", metavar="COLUMN=SOURCE", help="SOURCE: a column or SQL")] = None,
    ignored: Annotated[list[str] | None, Option("--ignore", metavar="COLUMN", help="kept in spec alone; * is any text")] = None,
    where: Annotated[str | None, Option(help="a SQL condition on the source's columns, such as 'members = 1'")] = None,
    baseline: Annotated[str | None, Option(metavar="RECIPE", help="whose data law measures data efficiency")] = None,
    limits: Annotated[list[str] | None, Option("--limit", metavar="RECIPE=LIMIT", help="best (default) or N (asymptote)")] = None,
    question: Annotated[str | None, Option(help="what the study asks")] = None,
    output: OutputFile = None,
    form: Format = "table",
    database: DatabaseFile = HERE,
) -> None:
    """Add an exported study or runs trained elsewhere.

    What is recorded already stays as it is. A table is a file (.csv, .tsv, .parquet, .json, .jsonl), mlflow:URI#EXPERIMENT or
    wandb:ENTITY/PROJECT. Columns named as in table `run` (db/README.md) map by themselves; each other is mapped or ignored.
    """
    from dataeff.records.exchange import import_study
    from dataeff.records.imports import Import, import_runs
    from dataeff.records.sources import is_source, read_source
    from dataeff.study import fits, index

    bundled = {folder.name: folder for folder in shared_folder("studies").iterdir() if folder.is_dir()}
    exported = Path(source).is_dir() or source.endswith(".duckdb")
    if folder := Path(source) if exported else bundled.get(source):
        if any((study, columns, ignored, where, baseline, limits, question)):
            raise InputError(f"{source} is an exported study, which comes in as it is; leave out all options but --database")
        counts = import_study(database, folder)
        index.index_studies(database)
    elif not is_source(source):
        raise InputError(f"there is no folder {source}, and no bundled results of that name; {nearest(source, bundled)}")
    elif study is None:
        raise InputError(f"{source} is a table of runs; say with --study NAME which study they become")
    else:
        mapped, limit_of = _pairs("--map", columns), _pairs("--limit", limits)
        request = Import(study, mapped, ignored or (), where or "true", baseline, limit_of, question)
        counts = import_runs(database, read_source(source), request)
    fits.renew_fits(database, study)
    show_rows(["what", "count"], list(counts.items()), output, form)


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs = [tuple(part.strip() for part in text.partition("=")[::2]) for text in texts or ()]
    if len(dict(pairs)) < len(pairs) or not all(map(all, pairs)):
        raise InputError(f"{option} {f' {option} '.join(texts)}: give NAME=VALUE, each name once")
    return dict(pairs)


@command("rebuild")
def rebuild(database: DatabaseFile = HERE) -> None:
    """Make the database again from its files.

    Runs, studies and imports are files in NAME.files/. The old database is kept as NAME.previous1.duckdb.
    """
    from dataeff.cli.live import StageBars
    from dataeff.study import index

    with StageBars() as bars:
        previous = index.rebuild(database, lambda done, total: bars("index jobs", done, total))
    print(f"{database.path} is rebuilt" + (f"; the old one is {previous}" if previous else ""), file=sys.stderr)


@command("doctor")
def doctor(output: OutputFile = None, form: Format = "table", database: DatabaseFile = HERE) -> None:
    """Check versions, devices, disk and database."""
    from dataeff.data.tokens import built_tokens
    from dataeff.execution.local import default_workers
    from dataeff.facts.store import Store
    from dataeff.records import queries
    from dataeff.training.device import describe_device, pick_device

    store, folder = Store.beside(database.path), database.path.resolve().parent
    free, writable = shutil.disk_usage(folder).free / 2**30, os.access(folder, os.W_OK)
    sizes: Counter[str] = Counter()
    for file in filter(Path.is_file, store.path.rglob("*")):
        sizes[{".safetensors": "weights", ".bin": "tokens"}.get(file.suffix, "other files")] += file.stat().st_size
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "duckdb", "optuna", "sqlmodel", "tokenizers")]
    try:
        with database.read() as connection:
            state, finding = "ok", queries.health(connection)
    except DataeffError as error:
        state, finding = "note" if isinstance(error, NotFoundError) else "bad", str(error)
    rows = [
        ("dataeff", "ok", f"{dataeff.__version__}, Python {platform.python_version()} ({sys.executable}), {', '.join(versions)}"),
        ("device", "ok", f"{describe_device(pick_device('auto'))}; {default_workers()} worker(s) by default"),
        ("folder", "ok" if writable and free > 1 else "bad", f"{free:.1f} GiB free in {folder}" + ", read-only" * (not writable)),
        ("files", "ok", f"{store.path}: " + ", ".join(f"{kind} {size / 2**20:,.1f} MiB" for kind, size in sizes.items())),
        *(("corpus", "ok", f"{t.name}: {t.train_tokens:,} training tokens, {t.vocabulary} words") for t in built_tokens(store)),
        ("database", state, f"{database.path}: {finding}"),
    ]
    show_rows(["check", "state", "finding"], rows, output, form)
    if any(row[1] == "bad" for row in rows):
        raise typer.Exit(1)


@command("audit published", "audit losses.csv --baseline plain --map 'seed_tokens=tokens_m * 1e6' -o audit.html")
def audit(
    table: Annotated[str, Argument(help="a CSV, Parquet or JSON file, a SQL query on the database, or published (of the paper)")],
    baseline: Annotated[str, Option(metavar="RECIPE", help="the recipe that others are compared with")] = "standard",
    columns: Annotated[list[str] | None, Option("--map", metavar="COLUMN=SOURCE", help="SOURCE: a column or SQL")] = None,
    output: Annotated[Path | None, Option("--output", "-o", metavar="FILE", help="write a .html or .md page")] = None,
    form: Format = "table",
    database: DatabaseFile = HERE,
) -> None:
    """Find the flaws of data-efficiency ratios.

    A row a run: recipe, seed_tokens (D), parameters_total (N), val_loss; better with lr, weight_decay, epochs and several seeds.
    """
    from dataeff.reports.audit import audit_parts, audit_table, write_audit

    if output and (form != "table" or output.suffix not in (".html", ".md")):
        raise InputError(f"-o {output}: a page is .html or .md, and takes no --format")
    audited = audit_table(table, baseline, _pairs("--map", columns), database)
    if output:
        return write_audit(audited, output, f"Audit of {table}")

    def print_audit() -> None:
        lines, tables = audit_parts(audited)
        print(*lines, sep="\n")
        for title, names, rows in tables:
            common.print_table(names, rows, title)

    ratios = audited["ratios"]
    show_rows(list(ratios[0]), [list(ratio.values()) for ratio in ratios], None, form, print_audit, audited)
