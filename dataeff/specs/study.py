"""StudySpec: one question, declared. A TOML file or Python builds the same value.

A study spans cells: (recipe, seed tokens, size). Each cell is tuned on the recipe's grid, starting from where a
neighbouring cell ended; an axis that a recipe does not tune is fixed, or follows the optimum of the recipe it builds on.
`dataeff.study.demand` makes the runs.
"""

import re
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from dataeff.errors import OffGridError, StudyError, nearest
from dataeff.share import shared_folder
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec
from dataeff.specs.grid import Grid
from dataeff.specs.identity import canonical_json
from dataeff.specs.mistakes import explain, line_of, rule
from dataeff.specs.recipe import (
    REQUIRED_AXES,
    WHOLE_AXES,
    Axis,
    ClaimSpec,
    MeasureSpec,
    RecipeSpec,
    StudyTraining,
    TeacherSpec,
    changed,
)
from dataeff.specs.run import PRESETS, TRAINER_VERSION, ModelSpec, RunSpec, SizeSpec, Synthetic, TeacherLogits
from dataeff.specs.spec import Spec

SHARED_TRAINING = ("context_length", "rope_theta", "validation_sequences", "precision")  # by all recipes of a study
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it is a part of file names, links and commands
NAME_RULE = "a study's name is made of the letters A to Z, digits, '.', '_' and '-'"


def _preset(value: object) -> object:
    if isinstance(value, str) and value not in PRESETS:
        raise ValueError(f"no size is named '{value}'; {nearest(value, PRESETS)}, or a table with its shape")
    return PRESETS[value] if isinstance(value, str) else value


def _named(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f'{NAME_RULE}; rename the file, or write another into it: name = "mine"')
    return name


def _require(names: Iterable[str], valid: Collection[str], where: str, rule: str) -> None:
    """Raise `ValueError` for the first of `names` that is not valid."""
    for name in names:
        if name not in valid:
            raise ValueError(f"{where}: '{name}' is {rule}; {nearest(name, valid)}")


def _first(error: ValidationError, model: type[Spec]) -> tuple[str, str]:
    """Return key and rule of the first mistake that pydantic found in a `model`."""
    problem = error.errors()[0]
    return ".".join(map(str, problem["loc"])), rule(problem, model)


class Resources(Spec):
    """How much is spent; nothing here changes a loss."""

    starts: int = Field(default=2, ge=1, description="points a search starts from: declared, the grid's middle, its quarters")
    keep: Literal["all", "optima", "none"] = "all"  # whose weights stay once nothing is left that reads them
    max_runs_per_cell: int | None = Field(default=None, ge=1, description="the search ends `open` when it has used them")
    points_in_flight: int = Field(default=2, ge=1, description="a cell's points that are trained at the same time")
    claim_pairs: int = Field(default=0, ge=0, description="further draws a claim may have trained until it is decided")
    evaluations: int = Field(default=4, ge=1, description="validations a run, evenly spaced, the final one included")


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
    taught: tuple[Synthetic | TeacherLogits, ...] = ()  # how, in each draw of the data, once those are known

    @property
    def id(self) -> str:
        return cell_id(self.study, self.recipe, self.seed_tokens, self.size.name)

    @property
    def builds_on(self) -> set[str]:
        """The cells whose optimum it needs to start."""
        return {other for other in (self.neighbour, self.base, self.teacher) if other}


