"""How a study stands, as a pure function: results on made-up loss surfaces in, states and wanted jobs out. Nothing is trained."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from dataeff.facts.job import Job
from dataeff.specs.study import StudySpec
from dataeff.study.demand import Demand
from dataeff.study.resolve import Resolution, resolve
from dataeff.study.results import Failure, Results
from dataeff.work.ensemble import Ensemble, EnsembleResult, SubsetLoss
from dataeff.work.train import Train

DECLARED = {
    "name": "study",
    "question": "which?",
    "seed_tokens": [1024, 2048],
    "sizes": ["width16", "width32"],
    "seeds": [0, 1],
    "tokenizer": {"kind": "bpe", "vocabulary": 300},
    "training": {"context_length": 16, "batch_size": 8, "validation_sequences": 8, "precision": "float32"},
    "grid": {"lr": [1e-3, 3e-3, 1e-2, 3e-2], "weight_decay": [0.1, 0.4, 1.6], "epochs": [1.0, 2.0, 4.0, 8.0]},
    "recipes": {
        "standard": {"fixed": {"weight_decay": 0.1}, "limit": "best"},
        "regularized": {"base": "standard"},
        "ensemble": {"base": "regularized", "tune": [], "members": 3, "limit": "K"},
        "student": {"base": "regularized", "tune": [], "teacher": {"recipe": "ensemble"}, "limit": "best"},
    },
}
Loss = Callable[[Train], float]


def demand(**changes) -> Demand:
    return Demand(StudySpec.model_validate({**DECLARED, **changes}), "corpus", 300, 0)


def bowl(run: Train) -> float:
    """One basin around lr 1e-2, weight decay 1.6, 4 epochs; a little noise by seed; samples help."""
    distance = math.log(run.lr / 1e-2) ** 2 + math.log((run.weight_decay + 0.01) / 1.6) ** 2 + math.log(run.epochs / 4) ** 2
    return 3 + 0.1 * distance + 0.001 * run.train_seed - 0.1 * bool(run.synthetic)


def finish(results: Results, job: Job, loss: Loss = bowl) -> str | None:
    """Record what a job left, and what it needs first, as a worker would; return the surface that a run lies on."""
    for each in job.inputs:
        if each.id not in results:
            finish(results, each.job, loss)
    if isinstance(job, Train):
        value = loss(job)
        return results.add_run(job.id, job.model_dump(), None if value == math.inf else value)
    result = None
    if isinstance(job, Ensemble):
        sizes = range(1, len(job.members) + 1)
        losses = [SubsetLoss(averaging="logits", subset=list(range(k)), val_loss=2.9 + 0.1 / k) for k in sizes]
        result = EnsembleResult(ensemble_id=job.id, losses=losses, wall_seconds=1, device="none")
    results.others[job.id] = result
    return None


def play(asked: Demand, results: Results, loss: Loss = bowl, seed: int | None = None) -> Resolution:
    """Finish what is wanted, in a random order with a seed, until nothing is; return how the study stands in the end."""
    resolution, choose = resolve(asked, results), random.Random(seed)
    while wanted := [job for state in resolution.states.values() for job in state.wanted if job.id not in results.failures]:
        job = choose.choice(wanted) if seed is not None else wanted[0]
        resolution.update([job.id, *(each.id for each in job.inputs)], filter(None, [finish(results, job, loss)]))
    return resolution


def runs_of(resolution: Resolution) -> set[str]:
    return {use.job_id for state in resolution.states.values() for use in state.uses}


def test_every_cell_ends_at_the_optimum_and_nothing_is_left():
    resolution = play(demand(), Results())
    assert {state.state for state in resolution.states.values()} <= {"certified", "boundary"}
    optima = [state.optimum for state in resolution.states.values() if state.cell.recipe == "regularized"]
    assert optima == [{"lr": 1e-2, "weight_decay": 1.6, "epochs": 4.0}] * 4
    assert sum(state.runs_left for state in resolution.states.values()) == 0
    assert not any(state.wanted for state in resolution.states.values())


@pytest.mark.parametrize("seed", range(5))
def test_what_is_run_does_not_depend_on_the_order_in_which_jobs_end(seed):
    in_order, shuffled = play(demand(), Results()), play(demand(), Results(), seed=seed)
    assert runs_of(shuffled) == runs_of(in_order)
    assert shuffled.states == in_order.states


@pytest.mark.parametrize("seed", range(5))
def test_a_resolution_brought_up_to_date_is_the_one_made_anew(seed):
    asked, results, choose = demand(), Results(), random.Random(seed)
    resolution = resolve(asked, results)
    while wanted := [job for state in resolution.states.values() for job in state.wanted if job.id not in results.failures]:
        job = choose.choice(wanted)
        surface = None
        if choose.random() < 0.05:
            results.failures[job.id] = Failure(choose.choice(["failed", "out_of_memory"]), "tested")
        else:
            surface = finish(results, job)
        resolution.update([job.id, *(each.id for each in job.inputs)], filter(None, [surface]))
        if choose.random() < 0.2:
            assert resolve(asked, results).states == resolution.states
    assert resolve(asked, results).states == resolution.states


def test_a_study_killed_at_any_moment_wants_the_same_runs():
    asked = demand()
    undisturbed = play(asked, Results())
    results = Results()
    for _ in range(200):  # each time a new launch, which knows nothing but the results
        wanted = [job for state in resolve(asked, results).states.values() for job in state.wanted]
        if not wanted:
            break
        finish(results, wanted[-1])
    assert runs_of(resolve(asked, results)) == runs_of(undisturbed)


def test_edits_that_change_no_loss_keep_every_cell():
    results = Results()
    before = play(demand(), results)
    resources = {"evaluations": 5, "points_in_flight": 2, "keep": "optima"}
    after = resolve(demand(resources=resources, question="what else?"), results)
    assert runs_of(after) == runs_of(before)
    assert [state.optimum for state in after.states.values()] == [state.optimum for state in before.states.values()]


def test_a_recorded_run_that_beats_an_optimum_opens_its_certificate_and_is_gone_on_from():
    single = demand(recipes={"standard": DECLARED["recipes"]["standard"]}, sizes=["width16"], seed_tokens=[1024], seeds=[0])

    def two_basins(run: Train) -> float:
        return 2.0 if (run.lr, run.epochs) == (1e-3, 1) else bowl(run)

    results = Results()
    (state,) = play(single, results, two_basins).states.values()
    assert state.state in ("certified", "boundary") and state.certificate.loss > 2.5
    cell = state.cell
    better = single.run(cell, (0, 0, 0), 0, 0)
    assert better.id not in results
    name = finish(results, better, two_basins)  # some other study runs it
    resolution = resolve(single, results)
    resolution.update([better.id], [name])
    (state,) = resolution.states.values()
    assert state.state == "searching" and state.best == (0, 0, 0)
    assert {tuple(point) for point in state.points_wanted} <= set(cell.grid.neighbours((0, 0, 0)))
    (state,) = play(single, results, two_basins).states.values()
    assert state.optimum == {"lr": 1e-3, "weight_decay": 0.1, "epochs": 1.0}
    assert all(neighbour in state.results for neighbour in cell.grid.neighbours(state.best))


@pytest.mark.parametrize("seed", range(20))
def test_no_certificate_is_beaten_by_a_recorded_run_of_its_cell_after_a_grid_was_widened(seed):
    noise = random.Random(seed)
    losses: dict[str, float] = {}

    def rough(run: Train) -> float:
        return losses.setdefault(run.id, bowl(run) + noise.gauss(0, 0.3))

    recipes = {name: DECLARED["recipes"][name] for name in ("standard", "regularized")}
    narrow = {"lr": [3e-3, 1e-2], "weight_decay": [0.1, 0.4], "epochs": [1.0, 2.0, 4.0]}
    results = Results()
    play(demand(recipes=recipes, grid=narrow), results, rough)
    wide = play(demand(recipes=recipes), results, rough)
    for state in wide.states.values():
        assert state.state in ("certified", "boundary")
        grid = state.cell.grid
        points = [grid.point(axes) for axes in _axes_on(state.cell, wide)]
        assert min(losses[wide.demand.run(state.cell, point, 0, 0).id] for point in points) == state.certificate.loss


def _axes_on(cell, resolution: Resolution):
    grid = cell.grid
    for a in range(grid.shape[0]):
        for b in range(grid.shape[1]):
            for c in range(grid.shape[2]):
                if resolution.demand.run(cell, (a, b, c), 0, 0).id in resolution.results:
                    yield grid.values((a, b, c))


def test_a_search_starts_where_it_is_declared_to_and_in_the_middle_of_the_grid():
    corner = {"standard": {"start": {"lr": 3e-2, "weight_decay": 1.6, "epochs": 8.0}, "limit": "best"}}
    once = demand(recipes=corner, resources={"starts": 1})
    twice, thrice = demand(recipes=corner), demand(recipes=corner, resources={"starts": 3})
    first = next(iter(once.cells))
    starts = [resolve(asked, Results()).states[first].starts for asked in (once, twice, thrice)]
    assert starts[0] == ((3, 2, 3),)
    assert starts[1] == ((3, 2, 3), once.cells[first].grid.middle)
    assert len(set(starts[2])) == 3 and starts[2][:2] == starts[1]


def test_a_second_start_leaves_a_corner_of_diverged_runs_with_finite_losses():
    """As on published surfaces: at high rates and many epochs every run ends at the same bad loss, a plateau with an edge."""

    def cliff(run: Train) -> float:
        bad = run.lr >= 1e-2 and run.epochs >= 4
        return 7 + 0.01 * (math.log(run.lr / 3e-2) ** 2 + math.log(run.epochs / 8) ** 2) if bad else bowl(run)

    corner = {"standard": {"fixed": {"weight_decay": 0.1}, "start": {"lr": 3e-2, "epochs": 8.0}, "limit": "best"}}
    alone = play(demand(recipes=corner, resources={"starts": 1}, sizes=["width16"]), Results(), cliff)
    default = play(demand(recipes=corner, sizes=["width16"]), Results(), cliff)
    assert {state.state for state in alone.states.values()} == {"boundary"}
    for stuck, state in zip(alone.states.values(), default.states.values(), strict=True):
        assert stuck.certificate.loss >= 7 > state.certificate.loss


def test_a_point_that_does_not_fit_is_gone_round_and_named_and_tried_again_by_the_next_launch():
    asked = demand(recipes={"standard": DECLARED["recipes"]["standard"]}, sizes=["width16"], seed_tokens=[1024], seeds=[0])
    (cell,) = asked.cells.values()
    large = asked.run(cell, cell.grid.point({"lr": 1e-2, "weight_decay": 0.1, "epochs": 4.0}), 0, 0)
    results = Results()
    results.failures[large.id] = Failure("out_of_memory", "too large")
    (state,) = play(asked, results).states.values()
    assert state.ended and state.optimum is not None and len(state.results) > 4
    assert state.state == "open" and "did not fit into memory" in state.stopped
    results.failures.clear()  # of one launch
    (state,) = resolve(asked, results).states.values()
    assert [job.id for job in state.wanted] == [large.id]


def test_a_cell_none_of_whose_points_fit_does_not_try_the_whole_grid():
    asked = demand(recipes={"standard": DECLARED["recipes"]["standard"]}, sizes=["width16"], seed_tokens=[1024], seeds=[0])
    results, tried = Results(), 0
    resolution = resolve(asked, results)
    while wanted := next(iter(resolution.states.values())).wanted:
        results.failures[wanted[0].id] = Failure("out_of_memory", "too large")
        resolution.update([wanted[0].id])
        tried += 1
    (state,) = resolution.states.values()
    assert tried <= 3 and state.state == "open" and "did not fit" in state.reason


def test_what_waits_for_a_failed_member_says_so():
    asked = demand(sizes=["width16"], seed_tokens=[1024])
    results = Results()
    resolution = resolve(asked, results)
    while wanted := [job for state in resolution.states.values() for job in state.wanted if job.id not in results.failures]:
        job, surface = wanted[0], None
        if isinstance(job, Train) and job.train_seed == 2:
            results.failures[job.id] = Failure("failed", "the disk is full")
        else:
            surface = finish(results, job)
        resolution.update([job.id], filter(None, [surface]))
    states = {state.cell.recipe: state for state in resolution.states.values()}
    assert states["student"].state == "waiting"
    assert "waits for the members of its teacher study/ensemble/1024/width16" in states["student"].reason
    assert "the disk is full" in states["student"].reason
    assert "the disk is full" in states["ensemble"].note


def test_what_builds_on_a_cell_without_an_optimum_is_blocked_with_the_reason():
    asked = demand(sizes=["width16"], seed_tokens=[1024])
    resolution = play(asked, Results(), lambda run: math.inf)
    states = {state.cell.recipe: state for state in resolution.states.values()}
    assert states["standard"].state == "open" and "diverged" in states["standard"].reason
    assert states["ensemble"].reason == "its base study/regularized/1024/width16 has no optimum"
    assert states["student"].state == "blocked"


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("ema", [0.0, 0.9]),
        ("swa_fraction", [0.0, 0.2]),
        ("z_loss", [0.0, 1e-4]),
        ("label_smoothing", [0.0, 0.1]),
        ("batch_size", [1.0, 2.0]),
    ],
)
def test_an_optimum_where_no_run_can_lie_beyond_is_no_boundary(axis, values):
    grid = {"lr": [1e-3, 3e-3, 1e-2], "weight_decay": [0.1], "epochs": [2.0, 4.0, 8.0], axis: values}
    training = {**DECLARED["training"], "batch_size": 1}
    asked = demand(
        grid=grid, training=training, recipes={"standard": {"limit": "best"}}, sizes=["width16"], seed_tokens=[1024], seeds=[0]
    )

    def lowest(run: Train) -> float:
        return 3 + math.log(run.lr / 3e-3) ** 2 + math.log(run.epochs / 4) ** 2 + getattr(run, axis)

    (state,) = play(asked, Results(), lowest).states.values()
    assert state.optimum[axis] == values[0] and state.state == "certified"
