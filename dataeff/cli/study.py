"""Commands on studies: plan, run, status, answer, report."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from dataeff.cli.common import console, open_database, print_table, show_rows, study_name
from dataeff.cli.options import DEFAULT_DATABASE, CsvOption, DatabaseOption, JsonOption, PlotOption, StudyArgument, app
from dataeff.errors import DataeffError, InputError, nearest
from dataeff.reports.text import count, duration

if TYPE_CHECKING:
    from dataeff.specs.study import Study
    from dataeff.study.launch import Launch
    from dataeff.study.plan import Plan


@app.command()
def plan(study: StudyArgument, database: DatabaseOption = DEFAULT_DATABASE, as_json: JsonOption = False) -> None:
    """Say what a study would train and what that would cost.

    Nothing is trained. The first plan of a corpus tokenizes it, as `run` would.

    \b
    Example: dataeff plan laptop
    """
    from dataeff.cli.live import stage_bars
    from dataeff.specs.study import Study
    from dataeff.study.plan import COLUMNS
    from dataeff.study.plan import plan as make_plan

    with stage_bars(console(error=True)) as progress:
        planned = make_plan(Study.load(study), open_database(database), progress)
    if as_json:
        show_rows(COLUMNS, planned.rows, as_json)
    else:
        _print_plan(planned)


def _print_plan(planned: Plan) -> None:
    from dataeff.study.plan import ASSUMED_GPU_FLOPS, COLUMNS

    per_hour = ASSUMED_GPU_FLOPS * 3600
    long = planned.seconds > 1000 * 3600
    rows = [
        (recipe, d, size, count(n), *rest, count(flops), count(flops / per_hour) if long else duration(hours * 3600))
        for recipe, d, size, n, *rest, flops, hours in planned.rows
    ]
    print_table([*COLUMNS[:-1], "GPU hours" if long else "time"], rows)
    if changes := planned.changes:
        print(
            f"\nsince the last launch: {changes.kept} cells as they were, {changes.searched_again} to be searched again, "
            f"{changes.new} new, {changes.dropped} dropped; {changes.runs_reused} recorded runs are used"
        )
    if not planned.runs:
        print("\nnothing to train: every search has ended")
        return
    print(
        f"\nabout {planned.runs} runs to train, {count(planned.flops)} FLOPs: {duration(planned.seconds)} on {planned.workers} "
        f"worker(s) here, or {planned.flops / per_hour:,.2g} GPU hours at {ASSUMED_GPU_FLOPS:.0e} FLOP/s (an H100 at 40%)\n"
        f"speed here: {planned.speed}\n"
        "expected runs are an estimate: a search decides as it goes and ends when its optimum is certified"
    )
    if planned.note:
        print(planned.note)


@app.command()
def run(
    study: StudyArgument,
    database: DatabaseOption = DEFAULT_DATABASE,
    workers: Annotated[int | None, Option(min=1, help="worker processes; default one a GPU, else one a CPU core")] = None,
    executor: Annotated[str, Option(help="local (worker processes) or inline (this process)")] = "local",
    storage: Annotated[str | None, Option(help="Optuna storage URL; default a journal in NAME.files/optuna/")] = None,
) -> None:
    """Train what a study is missing and print its answer.

    Every run is recorded. Stop it with Ctrl-C, or kill it, at any moment; the same command goes on where it was.

    \b
    Example: dataeff run quickstart
    Example: DATAEFF_DATABASE=~/runs.duckdb dataeff run mine.toml --workers 1
    """
    from dataeff.specs.study import Study

    if executor not in ("local", "inline"):
        raise InputError(f"--executor {executor}: no such executor; {nearest(executor, ('local', 'inline'))}")
    loaded = Study.load(study)
    launch = _launch(loaded, database, workers, executor, storage)
    if launch.fits_failed:
        print(f"the intervals were not renewed: {launch.fits_failed}", file=sys.stderr)
    if launch.stopping:
        print("stopped; the same command goes on where this ended", file=sys.stderr)
        raise Exit(130)
    if launch.failures:
        raise DataeffError(f"{len(launch.failures)} job(s) failed, see above; `dataeff run` tries them again")
    _print_answer(loaded.spec.name, database)


def _launch(study: Study, database: Path, workers: int | None, executor: str, storage: str | None) -> Launch:
    """Run the study under the live view, until nothing is left to do or it was stopped by a signal."""
    import optuna

    from dataeff.cli.live import live_view, stage_bars
    from dataeff.execution.inline import InlineExecutor
    from dataeff.execution.local import LocalExecutor
    from dataeff.study.launch import Launch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stderr = console(error=True)
    with InlineExecutor() if executor == "inline" else LocalExecutor(workers) as pool:
        with stage_bars(stderr) as progress:
            launch = Launch(study, database, pool, storage, progress)
        print(f"{study.spec.name}: {study.spec.question}\n{pool.slots} worker(s), {database}", file=sys.stderr)
        if launch.previous:
            text = f"the database of another version was made anew from {launch.store.path}; it is now {launch.previous}"
            print(text, file=sys.stderr)
        if launch.cells_deleted:
            print(f"the study has changed: {launch.cells_deleted} of its cells were removed; their runs stay", file=sys.stderr)

        def stop(number: int, frame: object) -> None:
            if launch.stopping:
                raise KeyboardInterrupt
            launch.stop()

        handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        with live_view(stderr, launch) as show:
            launch.run(show)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return launch


@app.command()
def status(
    study: Annotated[str | None, Argument(help="name of a recorded study; all of them when left out")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show the recorded studies, or the cells of one.

    \b
    Example: dataeff status quickstart
    """
    from dataeff.records import queries

    with open_database(database).read() as connection:
        columns, rows = queries.studies(connection) if study is None else queries.cells(connection, study)
    if study is None or as_json or as_csv:
        show_rows(columns, rows, as_json, as_csv)
        return
    shown = ("recipe", "seed_tokens", "size", "state", "best_loss", "margin", "lr", "weight_decay", "epochs", "runs")
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    print_table(shown, [[cell[name] for name in shown] for cell in cells])
    for cell in cells:
        if cell["state"] != "certified":
            print("{state}: {recipe}, D = {seed_tokens}, {size}: {reason}".format(**cell))


