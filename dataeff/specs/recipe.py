"""Recipes: what a study file may say of a way to train, and the axes that may be tuned.

A recipe knows neither the study it stands in nor the recipes it names; `dataeff.specs.study` checks what holds between them.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dataeff.errors import nearest
from dataeff.specs.run import TrainingSpec
from dataeff.specs.spec import Spec

Averaging = Literal["logits", "probabilities", "weights"]

REQUIRED_AXES = ("lr", "weight_decay", "epochs")
AXES = (
    *REQUIRED_AXES,
    *("batch_size", "warmup_fraction", "gradient_clip", "beta1", "beta2", "dropout", "decay_fraction", "ema", "swa_fraction"),
    *("z_loss", "label_smoothing", "balance_loss"),
)
WHOLE_AXES = ("epochs", "batch_size")
FEWEST_MEMBERS = 3  # a law over K with three parameters needs as many


def _axis(name: str) -> str:
    if name not in AXES:
        raise ValueError(f"'{name}' is not an axis; {nearest(name, AXES)}")
    return name


Axis = Annotated[str, AfterValidator(_axis)]


class StudyTraining(TrainingSpec):
    """The `[training]` table: what all runs of the study share."""

    context_length: int = Field(ge=2, description="tokens in a sequence")
    rope_theta: float = Field(default=10_000.0, gt=0)


def _factor(value: object) -> object:
    """Read `"x 2"` as 2."""
    if not isinstance(value, str):
        return value
    if factor := re.fullmatch(r"\s*x\s*(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*", value):
        return float(factor.group(1))
    raise ValueError(f'{value!r} is no change; write a factor, such as "x 2" or "x 0.5"')


Factor = Annotated[float, BeforeValidator(_factor), Field(gt=0)]


class TeacherSpec(Spec):
    """Who teaches a recipe's runs: the members of another recipe's optimum at the same D."""

    recipe: str
    size: str | None = None  # of the teacher; the student's own unless given
    kind: Literal["samples", "logits"] = "samples"  # train on its samples, or match its logits on the real tokens
    share: float = Field(default=0.5, gt=0, le=1, description="samples: of the tokens of an epoch; 1 is synthetic text alone")
    tokens_per_seed_token: float = Field(default=4.0, gt=0, description="samples: tokens drawn, over D; used again when used up")
    pool: Literal["members", "joint"] = "members"  # samples: each member draws, or all together
    temperature: float = Field(default=1.0, gt=0, description="of the samples, or of both softmaxes that are matched")
    top_p: float = Field(default=1.0, gt=0, le=1, description="samples: nucleus; 1 is off")
    weight: float = Field(default=0.5, gt=0, le=1, description="logits: of the matching, beside the cross-entropy")

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        others = ("weight",) if self.kind == "samples" else ("share", "tokens_per_seed_token", "pool", "top_p")
        if idle := [name for name in others if getattr(self, name) != type(self).model_fields[name].default]:
            raise ValueError(f"{idle[0]} means nothing to a teacher of kind '{self.kind}'; leave it out, or use the other kind")
        return self


class RecipeSpec(Spec):
    """A named way to train. Every axis of the study's grid is tuned, but for those in `fixed` and those not in `tune`,
    which follow the optimum of `base`, times their `change`. With `tune`, the base's `training` and teacher are inherited
    unless they are set otherwise.
    """

    fixed: dict[Axis, float] = {}  # axes held at one value
    tune: list[str] | None = None  # axes that are tuned; all that are not fixed unless given
    base: str | None = None  # recipe whose optimum in the same (D, N) is followed, and where the search starts as well
    change: dict[str, Factor] = {}  # of the base's optimum before it is used, such as { epochs = "x 2" }
    # where a cell's search starts: the optimum of a neighbour cell, the middle of the grid, or a point
    start: Literal["neighbour", "middle"] | dict[str, float] = "neighbour"
    training: dict[str, Any] = {}  # keys of [training] that this recipe sets otherwise
    sizes: list[str] | None = Field(default=None, min_length=1, description="names of the study's sizes; all unless given")
    members: int = Field(default=1, ge=1, description="K: runs of one point that are judged together, the tuned one first")
    vary: Literal["both", "train_seed", "data_seed", "snapshot"] = "both"  # what members differ in: seeds, or cycles of one run
    averaging: Averaging = "logits"  # what of the members is averaged
    objective: Literal["single", "K"] = "single"  # what is tuned: the loss of one run, or of its members together
    teacher: TeacherSpec | None = None
    # at each D: the best over N, the asymptote in N, the best over N of the asymptotes in K, or the asymptote in N of those
    limit: Literal["best", "N", "K", "K then N"] = "N"

    @property
    def builds_on(self) -> dict[str, str]:
        """The recipes it names, by the key that names them."""
        named = {"base": self.base, "teacher": self.teacher and self.teacher.recipe}
        return {key: recipe for key, recipe in named.items() if recipe is not None}

    @model_validator(mode="after")
    def _enough_members(self) -> Self:
        if self.limit.startswith("K") and self.members < FEWEST_MEMBERS:
            rule = f"limit '{self.limit}' is a law over K with three parameters, and members is {self.members}"
            raise ValueError(f"{rule}; set members to {FEWEST_MEMBERS} or more")
        if self.objective == "K" and self.members == 1:
            raise ValueError("objective 'K' is the loss of several members together, and members is 1; set it to 2 or more")
        if self.change and not self.base:
            raise ValueError(f"change {self.change} is of a base's optimum, and there is no base; name one")
        return self


class MeasureSpec(Spec):
    """What is read off the models at every optimum, one by one: their loss after Gaussian noise on the weights."""

    kind: Literal["perturbation"]
    gammas: list[Annotated[float, Field(ge=0)]] = Field(min_length=1, description="noise, in units of the initialisation's")
    noises: int = Field(default=4, ge=1, description="draws of the noise")


class ClaimSpec(Spec):
    """A comparison declared before its runs: at D = `at`, each at its best size, `better` has a lower loss than `than`."""

    better: str
    than: str
    at: int  # one of the study's seed_tokens
    by: float = Field(default=0.0, ge=0, description="lower by more than this (nats/token)")


def changed(axis: str, value: float, change: Mapping[str, float]) -> float:
    """Return an optimum's value times its change, rounded to 1 or more on an axis of whole numbers."""
    if axis in change:
        value = float(f"{value * change[axis]:.12g}")  # 0.1 x 3 is the grid's 0.3, and its run
    return float(max(1, round(value))) if axis in WHOLE_AXES else value
