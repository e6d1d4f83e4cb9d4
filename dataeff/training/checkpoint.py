"""Checkpoints: all that a run needs to go on as if it had never stopped, in safetensors and JSON, never pickle.

    checkpoint/<step>.safetensors   parameters, their average where the run keeps one, and optimiser state
    checkpoint/state.json           the step, the curve so far, times; the name and SHA-256 of the tensors' file

The JSON is renamed into place last, so whatever is killed when, it names a whole file of tensors. There is no random
state to keep: orders and dropout are functions of the seeds and the step (see trainer.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from dataeff.errors import InputError, TrainingError
from dataeff.specs.result import Curve, Evaluation, Store, load_fact, write_atomically
from dataeff.specs.run import RunSpec
from dataeff.training.model import Decoder


class CheckpointError(TrainingError):
    """A checkpoint is damaged, incomplete, or belongs to another run."""


class State(BaseModel):
    """Where a run stands. Everything but the tensors; times in seconds, over all attempts."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    started_at: datetime
    step: int = 0  # updates done
    curve: Curve = Field(default_factory=lambda: Curve(step=[], tokens=[], train_loss=[], gradient_norm=[], lr=[]))
    evaluations: list[Evaluation] = []
    losses: list[float] = []  # of the steps since the last entry of the curve
    gradient_norms: list[float] = []
    tenth_sum: float = 0.0  # train losses of this tenth of a cycle, for the divergence rule
    tenth_steps: int = 0
    wall_seconds: float = 0.0
    training_seconds: float = 0.0  # without evaluations and checkpoints


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_weights(model: Decoder, path: Path) -> int:
    """Write the weights in float32 to `path` (safetensors, names of Hugging Face's Llama); return the bytes written."""
    _save_tensors({name: tensor.float() for name, tensor in model.state_dict().items()}, path)
    return path.stat().st_size


def load_member(store: Store, member: str, device: torch.device) -> Decoder:
    """Return the trained model that `member` names (a run id, or `RUN@n` for a snapshot), on `device`, not to be trained on.

    Raises `TrainingError`, which names the file, where its spec or its weights are not there whole.
    """
    path, folder = store.weights(member), store.run(member.partition("@")[0])
    try:
        spec = load_fact(RunSpec, folder.spec)
        model = Decoder(spec.model, seed=spec.train_seed)
        model.load_state_dict(load_file(path))
    except (InputError, OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"member {member} cannot be loaded from {path}: {error}; move its run folder away to train it again"
        ) from error
    return model.to(device).eval().requires_grad_(False)


def save_checkpoint(
    folder: Path, state: State, model: Decoder, optimizers: list[Optimizer], averaged: Decoder | None = None
) -> None:
    """Write a checkpoint into `folder` and remove the one before it. A kill at any moment leaves one of the two whole."""
    models = {"model": model, "averaged": averaged}
    tensors = {f"{kind}.{name}": weight for kind, one in models.items() if one for name, weight in one.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in values.items()}
    path = folder / f"{state.step:09d}.safetensors"
    _save_tensors(tensors, path)
    header = {"tensors": path.name, "sha256": digest(path), "state": state.model_dump(mode="json")}
    write_atomically(folder / "state.json", json.dumps(header))
    for other in folder.iterdir():
        if other.name not in (path.name, "state.json"):
            other.unlink()


def load_checkpoint(
    folder: Path, run_id: str, model: Decoder, optimizers: list[Optimizer], averaged: Decoder | None = None
) -> State:
    """Put the checkpoint in `folder` into the models and `optimizers` and return where the run stands.

    Raises `CheckpointError`, with models and optimisers untouched, where it is damaged or of another run.
    """
    try:
        header = json.loads((folder / "state.json").read_text())
        path, state = folder / header["tensors"], State.model_validate(header["state"])
        if state.run_id != run_id:
            raise CheckpointError(f"checkpoint {folder} is of run {state.run_id}, not {run_id}; remove it to start afresh")
        if digest(path) != header["sha256"]:
            raise CheckpointError(f"checkpoint {path} does not have the SHA-256 it was written with; remove it to start afresh")
        tensors = load_file(path)
    except (OSError, ValueError, KeyError, TypeError, ValidationError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error!r}; remove it to start afresh") from error
    for kind, one in (("model.", model), ("averaged.", averaged)):
        if one:
            one.load_state_dict({name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)})
    for i, optimizer in enumerate(optimizers):
        held: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "optimizer" and int(rest[0]) == i:
                held.setdefault(int(rest[1]), {})[rest[2]] = tensor
        optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})
    return state
