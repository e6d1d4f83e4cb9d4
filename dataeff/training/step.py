"""The parts of one training step that are functions of their arguments: the order of the data, the gradients, and the
bound beyond which a run has diverged. The trainer strings them together; nothing here keeps state.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from dataeff.specs.run import RunSpec
from dataeff.training.device import is_out_of_memory
from dataeff.training.evaluate import autocast
from dataeff.training.model import INIT_STD, Decoder

log = logging.getLogger(__name__)


def sequence_order(spec: RunSpec, epoch: int) -> Tensor:
    """Return the order (D/T,) of the sequences in `epoch`: the first permutation drawn from the data seed for every
    epoch ("same"), or the one drawn after one for each epoch before ("reshuffled"). Epoch 0 is the same for both.
    """
    generator = torch.Generator().manual_seed(spec.data_seed)
    draws = 1 + (epoch if spec.order == "reshuffled" else 0)
    return [torch.randperm(spec.seed_tokens // spec.model.context_length, generator=generator) for _ in range(draws)][-1]


def accumulate_gradients(model: Decoder, batch: Tensor, precision: str, rows: int) -> tuple[Tensor, int]:
    """Set the gradients of the mean loss of batch (B, T), `rows` sequences at a time.

    Where that does not fit, start again with half the rows. Returns the loss and the rows that fitted. Raises
    what torch raised (see `is_out_of_memory`) when not even one fits.
    """
    while True:
        try:
            total = torch.zeros((), device=batch.device)
            for part in batch.split(rows):
                with autocast(batch.device, precision):
                    loss = model.loss(part.long()) * (len(part) / len(batch))
                loss.backward()
                total += loss.detach()
            return total, rows
        except RuntimeError as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
            loss = None  # lets go of the failed graph, which would fill the memory of the next try
            model.zero_grad(set_to_none=True)
            rows = (rows + 1) // 2
            log.warning("out of memory: going on with %d sequences at a time", rows)


def uniform_loss_bound(spec: RunSpec) -> float:
    """Return the train loss above which a trained model counts as diverged, in nats per token.

    Its logits start as sums of C products of a unit-variance and an INIT_STD normal, which costs C * INIT_STD^2 / 2 above
    the uniform loss log V; 2% more is left for the noise of batches.
    """
    return 1.02 * (math.log(spec.model.vocabulary) + spec.model.hidden * INIT_STD**2 / 2)
