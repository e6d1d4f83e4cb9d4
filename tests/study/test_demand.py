"""The recipe language: what a few lines of a study file ask for."""

from __future__ import annotations

import pytest

from dataeff.specs.run import Synthetic, TeacherLogits
from dataeff.specs.spec import Input
from dataeff.specs.study import Cell, Study, StudySpec
from dataeff.study.demand import Demand

QUICKSTART = Study.load("quickstart").spec
OPTIMUM = {"lr": 1e-2, "weight_decay": 1.6, "epochs": 64.0}


def demand(**recipe) -> Demand:
    """The quickstart with one more recipe, `mine`."""
    declared = QUICKSTART.model_dump()
    return Demand(StudySpec.model_validate({**declared, "recipes": {**declared["recipes"], "mine": recipe}}), "abc", 512, 0)


def cell_of(asked: Demand, recipe: str = "mine") -> Cell:
    return next(cell for cell in asked.study.cells if cell.recipe == recipe and cell.size.name == "width32")


def placed(asked: Demand) -> tuple[Cell, tuple, str | None]:
    cell = cell_of(asked)
    return asked.place(cell, {cell.base: OPTIMUM})


def test_a_recipe_that_tunes_nothing_is_its_bases_optimum_and_shares_its_run():
    asked = demand(base="regularized", tune=[])
    cell, starts, note = placed(asked)
    assert cell.grid.size == 1 and note is None
    regularized = cell_of(asked, "regularized")
    shared = asked.run(regularized, regularized.grid.point(OPTIMUM), 0, 0)
    assert asked.run(cell, starts[0], 0, 0) == shared


def test_twice_the_epochs_and_half_the_decay_are_just_that_also_off_the_grid():
    cell, starts, note = placed(demand(base="regularized", tune=[], change={"epochs": "x 2", "weight_decay": "x 0.5"}))
    assert cell.grid.values(starts[0]) == {"lr": 1e-2, "weight_decay": 0.8, "epochs": 128.0}
    assert note == "epochs 128 lies outside the study's grid, 2 to 64"


def test_what_a_base_fixes_off_the_grid_and_trains_otherwise_holds_for_who_follows_it():
    declared = QUICKSTART.model_dump()
    base = {"fixed": {"dropout": 0.3}, "training": {"optimizer": "muon"}, "teacher": {"recipe": "standard"}}
    follower = {"base": "base", "tune": [], "members": 3, "limit": "K"}
    recipes = {**declared["recipes"], "base": base, "mine": follower}
    asked = Demand(StudySpec.model_validate({**declared, "recipes": recipes}), "abc", 512, 0)
    cell = cell_of(asked)
    assert cell.teacher == "quickstart/standard/4096/width32"
    placed, starts, _ = asked.place(cell, {cell.base: {**OPTIMUM, "dropout": 0.3}})
    run = asked.members(placed, starts[0])[0]
    assert (run.dropout, run.optimizer, run.lr) == (0.3, "muon", 1e-2)


def test_a_changed_value_is_the_grids_where_the_grid_has_it():
    cell, starts, _ = placed(demand(base="regularized", tune=[], change={"weight_decay": "x 0.25", "lr": "x 3"}))
    assert cell.grid.values(starts[0])["lr"] == 0.03
    assert cell.grid.values(starts[0])["weight_decay"] == 0.4


def test_an_epoch_is_never_cut():
    cell, starts, _ = placed(demand(base="regularized", tune=[], change={"epochs": "x 0.001"}))
    assert cell.grid.values(starts[0])["epochs"] == 1.0


def test_what_is_tuned_starts_at_the_changed_optimum_and_the_rest_follows_it():
    cell, starts, _ = placed(demand(base="regularized", tune=["epochs"], change={"epochs": "x 0.5", "lr": "x 3"}))
    assert cell.grid.axes == {"lr": (0.03,), "weight_decay": (1.6,), "epochs": tuple(QUICKSTART.grid["epochs"])}
    assert cell.grid.values(starts[0])["epochs"] == 32.0


@pytest.mark.parametrize(
    ("vary", "seeds"),
    [("both", [(0, 0), (1, 1), (2, 2)]), ("train_seed", [(0, 0), (1, 0), (2, 0)]), ("data_seed", [(0, 0), (0, 1), (0, 2)])],
)
def test_members_differ_in_what_is_said_and_the_first_is_the_tuned_run(vary, seeds):
    asked = demand(base="regularized", tune=[], members=3, vary=vary, limit="K")
    cell, starts, _ = placed(asked)
    members = asked.members(cell, starts[0])
    assert [(run.train_seed, run.data_seed) for run in members] == seeds
    assert asked.searched(cell, starts[0]) == members[:1]
    assert asked.repeats(cell) == []
    assert [str(member) for member in asked.ensemble(cell, starts[0]).members] == [run.id for run in members]


def test_a_point_tuned_for_the_limit_costs_all_its_members():
    asked = demand(members=4, objective="K", limit="K then N")
    cell = cell_of(asked)
    assert len(asked.searched(cell, cell.grid.middle)) == 4


