"""The optimisers and the learning-rate schedule of the protocol (arXiv 2509.14786, appendix).

AdamW with decoupled weight decay multiplied by the scheduled learning rate, w -= lr * (update + weight_decay * w).
Decayed: every matrix, the output head too. Not decayed: norms and the token embedding. With "muon" the hidden
matrices go to `torch.optim.Muon` instead, its step scaled to AdamW's so that one learning rate serves both.
This module steps nothing and clips nothing.
"""

from __future__ import annotations

import math

from torch.optim import AdamW, Muon, Optimizer

from dataeff.specs.run import RunSpec
from dataeff.training.model import Decoder


def warmup_steps(steps: int, warmup_fraction: float) -> int:
    """Return the number of warm-up updates of `steps`, W = max(1, round(warmup_fraction * steps))."""
    return max(1, round(warmup_fraction * steps))


def learning_rate(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the learning rate of update `step`, counted from 0 to steps - 1.

    Warm-up takes W = `warmup_steps` updates: peak * (step + 1) / W, so no update is wasted at
    rate zero and the peak is reached at its last. Then peak * (1 + cos(pi * p)) / 2 with p = (step - W + 1) / (steps - W + 1):
    the cosine leaves the peak at once and is zero at `step == steps`, one past the end, so the last update still counts.
    """
    warmup = warmup_steps(steps, warmup_fraction)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (steps - warmup + 1)))


def optimizers(model: Decoder, spec: RunSpec) -> list[Optimizer]:
    """Return the optimisers that together hold every parameter of `model` once: AdamW, and Muon if the spec asks.

    Muon uses momentum 0.95 with Nesterov and lr * 0.2 * sqrt(max(rows, columns)), which gives its update the root mean
    square of AdamW's ("Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2).
    """
    embedding = model.model.embed_tokens.weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    plain = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
    hidden = [weight for weight in matrices if weight is not model.lm_head.weight] if spec.optimizer == "muon" else []
    decayed = [model.lm_head.weight] if hidden else matrices
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True)
    if not hidden:
        return [adamw]
    return [adamw, Muon(hidden, lr=spec.lr, weight_decay=spec.weight_decay, adjust_lr_fn="match_rms_adamw")]
