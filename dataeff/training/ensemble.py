"""The losses of an ensemble and of its subsets, from one pass of every member over the validation sequences.

Per batch each member gives its hidden states once; then, a chunk of rows at a time, its logits. Subsets are walked so that
each is an earlier one and one more member: a running mean of logits moves on by one step and one cross-entropy, and no more
than K means are alive. It trains nothing, and loads no more than the weights of K members.

Shapes: K members, S sequences of T tokens, R rows (predicted tokens), C hidden, V vocabulary, P subsets.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataeff.errors import InputError
from dataeff.specs.ensemble import Averaging, EnsembleResult, EnsembleSpec, SubsetLoss
from dataeff.specs.result import RunFolder, Store, load_fact, write_atomically
from dataeff.specs.run import ModelSpec, RunSpec
from dataeff.training.checkpoint import load_member
from dataeff.training.device import describe_device, is_out_of_memory, one_thread, pick_device
from dataeff.training.evaluate import TOKENS_A_BATCH, autocast, validation_loss
from dataeff.training.model import Decoder
from dataeff.training.trainer import Preempted

Subset = tuple[int, ...]  # places of members, in the order they are added

ALL_SUBSETS_UP_TO = 8  # members
CPU_LOGITS = 2**16  # of a member at a time: a few means then stay in the cache; 1.2 to 1.7 times as fast as 2**17 and 2**18


def subset_orders(members: int) -> list[Subset]:
    """Return the subsets to evaluate, each as the order its members are added in; every one but a first follows its parent.

    All 2^K - 1 up to eight members. Beyond, every window of 1 to K - 1 consecutive members of their ring, and all K.
    """
    if members <= ALL_SUBSETS_UP_TO:
        return sorted(path for k in range(1, members + 1) for path in combinations(range(members), k))
    longest = {start: members if start == 0 else members - 1 for start in range(members)}
    return [tuple((start + i) % members for i in range(k)) for start in longest for k in range(1, longest[start] + 1)]


@torch.inference_mode()
def evaluate_ensemble(
    spec: EnsembleSpec,
    folder: RunFolder,
    store: Store,
    validation_sequences: np.ndarray,
    *,
    device: str = "auto",
    should_stop: Callable[[], bool] | None = None,
) -> EnsembleResult:
    """Evaluate `spec` in `folder` and return the losses of its subsets; at once where they are there already.

    `validation_sequences` are (S, T). "logits": the cross-entropy of softmax(mean of logits). "probabilities":
    -log(mean of the members' probabilities of the target). "weights": of one model with the mean of the members' weights
    ("model soup", arXiv 2203.05482), for the first 1, 2, ... K members where all have one architecture.
    `should_stop` is asked between batches. Raises `InputError` (members that do not fit together, device), `TrainingError`
    (a member that is not there), `torch.OutOfMemoryError`, `Preempted`. Writes spec.json and result.json.
    """
    if folder.result.exists():
        return load_fact(EnsembleResult, folder.result)
    began, chosen = time.monotonic(), pick_device(device)
    write_atomically(folder.spec, spec.model_dump_json(indent=1))
    members = [load_member(store, member, chosen) for member in spec.members]
    models = [load_fact(RunSpec, store.run(member.partition("@")[0]).spec).model for member in spec.members]
    _require_fit(spec, models, validation_sequences)
    sequences = torch.from_numpy(validation_sequences.astype(np.int32)).to(chosen)

    def pause() -> None:
        if should_stop is not None and should_stop():
            raise Preempted(f"ensemble {spec.ensemble_id} was asked to stop; evaluate it again")

    paths = subset_orders(len(members))
    with one_thread(chosen):
        with autocast(chosen, spec.precision):
            by_logits, by_probabilities = _subset_losses(members, sequences, paths, pause).tolist()
        soups = _soup_losses(members, sequences, spec, pause) if len(set(models)) == 1 else []
    losses = [
        *_rows("logits", paths, by_logits),
        *_rows("probabilities", paths, by_probabilities),
        *_rows("weights", [tuple(range(k)) for k in range(1, len(soups) + 1)], soups),
    ]
    result = EnsembleResult(
        ensemble_id=spec.ensemble_id, losses=losses, wall_seconds=time.monotonic() - began, device=describe_device(chosen)
    )
    write_atomically(folder.result, result.model_dump_json(indent=1))
    return result


def _require_fit(spec: EnsembleSpec, models: list[ModelSpec], sequences: np.ndarray) -> None:
    """Raise `InputError` unless all members predict the same tokens and can read these sequences."""
    vocabularies = {member: model.vocabulary for member, model in zip(spec.members, models, strict=True)}
    if len(set(vocabularies.values())) > 1:
        raise InputError(f"members have vocabularies {vocabularies}: logits are averaged token by token; use members of one")
    contexts = min(model.context_length for model in models)
    if sequences.shape[0] != spec.validation_sequences or sequences.shape[1] > contexts:
        raise InputError(
            f"validation sequences of shape {sequences.shape}: ensemble {spec.ensemble_id} asks for {spec.validation_sequences}, "
            f"and its members read at most {contexts} tokens; give it the sequences its members were validated on"
        )


def _rows(averaging: Averaging, paths: Iterable[Subset], losses: Iterable[float]) -> list[SubsetLoss]:
    finite = ((sorted(path), loss if math.isfinite(loss) else None) for path, loss in zip(paths, losses, strict=True))
    return [SubsetLoss(averaging=averaging, subset=subset, val_loss=loss) for subset, loss in finite]


def _subset_losses(members: list[Decoder], sequences: Tensor, paths: list[Subset], pause: Callable[[], None]) -> Tensor:
    """Return (2, P): the mean loss of each subset under averaged logits and averaged probabilities, in nats per token.

    Sequences and rows at a time are halved where they do not fit.
    """
    count, length = sequences.shape
    vocabulary = members[0].lm_head.weight.shape[0]
    batch = max(1, TOKENS_A_BATCH // length)
    rows = max(1, CPU_LOGITS // vocabulary) if sequences.device.type == "cpu" else TOKENS_A_BATCH
    total, start = torch.zeros(2, len(paths), dtype=torch.float64), 0
    while start < count:
        pause()
        try:
            part = _batch_losses(members, sequences[start : start + batch].long(), paths, rows)
        except RuntimeError as error:
            if batch == rows == 1 or not is_out_of_memory(error):
                raise
            batch, rows = (batch + 1) // 2, (rows + 1) // 2
            continue
        total += part
        start += batch
    return total / (count * (length - 1))


def _batch_losses(members: list[Decoder], tokens: Tensor, paths: list[Subset], rows: int) -> Tensor:
    """Return (2, P) in float64 on the CPU: the losses of tokens (B, T), summed over predicted tokens."""
    targets = tokens[:, 1:].flatten()  # (B*(T-1),)
    hidden = [member.model(tokens)[:, :-1].flatten(0, 1) for member in members]  # K of (B*(T-1), C)
    total = torch.zeros(2, len(paths), dtype=torch.float64)
    for begin in range(0, len(targets), rows):
        chunk = slice(begin, begin + rows)
        logits = [member.lm_head(states[chunk]).float() for member, states in zip(members, hidden, strict=True)]  # K of (R, V)
        total += _chunk_losses(logits, targets[chunk], paths).cpu().double().sum(dim=2)
    return total


def _chunk_losses(logits: list[Tensor], targets: Tensor, paths: list[Subset]) -> Tensor:
    """Return (2, P, R) from the logits of each member and targets (R,)."""
    own = [-F.cross_entropy(member, targets, reduction="none") for member in logits]  # log-probabilities of the targets
    means: list[Tensor] = []  # of the logits of the path's first 1, 2, ... members
    sums: list[Tensor] = []  # log of the sum of their probabilities
    losses: list[Tensor] = []
    for path in paths:
        k, last = len(path), path[-1]
        del means[k - 1 :], sums[k - 1 :]
        means.append(torch.lerp(means[-1], logits[last], 1 / k) if k > 1 else logits[last])
        sums.append(torch.logaddexp(sums[-1], own[last]) if k > 1 else own[last])
        losses += [F.cross_entropy(means[-1], targets, reduction="none"), math.log(k) - sums[-1]]
    return torch.stack(losses).view(len(paths), 2, -1).transpose(0, 1)


def _soup_losses(members: list[Decoder], sequences: Tensor, spec: EnsembleSpec, pause: Callable[[], None]) -> list[float]:
    """Return the losses of the mean weights of the first 1, 2, ... K members."""
    soup, losses = copy.deepcopy(members[0]), []
    for k, member in enumerate(members, start=1):
        pause()
        for mean, weight in zip(soup.parameters(), member.parameters(), strict=True):
            mean.lerp_(weight, 1 / k)
        losses.append(validation_loss(soup, sequences, spec.precision)[0])
    return losses