def test_snapshots_of_one_run_are_members_the_run_itself_first():
    asked = demand(training={"cycles": 3}, members=3, vary="snapshot", limit="K")
    cell = cell_of(asked)
    (run,) = asked.members(cell, cell.grid.middle)
    assert run.cycles == 3
    members = asked.ensemble(cell, cell.grid.middle).members
    assert [str(member) for member in members] == [run.id, f"{run.id}@2", f"{run.id}@1"]
    assert asked.repeats(cell) == [(0, 1)]


def test_a_teachers_samples_are_known_before_they_are_drawn():
    asked = demand(base="regularized", tune=[], teacher={"recipe": "regularized", "share": 0.75, "tokens_per_seed_token": 3.0})
    cell, starts, _ = placed(asked)
    taught = asked.taught(cell, [[Input("a"), Input("b")]])
    run = asked.run(taught, starts[0], 0, 0)
    (sample,) = run.inputs
    assert [str(member) for member in sample.job.members] == ["a", "b"]
    assert sample.job.sequences * 64 == 3 * cell.seed_tokens
    assert run.synthetic == Synthetic(samples=sample.job.id, share=0.75)
    assert run.tokens_seen == 4 * cell.seed_tokens * run.epochs
    assert run.id != asked.run(cell, starts[0], 0, 0).id


def test_a_teacher_whose_logits_are_matched_needs_no_samples():
    asked = demand(base="regularized", tune=[], teacher={"recipe": "regularized", "kind": "logits", "weight": 0.9})
    cell, starts, _ = placed(asked)
    run = asked.run(asked.taught(cell, [[Input("a")]]), starts[0], 0, 0)
    assert run.teacher_logits == TeacherLogits(members=["a"], weight=0.9)
    assert run.inputs == (Input("a"),)


def test_a_student_may_be_smaller_than_its_teacher_and_has_its_own_cells():
    asked = demand(sizes=["width32"], teacher={"recipe": "regularized", "size": "width64"})
    cells = [cell for cell in asked.study.cells if cell.recipe == "mine"]
    assert [cell.teacher for cell in cells] == [f"quickstart/regularized/{d}/width64" for d in QUICKSTART.seed_tokens]


def test_a_recipe_trains_otherwise_where_it_says_so():
    asked = demand(training={"optimizer": "muon", "dropout": 0.1})
    cell = cell_of(asked)
    run = asked.run(cell, cell.grid.middle, 0, 0)
    assert (run.optimizer, run.dropout) == ("muon", 0.1)
    other = cell_of(asked, "regularized")
    assert asked.run(other, other.grid.middle, 0, 0).optimizer == "adamw"


def with_draws(draws: int, seeds: list[int], **recipe) -> Demand:
    declared = demand(**recipe).study.model_dump() | {"draws": draws, "seeds": seeds}
    return Demand(StudySpec.model_validate(declared), "abc", 512, 0)


@pytest.mark.parametrize(
    ("draws", "seeds", "repeats"),
    [(1, [0], []), (1, [0, 1, 2], [(0, 1), (0, 2)]), (3, [0], [(1, 1), (2, 2)]), (2, [0, 1, 2], [(1, 1), (1, 2)])],
)
def test_an_optimum_is_repeated_by_seeds_and_draws_that_tuned_nothing(draws, seeds, repeats):
    asked = with_draws(draws, seeds)
    cell = cell_of(asked)
    assert asked.repeats(cell) == repeats
    runs = [run for at in repeats for run in asked.members(cell, cell.grid.middle, origin=at)]
    assert [(run.draw, run.train_seed) for run in runs] == repeats


def test_an_ensemble_is_repeated_by_fresh_members_on_each_draw():
    asked = with_draws(3, [0, 1], base="regularized", tune=[], members=4, limit="K")
    cell, starts, _ = placed(asked)
    assert asked.repeats(cell) == [(1, 1), (2, 2)]
    members = asked.members(cell, starts[0], origin=(2, 2))
    assert [(run.draw, run.train_seed) for run in members] == [(2, 2), (2, 3), (2, 4), (2, 5)]
    assert asked.ensemble(cell, starts[0], (2, 2)).id != asked.ensemble(cell, starts[0]).id


def test_members_that_were_tuned_together_are_judged_by_others():
    asked = with_draws(1, [0, 1], members=4, objective="K")
    assert asked.repeats(cell_of(asked)) == [(0, 4)]


def test_a_student_on_another_draw_is_taught_by_a_teacher_of_that_draw():
    asked = with_draws(2, [0, 1], base="regularized", tune=[], teacher={"recipe": "regularized"})
    cell, starts, _ = placed(asked)
    teacher = cell_of(asked, "regularized")
    taught = asked.taught(cell, asked.teachers(teacher, teacher.grid.middle))
    for draw in (0, 1):
        (sample,) = asked.run(taught, starts[0], 1, 1, draw).inputs
        assert [member.job.draw for member in sample.job.members] == [draw]
