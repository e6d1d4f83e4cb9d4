"""What a run folder holds: the facts from which the database can always be rebuilt.

    <run id>/spec.json            the RunSpec, written before training
    <run id>/attempts/0001.json   one Attempt a try, written at its start and again at its end
    <run id>/checkpoint/          present while an attempt is under way; removed when the run is finished
    <run id>/weights.safetensors  final weights, before result.json
    <run id>/snapshots/1.safetensors  weights at the end of each cycle but the last, where there are several
    <run id>/result.json          the RunResult; its presence is what makes a run finished
    <run id>/lock                 held by the process that trains the run

The folders of an ensemble and of a sampling are alike: spec, attempts, lock, result.json, and `tokens.bin` of samples.

Every file is written to a temporary name, synced, then renamed: a reader sees all of it or none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dataeff.errors import InputError
from dataeff.specs.ensemble import EnsembleSpec, SampleSpec
from dataeff.specs.run import RunSpec

Model = TypeVar("Model", bound=BaseModel)

Outcome = Literal["running", "finished", "diverged", "out_of_memory", "preempted", "killed", "failed"]


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Evaluation(_Fact):
    """Validation loss at one step, in nats per token, over the run's fixed validation sequences."""

    step: int
    tokens: int
    val_loss: float | None  # None where it was not finite
    standard_error: float | None  # of the mean over validation sequences


class Curve(_Fact):
    """Training curve: one entry an interval of steps, at its last step; means over the interval."""

    step: list[int]
    tokens: list[int]
    train_loss: list[float | None]  # nats per token
    gradient_norm: list[float | None]  # before clipping
    lr: list[float]


class Attempt(_Fact):
    """One try at a run: where, when, how it ended."""

    run_id: str
    number: int
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Outcome = "running"
    reason: str | None = None
    host: str
    process_id: int
    device: str


class RunResult(_Fact):
    """The outcome of a finished or diverged run. Losses in nats per token on the `validation` split."""

    run_id: str
    status: Literal["finished", "diverged"]
    reason: str | None  # why it counts as diverged
    val_loss: float | None
    val_loss_standard_error: float | None
    train_loss: float | None  # mean over the last interval of the curve
    evaluations: list[Evaluation]
    curve: Curve
    steps: int  # steps done; fewer than asked when diverged
    tokens_seen: int
    parameters_total: int
    parameters_non_embedding: int
    training_flops: int
    wall_seconds: float  # all attempts together
    tokens_per_second: float  # training only, evaluations left out
    model_flops_utilisation: float | None  # None where the device's peak is not known
    peak_memory_bytes: int | None
    device: str  # such as "cpu (AMD EPYC)" or "cuda (NVIDIA H100)"
    host: str
    torch_version: str
    started_at: datetime
    ended_at: datetime
    weights_bytes: int | None


@dataclass(frozen=True)
class RunFolder:
    """Every file name of one run, in one place."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    def snapshot(self, cycle: int) -> Path:
        return self.path / "snapshots" / f"{cycle}.safetensors"

    @property
    def tokens(self) -> Path:
        return self.path / "tokens.bin"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def lock(self) -> Path:
        return self.path / "lock"


@dataclass(frozen=True)
class Store:
    """The folder beside the database file: `<name>.files/` for `<name>.duckdb`."""

    path: Path

    @classmethod
    def beside(cls, database: Path) -> Store:
        return cls(database.with_name(database.stem + ".files"))

    @property
    def tokens(self) -> Path:
        return self.path / "tokens"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.runs / run_id)

    def ensemble(self, ensemble_id: str) -> RunFolder:
        return RunFolder(self.path / "ensembles" / ensemble_id)

    def samples(self, sample_id: str) -> RunFolder:
        return RunFolder(self.path / "samples" / sample_id)

    def folder_of(self, spec: RunSpec | EnsembleSpec | SampleSpec) -> RunFolder:
        """Return the folder of what a spec decides; its name is the identity of the spec."""
        if isinstance(spec, RunSpec):
            return self.run(spec.run_id)
        return self.ensemble(spec.ensemble_id) if isinstance(spec, EnsembleSpec) else self.samples(spec.sample_id)

    def weights(self, member: str) -> Path:
        """Return the weights of a member: those a run ended with, or for `RUN@2` those of its second snapshot."""
        run_id, _, cycle = member.partition("@")
        return self.run(run_id).snapshot(int(cycle)) if cycle else self.run(run_id).weights


def load_fact(model: type[Model], path: Path) -> Model:
    """Read one file of a run folder. Raises `InputError`, which names the file and the remedy, when it is not whole."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{path} cannot be read as a {model.__name__}: {error}; move its run folder away to train it again"
        ) from error


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write `path` so that it is there whole or not at all, even across a kill or a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
