"""What a trained run leaves: its losses, its curve, its cost. Losses are in nats per token on the `validation` split."""

import math
from datetime import datetime
from typing import Literal, Self

from pydantic import model_validator

from dataeff.facts.job import Fact


class Evaluation(Fact):
    """Validation loss at one step, in nats per token, over the run's fixed validation sequences."""

    step: int
    tokens: int
    val_loss: float | None  # None where it was not finite
    standard_error: float | None  # of the mean over validation sequences


class Curve(Fact):
    """Training curve: one entry an interval of steps, at its last step; means over the interval."""

    step: list[int]
    tokens: list[int]
    train_loss: list[float | None]  # nats per token
    gradient_norm: list[float | None]  # before clipping
    lr: list[float]


class RunResult(Fact):
    """The outcome of a finished or diverged run."""

    run_id: str
    status: Literal["finished", "diverged"]
    reason: str | None  # why it counts as diverged
    val_loss: float | None
    val_loss_standard_error: float | None
    train_loss: float | None  # mean over the last interval of the curve
    evaluations: list[Evaluation]
    curve: Curve
    steps: int  # steps done; fewer than asked when diverged
    tokens_seen: int
    parameters_total: int
    parameters_non_embedding: int
    training_flops: int
    wall_seconds: float  # all attempts together
    tokens_per_second: float  # training only, evaluations left out
    model_flops_utilisation: float | None  # None where the device's peak is not known
    peak_memory_bytes: int | None
    device: str  # such as "cpu (AMD EPYC)" or "cuda (NVIDIA H100)"
    host: str
    torch_version: str
    started_at: datetime
    ended_at: datetime
    weights_bytes: int | None

    @model_validator(mode="after")
    def _finished_with_a_loss(self) -> Self:
        if self.status == "finished" and (self.val_loss is None or not math.isfinite(self.val_loss)):
            raise ValueError(f"a finished run has a finite validation loss, and this one has {self.val_loss}")
        return self
