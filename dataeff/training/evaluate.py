"""Validation losses: cross-entropy over fixed held-out sequences, in nats per token, of a model, of an ensemble and its subsets.

Of an ensemble each member gives its hidden states once a batch; then, a chunk of rows at a time, its logits. Each subset is an
earlier one and one more member: a mean of logits moves on by one step, and no more than K means are alive.

Shapes: K members, S sequences of T tokens, R rows (predicted tokens), C hidden, V vocabulary, P subsets.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataeff.errors import Preempted
from dataeff.specs.recipe import Averaging
from dataeff.training.device import in_batches
from dataeff.training.model import INIT_STD, Decoder

TOKENS_A_BATCH = 2048  # or one sequence; on a CPU larger batches measured no faster
ALL_SUBSETS_UP_TO = 8  # members
CPU_LOGITS = 2**16  # of a member at a time: a few means then stay in the cache; 1.2 to 1.7 times as fast as 2**17 and 2**18

Subset = tuple[int, ...]  # places of members, in the order they are added


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@torch.inference_mode()
def validation_loss(model: Decoder, sequences: Tensor, precision: str) -> tuple[float, float | None]:
    """Return (mean nats per token, standard error) of sequences (S, T) on the model's device, without dropout.

    The error is std(per-sequence loss, ddof 1) / sqrt(S), None for a single sequence: how much the loss would move with other
    held-out text, not with another seed.
    """
    count, length = sequences.shape
    batch = max(1, TOKENS_A_BATCH // length)
    training = model.training
    model.eval()
    with autocast(sequences.device, precision):
        means = in_batches(lambda rows: model.token_losses(sequences[rows].long()).mean(dim=1), count, batch)
        per_sequence = torch.cat(list(means)).cpu().double()  # (S,)
    model.train(training)
    error = (per_sequence.std() / math.sqrt(count)).item() if count > 1 else None
    return per_sequence.mean().item(), error


def subset_orders(members: int) -> list[Subset]:
    """Return the subsets to evaluate, each as the order its members are added in; every one but a first follows its parent.

    All 2^K - 1 up to eight members. Beyond, every window of 1 to K - 1 consecutive members of their ring, and all K.
    """
    if members <= ALL_SUBSETS_UP_TO:
        return sorted(path for k in range(1, members + 1) for path in combinations(range(members), k))
    windows = ((start, k) for start in range(members) for k in range(1, members + (start == 0)))
    return [tuple((start + i) % members for i in range(k)) for start, k in windows]


@torch.inference_mode()
def ensemble_losses(
    members: list[Decoder], sequences: np.ndarray, precision: str, should_stop: Callable[[], bool] = lambda: False
) -> list[tuple[Averaging, Subset, float | None]]:
    """Return (averaging, subset, loss) of the members' subsets on sequences (S, T): the places of its members, rising, and its
    loss in nats per token, None where that is not finite.

    "logits": the cross-entropy of softmax(mean of logits). "probabilities": -log(mean of the members' probabilities of the
    target). "weights": of one model with the mean of the members' weights ("model soup", arXiv 2203.05482), for the first
    1, 2, ... K members where all have one architecture. `should_stop` is asked between batches; then `Preempted` is raised.
    """
    count, length = sequences.shape
    subsets = subset_orders(len(members))
    device = members[0].lm_head.weight.device
    tokens = torch.from_numpy(sequences.astype(np.int32)).to(device)

    def pause() -> None:
        if should_stop():
            raise Preempted(f"the evaluation of {len(members)} members was asked to stop; evaluate them again")

    def batch_losses(rows: slice) -> Tensor:
        pause()
        return _batch_losses(members, tokens[rows].long(), subsets)

    with autocast(device, precision):
        sums = sum(in_batches(batch_losses, count, max(1, TOKENS_A_BATCH // length)))
    logits, probabilities = (sums / (count * (length - 1))).tolist()
    losses = [("logits", *row) for row in zip(subsets, logits, strict=True)]
    losses += [("probabilities", *row) for row in zip(subsets, probabilities, strict=True)]
    if len({member.spec for member in members}) == 1:
        soups = _soup_losses(members, tokens, precision, pause)
        losses += [("weights", tuple(range(k)), loss) for k, loss in enumerate(soups, start=1)]
    return [(averaging, tuple(sorted(s)), loss if math.isfinite(loss) else None) for averaging, s, loss in losses]


def _batch_losses(members: list[Decoder], tokens: Tensor, subsets: list[Subset]) -> Tensor:
    """Return (2, P) in float64 on the CPU: the losses of tokens (B, T), summed over predicted tokens."""
    targets = tokens[:, 1:].flatten()  # (B*(T-1),)
    hidden = [member.model(tokens)[:, :-1].flatten(0, 1) for member in members]  # K of (B*(T-1), C)
    on_cpu = max(1, CPU_LOGITS // members[0].spec.vocabulary)

    def losses(rows: slice) -> Tensor:
        logits = [member.lm_head(states[rows]).float() for member, states in zip(members, hidden, strict=True)]  # K of (R, V)
        return _chunk_losses(logits, targets[rows], subsets).cpu().double().sum(dim=2)

    return sum(in_batches(losses, len(targets), on_cpu if tokens.device.type == "cpu" else TOKENS_A_BATCH))


def _chunk_losses(logits: list[Tensor], targets: Tensor, subsets: list[Subset]) -> Tensor:
    """Return (2, P, R) from the logits of each member and targets (R,)."""
    own = [-F.cross_entropy(member, targets, reduction="none") for member in logits]  # log-probabilities of the targets
    means: list[Tensor] = []  # of the logits of the subset's first 1, 2, ... members
    sums: list[Tensor] = []  # log of the sum of their probabilities
    losses: list[Tensor] = []
    for subset in subsets:
        k, last = len(subset), subset[-1]
        del means[k - 1 :], sums[k - 1 :]
        means.append(torch.lerp(means[-1], logits[last], 1 / k) if k > 1 else logits[last])
        sums.append(torch.logaddexp(sums[-1], own[last]) if k > 1 else own[last])
        losses += [F.cross_entropy(means[-1], targets, reduction="none"), math.log(k) - sums[-1]]
    return torch.stack(losses).view(len(subsets), 2, -1).transpose(0, 1)


def _soup_losses(members: list[Decoder], sequences: Tensor, precision: str, pause: Callable[[], None]) -> Iterator[float]:
    """Yield the losses of the mean weights of the first 1, 2, ... K members."""
    soup = copy.deepcopy(members[0])
    for k, member in enumerate(members, start=1):
        pause()
        for mean, weight in zip(soup.parameters(), member.parameters(), strict=True):
            mean.lerp_(weight, 1 / k)
        yield validation_loss(soup, sequences, precision)[0]


@torch.inference_mode()
def perturbed_losses(
    model: Decoder,
    sequences: np.ndarray,
    precision: str,
    gammas: Sequence[float],
    seeds: Sequence[int],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[float | None]:
    """Yield the loss on sequences (S, T), in nats per token, and then, for each seed and gamma, that with noise of standard
    deviation gamma x 0.02 on every matrix; None where it is not finite. The noise of a seed is drawn on the CPU, once for all
    gammas. Leaves the model as it was.
    """
    device = model.lm_head.weight.device
    tokens = torch.from_numpy(sequences.astype(np.int32)).to(device)
    yield validation_loss(model, tokens, precision)[0]
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    trained = [weight.clone() for weight in matrices]
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = [torch.randn(weight.shape, generator=generator).mul_(INIT_STD).to(device) for weight in matrices]
        for gamma in gammas:
            if should_stop():
                raise Preempted("the measure of noise on the weights was asked to stop; measure it again")
            for weight, was, change in zip(matrices, trained, noise, strict=True):
                weight.copy_(torch.add(was, change, alpha=gamma))
            loss = validation_loss(model, tokens, precision)[0]
            for weight, was in zip(matrices, trained, strict=True):
                weight.copy_(was)
            yield loss if math.isfinite(loss) else None
