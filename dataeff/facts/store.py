"""The store: the folder next to the database in which facts lie, one folder a job. The database is an index of it.

    <kind folder>/<job id>/spec.json            the job, written before it is run
    <kind folder>/<job id>/attempts/0001.json   one Attempt a try, written at its start and again at its end
    <kind folder>/<job id>/checkpoint/          present while an attempt is under way
    <kind folder>/<job id>/weights.safetensors  and other outputs of its kind, before result.json
    <kind folder>/<job id>/result.json          its presence is what makes a job done
    <kind folder>/<job id>/lock                 held by the process that runs it
    tokens/  studies/  imports/                 token files, declared studies, runs trained elsewhere

A reader sees all of a file or none. Who holds a folder's lock owns its attempts: one that still says `running` while nobody
holds the lock belongs to a process that was killed.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from dataeff.errors import InputError
from dataeff.facts.job import Attempt, Job, Outcome

Model = TypeVar("Model", bound=BaseModel)

FOLDERS = {"train": "runs", "ensemble": "ensembles", "sample": "samples"}  # of other kinds the kind itself


class JobFolder:
    """Every file name of one job, in one place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.spec = path / "spec.json"
        self.result = path / "result.json"
        self.weights = path / "weights.safetensors"
        self.tokens = path / "tokens.bin"
        self.checkpoint = path / "checkpoint"
        self.attempts = path / "attempts"
        self.lock = path / "lock"

    def snapshot(self, cycle: int) -> Path:
        return self.path / "snapshots" / f"{cycle}.safetensors"


@dataclass(frozen=True)
class Store:
    """The folder next to the database file: `<name>.files/` for `<name>.duckdb`."""

    path: Path

    @classmethod
    def beside(cls, database: Path) -> Self:
        return cls(database.with_name(database.stem + ".files"))

    @property
    def tokens(self) -> Path:
        return self.path / "tokens"

    def of_kind(self, kind: str) -> Path:
        return self.path / FOLDERS.get(kind, kind)

    def folder(self, job: Job) -> JobFolder:
        return JobFolder(self.of_kind(job.kind) / job.id)

    def run(self, run_id: str) -> JobFolder:
        return JobFolder(self.of_kind("train") / run_id)

    def folders(self, kind: str) -> Iterator[JobFolder]:
        return map(JobFolder, sorted(self.of_kind(kind).glob("*/")))

    def require_known_kinds(self) -> None:
        """Raise `InputError` where the store has jobs of a kind whose module was not imported."""
        known = {self.of_kind(kind) for kind in Job.kinds}
        if unknown := {result.parent.parent for result in self.path.glob("*/*/result.json")} - known:
            valid = f"valid: {', '.join(Job.kinds)}; import the module that defines it, in Python, and do the same there"
            raise InputError(f"{min(unknown)} holds jobs of a kind that is not known here; {valid}")

    def has_result(self, job: Job) -> bool:
        return self.folder(job).result.exists()

    def is_complete(self, job: Job) -> bool:
        """Whether the result and all that other jobs need of this one are there; a useless one never had outputs."""
        folder = self.folder(job)
        if all((folder.path / name).exists() for name in ("result.json", *job.outputs)):
            return True
        return folder.result.exists() and job.useless(load_fact(job.Result, folder.result)) is not None


def load_fact(model: type[Model], path: Path) -> Model:
    """Read one file of a job's folder. Raises `InputError`, which names the file and the remedy, when it is not whole."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        remedy = "move its folder away to make it again"
        raise InputError(f"{path} cannot be read as a {model.__name__}: {error}; {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder of files that replaces it at the end: it is there whole or not
    at all, even across a kill or a power cut. The name is unique across hosts, which may share the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        for file in temporary.iterdir() if temporary.is_dir() else [temporary]:
            with open(file, "rb+") as stream:
                os.fsync(stream.fileno())
        old = path.rename(f"{temporary}.old") if path.is_dir() else None
        os.replace(temporary, path)
        if old:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        temporary.unlink(missing_ok=True) if temporary.is_file() else shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write `path` so that it is there whole or not at all, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def recorded_attempts(folder: JobFolder) -> list[Attempt]:
    return [load_fact(Attempt, path) for path in sorted(folder.attempts.glob("*.json"))]


def start_attempt(folder: JobFolder, device: str) -> Attempt:
    """Record the start of a new attempt, and any earlier one that never ended as killed. Needs the folder's lock."""
    number, here = len(mark_killed_attempts(folder)) + 1, {"host": socket.gethostname(), "process_id": os.getpid()}
    attempt = Attempt(job_id=folder.id, number=number, started_at=datetime.now(UTC), device=device, **here)
    _write(folder, attempt)
    return attempt


def end_attempt(folder: JobFolder, attempt: Attempt, outcome: Outcome, reason: str | None = None) -> None:
    _write(folder, attempt.model_copy(update={"ended_at": datetime.now(UTC), "outcome": outcome, "reason": reason}))


def mark_killed_attempts(folder: JobFolder) -> list[Attempt]:
    """Record attempts that still say `running` as killed, their end unknown; return all. Needs the folder's lock."""
    attempts = recorded_attempts(folder)
    for attempt in attempts:
        if attempt.outcome == "running":
            reason = f"process {attempt.process_id} on {attempt.host} disappeared: it was killed, or the machine stopped"
            _write(folder, attempt.model_copy(update={"outcome": "killed", "reason": reason}))
    return attempts


def _write(folder: JobFolder, attempt: Attempt) -> None:
    write_atomically(folder.attempts / f"{attempt.number:04d}.json", attempt.model_dump_json(indent=1))
