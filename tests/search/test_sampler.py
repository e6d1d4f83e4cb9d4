"""The sampler in real Optuna studies: alone, from many threads, over a journal file, after a kill."""

from __future__ import annotations

import math
import pickle
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from dataeff.errors import InputError, OffGridError
from dataeff.search.coordinate_descent import next_points
from dataeff.search.sampler import CoordinateDescentSampler, distributions
from dataeff.specs.grid import Grid

GRID = Grid({"lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "weight_decay": (0.0, 0.1, 0.4, 1.6, 6.4), "epochs": (1, 2, 4, 8, 16, 32)})
OPTIMUM = {"lr": 3e-3, "weight_decay": 1.6, "epochs": 8}

optuna.logging.set_verbosity(optuna.logging.ERROR)


def loss(values, grid=GRID):
    point, optimum = grid.point(values), grid.point(OPTIMUM)
    return 3.0 + sum((a - b) ** 2 for a, b in zip(point, optimum, strict=True)) / 10


def objective(trial):
    return loss({name: trial.suggest_categorical(name, values) for name, values in GRID.axes.items()})


def path(start=(), width=2):
    """The points that the pure function asks for on the same surface."""
    results = {}
    while asked := next_points(results, GRID, start, width=width):
        results.update((p, loss(GRID.values(p))) for p in asked)
    return set(results)


def create(sampler=None, storage=None):
    return optuna.create_study(sampler=sampler or CoordinateDescentSampler(GRID), storage=storage, study_name="cell")


def points_run(study):
    """How often each point was run, leaving out trials that failed."""
    return Counter(GRID.point(t.params) for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.params)


def journal(folder):
    return JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))


def test_optimize_alone_walks_the_path_finds_the_optimum_and_stops():
    study = create()
    study.optimize(objective)
    assert study.best_params == OPTIMUM
    assert set(points_run(study)) == path()
    assert set(points_run(study).values()) == {1}
    assert study.sampler.certificate(study).state == "certified"


def test_ask_and_tell_hands_out_the_points_of_a_stage_in_order_and_tell_does_not_raise_at_the_end():
    study, results = create(CoordinateDescentSampler(GRID, [OPTIMUM], width=4)), {}
    while stage := next_points(results, GRID, [GRID.point(OPTIMUM)], width=4):
        trials = [study.ask(fixed_distributions=distributions(GRID)) for _ in stage]
        assert [GRID.point(trial.params) for trial in trials] == stage
        for trial in reversed(trials):
            study.tell(trial, loss(trial.params))
        results |= {point: loss(GRID.values(point)) for point in stage}
    assert study.sampler.certificate(study).state == "certified"


@pytest.mark.parametrize("on_disk", [False, True])
def test_eight_threads_never_run_a_point_twice(tmp_path, on_disk):
    study = create(storage=journal(tmp_path) if on_disk else None)
    while study.sampler.certificate(study).state == "open":  # a speculative run may end better, after the stop
        study.optimize(objective, n_jobs=8)
    assert set(points_run(study).values()) == {1}
    assert study.best_params == OPTIMUM
    assert not [t for t in study.trials if t.state == TrialState.FAIL]


def test_eight_in_flight_finishing_in_any_order_end_certified_without_a_repeat():
    study, rng, running = create(), random.Random(0), []
    while study.sampler.certificate(study).state == "open":
        running += [study.ask(fixed_distributions=distributions(GRID)) for _ in range(8 - len(running))]
        trial = running.pop(rng.randrange(8))
        study.tell(trial, loss(trial.params))
    assert study.best_params == OPTIMUM
    assert set(Counter(GRID.point(t.params) for t in study.trials).values()) == {1}
    assert len(study.trials) < GRID.size / 2


def test_eight_simultaneous_asks_get_eight_points():
    study = create()
    gate = threading.Barrier(8)

    def ask(_):
        gate.wait()
        return study.ask(fixed_distributions=distributions(GRID)).params

    with ThreadPoolExecutor(8) as pool:
        assert len({GRID.point(params) for params in pool.map(ask, range(8))}) == 8


def test_more_workers_than_points_exhaust_the_grid_without_an_error():
    grid = Grid({"lr": (1e-4, 3e-3), "weight_decay": (1.6,), "epochs": (8, 16)})
    study = create(CoordinateDescentSampler(grid))

    def small(trial):
        return loss({name: trial.suggest_categorical(name, values) for name, values in grid.axes.items()})

    study.optimize(small, n_jobs=8)
    assert len([t for t in study.trials if t.state == TrialState.COMPLETE]) == grid.size
    assert study.best_params == OPTIMUM


