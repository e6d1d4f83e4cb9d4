"""StudySpec: one question, declared. A TOML file or Python builds the same value.

A study spans cells: (recipe, seed tokens, size). Each cell is tuned on the recipe's grid, starting from where a
neighbouring cell ended. Which points a cell asks for depends on the study and on the losses alone, never on timing, so
a study that was killed and started again trains the same runs.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from dataeff.errors import OffGridError, StudyError, nearest
from dataeff.share import shared_folder
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec
from dataeff.specs.grid import Grid, Point
from dataeff.specs.identity import canonical_json
from dataeff.specs.run import (
    PRESETS,
    TRAINER_VERSION,
    ModelSpec,
    RunSpec,
    SizeSpec,
    Spec,
    TrainingSpec,
    require_whole_steps,
)

REQUIRED_AXES = ("lr", "weight_decay", "epochs")
AXES = (*REQUIRED_AXES, "batch_size", "warmup_fraction", "gradient_clip", "beta1", "beta2", "dropout")
WHOLE_AXES = ("epochs", "batch_size")


def _preset(value: object) -> object:
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"no size is named '{value}'; {nearest(value, PRESETS)}, or a table with its shape")
        return PRESETS[value]
    return value


def _require_axis(name: str) -> None:
    if name not in AXES:
        raise ValueError(f"'{name}' is not an axis; {nearest(name, AXES)}")


def _require_axis_value(name: str, value: float) -> None:
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


class RecipeSpec(Spec):
    """A named way to train. Every axis of the study's grid is tuned but for those in `fixed`."""

    fixed: dict[str, float] = Field(default_factory=dict, description="axes held at one value")
    limit: Literal["best", "N"] = Field(
        default="N", description="the recipe's limit at each D: its best over N, or the asymptote in N"
    )
    start: Literal["neighbour", "middle"] | dict[str, float] = Field(
        default="neighbour", description="where a cell's search starts: a neighbour cell's optimum, the middle, or a point"
    )
    base: str | None = Field(default=None, description="recipe whose optimum in the same (D, N) is a second starting point")

    @field_validator("fixed")
    @classmethod
    def _known_axes(cls, fixed: dict[str, float]) -> dict[str, float]:
        for name, value in fixed.items():
            _require_axis(name)
            _require_axis_value(name, value)
        return fixed


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
            _require_axis(name)
            if not values:
                raise ValueError(f"axis {name} is empty; give at least one value")
            for value in values:
                _require_axis_value(name, value)
            if values != sorted(set(values)):
                raise ValueError(f"axis {name} = {values}: values must rise strictly; use {sorted(set(values))}")
        return grid

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        if self.baseline not in self.recipes:
            raise ValueError(f"baseline '{self.baseline}' is not a recipe; {nearest(self.baseline, self.recipes)}")
        for name, recipe in self.recipes.items():
            if recipe.base is not None and (recipe.base not in self.recipes or recipe.base == name):
                others = [r for r in self.recipes if r != name]
                raise ValueError(f"recipes.{name}: base '{recipe.base}' is not another recipe; {nearest(recipe.base, others)}")
            if missing := [axis for axis in REQUIRED_AXES if axis not in self.grid and axis not in recipe.fixed]:
                raise ValueError(
                    f"recipes.{name}: {', '.join(missing)} is neither on the grid nor fixed; add it to [grid] or to fixed"
                )
            if isinstance(recipe.start, dict):
                names = self.grid_of(name).names
                if unknown := [axis for axis in recipe.start if axis not in names]:
                    raise ValueError(f"recipes.{name}.start: {unknown[0]} is not on the grid; {nearest(unknown[0], names)}")
                try:
                    self.grid_of(name).point({**recipe.fixed, **recipe.start})
                except OffGridError as error:
                    raise ValueError(f"recipes.{name}.start: {error}") from None
            for seed_tokens in self.seed_tokens:
                batch_sizes = self.grid_of(name).axes.get("batch_size", (self.training.batch_size,))
                for batch_size in batch_sizes:
                    require_whole_steps(seed_tokens, int(batch_size), self.training.context_length)
        self._recipe_order()
        return self

    def _recipe_order(self) -> list[str]:
        """Recipe names with every base before what builds on it. Raises ValueError on a circle."""
        ordered: list[str] = []
        while len(ordered) < len(self.recipes):
            ready = [n for n, r in self.recipes.items() if n not in ordered and (r.base is None or r.base in ordered)]
            if not ready:
                circle = [n for n in self.recipes if n not in ordered]
                raise ValueError(f"recipes {circle} build on one another in a circle; let one have no base")
            ordered += ready
        return ordered

    def grid_of(self, recipe: str) -> Grid:
        """Return the grid a recipe is tuned on: the study's, with the fixed axes at their one value."""
        fixed = self.recipes[recipe].fixed
        names = [*self.grid, *(axis for axis in fixed if axis not in self.grid)]
        return Grid({name: (fixed[name],) if name in fixed else tuple(self.grid[name]) for name in names})

    @property
    def cells(self) -> list[Cell]:
        """Every cell, each after the cells whose optimum it starts from."""
        found: list[Cell] = []
        for recipe in self._recipe_order():
            for d, seed_tokens in enumerate(self.seed_tokens):
                for n, size in enumerate(self.sizes):
                    waits_for = []
                    if self.recipes[recipe].start == "neighbour" and (n or d):
                        neighbour = (seed_tokens, self.sizes[n - 1]) if n else (self.seed_tokens[d - 1], size)
                        waits_for.append(cell_id(self.name, recipe, neighbour[0], neighbour[1].name))
                    if base := self.recipes[recipe].base:
                        waits_for.append(cell_id(self.name, base, seed_tokens, size.name))
                    found.append(Cell(self.name, recipe, seed_tokens, size, self.grid_of(recipe), tuple(waits_for)))
        return found

    def model(self, size: SizeSpec, vocabulary: int) -> ModelSpec:
        """Return the decoder of this size over `vocabulary` tokens."""
        return ModelSpec(
            vocabulary=vocabulary,
            context_length=self.training.context_length,
            rope_theta=self.training.rope_theta,
            **size.model_dump(exclude={"name"}),
        )

    def run_spec(self, cell: Cell, point: Point, seed: int, corpus: str, vocabulary: int) -> RunSpec:
        """Return the run at `point` of `cell`, with `seed` as train seed and data seed, on the corpus of that fingerprint."""
        shared = self.training.model_dump(exclude={"context_length", "rope_theta"})
        axes = {name: int(v) if name in WHOLE_AXES else v for name, v in cell.grid.values(point).items()}
        return RunSpec(
            **{
                **shared,
                **axes,
                "trainer_version": TRAINER_VERSION,
                "corpus": corpus,
                "seed_tokens": cell.seed_tokens,
                "model": self.model(cell.size, vocabulary),
                "train_seed": seed,
                "data_seed": seed,
            }
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
    waits_for: tuple[str, ...]  # cells whose optima are its starting points

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
        return "" if self.path is None else f"{self.path}:{_line_of(self.text, [key])}: "

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
            raise StudyError("\n".join(f"{path}:{line}" for line in _explain(error, text))) from None


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
    "resources": Resources,
    "sizes": SizeSpec,
}


