"""Checkpoints: all that a run needs to go on as if it had never stopped, in one safetensors file, never pickle.

Its tensors are the parameters, their average where the run keeps one, the losses so far and optimiser state; its header holds
the `State` and the SHA-256 of both. There is no random state to keep: orders and dropout are functions of the seeds and the
step (see trainer.py).
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dataeff.errors import InputError, TrainingError
from dataeff.facts.store import Store, load_fact, replacing
from dataeff.specs.run import ModelSpec, RunSpec
from dataeff.specs.spec import Input
from dataeff.training.model import Decoder
from dataeff.training.result import Evaluation

log = logging.getLogger(__name__)


class State(BaseModel):
    """Where a run stands. Everything but the tensors; times in seconds, over all attempts."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    started_at: datetime
    step: int = 0  # updates done
    evaluations: list[Evaluation] = []
    wall_seconds: float = 0.0
    training_seconds: float = 0.0  # without evaluations and checkpoints


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def save_weights(model: Decoder, path: Path) -> int:
    """Write the weights in float32 to `path` (safetensors, names of Hugging Face's Llama); return the bytes written."""
    _save_tensors({name: tensor.float() for name, tensor in model.state_dict().items()}, path)
    return path.stat().st_size


def common_model(store: Store, members: Sequence[Input], *readers: ModelSpec) -> ModelSpec:
    """Return the model of the first of these runs. Raises `InputError` unless all, and the readers, take the same tokens."""
    models = [load_fact(RunSpec, store.run(member.id).spec).model for member in members]
    takes = {(model.vocabulary, model.context_length) for model in (*models, *readers)}
    if len(takes) > 1:
        rule = f"differ in (vocabulary, context_length): {sorted(takes)}; use runs that were trained with the same"
        raise InputError(f"{', '.join(members)} and who reads them {rule}")
    return models[0]


def load_member(store: Store, member: Input, device: torch.device) -> Decoder:
    """Return the trained model of a run, or of one of its snapshots, frozen and on `device`. No weights are drawn.

    Raises `TrainingError`, which names the file, where its spec or its weights are not there whole.
    """
    folder = store.run(member.id)
    path = folder.weights if member.part is None else folder.snapshot(member.part)
    try:
        spec = load_fact(RunSpec, folder.spec)
        with torch.device("meta"):
            model = Decoder(spec.model, seed=None)
        # Copied, because tensors of a mapped file lie at any address, and products depend on the alignment.
        model.load_state_dict({name: tensor.clone() for name, tensor in load_file(path).items()}, assign=True)
    except (InputError, OSError, RuntimeError, SafetensorError) as error:
        remedy = "move its run folder away to train it again"
        raise TrainingError(f"member {member} cannot be loaded from {path}: {error}; {remedy}") from error
    return model.to(device).eval().requires_grad_(False)


def _digest(state: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].detach().cpu().contiguous().numpy().ravel())
    return digest.hexdigest()


def save_checkpoint(path: Path, state: State, models: nn.ModuleDict, optimizers: list[Optimizer]) -> None:
    """Write a checkpoint in place of the one before it. A kill at any moment leaves one of the two whole."""
    tensors = models.state_dict()
    for i, optimizer in enumerate(optimizers):
        for j, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in values.items()}
    content = state.model_dump_json()
    _save_tensors(tensors, path, {"state": content, "sha256": _digest(content, tensors)})


def load_checkpoint(path: Path, run_id: str, models: nn.ModuleDict, optimizers: list[Optimizer]) -> State:
    """Put the checkpoint at `path` into `models` and `optimizers` and return where the run stands.

    That is step 0, with models and optimisers untouched, where there is none; one that is damaged or of another run is logged.
    """
    start = State(run_id=run_id, started_at=datetime.now(UTC))
    if not path.exists():
        return start
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        content = header.get("state", "")
        if header.get("sha256") != _digest(content, tensors):
            raise ValueError("it does not have the SHA-256 it was written with")
        state = State.model_validate_json(content)
        if state.run_id != run_id:
            raise ValueError(f"it is of run {state.run_id}")
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("run %s starts afresh, without checkpoint %s: %s", run_id, path, error)
        return start
    models.load_state_dict({name: tensors.pop(name) for name in models.state_dict()})
    states: dict[int, dict[int, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in tensors.items():
        _, i, j, key = name.split(".")
        states[int(i)][int(j)][key] = tensor
    for i, optimizer in enumerate(optimizers):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states[i]})
    return state
