"""What is made from the weights of trained runs: the loss of an ensemble, and samples to train students on.

Both are facts like runs: a spec that decides the outcome, its identity, and a folder with what came out. A member is
named by its run id, or as `RUN@2` by the second snapshot of a run with several cycles. The order of members counts:
an ensemble of K members also holds those of its first 1, 2, ... K - 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dataeff.specs.identity import identity
from dataeff.specs.run import Spec

Averaging = Literal["logits", "probabilities", "weights"]


class EnsembleSpec(Spec):
    """K trained runs, judged together on the validation sequences of one corpus."""

    evaluator_version: int = 1  # raised when the same members would get another loss than before
    corpus: str = Field(min_length=1, description="fingerprint of the token files")
    members: list[str] = Field(min_length=1, description="run ids, `RUN@n` for a snapshot")
    validation_sequences: int = Field(ge=1)
    precision: Literal["float32", "bfloat16"]

    @property
    def ensemble_id(self) -> str:
        return identity(self.model_dump())


class SampleSpec(Spec):
    """Unconditional text of a teacher: whole sequences that begin with the separator, drawn token by token.

    From several members, each draws its share of the sequences by itself ("members"), or all draw together from the
    softmax of their mean logits ("joint").
    """

    sampler_version: int = 1
    members: list[str] = Field(min_length=1, description="run ids, `RUN@n` for a snapshot")
    pool: Literal["members", "joint"] = "members"
    sequences: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1, description="1: off")
    separator: int = Field(ge=0, description="token id that each sequence begins with")
    seed: int = Field(ge=0)
    precision: Literal["float32", "bfloat16"]

    @property
    def sample_id(self) -> str:
        return identity(self.model_dump())


class SubsetLoss(BaseModel):
    """Validation loss of some members of an ensemble, in nats per token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    averaging: Averaging
    subset: list[int]  # places in `EnsembleSpec.members`, rising, from 0
    val_loss: float | None  # None where it was not finite


class EnsembleResult(BaseModel):
    """The losses of an ensemble's subsets. All of them up to eight members, else the windows of the ring of members;
    of averaged weights only the first 1, 2, ... K members.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ensemble_id: str
    losses: list[SubsetLoss]
    wall_seconds: float
    device: str

    def curve(self, averaging: Averaging) -> list[tuple[int, float]]:
        """Return (K, mean loss over the evaluated subsets of K members), K rising; nothing beyond a loss that is not finite."""
        by_size: dict[int, list[float | None]] = {}
        for loss in self.losses:
            if loss.averaging == averaging:
                by_size.setdefault(len(loss.subset), []).append(loss.val_loss)
        return [(k, sum(losses) / len(losses)) for k, losses in sorted(by_size.items()) if None not in losses]


class SampleResult(BaseModel):
    """What a sampling left beside its tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_id: str
    fingerprint: str  # of the token file
    sequences: int
    context_length: int
    dtype: str
    cross_entropy: float  # mean of -log p of the drawn tokens under the distribution they were drawn from, nats per token
    entropy: float  # mean entropy of that distribution, nats per token
    tokens_per_second: float
    wall_seconds: float
    device: str
