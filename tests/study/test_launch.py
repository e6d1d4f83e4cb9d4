"""A launched study: what it trains, what it writes down, and what an edit of its text does. Real runs, in this process."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from dataeff.errors import InputError, StudyRunningError
from dataeff.execution.inline import InlineExecutor
from dataeff.laws.judge import judge
from dataeff.records.claims import read_claims
from dataeff.records.store import Database
from dataeff.reports.judge import judged_claims
from dataeff.specs.study import Study, StudySpec
from dataeff.study.index import rebuild
from dataeff.study.launch import Launch
from dataeff.study.plan import plan
from tests.conftest import write_tiny_study

SMALL = {
    "seed_tokens": [1024],
    "seeds": [0],
    "grid": {"lr": [1e-2, 3e-2], "weight_decay": [0.1, 1.6], "epochs": [1.0, 2.0]},
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_tiny_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(folder: Path, **changes) -> Study:
    """The tiny study, smaller still, built in Python as in a notebook."""
    declared = Study.load(folder / "tiny.toml").spec.model_dump()
    recipes = {name: declared["recipes"][name] for name in ("standard", "regularized")}
    declared |= SMALL | {"sizes": declared["sizes"][:2], "recipes": recipes} | changes
    return Study(StudySpec.model_validate(declared))


def launch(study: Study, database: str = "runs.duckdb") -> Launch:
    with InlineExecutor() as executor:
        launched = Launch(study, database, executor)
        launched.run()
    return launched


def ask(query: str, database: str = "runs.duckdb") -> list[tuple]:
    with duckdb.connect(database, read_only=True) as connection:
        return connection.execute(query).fetchall()


def trained(folder: Path, store: str = "runs.files") -> set[str]:
    return {file.parent.name for file in (folder / store / "runs").glob("*/result.json")}


def test_the_certificates_of_a_launch_are_those_that_sql_shows(folder):
    launched = launch(small(folder, seeds=[0, 1]))
    shown = {cell_id: (state, loss) for cell_id, state, loss in ask(
        "SELECT cell_id, state, val_loss FROM certificate JOIN best_run USING (cell_id)"
    )}  # fmt: skip
    assert shown == {
        cell_id: (state.certificate.state, state.certificate.loss) for cell_id, state in launched.resolution.states.items()
    }
    assert launched.trained == len(trained(folder)) == ask("SELECT count(*) FROM run")[0][0]


def test_every_cell_is_an_optuna_study_that_a_dashboard_can_open(folder):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    launched = launch(small(folder))
    storage = JournalStorage(JournalFileBackend("runs.files/optuna/tiny.log"))
    studies = {summary.study_name: summary for summary in optuna.get_all_study_summaries(storage)}
    assert studies.keys() == launched.resolution.states.keys()
    for cell_id, state in launched.resolution.states.items():
        assert studies[cell_id].best_trial.value == state.certificate.loss
        assert studies[cell_id].n_trials == len(state.results)


@pytest.mark.parametrize("lr", [[1e-2, 3e-2, 1e-1], [3e-2]])
def test_a_grid_that_was_changed_goes_on_with_the_runs_there_are(folder, lr):
    first = launch(small(folder))
    second = launch(small(folder, grid={**SMALL["grid"], "lr": lr}))
    assert second.resolution.states.keys() == first.resolution.states.keys()
    assert all(state.state in ("certified", "boundary") for state in second.resolution.states.values())
    assert second.trained < first.trained  # most were there
    fresh = launch(small(folder, grid={**SMALL["grid"], "lr": lr}), "fresh.duckdb")
    order = "ORDER BY ALL"
    assert ask(f"SELECT cell_id, run_id FROM trial {order}") == ask(f"SELECT cell_id, run_id FROM trial {order}", "fresh.duckdb")
    assert fresh.resolution.states.keys() == second.resolution.states.keys()


@pytest.mark.parametrize("changes", [{"validation_sequences": 8}, {"warmup_fraction": 0.3}])
def test_trials_of_another_way_to_train_are_taken_out(folder, changes):
    launch(small(folder))
    old = trained(folder)
    study = small(folder)
    launch(small(folder, training={**study.spec.training.model_dump(), **changes}))
    assert not {run_id for (run_id,) in ask("SELECT run_id FROM trial")} & old
    assert {run_id for (run_id,) in ask("SELECT run_id FROM run")} == trained(folder) > old  # runs stay


def test_other_seeds_give_the_optimum_of_the_first_of_them(folder):
    launch(small(folder, seeds=[0, 1]))
    launched = launch(small(folder, seeds=[1, 2]))
    states = dict(ask("SELECT cell_id, state FROM certificate"))
    assert states == {cell_id: state.state for cell_id, state in launched.resolution.states.items()}
    assert ask("SELECT DISTINCT train_seed FROM best_run JOIN run USING (run_id)") == [(1,)]


def test_a_study_that_is_being_run_is_refused(folder):
    with InlineExecutor() as executor:
        first = Launch(small(folder), "runs.duckdb", executor)
        with pytest.raises(StudyRunningError, match="tiny is being run by another process"):
            Launch(small(folder), "runs.duckdb", executor)
        first.run()
    launch(small(folder))  # and free again


def test_a_limit_of_runs_ends_a_cell_open_at_the_same_points_whatever_is_recorded(folder):
    resources = {"max_runs_per_cell": 2}
    alone = launch(small(folder, resources=resources), "alone.duckdb")
    launch(small(folder))  # records every point of the path, in another database
    after = launch(small(folder, resources=resources))
    points = {cell_id: list(state.results) for cell_id, state in alone.resolution.states.items()}
    assert points == {cell_id: list(state.results) for cell_id, state in after.resolution.states.items()}
    assert all(len(path) <= 2 for path in points.values())
    stopped = ask("SELECT DISTINCT search_stopped FROM cell WHERE search_stopped IS NOT NULL", "alone.duckdb")
    assert stopped == [("its 2 runs are used up",)]
    assert plan(small(folder, resources=resources), Database(Path("alone.duckdb"))).runs == 0


def test_a_failed_run_stops_its_cell_and_what_starts_from_it_until_it_is_mended(folder):
    undisturbed = launch(small(folder), "undisturbed.duckdb")
    cell = undisturbed.spec.cells[0]
    (first,) = ask(f"SELECT run_id FROM trial WHERE number = 1 AND cell_id = '{cell.id}'", "undisturbed.duckdb")
    blocked = folder / "runs.files" / "runs" / first[0] / "attempts"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("")  # a file where the attempts' folder should be
    failing = launch(small(folder))
    assert failing.failures and first[0] in failing.failures[0]
    assert failing.resolution.states[cell.id].state == "open" and first[0] in failing.resolution.states[cell.id].reason
    waiting = [state for state in failing.resolution.states.values() if state.state == "waiting"]
    assert waiting and first[0] in waiting[0].reason  # and says what it waits for
    blocked.unlink()
    mended = launch(small(folder))
    assert not mended.failures
    assert trained(folder) == trained(folder, "undisturbed.files")


def test_plan_counts_the_seeds_that_an_ended_search_still_lacks(folder):
    launch(small(folder))
    assert plan(small(folder), Database(Path("runs.duckdb"))).runs == 0
    assert plan(small(folder, seeds=[0, 1, 2]), Database(Path("runs.duckdb"))).runs == 2 * len(small(folder).spec.cells)


def test_a_damaged_result_is_named(folder):
    launch(small(folder))
    (file, *_) = (folder / "runs.files" / "runs").glob("*/result.json")
    file.write_text(file.read_text()[:40])
    Path("runs.duckdb").unlink()
    with pytest.raises(InputError, match=rf"{file.parent.name}/result.json cannot be read"):
        launch(small(folder))


@pytest.mark.parametrize("url", ["bogus://x", "sqlite:////nowhere/at/all.db"])
def test_a_storage_that_cannot_be_opened_is_refused_before_anything_is_recorded(folder, url):
    with InlineExecutor() as executor, pytest.raises(InputError, match="Optuna storage"):
        Launch(small(folder), "runs.duckdb", executor, storage=url)
    assert not Path("runs.duckdb").exists()
    launch(small(folder))  # nor is the study still held


def test_an_sqlite_storage_holds_the_search_too(folder):
    import optuna

    with InlineExecutor() as executor:
        launched = Launch(small(folder), "runs.duckdb", executor, storage="sqlite:///optuna.db")
        launched.run()
    summaries = optuna.get_all_study_summaries("sqlite:///optuna.db")
    assert {summary.study_name for summary in summaries} == launched.resolution.states.keys()


def test_a_better_run_of_another_study_opens_the_certificates_of_those_that_have_its_cell(folder):
    """Two studies of the same cells: the second knows more of the grid, and what it finds there is gone on from in the first."""
    narrow = {"lr": [1e-2], "weight_decay": [0.1, 1.6], "epochs": [1.0, 2.0]}
    recipes = {"standard": {"limit": "best"}}
    launch(small(folder, name="first", grid=narrow, recipes=recipes))
    launch(small(folder, name="second", grid={**narrow, "epochs": [1.0, 2.0, 4.0]}, recipes=recipes))
    beaten = ask("""SELECT count(*) FROM cell JOIN run USING (seed_tokens, parameters_total)
        WHERE cell.state IN ('certified', 'boundary') AND run.val_loss < best_loss
            AND list_contains(json_extract(axes, '$.epochs')::DOUBLE[], run.epochs)""")
    assert beaten == [(0,)]


def test_plan_says_what_a_changed_study_changes(folder):
    first = launch(small(folder))
    unchanged = plan(small(folder), Database(Path("runs.duckdb"))).changes
    assert (unchanged.kept, unchanged.searched_again, unchanged.new, unchanged.dropped) == (len(first.resolution.states), 0, 0, 0)
    assert unchanged.runs_reused == first.trained
    wider = plan(small(folder, grid={**SMALL["grid"], "lr": [1e-2, 3e-2, 1e-1]}), Database(Path("runs.duckdb")))
    assert wider.changes.kept + wider.changes.searched_again == len(first.resolution.states)
    assert wider.changes.runs_reused == first.trained  # also of cells that wait for others
    assert 0 < wider.runs
    smaller = small(folder)
    declared = smaller.spec.model_dump() | {"sizes": smaller.spec.model_dump()["sizes"][:1], "seed_tokens": [1024, 2048]}
    other = plan(Study(StudySpec.model_validate(declared)), Database(Path("runs.duckdb"))).changes
    assert (other.new, other.dropped) == (2, 2)


MARGIN = {"better": "regularized", "than": "standard", "at": 1024, "by": 1.0}  # no recipe is a nat better on so little text


def claimed(folder: Path, pairs: int) -> Study:
    return small(folder, draws=2, claims={"margin": MARGIN}, resources={"claim_pairs": pairs})


def test_a_launch_goes_on_until_claims_are_decided_and_then_trains_nothing(folder):
    launched = launch(claimed(folder, 8))
    with Database("runs.duckdb").read() as connection:
        (claim,) = read_claims(connection, "tiny")
    verdict = judge(claim.differences)
    assert verdict.state == "refuted" and 3 <= verdict.pairs < 9 and judge(claim.differences[:-1]).state == "undecided"
    assert claim.draws == tuple(range(1, verdict.pairs + 1))  # the study's other draw, then further ones
    used = ask("SELECT recipe, size, count(DISTINCT size) OVER (PARTITION BY recipe), draw FROM study_run WHERE role = 'claim'")
    assert len(used) == 2 * (verdict.pairs - 1) and {row[2] for row in used} == {1}  # each at its best size alone
    assert {row[0] for row in ask("SELECT draws FROM cell_limit")} == {1}  # no law reads them
    before = trained(folder)
    assert launch(claimed(folder, 8)).trained == 0 and trained(folder) == before and launched.trained == len(before)


def test_a_claim_goes_on_after_its_budget_of_pairs_was_raised_and_pairs_from_before_it_are_left_out(folder):
    further = "SELECT count(DISTINCT run_id) FROM trial WHERE role = 'claim'"  # both recipes may have the same optimum
    launch(small(folder, draws=2))
    assert launch(claimed(folder, 2)).trained == ask(further)[0][0] > 0
    with Database("runs.duckdb").read() as connection:
        (row,) = judged_claims(connection, "tiny")[1]
    assert row[2:4] == ("undecided", 2) and "1 left out: trained before the claim was declared" in row[-1]
    launched = launch(claimed(folder, 8))
    with Database("runs.duckdb").read() as connection:
        (row,) = judged_claims(connection, "tiny")[1]
    ((total,),) = ask(further)
    assert row[2] == "refuted" and 2 < row[3] < 8 and 0 < launched.trained < total
    rebuild(Database("runs.duckdb"))
    with Database("runs.duckdb").read() as connection:
        assert judged_claims(connection, "tiny")[1] == [row]


def test_a_measure_that_is_asked_for_later_trains_nothing_and_noise_raises_the_loss_by_its_square(folder):
    launch(small(folder))
    before = trained(folder)
    measured = small(folder, measures={"noise": {"kind": "perturbation", "gammas": [0.0, 0.01, 0.02, 4.0], "noises": 6}})
    assert launch(measured).trained == 0 and trained(folder) == before
    rows = ask("SELECT recipe, size, gamma, models, noises, base_loss, val_loss, rise FROM perturbation ORDER BY ALL")
    optima = {(recipe, size): loss for recipe, size, loss in ask("SELECT recipe, size, val_loss FROM best_run")}
    assert len(rows) == 4 * len(optima)
    for recipe, size, gamma, models, noises, base, loss, rise in rows:
        assert (models, noises, base) == (1, 6, pytest.approx(optima[recipe, size]))
        assert gamma or loss == base
        assert rise > 0.01 or gamma < 4
    files = set((folder / "runs.files" / "perturbs").glob("*/result.json"))
    assert launch(measured).trained == 0 and set((folder / "runs.files" / "perturbs").glob("*/result.json")) == files
