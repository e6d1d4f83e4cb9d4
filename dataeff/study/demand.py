"""Demand: the jobs that the cells of a study ask for, on one built corpus.

    a point of a cell   ->  its run; with the objective K, the runs of its members and their ensemble
    a cell's optimum    ->  its members and their ensemble, and repeats of these under seeds and draws that chose nothing
    a taught cell       ->  runs that have samples of its teacher's members, or these members, as inputs

Pure values: nothing here knows what is recorded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dataeff.specs.grid import Grid, Point
from dataeff.specs.recipe import WHOLE_AXES, RecipeSpec, changed
from dataeff.specs.run import TRAINER_VERSION, Synthetic, TeacherLogits
from dataeff.specs.spec import Input
from dataeff.specs.study import Cell, StudySpec
from dataeff.work.ensemble import Ensemble
from dataeff.work.perturb import Perturb
from dataeff.work.sample import Sample
from dataeff.work.train import Train

Origin = tuple[int, int]  # draw of the data and seed of a run, or of the first member of an ensemble
Optima = Mapping[str, Mapping[str, float] | None]  # values by axis, by cell id; None where a search has none


@dataclass(frozen=True)
class Demand:
    """A study, and what its corpus came to: fingerprint, tokens in the vocabulary, id of the separator."""

    study: StudySpec
    corpus: str
    vocabulary: int
    separator: int

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Every cell by its id, each after the cells it builds on."""
        return {cell.id: cell for cell in self.study.cells}

    @cached_property
    def _recipes(self) -> dict[str, RecipeSpec]:
        return {name: self.study.recipe(name) for name in self.study.recipes}

    @cached_property
    def _training(self) -> dict[str, dict[str, object]]:
        shared = {"context_length", "rope_theta"}
        return {name: self.study.training_of(name).model_dump(exclude=shared) for name in self.study.recipes}

    def recipe(self, cell: Cell) -> RecipeSpec:
        return self._recipes[cell.recipe]

    def place(self, cell: Cell, optima: Optima) -> tuple[Cell, tuple[Point, ...], str | None]:
        """Return the cell with the axes that follow its base's optimum set, its starting points, and a note on axes set
        outside the study's grid. `optima` are those of its base and its neighbour.
        """
        recipe, notes = self.recipe(cell), []
        followed = optima.get(cell.base) if cell.base else None
        goal = {axis: changed(axis, value, recipe.change) for axis, value in (followed or {}).items()}
        if recipe.tune is not None:
            free = {axis: (value,) for axis, value in goal.items() if axis not in (*recipe.tune, *recipe.fixed)}
            cell = replace(cell, grid=Grid({**cell.grid.axes, **free}))
            for axis, (value,) in free.items():
                values = self.study.grid.get(axis, [value])
                if not values[0] <= value <= values[-1]:
                    notes.append(f"{axis} {value:g} lies outside the study's grid, {values[0]:g} to {values[-1]:g}")
        return cell, self._starts(cell, recipe, [optima.get(cell.neighbour), goal]), "; ".join(notes) or None

    def _starts(self, cell: Cell, recipe: RecipeSpec, optima: list[Mapping[str, float] | None]) -> tuple[Point, ...]:
        """Return the declared starts, and the middle of the grid where they are fewer than the study asks for; then the
        middles of its halves, along one axis after the other.
        """
        grid = cell.grid
        starts = [grid.nearest(values) for values in optima if values]
        if isinstance(recipe.start, dict):
            fixed = {name: values[0] for name, values in grid.axes.items() if len(values) == 1}
            starts = [grid.point({**recipe.start, **fixed}), *starts]
        elif recipe.start == "middle":
            starts = [grid.middle, *starts]
        chosen = dict.fromkeys(starts)
        for point in (grid.middle, *grid.quarters):
            if len(chosen) >= self.study.resources.starts:
                break
            chosen[point] = None
        return tuple(chosen)

    def run(self, cell: Cell, point: Point, train_seed: int, data_seed: int, draw: int = 0) -> Train:
        """Return the run at `point` of a placed (and, where it has a teacher, taught) cell."""
        axes = {name: int(v) if name in WHOLE_AXES else v for name, v in cell.grid.values(point).items()}
        taught = cell.taught[draw] if cell.taught else None
        return Train(
            **(self._training[cell.recipe] | axes),
            trainer_version=TRAINER_VERSION,
            corpus=self.corpus,
            seed_tokens=cell.seed_tokens,
            model=self.study.model(cell.size, self.vocabulary),
            train_seed=train_seed,
            data_seed=data_seed,
            draw=draw,
            synthetic=taught if isinstance(taught, Synthetic) else None,
            teacher_logits=taught if isinstance(taught, TeacherLogits) else None,
        )

    @property
    def tuned(self) -> Origin:
        return 0, self.study.seeds[0]

    def _repeated(self, draw: int) -> Origin:
        """Return the first seed that repeats an optimum on a draw, or the one that tunes it on draw 0."""
        return (draw, self._others[0] + draw - 1) if draw else self.tuned

    @property
    def _others(self) -> list[int]:
        """The seeds that repeat an optimum."""
        return self.study.seeds[1:] or [self.study.seeds[0] + 1]

    def repeats(self, cell: Cell) -> list[Origin]:
        """Return where a cell's optimum is repeated to estimate its loss: other draws, where the study has several, and other
        seeds. With one draw an ensemble that was tuned as such is repeated with other members, and others are not.
        """
        recipe, (_, first) = self.recipe(cell), self.tuned
        if self.study.draws > 1:
            return [origin for draw in range(1, self.study.draws) for origin in self._on_draw(cell, draw)]
        if recipe.members > 1 and recipe.vary != "snapshot":
            return [(0, first + recipe.members)] if recipe.objective == "K" else []
        return [(0, seed) for seed in self.study.seeds[1:]]

    def pairs(self, cell: Cell) -> list[list[Origin]]:
        """Return where a cell's optimum may be repeated to decide a claim, a list a pair: on draws beyond the study's."""
        claimed = ((claim.at, recipe) for claim in self.study.claims.values() for recipe in (claim.better, claim.than))
        if (cell.seed_tokens, cell.recipe) not in claimed:
            return []
        return [self._on_draw(cell, draw) for draw in range(self.study.draws, self._draws)]

    @property
    def _draws(self) -> int:
        return self.study.draws + (self.study.resources.claim_pairs if self.study.claims else 0)

    def _on_draw(self, cell: Cell, draw: int) -> list[Origin]:
        recipe = self.recipe(cell)
        if recipe.members > 1 and recipe.vary != "snapshot":
            return [self._repeated(draw)]
        return [(draw, seed + draw - 1) for seed in self._others]  # no two draws share all seeds

    def members(self, cell: Cell, point: Point, count: int | None = None, origin: Origin | None = None) -> list[Train]:
        """Return the runs of a point's members, or `count` of them, the tuned one first unless another origin is given; one run
        where members are its snapshots.
        """
        (draw, first), recipe = origin or self.tuned, self.recipe(cell)
        train, data = (recipe.vary != "data_seed"), (recipe.vary != "train_seed")  # whether the seed varies
        count = count or (1 if recipe.vary == "snapshot" else recipe.members)
        return [self.run(cell, point, first + k * train, first + k * data, draw) for k in range(count)]

    def searched(self, cell: Cell, point: Point) -> list[Train]:
        """Return the runs whose losses are the point's objective."""
        return self.members(cell, point, None if self.recipe(cell).objective == "K" else 1)

    def ensemble(self, cell: Cell, point: Point, origin: Origin | None = None) -> Ensemble | None:
        """Return the ensemble of a point's members; None for a recipe of single models."""
        if self.recipe(cell).members == 1:
            return None
        return Ensemble(
            corpus=self.corpus,
            members=self.member_inputs(cell, point, origin),
            validation_sequences=self.study.training.validation_sequences,
            precision=self.study.training.precision,
        )

    def measures(self, run: Train) -> list[Perturb]:
        """Return what the study measures of a trained run."""
        return [
            Perturb(
                corpus=self.corpus,
                model=Input(run),
                gammas=each.gammas,
                noises=each.noises,
                validation_sequences=self.study.training.validation_sequences,
                precision=self.study.training.precision,
            )
            for each in self.study.measures.values()
        ]

    def member_inputs(self, cell: Cell, point: Point, origin: Origin | None = None) -> list[Input]:
        """Return the members as inputs; of snapshots the last, which is the run itself, comes first."""
        runs = self.members(cell, point, origin=origin)
        if self.recipe(cell).vary == "snapshot":
            return [Input(runs[0]), *(Input(runs[0], cycle) for cycle in range(self.recipe(cell).members - 1, 0, -1))]
        return [Input(run) for run in runs]

    def taught(self, cell: Cell, teachers: Sequence[list[Input]]) -> Cell:
        """Return the cell with what its teacher's members, of each draw, are to its runs."""
        return replace(cell, taught=tuple(self._lesson(cell, members) for members in teachers))

    def teachers(self, teacher: Cell, optimum: Point) -> list[list[Input]]:
        """Return the members of a teacher's optimum on each draw of the data."""
        return [self.member_inputs(teacher, optimum, self._repeated(draw)) for draw in range(self._draws)]

    def _lesson(self, cell: Cell, members: list[Input]) -> Synthetic | TeacherLogits:
        """Return whose logits a cell's runs match, or whose samples they see."""
        teacher = self.recipe(cell).teacher
        if teacher.kind == "logits":
            return TeacherLogits(members=members, weight=teacher.weight, temperature=teacher.temperature)
        sample = Sample(
            members=members,
            pool=teacher.pool,
            sequences=math.ceil(cell.seed_tokens * teacher.tokens_per_seed_token / self.study.training.context_length),
            temperature=teacher.temperature,
            top_p=teacher.top_p,
            separator=self.separator,
            seed=self.study.seeds[0],
            precision=self.study.training.precision,
        )
        return Synthetic(samples=Input(sample), share=teacher.share)

    def typical_points(self, cell: Cell) -> int:
        """Return how many points a search typically needs: the start, its neighbours on the tuned axes, and a move or two.

        A rule of thumb, not a bound: the quickstart's searches took 6.0 runs on two axes and 8.9 on three, on average.
        """
        size, limit = cell.grid.size, self.study.resources.max_runs_per_cell
        return min(size, limit or size, 1 + 3 * sum(length > 1 for length in cell.grid.shape))

    def typical_flops(self, cell: Cell) -> float:
        """Return the training FLOPs of a run in the middle of the cell's grid."""
        epochs, teacher = cell.grid.values(cell.grid.middle)["epochs"], self.recipe(cell).teacher
        synthetic = teacher.share if teacher and teacher.kind == "samples" and teacher.share < 1 else 0.0
        tokens = cell.seed_tokens * epochs / (1 - synthetic)
        return tokens * self.study.model(cell.size, self.vocabulary).training_flops_per_token
