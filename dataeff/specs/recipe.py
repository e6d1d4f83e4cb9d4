"""Recipes: what a study file may say of a way to train, and the axes that may be tuned.

A recipe is a value: it knows neither the study it stands in nor the recipes it names. What holds between recipes is checked
by `dataeff.specs.study`, and what runs they come to is for `dataeff.specs.demand` to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from dataeff.errors import nearest
from dataeff.specs.ensemble import Averaging
from dataeff.specs.run import RunSpec, Spec, TrainingSpec

REQUIRED_AXES = ("lr", "weight_decay", "epochs")
AXES = (
    *REQUIRED_AXES,
    *("batch_size", "warmup_fraction", "gradient_clip", "beta1", "beta2", "dropout", "decay_fraction", "ema", "swa_fraction"),
    *("z_loss", "label_smoothing", "balance_loss"),
)
WHOLE_AXES = ("epochs", "batch_size")
FEWEST_MEMBERS = 3  # a law over K with three parameters needs as many


def require_axis(name: str) -> None:
    if name not in AXES:
        raise ValueError(f"'{name}' is not an axis; {nearest(name, AXES)}")


def require_axis_value(name: str, value: float) -> None:
    """Raise `ValueError` for a value that the run's own field would refuse."""
    field = RunSpec.model_fields[name]
    if name in WHOLE_AXES and value != int(value):
        raise ValueError(f"{name} = {value}: must be a whole number; use {max(1, round(value))}")
    try:
        TypeAdapter(Annotated[field.annotation, *field.metadata]).validate_python(int(value) if name in WHOLE_AXES else value)
    except ValidationError as error:
        raise ValueError(f"{name} = {value}: {error.errors()[0]['msg'].lower().replace('input should', 'it must')}") from None


class StudyTraining(TrainingSpec):
    """The `[training]` table: what all runs of the study share."""

    context_length: int = Field(ge=2, description="tokens in a sequence")
    rope_theta: float = Field(default=10_000.0, gt=0)


def _factor(value: object) -> object:
    """Read `"x 2"` as 2."""
    if isinstance(value, str) and (found := re.fullmatch(r"\s*x\s*(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*", value)):
        return float(found.group(1))
    if isinstance(value, str):
        raise ValueError(f'{value!r} is no change; write a factor, such as "x 2" or "x 0.5"')
    return value


class TeacherSpec(Spec):
    """Who teaches a recipe's runs: the members of another recipe's optimum at the same D."""

    recipe: str
    size: str | None = Field(default=None, description="of the teacher; the student's own unless given")
    kind: Literal["samples", "logits"] = Field(
        default="samples", description="train on its samples, or match its logits on the real tokens"
    )
    share: float = Field(default=0.5, gt=0, le=1, description="samples: of the tokens of an epoch; 1 is synthetic text alone")
    tokens_per_seed_token: float = Field(default=4.0, gt=0, description="samples: tokens drawn, over D; used again when used up")
    pool: Literal["members", "joint"] = Field(default="members", description="samples: each member draws, or all together")
    temperature: float = Field(default=1.0, gt=0, description="of the samples, or of both softmaxes that are matched")
    top_p: float = Field(default=1.0, gt=0, le=1, description="samples: nucleus; 1 is off")
    weight: float = Field(default=0.5, gt=0, le=1, description="logits: of the matching, beside the cross-entropy")

    @model_validator(mode="after")
    def _of_its_kind(self) -> TeacherSpec:
        others = ("weight",) if self.kind == "samples" else ("share", "tokens_per_seed_token", "pool", "top_p")
        if idle := [name for name in others if getattr(self, name) != type(self).model_fields[name].default]:
            raise ValueError(f"{idle[0]} means nothing to a teacher of kind '{self.kind}'; leave it out, or use the other kind")
        return self


class RecipeSpec(Spec):
    """A named way to train. Every axis of the study's grid is tuned, but for those in `fixed` and those not in `tune`,
    which follow the optimum of `base`, times their `change`. Who follows a base so (`tune` is given) is also trained as it
    is: its `training`, its teacher and what it fixes off the grid hold too, unless they are set otherwise.
    """

    fixed: dict[str, float] = Field(default_factory=dict, description="axes held at one value")
    tune: list[str] | None = Field(default=None, description="axes that are tuned; all that are not fixed unless given")
    base: str | None = Field(
        default=None, description="recipe whose optimum in the same (D, N) is followed, and where the search starts as well"
    )
    change: dict[str, Annotated[float, BeforeValidator(_factor), Field(gt=0)]] = Field(
        default_factory=dict, description='of the base\'s optimum before it is used, such as { epochs = "x 2" }'
    )
    start: Literal["neighbour", "middle"] | dict[str, float] = Field(
        default="neighbour", description="where a cell's search starts: a neighbour cell's optimum, the middle, or a point"
    )
    training: dict[str, Any] = Field(default_factory=dict, description="keys of [training] that this recipe sets otherwise")
    sizes: list[str] | None = Field(default=None, min_length=1, description="names of the study's sizes; all unless given")
    members: int = Field(default=1, ge=1, description="K: runs of one point that are judged together, the tuned one first")
    vary: Literal["both", "train_seed", "data_seed", "snapshot"] = Field(
        default="both", description="what members differ in: seeds, or the cycles of one run"
    )
    averaging: Averaging = Field(default="logits", description="of the members' logits, probabilities or weights")
    objective: Literal["single", "K"] = Field(
        default="single", description="what is tuned: the loss of one run, or the limit of its members as K grows"
    )
    teacher: TeacherSpec | None = None
    limit: Literal["best", "N", "K", "K then N"] = Field(
        default="N",
        description="the recipe's limit at each D: best over N, asymptote in N, best over N of the asymptotes in K, or "
        "the asymptote in N of those",
    )

    @property
    def builds_on(self) -> dict[str, str]:
        """The recipes it names, by the key that names them."""
        named = {"base": self.base, "teacher": self.teacher and self.teacher.recipe}
        return {key: recipe for key, recipe in named.items() if recipe is not None}

    @model_validator(mode="after")
    def _enough_members(self) -> RecipeSpec:
        for key, value in (("limit", self.limit), ("objective", self.objective)):
            if value.startswith("K") and self.members < FEWEST_MEMBERS:
                raise ValueError(
                    f"{key} '{value}' is a law over K with three parameters, and members is {self.members}; "
                    f"set members to {FEWEST_MEMBERS} or more"
                )
        if self.change and not self.base:
            raise ValueError(f"change {self.change} is of a base's optimum, and there is no base; name one")
        return self

    @field_validator("fixed")
    @classmethod
    def _known_axes(cls, fixed: dict[str, float]) -> dict[str, float]:
        for name, value in fixed.items():
            require_axis(name)
            require_axis_value(name, value)
        return fixed


def changed(axis: str, value: float, change: Mapping[str, float]) -> float:
    """Return an optimum's value times its change; of an axis of whole numbers the nearest one, at least 1."""
    if axis in change:
        value = float(f"{value * change[axis]:.12g}")  # 0.1 x 3 is the grid's 0.3, and its run
    return float(max(1, round(value))) if axis in WHOLE_AXES else value