@app.command()
def answer(
    study: StudyArgument,
    database: DatabaseOption = DEFAULT_DATABASE,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    plot: PlotOption = None,
) -> None:
    """Print the table a study exists for.

    Limits, asymptotes and data efficiency, each with its interval.

    \b
    Example: dataeff answer quickstart
    Example: dataeff answer quickstart --plot answer.svg
    """
    name = study_name(study)
    if plot:
        from dataeff.reports.charts import limits_chart, require_chart_suffix, save_chart
        from dataeff.reports.frames import study_limits

        require_chart_suffix(plot)
    _print_answer(name, database, as_json, as_csv)
    if plot:
        with open_database(database).read() as connection:
            chart = limits_chart(**study_limits(connection, name))
        save_chart(chart, plot)
        print(f"drawn to {plot}", file=sys.stderr)


def _print_answer(name: str, database: Path, as_json: bool = False, as_csv: bool = False) -> None:
    from dataeff.reports.answer import study_answer

    with open_database(database).read() as connection:
        answer = study_answer(connection, name)
    if as_json or as_csv:
        show_rows(*answer["numbers"], as_json, as_csv)
        return
    console().print(f"{answer['sentence']}\n", markup=False)
    print_table(*answer["trained"], title="\nTrained")
    print_table(*answer["limits"], title="\nLimits, extrapolated")
    console().print("\n".join(["", *answer["caveats"]]), markup=False)


@app.command()
def report(
    study: StudyArgument,
    output: Annotated[Path | None, Option("--output", "-o", help="the file to write; default STUDY.html or STUDY.md")] = None,
    form: Annotated[str | None, Option("--format", help="html (one file that needs no network) or md (charts as PNG)")] = None,
    database: DatabaseOption = DEFAULT_DATABASE,
) -> None:
    """Write a study's answer to a file, with figures.

    Also caveats, methods, cost, and the SQL behind each number.

    \b
    Example: dataeff report quickstart -o report.html
    Example: dataeff report quickstart --format md
    """
    from dataeff.reports.export import require_report_form, study_report, write_report

    name = study_name(study)
    form = form or (output.suffix[1:] if output else "html")
    require_report_form(form)
    with open_database(database).read() as connection:
        made = study_report(connection, name)
    for file in write_report(made, output or Path(f"{name}.{form}"), form):
        print(file)
