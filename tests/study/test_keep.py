"""Weights have a life: what is no optimum and nobody's input goes, and what is needed again is trained again. Real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataeff.execution.inline import InlineExecutor
from dataeff.specs.study import Study, StudySpec
from dataeff.study.launch import Launch
from tests.conftest import write_tiny_study

RECIPES = {
    "standard": {"fixed": {"weight_decay": 0.1}, "limit": "best"},
    "ensemble": {"base": "standard", "tune": [], "members": 3, "limit": "K"},
    "student": {"base": "standard", "tune": [], "teacher": {"recipe": "ensemble", "tokens_per_seed_token": 1.0}, "limit": "best"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("keep")
    write_tiny_study(made)
    return made


def launch(folder: Path, name: str, keep: str, recipes=RECIPES) -> Launch:
    declared = Study.load(folder / "tiny.toml").spec.model_dump()
    declared |= {"seed_tokens": [1024], "seeds": [0], "sizes": declared["sizes"][:1], "recipes": recipes}
    declared |= {"grid": {"lr": [1e-2, 3e-2], "weight_decay": [0.1, 1.6], "epochs": [1.0, 2.0]}, "resources": {"keep": keep}}
    with InlineExecutor() as executor:
        study = Study(StudySpec.model_validate(declared), path=folder / "tiny.toml")
        launched = Launch(study, folder / f"{name}.duckdb", executor)
        launched.run()
    assert not launched.failures
    return launched


def weights(launched: Launch) -> set[str]:
    return {file.parent.name for file in launched.store.of_kind("train").glob("*/weights.safetensors")}


def losses(launched: Launch) -> dict[str, float]:
    files = launched.store.of_kind("train").glob("*/result.json")
    return {file.parent.name: json.loads(file.read_text())["val_loss"] for file in files}


def test_all_weights_stay_by_default_and_only_those_of_optima_where_that_is_asked(folder):
    every, optima = launch(folder, "all", "all"), launch(folder, "optima", "optima")
    assert losses(every) == losses(optima)
    assert weights(every) == losses(every).keys()
    uses = [(state, use) for state in optima.resolution.states.values() for use in state.uses if not use.is_ensemble]
    best = {use.job_id for state, use in uses if use.point == state.best}
    assert weights(optima) == best and len(best) < len(losses(optima))


def test_no_weights_stay_where_none_are_asked_for_and_the_answer_is_the_same(folder):
    every, none = launch(folder, "all", "all"), launch(folder, "none", "none")
    assert weights(none) == set() and losses(none) == losses(every)
    certificates = [[state.certificate for state in one.resolution.states.values()] for one in (none, every)]
    assert certificates[0] == certificates[1]


def test_pruned_weights_come_back_when_a_new_recipe_needs_them_and_results_stay_as_they_were(folder):
    before = losses(launch(folder, "again", "none"))
    more = {**RECIPES, "five": {**RECIPES["ensemble"], "members": 5}}
    after = launch(folder, "again", "optima", more)
    assert after.resolution.states["tiny/five/1024/a"].state in ("certified", "boundary", "open")
    assert sum(use.is_ensemble for use in after.resolution.states["tiny/five/1024/a"].uses) == 1
    assert after.trained == 5  # three members again, and two more
    assert before.items() <= losses(after).items()
