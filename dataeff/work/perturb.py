"""Perturb: the validation loss of a trained model after Gaussian noise on its weights: how sensitive it is to change.

Noise has the covariance of the initialisation, times gamma squared (Springer et al., arXiv 2503.19206, section 3.3): a standard
deviation of gamma x 0.02 on every matrix, none on norms. One draw of the noise serves every gamma, and every model of one shape.
"""

import time
from typing import ClassVar, Literal

from pydantic import Field

from dataeff.data.tokens import find_tokens
from dataeff.facts.job import Context, Fact, Job
from dataeff.facts.store import JobFolder, Store
from dataeff.specs.spec import Input


class PerturbedLoss(Fact):
    gamma: float
    number: int  # of the draw of the noise, from 0
    val_loss: float | None  # nats per token; None where it was not finite


class PerturbResult(Fact):
    base_loss: float  # without noise, nats per token
    losses: list[PerturbedLoss]
    wall_seconds: float
    device: str


class Perturb(Job):
    kind: ClassVar[str] = "perturb"
    Result: ClassVar[type[Fact]] = PerturbResult

    corpus: str = Field(min_length=1, description="fingerprint of the token files")
    model: Input = Field(description="a trained run, or a snapshot of one")
    gammas: list[float] = Field(min_length=1)
    noises: int = Field(ge=1, description="draws of the noise")
    seed: int = Field(default=0, ge=0, description="of the first of them")
    validation_sequences: int = Field(ge=1)
    precision: Literal["float32", "bfloat16"]

    def run(self, folder: JobFolder, store: Store, context: Context) -> PerturbResult:
        from dataeff.training.checkpoint import common_model, load_member
        from dataeff.training.device import describe_device, pick_device
        from dataeff.training.evaluate import perturbed_losses

        began, device, spec = time.monotonic(), pick_device(context.device), common_model(store, [self.model])
        validation = find_tokens(store, self.corpus).validation(self.validation_sequences, spec.context_length)
        model, seeds = load_member(store, self.model, device), range(self.seed, self.seed + self.noises)
        base, *losses = perturbed_losses(model, validation, self.precision, self.gammas, seeds, context.should_stop)
        places = ((gamma, number) for number in range(self.noises) for gamma in self.gammas)
        return PerturbResult(
            base_loss=base,
            losses=[PerturbedLoss(gamma=g, number=n, val_loss=loss) for (g, n), loss in zip(places, losses, strict=True)],
            wall_seconds=time.monotonic() - began,
            device=describe_device(device),
        )