def _explain(error: ValidationError, text: str) -> list[str]:
    """Return `LINE: KEY = VALUE: rule; remedy` for each thing pydantic found."""
    problems = error.errors()
    misspelt = {str(p["loc"][-1]) for p in problems if p["type"] == "extra_forbidden"}
    lines = []
    for problem in problems:
        where = [part for part in problem["loc"] if part != "function-before[_preset(), SizeSpec]"]
        key = ".".join(str(part) for part in where)
        message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        if problem["type"] == "extra_forbidden":
            model = _TABLES.get(str(where[0]), StudySpec) if len(where) > 1 else StudySpec
            message = f"unknown key; {nearest(where[-1], model.model_fields)}"
        elif problem["type"] == "missing":
            if difflib.get_close_matches(str(where[-1]), misspelt, n=1):
                continue  # told already, as the unknown key it was misspelt as
            message = "this key is missing; add it"
        shown = problem["input"]
        value = f" = {shown!r}" if where and problem["type"] != "missing" and not isinstance(shown, dict) else ""
        line = _line_of(text, [*where, *_named(message)])
        lines.append(f"{line}: {key}{value}: {message}" if key else f"{line}: {message}")
    return lines


def _named(message: str) -> list[str]:
    """The key within the table that a rule is about: its message opens with it."""
    first = re.match(r"(?:axis )?'?([\w.]+)", message)
    return first.group(1).split(".") if first else []


def _line_of(text: str, where: list[Any]) -> int:
    """Return the 1-based line of the deepest key of `where` that the text has; line 1 when it has none."""
    table: list[str] = []
    best, depth = 1, 0
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            table = [part.strip(" '\"") for part in header.group(1).split(".")]
            path = table
        elif key := re.match(r"\s*([\w.'\"-]+)\s*=", line):
            path = [*table, *(part.strip("'\"") for part in key.group(1).split("."))]
        else:
            continue
        if len(path) > depth and path == [str(part) for part in where[: len(path)]]:
            best, depth = number, len(path)
    return best
