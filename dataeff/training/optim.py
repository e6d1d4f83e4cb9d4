"""The optimisers and the learning-rate schedule of the protocol (arXiv 2509.14786, appendix), other schedules, and the
weights of averages over steps.

AdamW with decoupled weight decay multiplied by the scheduled learning rate, w -= lr * (update + weight_decay * w).
Decayed: every matrix, the output head too. Not decayed: norms and the token embedding. With "muon" the hidden
matrices go to `torch.optim.Muon` instead, its step scaled to AdamW's so that one learning rate serves both.
"""

import math

from torch.optim import AdamW, Muon, Optimizer

from dataeff.specs.run import RunSpec
from dataeff.training.model import Decoder


def cycle_bounds(step: int, steps: int, cycles: int) -> tuple[int, int]:
    """Return [begin, end) of the cycle that update `step`, from 0, is in. Cycle k = 1, 2, ... ends at steps * k // cycles."""
    before = min(((step + 1) * cycles - 1) // steps, cycles - 1)
    return steps * before // cycles, steps * (before + 1) // cycles


def learning_rate(step: int, spec: RunSpec) -> float:
    """Return the learning rate of update `step`, counted from 0 to steps - 1; its peak is `lr`.

    Warm-up takes W = max(1, round(warmup_fraction * steps)) updates: peak * (step + 1) / W, so no update is wasted at rate zero
    and the peak is reached at its last. Then peak * (1 + cos(pi * p)) / 2 with p = (step - W + 1) / (steps - W + 1): the cosine
    leaves the peak at once and is zero at `step == steps`, one past the end, so the last update still counts.

    With "wsd" (warm-up, stable, decay: MiniCPM, arXiv 2404.06395) the peak is kept instead until the last
    K = round(decay_fraction * steps) updates, at least 1 and at most all after warm-up; their rate falls linearly (arXiv
    2405.18392), peak * (steps - step) / (K + 1), also to zero one past the end. Several `cycles` run through all of this
    one after another, each as if its steps were all there are (snapshot ensembles, arXiv 1704.00109).
    """
    begin, end = cycle_bounds(step, spec.steps, spec.cycles)
    step, steps = step - begin, end - begin
    warmup = max(1, round(spec.warmup_fraction * steps))
    if step < warmup:
        return spec.lr * (step + 1) / warmup
    if spec.schedule == "wsd":
        decay = min(max(1, round(spec.decay_fraction * steps)), steps - warmup)
        return spec.lr * min(1.0, (steps - step) / (decay + 1))
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (steps - warmup + 1)))


def averaging_weight(step: int, spec: RunSpec) -> float:
    """Return w in average += w * (weights - average) after update `step`, counted from 1; with w = 1 it is the weights.

    `ema`: w = max(1 - ema, 1 / step), the plain mean until the moving average has steps enough to look back on.
    `swa_fraction`: 1 until the last S = max(1, round(swa_fraction * steps)) updates, then 1, 1/2, ..., 1/S: the plain mean
    over these (stochastic weight averaging, arXiv 1803.05407, algorithm 1).
    """
    begin = spec.steps - max(1, round(spec.swa_fraction * spec.steps)) if spec.swa_fraction else 0
    return max(1 - spec.ema if spec.ema else 0.0, 1 / max(1, step - begin))


def optimizers(model: Decoder, spec: RunSpec) -> list[Optimizer]:
    """Return the optimisers that together hold every parameter of `model` once: AdamW, and Muon if the spec asks.

    Muon uses momentum 0.95 with Nesterov and lr * 0.2 * sqrt(max(rows, columns)), which gives its update the root mean
    square of AdamW's ("Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2).
    """
    embedding = model.model.embed_tokens.weight
    head = model.lm_head.weight
    hidden = [weight for weight in model.model.parameters() if weight.ndim == 2 and weight is not embedding]
    plain = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
    decayed = [head] if spec.optimizer == "muon" else [*hidden, head]
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True)
    if spec.optimizer == "adamw":
        return [adamw]
    return [adamw, Muon(hidden, lr=spec.lr, weight_decay=spec.weight_decay, adjust_lr_fn="match_rms_adamw")]