class StudySpec(Spec):
    """A question and all that is needed to answer it."""

    name: Annotated[str, AfterValidator(_named)]
    question: str = Field(min_length=1)
    seed_tokens: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, description="budgets D, rising")
    sizes: list[Annotated[SizeSpec, BeforeValidator(_preset)]] = Field(min_length=1, description="presets or tables, rising")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1, description="the first tunes, others replicate")
    draws: int = Field(default=1, ge=1, description="orders of the documents: the first tunes, optima are repeated on the others")
    baseline: str = Field(default="standard", description="recipe whose data law measures data efficiency")
    corpus: CorpusSpec = CorpusSpec()
    tokenizer: TokenizerSpec
    training: StudyTraining
    grid: dict[Axis, list[float]]
    recipes: dict[str, RecipeSpec] = Field(min_length=1)
    resources: Resources = Resources()
    claims: dict[str, ClaimSpec] = {}
    measures: dict[str, MeasureSpec] = {}

    @field_validator("seed_tokens", "seeds", "grid")
    def _rising(cls, values: Any, info: ValidationInfo) -> Any:
        if values:
            Grid(values if info.field_name == "grid" else {info.field_name: values})
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [size.name for size in self.sizes]
        if len(set(names)) < len(names):
            raise ValueError(f"sizes have one name twice: {names}; names must differ")
        _require([self.baseline], self.recipes, "baseline", "not a recipe")
        for name in self.recipes:
            self._check_names(name)
        self._recipe_order()
        for name in self.recipes:
            self._check_axes(name)
            self._check_training(name)
            self._check_runs(name)
        return self

    @model_validator(mode="after")
    def _check_claims(self) -> Self:
        for name, claim in self.claims.items():
            where, others = f"claims.{name}", [recipe for recipe in self.recipes if recipe != claim.better]
            _require([claim.better], self.recipes, f"{where}.better", "not a recipe")
            _require([claim.than], others, f"{where}.than", "not another recipe")
            _require([str(claim.at)], [str(tokens) for tokens in self.seed_tokens], f"{where}.at", "not one of seed_tokens")
        return self

    def _check_names(self, name: str) -> None:
        recipe, others = self.recipes[name], [other for other in self.recipes if other != name]
        _require(recipe.sizes or (), [size.name for size in self.sizes], f"recipes.{name}.sizes", "not a size of the study")
        for key, other in recipe.builds_on.items():
            _require([other], others, f"recipes.{name}.{key}", "not another recipe")
            needed = [recipe.teacher.size] if key == "teacher" and recipe.teacher.size else self.sizes_of(name)
            _require(needed, self.sizes_of(other), f"recipes.{name}.{key}", f"not a size of recipe '{other}'")

    def _check_axes(self, name: str) -> None:
        """Raise `ValueError` for an axis that nothing decides, or that a recipe names without having it."""
        recipe, where = self.recipes[name], f"recipes.{name}"
        if missing := [axis for axis in REQUIRED_AXES if axis not in self.grid and axis not in recipe.fixed]:
            raise ValueError(f"{where}: {', '.join(missing)} is neither on the grid nor fixed; add it to [grid] or to fixed")
        free = [axis for axis in self.grid if axis not in recipe.fixed]
        tuned = free if recipe.tune is None else recipe.tune
        _require(tuned, free, f"{where}.tune", "not on the grid, or fixed")
        _require(recipe.change, free, f"{where}.change", "not on the grid, or fixed")
        if not recipe.base and (followed := [axis for axis in free if axis not in tuned]):
            raise ValueError(f"{where}: {', '.join(followed)} is neither tuned nor fixed, with no base to follow; add one")
        if isinstance(recipe.start, dict):
            axes = self.grid_of(name).axes
            _require(recipe.start, axes if recipe.tune is None else recipe.tune, f"{where}.start", "not tuned")
            try:
                self.grid_of(name).point({axis: values[0] for axis, values in axes.items() if len(values) == 1} | recipe.start)
            except OffGridError as error:
                raise ValueError(f"{where}.start: {error}") from None

    def _check_training(self, name: str) -> None:
        """Raise `ValueError` for what a recipe trains otherwise that means nothing."""
        recipe, axes, where = self.recipes[name], self.grid_of(name).axes, f"recipes.{name}"
        if twice := [key for key in recipe.training if key in axes]:
            raise ValueError(f"{where}.training: {twice[0]} is an axis already; set it in fixed instead")
        training = self.training_of(name)
        mixed = any(size.experts > 1 for size in self.sizes_of(name).values())
        for axis, used, remedy in (
            ("decay_fraction", training.schedule == "wsd", 'set training.schedule = "wsd"'),
            ("balance_loss", mixed, "give a size experts"),
        ):
            if axis in axes and not used:
                raise ValueError(f"{where}: {axis} changes nothing and would train every point again; {remedy}, or leave it out")
        if recipe.vary == "snapshot" and training.cycles != recipe.members:
            raise ValueError(f"{where}: {recipe.members} members, snapshots of {training.cycles} cycles; set both to one number")

    def _check_runs(self, name: str) -> None:
        """Raise `ValueError` for what a run refuses: each axis takes all its values while the others are at either end."""
        recipe, axes = self.recipes[name], dict(self.grid_of(name).axes)
        for axis in recipe.change:
            axes[axis] += tuple(changed(axis, value, recipe.change) for value in self.grid[axis])
        shared = self.training_of(name).model_dump(exclude={"context_length", "rope_theta"})
        shared |= {"trainer_version": TRAINER_VERSION, "corpus": "any", "model": self.model(self.sizes[0], vocabulary=2)}
        for end, seed_tokens, axis in product((0, -1), self.seed_tokens, axes):
            for value in axes[axis]:
                point = {other: values[end] for other, values in axes.items()} | {axis: value}
                whole = {key: int(point[key]) for key in WHOLE_AXES if key in point and point[key] == int(point[key])}
                try:
                    RunSpec(**shared | point | whole, seed_tokens=seed_tokens)
                except ValidationError as error:
                    key, problem = _first(error, RunSpec)
                    if key in axes:
                        table = next((f"recipes.{name}.{t}" for t in ("fixed", "change") if key in getattr(recipe, t)), "grid")
                        key = f"{table}.{key} = {point[key]:g}"
                    raise ValueError(f"{key or f'recipes.{name}'}: {problem}") from None

    def _recipe_order(self) -> list[str]:
        """Recipe names, each after its base and its teacher. Raises ValueError on a circle."""
        graph = {name: recipe.builds_on.values() for name, recipe in self.recipes.items()}
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = ", ".join(error.args[1][1:])
            raise ValueError(f"recipes {circle} build on one another in a circle; let one have no base and no teacher") from None

    def sizes_of(self, recipe: str) -> dict[str, SizeSpec]:
        chosen = self.recipes[recipe].sizes
        return {size.name: size for size in self.sizes if chosen is None or size.name in chosen}

    def recipe(self, name: str) -> RecipeSpec:
        """Return a recipe with the training and the teacher that it has from the base it follows."""
        recipe = self.recipes[name]
        if recipe.tune is None or recipe.base is None:
            return recipe
        base = self.recipe(recipe.base)
        inherited = {"training": base.training | recipe.training, "teacher": recipe.teacher or base.teacher}
        return recipe.model_copy(update=inherited)

    def training_of(self, recipe: str) -> StudyTraining:
        """Return the `[training]` table with what the recipe sets otherwise. Raises `ValueError` for what all must share."""
        own, where = self.recipe(recipe).training, f"recipes.{recipe}.training"
        if shared := [key for key in SHARED_TRAINING if key in own]:
            raise ValueError(f"{where}: {shared[0]} is the same for all recipes; set it in [training]")
        try:
            return StudyTraining.model_validate({**self.training.model_dump(), **own})
        except ValidationError as error:
            key, problem = _first(error, StudyTraining)
            raise ValueError(f"{where}.{key}: {problem}") from None

    def grid_of(self, recipe: str) -> Grid:
        """Return the grid a recipe is tuned on, with one value of what is fixed, and one in the middle of what follows a base."""
        chosen = self.recipes[recipe]
        axes = {axis: tuple(values) for axis, values in self.grid.items()} | {axis: (v,) for axis, v in chosen.fixed.items()}
        for axis, values in axes.items():
            if chosen.tune is not None and axis not in (*chosen.tune, *chosen.fixed):
                axes[axis] = (changed(axis, values[(len(values) - 1) // 2], chosen.change),)
        return Grid(axes)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, each after the cells whose optimum it starts from."""
        cells = []
        for recipe in self._recipe_order():
            grid, chosen, sizes = self.grid_of(recipe), self.recipe(recipe), self.sizes_of(recipe)
            teacher, before = chosen.teacher, chosen.start == "neighbour" and grid.size > 1
            for (d, seed_tokens), (n, size) in product(enumerate(self.seed_tokens), enumerate(sizes)):
                at = (seed_tokens, list(sizes)[n - 1]) if n else (self.seed_tokens[d - 1], size)
                others = (
                    cell_id(self.name, recipe, *at) if before and (n or d) else None,
                    chosen.base and cell_id(self.name, chosen.base, seed_tokens, size),
                    teacher and cell_id(self.name, teacher.recipe, seed_tokens, teacher.size or size),
                )
                cells.append(Cell(self.name, recipe, seed_tokens, sizes[size], grid, *others))
        return cells

    def model(self, size: SizeSpec, vocabulary: int) -> ModelSpec:
        context = {"context_length": self.training.context_length, "rope_theta": self.training.rope_theta}
        return ModelSpec(vocabulary=vocabulary, **context, **size.model_dump(exclude={"name"}))


@dataclass(frozen=True)
class Study:
    """A StudySpec with the file and the text it was declared in; a study built in Python has neither."""

    spec: StudySpec
    text: str = ""
    path: Path | None = None

    @property
    def directory(self) -> Path:
        return Path.cwd() if self.path is None else self.path.resolve().parent

    def place_of(self, key: str) -> str:
        """Return `FILE:LINE: ` of a top-level key, to begin an error with; nothing for a study built in Python."""
        return "" if self.path is None else f"{self.path}:{line_of(self.text, [key])}: "

    @property
    def source(self) -> str:
        """The TOML text, or for a study built in Python its canonical JSON."""
        return self.text or canonical_json(self.spec.model_dump())

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Read a study file, by path or by the name of one carried with the package.

        Raises `StudyError`, which names the file, the line, the value, the rule and the nearest valid name.
        """
        path, carried = Path(name_or_path), carried_studies()
        if not path.is_file():
            if str(path) not in carried:
                remedy = "give a path to a .toml file, or the name of a built-in study"
                raise StudyError(f"no study file {path}; {remedy}; {nearest(path, carried)}")
            path = carried[str(path)]
        try:
            text = path.read_text(encoding="utf-8")
            document = tomllib.loads(text)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise StudyError(f"{path}: cannot be read as TOML: {error}") from error
        try:
            return cls(StudySpec.model_validate({"name": path.stem, **document}), text, path)
        except ValidationError as error:
            tables = {"corpus": CorpusSpec, "tokenizer": TokenizerSpec, "training": StudyTraining, "recipes": RecipeSpec}
            tables |= {"teacher": TeacherSpec, "resources": Resources, "sizes": SizeSpec}
            tables |= {"claims": ClaimSpec, "measures": MeasureSpec}
            raise StudyError("\n".join(f"{path}:{line}" for line in explain(error, text, StudySpec, tables))) from None


def carried_studies() -> dict[str, Path]:
    return {path.stem: path for path in sorted(shared_folder("studies").glob("*.toml"))}
