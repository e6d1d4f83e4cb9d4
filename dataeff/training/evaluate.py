"""Validation loss: cross-entropy over fixed held-out sequences, in nats per token, with its standard error.

The standard error is that of the mean over sequences: it says how much the loss would move with other held-out
text, not with another seed. Nothing here looks at training data or changes the model.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from dataeff.training.device import is_out_of_memory
from dataeff.training.model import Decoder

TOKENS_A_BATCH = 2048  # or one sequence; on a CPU larger batches measured no faster


def autocast(device: torch.device, precision: Literal["float32", "bfloat16"]) -> torch.autocast:
    """Return the context of the forward pass: bfloat16 autocast, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@torch.inference_mode()
def validation_loss(
    model: Decoder, sequences: Tensor, precision: Literal["float32", "bfloat16"], batch: int | None = None
) -> tuple[float, float | None]:
    """Return (mean nats per token, standard error) of sequences (S, T) on the model's device, without dropout.

    The error is std(per-sequence loss, ddof 1) / sqrt(S); None for a single sequence. `batch` sequences are taken at a
    time and halved where they do not fit. Raises `torch.OutOfMemoryError` when not even one fits.
    """
    count, length = sequences.shape
    batch = batch or max(1, TOKENS_A_BATCH // length)
    training = model.training
    model.eval()
    losses: list[Tensor] = []
    start = 0
    with autocast(sequences.device, precision):
        while start < count:
            try:
                rows = sequences[start : start + batch].long()
                losses.append(model.token_losses(rows).mean(dim=1))
            except RuntimeError as error:
                if batch == 1 or not is_out_of_memory(error):
                    raise
                batch = (batch + 1) // 2
                continue
            start += batch
    model.train(training)
    per_sequence = torch.cat(losses).cpu().double()  # (S,)
    error = (per_sequence.std() / math.sqrt(count)).item() if count > 1 else None
    return per_sequence.mean().item(), error
