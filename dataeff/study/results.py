"""Results: what came of the jobs of a store, as far as a search reads it.

A run's result is its validation loss in nats per token, infinite where it diverged. Runs are found by their id, and by all
they have in common with others but the axes: so a cell sees what anyone trained on its grid. Failures are of one launch, and
no facts: the next launch tries again.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataeff.facts.job import Fact, Job, Outcome
from dataeff.specs.identity import canonical_json
from dataeff.specs.recipe import AXES
from dataeff.specs.run import ModelSpec, RunSpec
from dataeff.work.train import Train

_RUN_DEFAULTS = {name: field.default for name, field in RunSpec.model_fields.items()}
_MODEL_DEFAULTS = {name: field.default for name, field in ModelSpec.model_fields.items()}

Axes = Mapping[str, float]


@dataclass(frozen=True)
class Failure:
    """How a job ended that was given up."""

    outcome: Outcome
    reason: str


class Results:
    """What is recorded, by job id."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}  # of runs
        self.others: dict[str, Fact | None] = {}  # results of other jobs, None where no search reads them
        self.failures: dict[str, Failure] = {}
        self.by_surface: dict[str, dict[str, Axes]] = defaultdict(dict)  # axes of each run

    def __contains__(self, job_id: str) -> bool:
        return job_id in self.losses or job_id in self.others

    def add(self, job: Job, result: Fact) -> str | None:
        """Take in what a job left; return the surface that a run lies on."""
        self.failures.pop(job.id, None)
        if isinstance(job, Train):
            return self.add_run(job.id, job.model_dump(), result.val_loss)
        self.others[job.id] = result
        return None

    def add_run(self, run_id: str, spec: Mapping[str, Any], val_loss: float | None) -> str:
        """Take in a run by its dumped spec; None as its loss means that it diverged."""
        self.losses[run_id] = math.inf if val_loss is None else val_loss
        name, axes = surface(spec)
        self.by_surface[name][run_id] = axes
        return name


def surface(spec: Mapping[str, Any]) -> tuple[str, Axes]:
    """Return the loss surface a dumped RunSpec lies on, named by all of it but the axes, and its place there."""
    rest = {name: value for name, value in spec.items() if name not in AXES and value != _RUN_DEFAULTS.get(name)}
    rest["model"] = {name: value for name, value in spec["model"].items() if value != _MODEL_DEFAULTS.get(name)}
    return canonical_json(rest), {axis: spec.get(axis, _RUN_DEFAULTS[axis]) for axis in AXES}
