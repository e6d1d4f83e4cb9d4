"""Ensemble: the losses of trained runs judged together on the validation sequences of one corpus.

The order of members counts: an ensemble of K members also holds those of its first 1, 2, ... K - 1.
"""

import time
from collections import defaultdict
from typing import Any, ClassVar, Literal

from pydantic import Field

from dataeff.data.tokens import find_tokens
from dataeff.facts.job import Context, Fact, Job
from dataeff.facts.store import JobFolder, Store
from dataeff.specs.recipe import Averaging
from dataeff.specs.spec import Input


class SubsetLoss(Fact):
    """Validation loss of some members of an ensemble, in nats per token."""

    averaging: Averaging
    subset: list[int]  # places among the members, rising, from 0
    val_loss: float | None  # None where it was not finite


class EnsembleResult(Fact):
    """The losses of an ensemble's subsets. All of them up to eight members, else the windows of the ring of members;
    of averaged weights only the first 1, 2, ... K members.
    """

    ensemble_id: str
    losses: list[SubsetLoss]
    wall_seconds: float
    device: str

    def curve(self, averaging: Averaging) -> list[tuple[int, float]]:
        """Return (K, mean loss over the evaluated subsets of K members), K rising; nothing beyond a loss that is not finite."""
        by_size: dict[int, list[float | None]] = defaultdict(list)
        for loss in self.losses:
            if loss.averaging == averaging:
                by_size[len(loss.subset)].append(loss.val_loss)
        return [(k, sum(losses) / len(losses)) for k, losses in sorted(by_size.items()) if None not in losses]


class Ensemble(Job):
    kind: ClassVar[str] = "ensemble"
    always_hashed: ClassVar[set[str]] = {"evaluator_version"}
    Result: ClassVar[type[Fact]] = EnsembleResult

    evaluator_version: int = 1  # raised when the same members would get another loss than before
    corpus: str = Field(min_length=1, description="fingerprint of the token files")
    members: list[Input] = Field(min_length=1, description="trained runs, or snapshots of one")
    validation_sequences: int = Field(ge=1)
    precision: Literal["float32", "bfloat16"]

    @property
    def flops(self) -> float:
        """Of the members' forward passes: a third of what training on as many tokens takes."""
        runs = [member.job for member in self.members]
        if None in runs:
            return 0.0
        tokens = self.validation_sequences * runs[0].model.context_length
        return sum(run.model.training_flops_per_token for run in runs) * tokens / 3

    def run(self, folder: JobFolder, store: Store, context: Context) -> EnsembleResult:
        from dataeff.training.checkpoint import common_model, load_member
        from dataeff.training.device import describe_device, pick_device
        from dataeff.training.evaluate import ensemble_losses

        began, device, model = time.monotonic(), pick_device(context.device), common_model(store, self.members)
        validation = find_tokens(store, self.corpus).validation(self.validation_sequences, model.context_length)
        members = [load_member(store, member, device) for member in self.members]
        losses = ensemble_losses(members, validation, self.precision, context.should_stop)
        return EnsembleResult(
            ensemble_id=self.id,
            losses=[SubsetLoss(averaging=averaging, subset=list(subset), val_loss=loss) for averaging, subset, loss in losses],
            wall_seconds=time.monotonic() - began,
            device=describe_device(device),
        )

    def rows(self, result: EnsembleResult) -> dict[str, list[dict[str, Any]]]:
        columns = {"corpus", "members", "validation_sequences", "precision"}
        row = {**self.model_dump(include=columns), **result.model_dump(exclude={"losses"})}
        losses = [{"ensemble_id": self.id, "number": n, **loss.model_dump()} for n, loss in enumerate(result.losses)]
        return {"ensemble": [row], "ensemble_loss": losses}
