"""Recipes built on recipes, for real: members, ensembles, tuning for the limit, teachers. One small study, in this process."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

from dataeff.execution.inline import InlineExecutor
from dataeff.facts.store import Store
from dataeff.records.store import Database
from dataeff.specs.spec import Input
from dataeff.specs.study import Study, StudySpec
from dataeff.study.launch import Launch
from dataeff.study.plan import plan
from dataeff.work.sample import open_samples
from tests.conftest import write_tiny_study

RECIPES = {
    "standard": {"fixed": {"weight_decay": 0.1}, "limit": "best"},
    "regularized": {"base": "standard", "limit": "best"},
    "ensemble": {"base": "regularized", "tune": [], "members": 4, "limit": "K"},
    "rule": {
        "base": "regularized",
        "tune": [],
        "change": {"epochs": "x 2", "weight_decay": "x 0.5"},
        "members": 3,
        "limit": "K",
        "sizes": ["a"],
    },
    "joint": {"base": "regularized", "tune": ["epochs"], "objective": "K", "members": 3, "limit": "K then N"},
    "snapshots": {
        "base": "regularized",
        "tune": [],
        "change": {"epochs": "x 4"},
        "training": {"cycles": 3},
        "members": 3,
        "vary": "snapshot",
        "limit": "K",
        "sizes": ["a"],
    },
    "self_distilled": {
        "base": "regularized",
        "tune": ["epochs"],
        "teacher": {"recipe": "regularized", "tokens_per_seed_token": 2.0},
        "limit": "best",
        "sizes": ["a"],
    },
    "second_generation": {
        "base": "self_distilled",
        "tune": [],
        "teacher": {"recipe": "self_distilled"},
        "limit": "best",
        "sizes": ["a"],
    },
    "matched": {
        "base": "regularized",
        "tune": [],
        "teacher": {"recipe": "ensemble", "size": "b", "kind": "logits"},
        "limit": "best",
        "sizes": ["a"],
    },
}


def declared(folder: Path, **changes) -> Study:
    tiny = Study.load(folder / "tiny.toml").spec.model_dump()
    tiny |= {
        "seed_tokens": [1024],
        "seeds": [0],
        "sizes": tiny["sizes"][:2],
        "grid": {"lr": [1e-2, 3e-2], "weight_decay": [0.1, 1.6], "epochs": [1.0, 2.0, 4.0]},
        "recipes": RECIPES,
    }
    return Study(StudySpec.model_validate(tiny | changes), path=folder / "tiny.toml")


def launch(study: Study, database: Path) -> Launch:
    with InlineExecutor() as executor:
        launched = Launch(study, database, executor)
        launched.run()
    assert not launched.failures
    return launched


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("recipes")
    write_tiny_study(made)
    launch(declared(made), made / "runs.duckdb")
    return made


@pytest.fixture
def ask(folder):
    def asked(query: str) -> list[tuple]:
        with duckdb.connect(folder / "runs.duckdb", read_only=True) as connection:
            return connection.execute(query).fetchall()

    return asked


def test_every_cell_ends_and_a_second_launch_trains_nothing(folder):
    again = launch(declared(folder), folder / "runs.duckdb")
    assert again.trained == 0
    assert "waiting" not in {state.state for state in again.resolution.states.values()}
    planned = plan(declared(folder), Database(folder / "runs.duckdb"))
    assert planned.runs == 0 and all(row[5] in ("certified", "boundary") for row in planned.rows)


def test_the_first_member_is_the_tuned_run_and_k_of_one_is_its_loss(ask):
    rows = ask("""SELECT best_run.run_id, ensemble.members[1], run.val_loss, loss.val_loss
        FROM cell_ensemble JOIN ensemble USING (ensemble_id) JOIN ensemble_loss AS loss USING (ensemble_id)
        JOIN cell USING (cell_id) JOIN best_run ON best_run.cell_id = cell_ensemble.cell_id
            AND best_run.coordinates = cell_ensemble.coordinates
        JOIN run ON run.run_id = ensemble.members[1] WHERE subset = [0] AND role = 'member' AND cell.recipe <> 'snapshots'""")
    assert len(rows) == 3 * (2 + 1 + 2)
    for best, member, recorded, loss in rows:
        assert best == member and loss == pytest.approx(recorded, abs=1e-5)


def test_an_ensemble_of_the_optimum_shares_its_runs(ask):
    ((shared,),) = ask("""SELECT count(*) FROM best_run AS a JOIN best_run AS b USING (seed_tokens, size, run_id)
        WHERE a.recipe = 'regularized' AND b.recipe = 'ensemble'""")
    assert shared == 2


def test_the_rule_doubles_the_epochs_and_halves_the_decay(ask):
    ((epochs, decay),) = ask("""SELECT b.epochs / a.epochs, b.weight_decay / a.weight_decay
        FROM best_run AS a JOIN best_run AS b USING (seed_tokens, size)
        WHERE a.recipe = 'regularized' AND b.recipe = 'rule'""")
    assert (epochs, decay) == (2, 0.5)


def test_a_search_for_the_limit_ends_where_sql_sees_the_least_limit(folder, ask):
    again = launch(declared(folder), folder / "runs.duckdb")
    for cell_id, resolved in again.resolution.states.items():
        ((state,),) = ask(f"SELECT state FROM certificate WHERE cell_id = '{cell_id}'")
        assert state == resolved.state
        if resolved.cell.recipe == "joint":
            ((best, coordinates),) = ask(
                f"SELECT objective_loss, coordinates FROM grid_point WHERE is_best AND cell_id = '{cell_id}'"
            )
            assert best == pytest.approx(resolved.certificate.loss, abs=1e-6)
            assert tuple(coordinates) == resolved.certificate.best
            roles = [use.role for use in resolved.uses if not use.is_ensemble]
            assert len(roles) == len(resolved.results) * 3 + 3 and roles.count("replicate") == 3  # fresh ones judge it


def test_a_student_sees_its_teachers_samples(folder, ask):
    ((sample_id, members, teacher),) = ask("""SELECT sample_id, sample.members, b.run_id FROM best_run AS a
        JOIN run ON run.run_id = a.run_id JOIN sample ON sample.sample_id = run.samples
        JOIN best_run AS b ON b.recipe = 'regularized' AND b.size = a.size WHERE a.recipe = 'self_distilled'""")
    assert members == [teacher]
    drawn = open_samples(Store(folder / "runs.files"), Input(sample_id))
    assert drawn.shape == (128, 16)
    ((seen, share),) = ask("""SELECT tokens_seen / (run.epochs * run.seed_tokens), synthetic_share FROM run
        JOIN best_run USING (run_id) WHERE recipe = 'self_distilled'""")
    assert (seen, share) == (2, 0.5)
    assert np.all(drawn[:, 0] == drawn[0, 0])  # every sample begins a text


def test_each_generation_is_taught_by_the_last(ask):
    ((members, first),) = ask("""SELECT sample.members, b.run_id FROM best_run AS a JOIN run ON run.run_id = a.run_id
        JOIN sample ON sample.sample_id = run.samples JOIN best_run AS b ON b.recipe = 'self_distilled'
        WHERE a.recipe = 'second_generation'""")
    assert members == [first]


def test_a_student_that_matches_logits_names_all_members_of_its_teacher(ask):
    ((count,),) = ask("""SELECT json_array_length(spec->'$.teacher_logits.members') FROM run JOIN best_run USING (run_id)
        WHERE recipe = 'matched'""")
    assert count == 4


def test_snapshots_are_members_of_one_run(ask):
    ((runs, members),) = ask("""SELECT (SELECT count(*) FROM trial JOIN cell USING (cell_id) WHERE recipe = 'snapshots'),
        len(ensemble.members) FROM cell_ensemble JOIN cell USING (cell_id) JOIN ensemble USING (ensemble_id)
        WHERE recipe = 'snapshots'""")
    assert (runs, members) == (1, 3)


def test_limits_of_every_kind_are_in_sql(ask):
    found = {recipe: (kind, limit, trained) for recipe, kind, limit, trained in ask(
        "SELECT recipe, kind, limit_loss, best_trained FROM asymptote"
    )}  # fmt: skip
    assert found.keys() == RECIPES.keys()
    assert all(math.isfinite(trained) for _, _, trained in found.values())
    assert "K" in found["ensemble"][0] and "N" in found["joint"][0]
    assert found["joint"][1] is None  # two sizes are no law over N, and SQL says so


def test_runs_whose_weights_are_elsewhere_are_trained_again_only_where_weights_are_needed(folder, tmp_path):
    shutil.copy(folder / "runs.duckdb", tmp_path)
    assert launch(declared(folder), tmp_path / "runs.duckdb").trained == 0
    more = {**RECIPES, "five": {**RECIPES["ensemble"], "members": 5, "sizes": ["a"]}}
    assert launch(declared(folder, recipes=more), tmp_path / "runs.duckdb").trained == 5
    taught = {**RECIPES, "third": {"base": "regularized", "tune": [], "teacher": {"recipe": "second_generation"}, "sizes": ["a"]}}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(folder / "runs.duckdb", elsewhere)
    again = launch(declared(folder, recipes=taught), elsewhere / "runs.duckdb")
    assert again.trained == 4  # regularized, self-distilled, second generation: each with its samples; and the third


def test_what_can_never_start_says_why_and_keeps_nobody_waiting(folder, tmp_path):
    wild = {"fixed": {"lr": 1e6, "epochs": 64.0}, "sizes": ["a"], "limit": "best"}
    recipes = {
        "standard": RECIPES["standard"],
        "wild": wild,
        "follower": {"base": "wild", "tune": [], "members": 3, "limit": "K", "sizes": ["a"]},
        "student": {"teacher": {"recipe": "wild"}, "limit": "best", "sizes": ["a"]},
    }
    study = declared(folder, recipes=recipes)
    launched = launch(study, tmp_path / "runs.duckdb")
    states = {state.cell.recipe: (state.state, state.reason) for state in launched.resolution.states.values()}
    assert states["follower"] == ("blocked", "its base tiny/wild/1024/a has no optimum")
    assert states["student"] == ("blocked", "its teacher tiny/wild/1024/a has no optimum")
    with duckdb.connect(tmp_path / "runs.duckdb", read_only=True) as connection:
        reasons = dict(connection.execute("SELECT recipe, reason FROM certificate WHERE state = 'blocked'").fetchall())
        limits = dict(connection.execute("SELECT recipe, reason FROM asymptote WHERE limit_loss IS NULL").fetchall())
    assert reasons["follower"] == states["follower"][1]
    assert reasons["student"] == states["student"][1]
    assert limits["student"].endswith(states["student"][1])
    assert {row[0]: row[5] for row in plan(study, Database(tmp_path / "runs.duckdb")).rows}["follower"] == "blocked"


def test_optima_are_repeated_on_other_draws_and_students_are_taught_by_teachers_of_their_draw(tmp_path):
    write_tiny_study(tmp_path)
    kept = {"regularized": RECIPES["regularized"] | {"base": None}}
    kept |= {name: RECIPES[name] for name in ("ensemble", "self_distilled")}
    study, database = declared(tmp_path, draws=3, recipes=kept, baseline="regularized"), tmp_path / "draws.duckdb"
    launch(study, database)
    with duckdb.connect(database, read_only=True) as connection:
        estimates = connection.execute("""SELECT recipe, list(draw ORDER BY draw), bool_or(estimate.selected)
            FROM estimate JOIN cell USING (cell_id) GROUP BY cell_id, recipe""").fetchall()
        noise = connection.execute("SELECT draw_sd, interval_reason FROM asymptote").fetchall()
        taught = connection.execute("""SELECT student.draw, teacher.draw FROM run AS student
            JOIN sample ON sample_id = samples JOIN run AS teacher ON teacher.run_id = sample.members[1]""").fetchall()
    assert {(*draws, selected) for _, draws, selected in estimates} == {(1, 2, False)} and len(estimates) == 5
    assert all(sd is not None and "one draw" not in (reason or "") for sd, reason in noise)
    assert {theirs for theirs, _ in taught} == {0, 1, 2} and all(own == teachers for own, teachers in taught)
    assert launch(study, database).trained == 0
