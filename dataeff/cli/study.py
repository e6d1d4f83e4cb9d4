"""Commands on studies: init, plan, run, status, answer, app, report, refresh, delete, judge."""

import os
import re
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from dataeff.cli import common
from dataeff.cli.common import HERE, AnyStudy, DatabaseFile, Format, OutputFile, PlotFile, StudyFile, StudyName, command
from dataeff.errors import DataeffError, InputError
from dataeff.reports.text import count, duration
from dataeff.share import shared_folder

Workers = Annotated[int | None, Option(min=1, help="worker processes; default one a GPU, else one a CPU core")]
Kind = Annotated[Literal["local", "inline"], Option(help="local: worker processes; inline: this process")]
Storage = Annotated[str | None, Option(help="Optuna storage URL; default a journal in NAME.files/optuna/")]
REPORT = Option("--output", "-o", metavar="FILE", help="a .html file, or a .md file with charts as PNG; default STUDY.html")
NOT_SHOWN = ("val_loss_mean", "seeds", "diverged", "search_ended_at", "reason")  # of cells, in the table
YES = Option("--yes", "-y", help="do not ask")


@command("init mine.toml")
def init(file: Annotated[Path, Argument(help="the study file to write")] = Path("mine.toml")) -> None:
    """Write a commented study file, to be edited. It runs as it is."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.toml", file.name):
        raise InputError(f"{file}: a study is named after its file: use letters, digits, '.', '_', '-', then .toml")
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write((shared_folder("studies") / "quickstart.toml").read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError(f"{file} exists and was left as it is; name another file") from None
    print(f"{file} is written. Set its question and its [corpus], then: dataeff plan {file}; dataeff run {file}")


@command("plan laptop")
def plan(study: StudyFile, output: OutputFile = None, form: Format = "table", database: DatabaseFile = HERE) -> None:
    """Show what a study would train and what that would cost.

    Nothing is trained. The first plan of a corpus tokenizes it, as `run` would.
    """
    from dataeff.cli.live import StageBars
    from dataeff.study import plan as planning

    declared = common.load_study(study)
    with StageBars() as bars:
        planned = planning.plan(declared, database, bars)

    def print_plan() -> None:
        rows = [(*row[:3], count(row[3]), *row[4:-2], count(row[-2]), duration(row[-1] * 3600)) for row in planned.rows]
        common.print_table([*planning.COLUMNS[:-1], "time"], rows)
        if planned.changes:
            counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in vars(planned.changes).items())
            print(f"\nsince the last launch, cells: {counts}")
        gpu = planning.ASSUMED_GPU_FLOPS
        hours = f"{planned.flops / gpu / 3600:,.2g} GPU hours at {gpu:.0e} FLOP/s (an H100 at 40%)"
        here = f"{duration(planned.seconds)} on {planned.workers} worker(s) here ({planned.speed})"
        estimate = f"about {planned.runs} runs to train, {count(planned.flops)} FLOPs: {here}, or {hours}"
        lines = estimate if planned.runs else "nothing to train: every search has ended", planned.note
        print("", *filter(None, lines), sep="\n")

    common.show_rows(planning.COLUMNS, planned.rows, output, form, print_plan)
    for line in planned.warnings:
        print(f"warning: {line}", file=sys.stderr)


@command("run quickstart", "run mine.toml --workers 1")
def run(
    study: StudyFile, workers: Workers = None, executor: Kind = "local", storage: Storage = None, database: DatabaseFile = HERE
) -> None:
    """Train what a study is missing and print its answer.

    Every run is recorded. Stop it with Ctrl-C at any moment; the same command goes on from there.
    """
    import optuna

    from dataeff.cli.live import LiveView, StageBars
    from dataeff.execution.inline import InlineExecutor
    from dataeff.execution.local import LocalExecutor
    from dataeff.study.launch import Launch

    if executor == "inline" and workers:
        raise InputError(f"--executor inline --workers {workers}: inline trains in this process alone; leave one of them out")
    declared = common.load_study(study)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with InlineExecutor() if executor == "inline" else LocalExecutor(workers) as pool:
        with StageBars() as bars:
            launch = Launch(declared, database.path, pool, storage, bars)
        print(f"{declared.spec.name}: {declared.spec.question}\n{pool.slots} worker(s), {database.path}", file=sys.stderr)
        if launch.previous:
            print(f"another version of dataeff wrote {database.path}: rebuilt; the old one is {launch.previous}", file=sys.stderr)
        if launch.cells_deleted:
            print(f"the study has changed: {launch.cells_deleted} of its cells were removed; their runs stay", file=sys.stderr)

        def stop(number: int, frame: object) -> None:
            if launch.queue.stopping:
                raise KeyboardInterrupt
            launch.stop()

        handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        view = LiveView()
        try:
            launch.run(view)
        finally:
            view.end(launch)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if launch.fits_failed:
        print(f"the fits were not renewed; `dataeff refresh` tries again: {launch.fits_failed}", file=sys.stderr)
    if launch.queue.stopping:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130)
    if launch.failures:
        raise DataeffError(f"{len(launch.failures)} job(s) failed, see above; `dataeff run` tries them again")
    answer(declared.spec.name, database=database)


@command("status", "status quickstart")
def status(study: AnyStudy = None, output: OutputFile = None, form: Format = "table", database: DatabaseFile = HERE) -> None:
    """Show the recorded studies, or the cells of one.

    Of a cell `-o` and `--format` also give why it is not certified.
    """
    from dataeff.records import queries

    with database.read() as connection:
        columns, rows = queries.cells(connection, study) if study else queries.studies(connection)
    shown = [i for i, name in enumerate(columns) if name not in NOT_SHOWN]
    table = partial(common.print_table, [columns[i] for i in shown], [[row[i] for i in shown] for row in rows])
    common.show_rows(columns, rows, output, form, table)


@command("answer quickstart", "answer quickstart --plot answer.svg")
def answer(
    study: StudyName, output: OutputFile = None, form: Format = "table", plot: PlotFile = None, database: DatabaseFile = HERE
) -> None:
    """Show losses, limits, data efficiency and caveats."""
    from dataeff.reports.answer import study_answer

    with database.read() as connection:
        found = study_answer(connection, study)
        if plot:
            from dataeff.reports.charts import limits_chart, save_chart
            from dataeff.reports.frames import study_limits

            save_chart(limits_chart(**study_limits(connection, study)), plot)

    def print_answer() -> None:
        print(found["question"], found["sentence"], *found["claims"], sep="\n\n")
        common.print_table(*found["trained"], title="Trained")
        common.print_table(*found["limits"], title="Limits, extrapolated")
        print("\nCaveats", *found["caveats"], sep="\n")

    common.show_rows(*found["numbers"], output, form, print_answer)


@command("app", "app --no-browser --port 8600", name="app")
def serve(
    host: Annotated[str, Option(help="the address to listen on")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535, help="the port to listen on")] = 8501,
    no_browser: Annotated[bool, Option("--no-browser", help="for a machine without a screen")] = False,
    database: DatabaseFile = HERE,
) -> None:
    """Open the dashboard in a browser."""
    database.require_usable()
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror}; choose another port or host") from error
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(f"warning: there is no password: anyone who can reach {host}:{port} can read {database.path}", file=sys.stderr)
    options = {"server.address": host, "server.port": port, "server.headless": str(no_browser).lower()}
    options |= {"server.showEmailPrompt": "false", "browser.gatherUsageStats": "false", "client.toolbarMode": "minimal"}
    options |= {"logger.hideWelcomeMessage": "true"}  # with it goes the card that covers the page and offers to install things
    options |= {"theme.light.primaryColor": "#0072B2", "theme.dark.primaryColor": "#56B4E9"}
    streamlit = [sys.executable, "-m", "streamlit", "run", str(shared_folder("app") / "main.py")]
    arguments = [*streamlit, *(f"--{name}={value}" for name, value in options.items())]
    print(f"{database.path}: http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C stops it", flush=True)
    os.execve(sys.executable, arguments, {**os.environ, "DATAEFF_DATABASE": str(database.path.resolve())})


@command("report quickstart", "report quickstart -o quickstart.md")
def report(
    study: StudyName,
    output: Annotated[Path | None, REPORT] = None,
    authors: Annotated[list[str] | None, Option("--author", help="a name to put on it; repeatable")] = None,
    database: DatabaseFile = HERE,
) -> None:
    """Write a study's answer to a file, with figures.

    Also tables, caveats, methods, cost, and the SQL of each number.
    """
    from dataeff.reports.export import write_report

    with database.read() as connection:
        print(*write_report(connection, study, output or Path(f"{study}.html"), authors or ()), sep="\n")


@command("refresh", "refresh quickstart")
def refresh(study: AnyStudy = None, database: DatabaseFile = HERE) -> None:
    """Fit laws again whose runs have changed.

    `run`, `import` and `rebuild` do so themselves.
    """
    from dataeff.records.queries import require_study
    from dataeff.study.fits import renew_fits

    if study:
        with database.read() as connection:
            require_study(connection, study)
    print(f"{renew_fits(database, study)} fits renewed")


@command("delete quickstart")
def delete(study: StudyName, yes: Annotated[bool, YES] = False, database: DatabaseFile = HERE) -> None:
    """Delete a study, its cells and fits. Its runs stay recorded, except those that were imported with it."""
    from dataeff.facts.store import Store
    from dataeff.study.index import delete_study, deletion

    with database.read() as connection:
        print(f"study {study} in {database.path}: {deletion(connection, Store.beside(database.path), study)[0]}")
    if not yes:
        typer.confirm("Delete it?", abort=True)
    delete_study(database, study)


@command("judge mine.toml", "judge mine --format json")
def judge(study: StudyName, output: OutputFile = None, form: Format = "table", database: DatabaseFile = HERE) -> None:
    """Decide the claims that a study declares.

    Supported, refuted or undecided, by pairs of runs that did not tune. Look after every pair if you like: the chance that a
    false claim is ever supported is 5% at most.
    """
    from dataeff.reports.judge import judged_claims

    with database.read() as connection:
        common.show_rows(*judged_claims(connection, study), output, form)
