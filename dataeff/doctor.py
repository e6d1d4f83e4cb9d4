"""What may be wrong with this machine, said before it goes wrong in the middle of a study."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from dataeff import __version__
from dataeff.errors import DataeffError, NotFoundError
from dataeff.execution.local import default_workers
from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.share import shared_folder

Finding = tuple[str, str, str]  # what was checked, "ok" | "note" | "bad", what was found

LITTLE_SPACE = 2**30


def examine(database: Path) -> list[Finding]:
    """Return the findings about versions, devices, the file system around `database`, locks and the database itself."""
    return [
        ("dataeff", "ok", f"{__version__}, Python {platform.python_version()} ({sys.executable})"),
        *[
            ("library", "ok", f"{name} {metadata.version(name)}")
            for name in ("torch", "duckdb", "optuna", "sqlmodel", "tokenizers")
        ],
        _devices(),
        _shared(),
        *_folder(database.resolve().parent),
        _lock(database),
        _health(database),
    ]


def _devices() -> Finding:
    from dataeff.training.device import describe_device, pick_device

    return "device", "ok", f"{describe_device(pick_device('auto'))}; {default_workers()} worker(s) by default"


def _shared() -> Finding:
    try:
        folders = [str(shared_folder(name)) for name in ("db", "studies")]
    except DataeffError as error:
        return "package data", "bad", str(error)
    return "package data", "ok", ", ".join(folders)


def _folder(folder: Path) -> list[Finding]:
    if not folder.is_dir():
        return [("folder", "bad", f"{folder} does not exist; create it or choose another --database")]
    free = shutil.disk_usage(folder).free
    space = ("space", "ok" if free > LITTLE_SPACE else "bad", f"{free / 2**30:.1f} GiB free in {folder}")
    writable = os.access(folder, os.W_OK)
    return [space, ("folder", "ok" if writable else "bad", f"{folder} can{'' if writable else 'not'} be written")]


def _lock(database: Path) -> Finding:
    lock = database.with_name(database.name + ".lock")
    if not lock.exists():
        return "lock", "ok", "no writer has been here yet"
    try:
        with FileLock(lock, timeout=1):
            return "lock", "ok", f"{lock.name} is free"
    except Timeout:
        return "lock", "note", f"{lock.name} is held: a study is writing at this moment"
    except OSError as error:
        return "lock", "bad", f"{lock.name} cannot be taken, so nothing can be recorded: {error}"


def _health(database: Path) -> Finding:
    try:
        with Database(database).read() as connection:
            return "database", "ok", f"{database}: {queries.health(connection)}"
    except NotFoundError:
        return "database", "note", f"{database} does not exist yet; `dataeff run STUDY` creates it"
    except DataeffError as error:
        return "database", "bad", str(error)