def test_asking_beyond_the_last_point_says_that_none_is_left():
    study = create(CoordinateDescentSampler(Grid({"lr": (1e-3, 3e-3)})))
    space = distributions(Grid({"lr": (1e-3, 3e-3)}))
    first, second = (study.ask(fixed_distributions=space) for _ in range(2))
    assert first.params != second.params
    with pytest.raises(InputError, match="all 2 points"):
        study.ask(fixed_distributions=space)


def test_a_killed_study_continues_from_its_journal_and_ends_with_the_same_points(tmp_path):
    study = create(storage=journal(tmp_path))
    study.optimize(objective, n_trials=5)
    lost = study.ask(fixed_distributions=distributions(GRID)).params
    del study

    study = optuna.load_study(study_name="cell", storage=journal(tmp_path), sampler=CoordinateDescentSampler(GRID))
    assert study.ask(fixed_distributions=distributions(GRID)).params != lost  # in flight, for all anyone knows
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    again = study.ask(fixed_distributions=distributions(GRID))
    assert again.params == lost
    study.tell(again, loss(lost))
    study.optimize(objective)
    assert set(points_run(study)) == path()
    assert set(points_run(study).values()) == {1}


def test_a_recorded_run_that_the_path_needs_is_not_run_again():
    needed = sorted(path())
    study = create()
    for point in needed[::2]:
        values = GRID.values(point)
        study.add_trial(create_trial(params=values, distributions=distributions(GRID), value=loss(values)))
    study.optimize(objective)
    assert set(points_run(study)) == set(needed)
    assert set(points_run(study).values()) == {1}


def test_a_better_recorded_run_off_the_path_is_open_until_its_neighbours_were_run():
    study = create(CoordinateDescentSampler(GRID, [OPTIMUM]))
    study.optimize(objective)
    foreign = {"lr": 1e-4, "weight_decay": 0.0, "epochs": 1}
    study.add_trial(create_trial(params=foreign, distributions=distributions(GRID), value=2.5))
    assert study.sampler.certificate(study).state == "open"
    study.optimize(objective)
    assert study.sampler.certificate(study).state == "boundary"  # lr is at its lower edge; the other two are natural
    assert study.best_params == foreign


def test_pruned_and_infinite_are_worse_and_a_failed_point_is_asked_for_again():
    study = create()
    first = study.ask(fixed_distributions=distributions(GRID))
    study.tell(first, state=TrialState.FAIL)
    second = study.ask(fixed_distributions=distributions(GRID))
    assert second.params == first.params
    second.report(1.0, step=1)
    study.tell(second, state=TrialState.PRUNED)  # Optuna stores the last report as its value
    third = study.ask(fixed_distributions=distributions(GRID))
    assert third.params != first.params
    study.tell(third, math.inf)
    found = study.sampler.certificate(study)
    assert (found.state, found.best) == ("open", None)
    study.optimize(objective)
    assert study.sampler.certificate(study).state == "certified"
    assert set(points_run(study).values()) == {1}


def test_an_enqueued_point_is_in_flight():
    study = create()
    study.enqueue_trial(GRID.values(GRID.middle))
    study.optimize(objective)
    assert set(points_run(study).values()) == {1}


def test_a_study_that_maximises_or_has_two_objectives_is_refused():
    for directions in (["maximize"], ["minimize", "minimize"]):
        study = optuna.create_study(directions=directions, sampler=CoordinateDescentSampler(GRID))
        with pytest.raises(InputError, match="direction='minimize'"):
            study.ask(fixed_distributions=distributions(GRID))


def test_a_parameter_or_a_start_off_the_grid_is_refused_with_what_is_valid():
    study = create()
    with pytest.raises(OffGridError, match="valid: lr, weight_decay, epochs"):
        study.ask().suggest_float("dropout", 0, 1)
    with pytest.raises(OffGridError, match="0.0001"):
        CoordinateDescentSampler(GRID, [{**OPTIMUM, "lr": 0.5}])


def test_a_pickled_sampler_goes_on_where_it_was():
    sampler = pickle.loads(pickle.dumps(CoordinateDescentSampler(GRID, [OPTIMUM], width=3)))
    study = create(sampler)
    study.optimize(objective)
    assert set(points_run(study)) == path([GRID.point(OPTIMUM)], width=3)
