"""StudySpec: one question, declared. A TOML file or Python builds the same value.

A study spans cells: (recipe, seed tokens, size). Each cell is tuned on the recipe's grid, starting from where a
neighbouring cell ended; an axis that a recipe does not tune is fixed, or follows the optimum of the recipe it builds on.
Which points a cell asks for depends on the study and on the losses alone, never on timing, so a study that was killed
and started again trains the same runs. Which runs those are is for `dataeff.specs.demand` to say.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from dataeff.errors import OffGridError, StudyError, nearest
from dataeff.share import shared_folder
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec
from dataeff.specs.grid import Grid
from dataeff.specs.identity import canonical_json
from dataeff.specs.mistakes import explain, line_of
from dataeff.specs.recipe import REQUIRED_AXES, RecipeSpec, StudyTraining, TeacherSpec, changed, require_axis, require_axis_value
from dataeff.specs.run import (
    PRESETS,
    ModelSpec,
    SizeSpec,
    Spec,
    Synthetic,
    TeacherLogits,
    require_whole_steps,
)

SHARED_TRAINING = ("context_length", "rope_theta", "validation_sequences", "precision")  # by all recipes of a study


def _preset(value: object) -> object:
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"no size is named '{value}'; {nearest(value, PRESETS)}, or a table with its shape")
        return PRESETS[value]
    return value


class Resources(Spec):
    """How much is spent; nothing here changes a loss."""

    max_runs_per_cell: int | None = Field(default=None, ge=1, description="the search ends `open` when it has used them")
    points_in_flight: int = Field(default=2, ge=1, description="a cell's points that are trained at the same time")
    evaluations: int = Field(default=4, ge=1, description="validations a run, evenly spaced, the final one included")


class StudySpec(Spec):
    """A question and all that is needed to answer it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = Field(min_length=1)
    seed_tokens: list[int] = Field(min_length=1, description="budgets D, rising")
    sizes: list[Annotated[SizeSpec, BeforeValidator(_preset)]] = Field(min_length=1, description="presets or tables, rising")
    seeds: list[int] = Field(default=[0], min_length=1, description="the first tunes; the others repeat each optimum")
    baseline: str = Field(default="standard", description="recipe whose data law measures data efficiency")
    corpus: CorpusSpec = CorpusSpec()
    tokenizer: TokenizerSpec
    training: StudyTraining
    grid: dict[str, list[float]]
    recipes: dict[str, RecipeSpec] = Field(min_length=1)
    resources: Resources = Resources()

    @field_validator("seed_tokens", "seeds")
    @classmethod
    def _rising(cls, values: list[int]) -> list[int]:
        if values != sorted(set(values)) or values[0] < 0:
            raise ValueError(f"{values} must rise strictly from 0 or more; use {sorted({abs(v) for v in values})}")
        return values

    @field_validator("seed_tokens")
    @classmethod
    def _some_tokens(cls, values: list[int]) -> list[int]:
        if values[0] == 0:
            raise ValueError("a budget of 0 tokens trains nothing; leave it out")
        return values

    @field_validator("sizes")
    @classmethod
    def _distinct(cls, sizes: list[SizeSpec]) -> list[SizeSpec]:
        names = [size.name for size in sizes]
        if len(set(names)) < len(names):
            raise ValueError(f"two sizes have one name: {names}; names must differ")
        return sizes

    @field_validator("grid")
    @classmethod
    def _axes(cls, grid: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, values in grid.items():
            require_axis(name)
            if not values:
                raise ValueError(f"axis {name} is empty; give at least one value")
            for value in values:
                require_axis_value(name, value)
            if values != sorted(set(values)):
                raise ValueError(f"axis {name} = {values}: values must rise strictly; use {sorted(set(values))}")
        return grid

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        if self.baseline not in self.recipes:
            raise ValueError(f"baseline '{self.baseline}' is not a recipe; {nearest(self.baseline, self.recipes)}")
        for check in (self._check_links, self._check_recipe):
            for name in self.recipes:
                try:
                    check(name)
                except ValueError as error:
                    raise ValueError(f"recipes.{name}{'' if str(error).startswith('.') else ': '}{error}") from None
            self._recipe_order()
        for name in self.recipes:
            values = self.grid_of(name).axes.get("batch_size", (self.training_of(name).batch_size,))
            for batch_size in values:
                for seed_tokens in self.seed_tokens:
                    require_whole_steps(seed_tokens, int(batch_size), self.training.context_length)
        return self

    def _check_links(self, name: str) -> None:
        """Raise `ValueError`, without the recipe's name, where it names sizes or recipes that are not there."""
        recipe, names = self.recipes[name], [size.name for size in self.sizes]
        if unknown := [size for size in recipe.sizes or () if size not in names]:
            raise ValueError(f".sizes: the study has no size '{unknown[0]}'; {nearest(unknown[0], names)}")
        for key, other in recipe.builds_on.items():
            if other not in self.recipes or other == name:
                others = [r for r in self.recipes if r != name]
                raise ValueError(f"{key} '{other}' is not another recipe; {nearest(other, others)}")

    def _check_recipe(self, name: str) -> None:
        """Raise `ValueError`, without the recipe's name, for what is wrong between it and the rest of the study."""
        recipe, free = self.recipes[name], [axis for axis in self.grid if axis not in self.recipes[name].fixed]
        if missing := [axis for axis in REQUIRED_AXES if axis not in self.grid and axis not in recipe.fixed]:
            raise ValueError(f"{', '.join(missing)} is neither on the grid nor fixed; add it to [grid] or to fixed")
        for key, other in recipe.builds_on.items():
            wanted = [recipe.teacher.size] if key == "teacher" and recipe.teacher.size else self.size_names(name)
            if lacking := [size for size in wanted if size not in self.size_names(other)]:
                raise ValueError(f"{key} '{other}' has no size {lacking[0]}; {nearest(lacking[0], self.size_names(other))}")
        for key, axes in (("tune", recipe.tune or ()), ("change", recipe.change)):
            if idle := [axis for axis in axes if axis not in free]:
                raise ValueError(f".{key}: '{idle[0]}' is not on the grid, or fixed; {nearest(idle[0], free)}")
        if recipe.tune is not None and not recipe.base and (followed := [axis for axis in free if axis not in recipe.tune]):
            raise ValueError(f"{', '.join(followed)} is neither tuned nor fixed, and there is no base to follow; add one")
        for axis in recipe.change:
            for value in (changed(axis, value, recipe.change) for value in self.grid[axis]):
                require_axis_value(axis, value)
                for seed_tokens in self.seed_tokens if axis == "batch_size" else ():
                    require_whole_steps(seed_tokens, int(value), self.training.context_length)
        if isinstance(recipe.start, dict):
            names = recipe.tune if recipe.tune is not None else self.grid_of(name).names
            if unknown := [axis for axis in recipe.start if axis not in names]:
                raise ValueError(f".start: {unknown[0]} is not tuned; {nearest(unknown[0], names)}")
            try:
                self.grid_of(name).point({**{a: v[0] for a, v in self.grid_of(name).axes.items() if len(v) == 1}, **recipe.start})
            except OffGridError as error:
                raise ValueError(f".start: {error}") from None
        self._check_training(name)

    def _check_training(self, name: str) -> None:
        """Raise `ValueError` for what a recipe trains otherwise that is wrong, or means nothing."""
        recipe, axes = self.recipes[name], self.grid_of(name).axes
        if twice := [key for key in recipe.training if key in axes]:
            raise ValueError(f".training: {twice[0]} is an axis already; set it in fixed instead")
        try:
            training = self.training_of(name)
        except ValidationError as error:
            problem = error.errors()[0]
            key, rule = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                rule = f"unknown key; {nearest(key, StudyTraining.model_fields)}"
            raise ValueError(f".training: {key and key + ': '}{rule}") from None
        averages = [axis for axis in ("ema", "swa_fraction") if getattr(training, axis) or any(axes.get(axis, ()))]
        if len(averages) > 1:
            raise ValueError("ema and swa_fraction are both set, and weights are averaged one way; leave one of them at 0")
        mixed = any(size.experts > 1 for size in self.sizes if size.name in self.size_names(name))
        for axis, used, remedy in (
            ("decay_fraction", training.schedule == "wsd", 'set training.schedule = "wsd"'),
            ("balance_loss", mixed, "give a size experts"),
        ):
            if axis in axes and not used:
                raise ValueError(f"{axis} changes nothing here and would train every point again; {remedy}, or leave it out")
        if recipe.vary == "snapshot" and training.cycles != recipe.members:
            raise ValueError(f"members {recipe.members} are snapshots of {training.cycles} cycles; set both to one number")
        steps = self.seed_tokens[0] * min(axes["epochs"]) // (training.batch_size * training.context_length)
        if training.cycles > steps:
            raise ValueError(f".training: cycles {training.cycles} are more than the {steps:g} steps of its shortest run")

    def _recipe_order(self) -> list[str]:
        """Recipe names, each after its base and its teacher. Raises ValueError on a circle."""
        ordered: list[str] = []
        while len(ordered) < len(self.recipes):
            ready = [n for n, r in self.recipes.items() if n not in ordered and set(r.builds_on.values()) <= set(ordered)]
            if not ready:
                circle = [n for n in self.recipes if n not in ordered]
                raise ValueError(f"recipes {circle} build on one another in a circle; let one have no base and no teacher")
            ordered += ready
        return ordered

    def size_names(self, recipe: str) -> list[str]:
        """Return the names of a recipe's sizes, in the order of the study's."""
        chosen = self.recipes[recipe].sizes
        return [size.name for size in self.sizes if chosen is None or size.name in chosen]

    def recipe(self, name: str) -> RecipeSpec:
        """Return a recipe with the training and the teacher that it has from the base it follows."""
        recipe = self.recipes[name]
        if recipe.tune is None or recipe.base is None:
            return recipe
        base = self.recipe(recipe.base)
        return recipe.model_copy(
            update={"training": {**base.training, **recipe.training}, "teacher": recipe.teacher or base.teacher}
        )

    def training_of(self, recipe: str) -> StudyTraining:
        """Return the `[training]` table with what the recipe sets otherwise. Raises `ValueError` for what all must share."""
        own = self.recipe(recipe).training
        if shared := [key for key in SHARED_TRAINING if key in own]:
            raise ValueError(f".training: {shared[0]} is the same for all recipes; set it in [training]")
        return StudyTraining.model_validate({**self.training.model_dump(), **own})

    def grid_of(self, recipe: str) -> Grid:
        """Return the grid a recipe is tuned on: the study's, with the fixed axes at their one value. An axis that follows
        the base's optimum stands at the middle of the study's axis until that is known.
        """
        chosen = self.recipes[recipe]
        axes: dict[str, tuple[float, ...]] = {}
        for name in [*self.grid, *(axis for axis in chosen.fixed if axis not in self.grid)]:
            if name in chosen.fixed:
                axes[name] = (chosen.fixed[name],)
            elif chosen.tune is None or name in chosen.tune:
                axes[name] = tuple(self.grid[name])
            else:
                values = self.grid[name]
                axes[name] = (changed(name, values[(len(values) - 1) // 2], chosen.change),)
        return Grid(axes)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, each after the cells whose optimum it starts from."""
        found: list[Cell] = []
        for recipe in self._recipe_order():
            grid, chosen = self.grid_of(recipe), self.recipe(recipe)
            sizes = [size for size in self.sizes if size.name in self.size_names(recipe)]
            for d, seed_tokens in enumerate(self.seed_tokens):
                for n, size in enumerate(sizes):
                    neighbour = base = teacher = None
                    if chosen.start == "neighbour" and (n or d) and grid.size > 1:
                        at = (seed_tokens, sizes[n - 1]) if n else (self.seed_tokens[d - 1], size)
                        neighbour = cell_id(self.name, recipe, at[0], at[1].name)
                    if chosen.base:
                        base = cell_id(self.name, chosen.base, seed_tokens, size.name)
                    if chosen.teacher:
                        taught_by = chosen.teacher.size or size.name
                        teacher = cell_id(self.name, chosen.teacher.recipe, seed_tokens, taught_by)
                    found.append(Cell(self.name, recipe, seed_tokens, size, grid, neighbour, base, teacher))
        return found

    def model(self, size: SizeSpec, vocabulary: int) -> ModelSpec:
        """Return the decoder of this size over `vocabulary` tokens."""
        return ModelSpec(
            vocabulary=vocabulary,
            context_length=self.training.context_length,
            rope_theta=self.training.rope_theta,
            **size.model_dump(exclude={"name"}),
        )


def cell_id(study: str, recipe: str, seed_tokens: int, size: str) -> str:
    """Return the id of a cell, such as `quickstart/standard/32768/width32`."""
    return f"{study}/{recipe}/{seed_tokens}/{size}"


@dataclass(frozen=True)
class Cell:
    """(recipe, D, N) of a study: the unit that is tuned."""

    study: str
    recipe: str
    seed_tokens: int
    size: SizeSpec
    grid: Grid
    neighbour: str | None = None  # id of the cell of this recipe whose optimum is a starting point
    base: str | None = None  # id of the cell whose optimum is followed
    teacher: str | None = None  # id of the cell whose members teach
    taught: Synthetic | TeacherLogits | None = None  # how, once those are known

    @property
    def id(self) -> str:
        return cell_id(self.study, self.recipe, self.seed_tokens, self.size.name)


@dataclass(frozen=True)
class Study:
    """A StudySpec with the file and the text it was declared in; a study built in Python has neither."""

    spec: StudySpec
    text: str = ""
    path: Path | None = None

    @property
    def directory(self) -> Path:
        """The folder that relative paths start from."""
        return Path.cwd() if self.path is None else self.path.resolve().parent

    def place_of(self, key: str) -> str:
        """Return `FILE:LINE: ` of a top-level key, to begin an error with; nothing for a study built in Python."""
        return "" if self.path is None else f"{self.path}:{line_of(self.text, [key])}: "

    @property
    def source(self) -> str:
        """The TOML text, or for a study built in Python its canonical JSON."""
        return self.text or canonical_json(self.spec.model_dump())

    @classmethod
    def load(cls, name_or_path: str | Path) -> Study:
        """Read a study file, by path or by the name of one carried with the package.

        Raises `StudyError`, which names the file, the line, the value, the rule and the nearest valid name.
        """
        path = _study_path(name_or_path)
        try:
            text = path.read_text(encoding="utf-8")
            document = tomllib.loads(text)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise StudyError(f"{path}: cannot be read as TOML: {error}") from error
        try:
            return cls(StudySpec.model_validate({"name": path.stem, **document}), text, path)
        except ValidationError as error:
            raise StudyError("\n".join(f"{path}:{line}" for line in explain(error, text, StudySpec, _TABLES))) from None


def carried_studies() -> dict[str, Path]:
    """Return the study files that travel with the package, by name."""
    return {path.stem: path for path in sorted(shared_folder("studies").glob("*.toml"))}


def _study_path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    carried = carried_studies()
    if str(name_or_path) in carried:
        return carried[str(name_or_path)]
    raise StudyError(
        f"no study file {path}; give a path to a .toml file, or the name of a built-in study; {nearest(path, carried)}"
    )


_TABLES: dict[str, type[Spec]] = {
    "corpus": CorpusSpec,
    "tokenizer": TokenizerSpec,
    "training": StudyTraining,
    "recipes": RecipeSpec,
    "teacher": TeacherSpec,
    "resources": Resources,
    "sizes": SizeSpec,
}
