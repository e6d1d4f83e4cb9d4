"""The parts of a training step that keep no state: tokens and their order, loss, gradients, and the bound of divergence."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dataeff.errors import CorpusError
from dataeff.specs.run import RunSpec
from dataeff.training.device import halve_until_it_fits
from dataeff.training.evaluate import autocast
from dataeff.training.model import INIT_STD, Decoder

MATCHED_AT_ONCE = 2048  # positions; the logits of teachers and student are never held for more


def device_tokens(tokens: np.ndarray, sequences: int, what: str, spec: RunSpec, device: torch.device) -> Tensor:
    """Return `tokens` on the device, int32 (sequences, T). Raises `CorpusError` for another number or unknown token ids."""
    length = spec.model.context_length
    if tokens.size != sequences * length:
        raise CorpusError(f"{what} has {tokens.size} tokens; run {spec.run_id} asks for {sequences} x {length}")
    if tokens.min() < 0 or tokens.max() >= spec.model.vocabulary:
        valid = f"valid: 0 to {spec.model.vocabulary - 1}; use text made with the run's tokenizer"
        raise CorpusError(f"{what} has token ids from {tokens.min()} to {tokens.max()}; {valid}")
    return torch.from_numpy(tokens.astype(np.int32)).view(sequences, length).to(device)


def sequence_order(spec: RunSpec, epoch: int, sequences: int = 0) -> Tensor:
    """Return which sequences `epoch` holds, in order, as rows of the run's `sequences`: the real ones, then the synthetic pool.

    It is the first permutation drawn from the data seed for every epoch ("same"), or the one drawn after one for each
    epoch before ("reshuffled"). Epoch 0 is the same for both. Synthetic place j of S in epoch e holds sequence
    (e * S + j) mod P of a pool of P: text is fresh until the pool is used up.
    """
    generator = torch.Generator().manual_seed(spec.data_seed)
    draws = 1 + (epoch if spec.order == "reshuffled" else 0)
    real, places = spec.real_sequences, spec.synthetic_sequences
    order = [torch.randperm(real + places, generator=generator) for _ in range(draws)][-1]
    pool = max(1, sequences - real)
    return torch.where(order < real, order, real + (epoch * places + order - real) % pool)


def training_loss(model: Decoder, spec: RunSpec, teachers: Sequence[Decoder], tokens: Tensor) -> Tensor:
    """Return the loss to train on, in nats per predicted token, of int64 tokens (B, T): `Decoder.loss` with the spec's terms.

    With teachers its cross-entropy and z-loss count 1 - weight, and weight * T^2 * KL(softmax(t / T) || softmax(s / T)) is
    added: s the student's logits, t the mean of the teachers', in float32 (arXiv 1503.02531, section 2). The experts' balance
    counts in full, for matching a teacher does not balance them.
    """
    if not spec.teacher_logits:
        terms = {"label_smoothing": spec.label_smoothing, "z_loss": spec.z_loss, "balance_loss": spec.balance_loss}
        return model.loss(tokens, **terms)
    balances: list[Tensor] = []
    hidden = model.model(tokens, balances)  # (B, T, C)
    with torch.no_grad():
        theirs = [teacher.model(tokens) for teacher in teachers]
    columns = (*(x[:, :-1].flatten(0, 1) for x in (hidden, *theirs)), tokens[:, 1:].flatten())
    loss = torch.zeros((), device=tokens.device)
    for part in zip(*(column.split(MATCHED_AT_ONCE) for column in columns), strict=True):
        # The logits of each part are computed again on the way back, rather than kept.
        loss += checkpoint(_matching, spec, [model, *teachers], *part, use_reentrant=False, preserve_rng_state=False)
    loss = loss / tokens[:, 1:].numel()
    return loss + spec.balance_loss * torch.stack(balances).mean() if balances else loss


def _matching(spec: RunSpec, models: list[Decoder], *part: Tensor) -> Tensor:
    """Return the summed loss of R positions from final hidden states (R, C) of student and teachers, and targets (R,)."""
    matching = spec.teacher_logits
    *hidden, targets = part
    student = models[0].lm_head(hidden[0]).float()  # (R, V)
    with torch.no_grad():
        teacher = sum(one.lm_head(x).float() for one, x in zip(models[1:], hidden[1:], strict=True)) / len(matching.members)
    hard = F.cross_entropy(student, targets, reduction="sum", label_smoothing=spec.label_smoothing)
    hard = hard + spec.z_loss * student.logsumexp(dim=-1).square().sum()
    soft = [(logits / matching.temperature).log_softmax(dim=-1) for logits in (student, teacher)]
    divergence = F.kl_div(*soft, reduction="sum", log_target=True)
    return (1 - matching.weight) * hard + matching.weight * matching.temperature**2 * divergence


def accumulate_gradients(
    model: Decoder, batch: Tensor, precision: str, rows: int, loss_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, int]:
    """Set the gradients of the mean `loss_of` int64 tokens (B, T), `rows` sequences at a time or, where that does not fit, half
    of them, and so on. Return the loss and the rows that fitted. Raises what torch raised when not even one fits.
    """

    def gradients(rows: int) -> Tensor:
        model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=batch.device)
        for part in batch.split(rows):
            with autocast(batch.device, precision):
                loss = loss_of(part.long()) * (len(part) / len(batch))
            loss.backward()
            total += loss.detach()
        return total

    return halve_until_it_fits(gradients, rows)


def uniform_loss_bound(spec: RunSpec) -> float:
    """Return the train loss above which a trained model counts as diverged, in nats per token.

    Its logits start as sums of C products of a unit-variance and an INIT_STD normal, which costs C * INIT_STD^2 / 2 above
    the uniform loss log V; 2% more is left for the noise of batches. That is also the loss of smoothed targets, for the
    logits' mean is 0 like the target's, and the log normaliser that z-loss squares. The balance of experts is at most E/k:
    all tokens choose the same k. KL to a teacher is at most the cross-entropy with it, at temperature T that of logits / T.
    """
    model, uniform = spec.model, math.log(spec.model.vocabulary)
    excess = model.hidden * INIT_STD**2 / 2
    bound = uniform + excess + spec.z_loss * (uniform + excess) ** 2
    if spec.teacher_logits:
        weight = spec.teacher_logits.weight
        bound = (1 - weight) * bound + weight * (spec.teacher_logits.temperature**2 * uniform + excess)
    return 1.02 * (bound + (spec.balance_loss * model.experts / model.experts_per_token if model.experts > 1 else 0.0))
