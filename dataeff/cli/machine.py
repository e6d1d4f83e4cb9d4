"""Commands on this machine: corpora, app, doctor."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout

import dataeff
from dataeff.cli.common import open_database, show_rows
from dataeff.cli.options import DEFAULT_DATABASE, CsvOption, DatabaseOption, JsonOption, app
from dataeff.errors import DataeffError, NotFoundError
from dataeff.share import shared_folder

LIBRARIES = ("torch", "duckdb", "optuna", "sqlmodel", "tokenizers")


@app.command()
def corpora(database: DatabaseOption = DEFAULT_DATABASE, as_json: JsonOption = False, as_csv: CsvOption = False) -> None:
    """List tokenized corpora and what teachers sampled.

    \b
    Example: dataeff corpora
    """
    from dataeff.data.tokens import built_tokens
    from dataeff.facts.store import Store, load_fact
    from dataeff.work.sample import SampleResult

    columns = ["name", "fingerprint", "train_tokens", "validation_tokens", "train_bytes", "vocabulary"]
    columns += ["tokens_per_second", "folder"]
    store = Store.beside(database)
    rows = [
        (t.name, t.fingerprint, t.train_tokens, t.validation_tokens, t.train_bytes, t.vocabulary, None, str(t.folder))
        for t in built_tokens(store)
    ]
    for folder in store.folders("sample"):
        if folder.result.exists():
            drawn = load_fact(SampleResult, folder.result)
            tokens = drawn.sequences * drawn.context_length
            rows.append(("samples", drawn.fingerprint, tokens, 0, None, None, drawn.tokens_per_second, str(folder.path)))
    show_rows(columns, rows, as_json, as_csv)


@app.command("app")
def serve(
    database: DatabaseOption = DEFAULT_DATABASE,
    port: Annotated[int, typer.Option(help="of the page, on this machine only (127.0.0.1)")] = 8501,
) -> None:
    """Open the dashboard in a browser.

    \b
    Example: dataeff app --database dataeff.duckdb
    """
    open_database(database).require_usable()
    options = [
        "--server.address=127.0.0.1",
        f"--server.port={port}",
        "--browser.gatherUsageStats=false",
        "--client.toolbarMode=minimal",
        "--theme.light.primaryColor=#0072B2",
        "--theme.dark.primaryColor=#56B4E9",
    ]
    command = [sys.executable, "-m", "streamlit", "run", str(shared_folder("app") / "main.py"), *options]
    os.execve(sys.executable, command, {**os.environ, "DATAEFF_DATABASE": str(database.resolve())})


@app.command()
def doctor(database: DatabaseOption = DEFAULT_DATABASE, as_json: JsonOption = False) -> None:
    """Check versions, devices, file system and database.

    \b
    Example: dataeff doctor
    """
    from dataeff.execution.local import default_workers
    from dataeff.facts.store import Store
    from dataeff.training.device import describe_device, pick_device

    findings = [
        ("dataeff", "ok", f"{dataeff.__version__}, Python {platform.python_version()} ({sys.executable})"),
        ("libraries", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)),
        ("device", "ok", f"{describe_device(pick_device('auto'))}; {default_workers()} worker(s) by default"),
        ("folder", *_examine_folder(database.resolve().parent)),
        ("files", "ok", _weigh_files(Store.beside(database).path)),
        ("lock", *_examine_lock(database.with_name(database.name + ".lock"))),
        ("database", *_examine_database(database)),
    ]
    show_rows(["check", "state", "finding"], findings, as_json)
    if any(state == "bad" for _, state, _ in findings):
        raise typer.Exit(1)


def _examine_folder(folder: Path) -> tuple[str, str]:
    if not os.access(folder, os.W_OK):
        return "bad", f"{folder} does not exist or cannot be written; create it or choose another --database"
    free = shutil.disk_usage(folder).free / 2**30
    return "ok" if free > 1 else "bad", f"{free:.1f} GiB free in {folder}"


def _weigh_files(store: Path) -> str:
    """Say what the files weigh: weights, which `resources.keep` of a study limits, tokens, and the rest."""
    sizes = dict.fromkeys(("weights", "tokens", "other files"), 0)
    kinds = {".safetensors": "weights", ".bin": "tokens"}
    for file in store.rglob("*"):
        if file.is_file():
            sizes[kinds.get(file.suffix, "other files")] += file.stat().st_size
    return f"{store}: " + ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in sizes.items())


def _examine_lock(lock: Path) -> tuple[str, str]:
    if not lock.exists():
        return "ok", "nothing has been written yet"
    try:
        with FileLock(lock, timeout=1):
            return "ok", f"{lock.name} is free"
    except Timeout:
        return "note", f"{lock.name} is held: a study is writing at this moment"
    except OSError as error:
        return "bad", f"{lock.name} cannot be locked, so nothing can be recorded: {error}"


def _examine_database(database: Path) -> tuple[str, str]:
    from dataeff.records import queries

    try:
        with open_database(database).read() as connection:
            return "ok", f"{database}: {queries.health(connection)}"
    except NotFoundError:
        return "note", f"{database} does not exist yet; `dataeff run STUDY` creates it"
    except DataeffError as error:
        return "bad", str(error)
