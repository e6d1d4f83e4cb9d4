"""Sampling: sequences that begin with the separator and go on token by token, drawn from the softmax of models' mean logits.

What a batch holds is a function of its models and seed, on the same CPU to the bit. It reads and writes no files.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dataeff.training.device import in_batches
from dataeff.training.evaluate import autocast
from dataeff.training.model import Decoder


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw a token for each row of logits (B, V): the one at which the distribution function reaches uniform (B, 1), in (0, 1].

    The distribution is softmax(logits / temperature), cut to its nucleus, the fewest most probable tokens that hold `top_p`
    of it (Holtzman et al., arXiv 1904.09751, eq. 2-3). Returns the tokens (B, 1) and the sums over the rows of their -log p
    and of the distributions' entropies, (2,), in nats.
    """
    log_p, last = (logits.float() / temperature).log_softmax(dim=-1), logits.shape[1] - 1
    if top_p < 1:
        log_p, order = log_p.sort(dim=-1, descending=True)
        p = log_p.exp()
        beyond = p.cumsum(dim=-1) - p >= top_p
        log_p = log_p.masked_fill(beyond, -1e4).log_softmax(dim=-1)  # finite, so that 0 * log 0 is 0
        last = (~beyond).sum(dim=-1, keepdim=True) - 1
    p = log_p.exp()
    reached = p.cumsum(dim=-1)
    place = torch.searchsorted(reached, uniform * reached[:, -1:]).clamp(max=last)  # beyond it only rounding reaches
    sums = torch.stack((-log_p.gather(1, place).sum(), -(p * log_p).sum()))
    return order.gather(1, place) if top_p < 1 else place, sums


@torch.inference_mode()
def draw_batch(
    models: list[Decoder],
    sequences: int,
    seed: tuple[int, int],
    *,
    separator: int,
    temperature: float,
    top_p: float,
    precision: str,
    on_token: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Draw B sequences of the models' context length T; return them, int64 (B, T), and the sums, (2,), over their tokens of
    -log p and of the entropies of what they were drawn from, in nats. As many are drawn at a time as fit on the device.

    `on_token` is called before every token, with the number of tokens that are drawn; what it raises ends the drawing.
    """
    device = models[0].lm_head.weight.device
    predicted = models[0].spec.context_length - 1
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    uniform = 1 - torch.rand(sequences, predicted, generator=generator)  # in (0, 1]

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        count = rows.stop - rows.start
        tokens = torch.full((count, predicted + 1), separator, device=device)
        numbers = uniform[rows].to(device)
        sums = torch.zeros(predicted, 2, device=device)
        caches = [model.empty_cache(count) for model in models]
        for t in range(predicted):
            on_token(rows.start * predicted + count * t)
            new = tokens[:, t : t + 1]
            logits = [model.next_logits(new, cache, t).float() for model, cache in zip(models, caches, strict=True)]
            tokens[:, t + 1 : t + 2], sums[t] = draw(sum(logits) / len(models), numbers[:, t : t + 1], temperature, top_p)
        return tokens.cpu(), sums.cpu().double().sum(dim=0)

    with autocast(device, precision):
        tokens, sums = zip(*in_batches(part, sequences, sequences), strict=True)
    return torch.cat(tokens).numpy(), sum(sums).numpy()
