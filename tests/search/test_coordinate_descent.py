"""The descent on surfaces with known optima, and its certificate against a brute force that shares no code with it."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataeff.errors import InputError, OffGridError
from dataeff.search.coordinate_descent import certificate, next_points, walk
from dataeff.specs.grid import Grid

PAPER = Grid(
    {
        "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "weight_decay": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4),
        "epochs": (1, 2, 4, 8, 16, 32, 64),
    }
)
NATURAL = {"weight_decay": 0.0, "epochs": 1.0}  # written again on purpose: the test shares nothing with the code


def every_point(grid):
    return list(itertools.product(*(range(length) for length in grid.shape)))


def bowl(optimum, grid=PAPER):
    return {p: 3.0 + sum((a - b) ** 2 for a, b in zip(p, optimum, strict=True)) for p in every_point(grid)}


def descend(surface, grid, starts=(), width=2):
    """Run every point asked for, all of a stage at once. Returns the points in the order they ran, with their losses."""
    results = {}
    while asked := next_points(results, grid, starts, width=width):
        assert not set(asked) & set(results), "a point was run twice"
        results.update((p, surface[p]) for p in asked)
    return results


def adjacent(a, b):
    return sum(abs(i - j) for i, j in zip(a, b, strict=True)) == 1


def brute_force_states(results, grid):
    """Return {tied-best point: its state}, by comparing every pair of points."""
    loss = min(results.values(), default=math.inf)
    if loss == math.inf:
        return {}
    tied = [p for p in results if results[p] == loss]
    reach = {p: {p} for p in tied}
    for _ in tied:
        reach = {p: {q for q in tied if q in reach[p] or any(adjacent(q, r) for r in reach[p])} for p in tied}
    states = {}
    for p in tied:
        around = [q for q in every_point(grid) if any(adjacent(q, r) for r in reach[p])]
        edge = any(
            len(values) > 1 and (i == len(values) - 1 or (i == 0 and NATURAL.get(name) != values[0]))
            for (name, values), i in zip(grid.axes.items(), p, strict=True)
        )
        states[p] = "open" if any(q not in results for q in around) else "boundary" if edge else "certified"
    return states


def assert_certificate_is_true(results, grid):
    found = certificate(results, grid)
    states = brute_force_states(results, grid)
    if not states:
        assert (found.state, found.best, found.loss) == ("open", None, None)
        return found
    assert found.state == next(s for s in ("certified", "boundary", "open") if s in states.values())
    assert found.state == states[found.best]
    assert found.loss == results[found.best] == min(results.values())
    around = [results[p] for p in every_point(grid) if adjacent(p, found.best) and p in results]
    assert found.margin == (min(around) - found.loss if around else None)
    assert found.ties == around.count(found.loss)
    assert bool(found.missing) == (found.state == "open")
    assert not set(found.missing) & set(results)
    return found


@st.composite
def grids(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda n: math.prod(n) <= 120))
    natural = draw(st.booleans())
    low = {"lr": 1e-4, "weight_decay": 0.0 if natural else 0.1, "epochs": 1.0 if natural else 4.0, "beta": 0.8}
    return Grid({name: tuple(low[name] + i for i in range(n)) for name, n in zip(low, lengths, strict=False)})


@st.composite
def surfaces(draw):
    """A grid and a loss for every point: rough, with plateaus, smooth with noise, or with diverged regions."""
    grid = draw(grids())
    kind = draw(st.sampled_from(["rough", "plateaus", "noisy bowl", "diverged"]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    centre = rng.choice(every_point(grid))
    loss = {
        "rough": lambda d: rng.random(),
        "plateaus": lambda d: float(rng.randrange(3)),
        "noisy bowl": lambda d: d + rng.gauss(0, 0.3),
        "diverged": lambda d: math.inf if d > 1 or rng.random() < 0.3 else float(d),
    }[kind]
    return grid, {p: loss(sum((a - b) ** 2 for a, b in zip(p, centre, strict=True))) for p in every_point(grid)}


@given(surfaces(), st.integers(1, 8), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_points_asked_for_depend_on_the_surface_alone(case, width, rng):
    grid, surface = case
    points = every_point(grid)
    starts = tuple(rng.choices(points, k=rng.randrange(3)))
    reference = set(descend(surface, grid, starts, width))

    extra = rng.sample(points, rng.randrange(len(points) + 1)) if rng.random() < 0.5 else []
    results, asked, in_flight = {p: surface[p] for p in extra}, set(), set()
    while True:
        shuffled = dict(rng.sample(list(results.items()), len(results)))  # nor on the order of the mapping
        new = [point for point in next_points(shuffled, grid, starts, width) if point not in in_flight]
        assert not set(new) & (in_flight | set(results)) and len(set(new)) == len(new)
        asked.update(new)
        in_flight.update(new[: rng.randrange(1, len(new) + 1)] if new else ())
        if not in_flight:
            break
        point = rng.choice(sorted(in_flight))
        in_flight.remove(point)
        if rng.random() < 0.2:
            in_flight.clear()  # killed: everything in flight is lost
        else:
            results[point] = surface[point]
        if rng.random() < 0.2:
            foreign = rng.choice(points)  # another study ran it
            if foreign not in in_flight:
                results[foreign] = surface[foreign]
                extra.append(foreign)
    assert asked <= reference
    assert reference <= asked | set(extra)


@given(surfaces(), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_descent_ends_certified_or_on_the_boundary_and_the_certificate_is_always_true(case, width, rng):
    grid, surface = case
    results = {}
    while asked := next_points(results, grid, width=width):
        assert (
            walk(results.get, grid, width=width, others=results.keys)[1] == asked
        )  # with nothing foreign there is nothing more to do
        assert_certificate_is_true(results, grid)
        results.update((p, surface[p]) for p in asked)
    found = assert_certificate_is_true(results, grid)
    assert found.state != "open" or len(results) == grid.size
    assert_certificate_is_true({p: surface[p] for p in rng.sample(sorted(surface), rng.randrange(len(surface) + 1))}, grid)


@given(surfaces(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_a_better_point_of_another_study_is_taken_up_until_the_certificate_is_closed(case, rng):
    grid, surface = case
    results = {p: surface[p] for p in rng.sample(sorted(surface), rng.randrange(len(surface) + 1))}
    while asked := walk(results.get, grid, others=results.keys)[1]:
        assert not set(asked) & set(results)
        results.update((p, surface[p]) for p in asked)
    found = assert_certificate_is_true(results, grid)
    assert found.state != "open" or set(surface.values()) == {math.inf}


@pytest.mark.parametrize("optimum", [(1, 1, 1), (4, 6, 5), (3, 4, 4), (1, 6, 2)])
@pytest.mark.parametrize("width", [1, 2, 6])
def test_a_bowl_is_solved_exactly_in_at_most_40_of_its_336_points(optimum, width):
    results = descend(bowl(optimum), PAPER, width=width)
    found = assert_certificate_is_true(results, PAPER)
    assert (found.state, found.best, found.margin) == ("certified", optimum, 1.0)
    assert len(results) <= 40


def test_a_good_start_costs_one_run_and_its_neighbours():
    assert len(descend(bowl((3, 4, 4)), PAPER, starts=[(3, 4, 4)])) == 7


def test_all_starts_are_run_at_once_and_the_best_is_descended_from():
    starts = [(0, 0, 0), (3, 4, 3), (0, 0, 0)]
    assert next_points({}, PAPER, starts) == [(0, 0, 0), (3, 4, 3)]
    assert next_points({(0, 0, 0): 9.0, (3, 4, 3): 4.0}, PAPER, starts) == [(2, 4, 3), (4, 4, 3)]


def test_a_step_that_pays_is_taken_again():
    results = {(2, 3, 3): 4.0, (1, 3, 3): 5.0, (3, 3, 3): 3.0}
    assert next_points(results, PAPER, width=1) == [(4, 3, 3)]


def test_steps_that_failed_one_point_back_are_tried_last_the_worst_at_the_end():
    back = {(2, 3, 3): 4.0, (1, 3, 3): 5.0, (3, 3, 3): 4.5, (2, 2, 3): 9.0, (2, 4, 3): 3.0}
    results, order = dict(back), []
    while asked := next_points(results, PAPER, width=1):
        order += asked
        results[asked[0]] = 6.0
    assert order == [(2, 5, 3), (2, 4, 2), (2, 4, 4), (3, 4, 3), (1, 4, 3)]


def test_a_diagonal_valley_traps_the_descent_but_not_the_certificate():
    grid = Grid({"lr": tuple(range(7)), "beta": tuple(range(7))})
    valley = {(i, j): 10.0 * abs(i - j) + abs(i + j - 10) / 10 for i, j in every_point(grid)}
    results = descend(valley, grid)
    found = assert_certificate_is_true(results, grid)
    assert (found.state, found.best) == ("certified", (3, 3))
    assert valley[5, 5] < found.loss  # the global optimum: local is all that is claimed


def test_a_plateau_is_crossed():
    grid = Grid({"lr": tuple(range(9)), "beta": tuple(range(3))})
    surface = {p: 1.0 for p in every_point(grid)}
    surface[7, 1] = 0.5
    found = assert_certificate_is_true(descend(surface, grid), grid)
    assert (found.state, found.best) == ("certified", (7, 1))


def test_a_fully_explored_plateau_certifies_at_an_interior_point_and_tells_the_ties():
    grid = Grid({"lr": tuple(range(7)), "beta": tuple(range(7))})
    surface = {p: 1.0 if p in {(0, 3), (1, 3), (2, 3), (3, 3)} else 2.0 for p in every_point(grid)}
    found = assert_certificate_is_true(descend(surface, grid), grid)
    assert (found.state, found.best, found.ties, found.margin) == ("certified", (1, 3), 2, 0.0)
    assert "4 points with exactly this loss" in found.reason


def test_a_tied_neighbour_with_neighbours_unrun_keeps_the_certificate_open():
    grid = Grid({"lr": tuple(range(5))})
    found = assert_certificate_is_true({(1,): 2.0, (2,): 1.0, (3,): 1.0}, grid)
    assert (found.state, found.missing) == ("open", ((4,),))


def test_a_diverged_middle_is_left_lower_learning_rates_first():
    surface = {p: math.inf if p[0] >= 1 else loss for p, loss in bowl((0, 3, 3)).items()}
    assert next_points({(2, 3, 3): math.inf}, PAPER, width=1) == [(1, 3, 3)]
    found = assert_certificate_is_true(descend(surface, PAPER), PAPER)
    assert (found.state, found.best, found.edges) == ("boundary", (0, 3, 3), (("lr", "lower"),))
    assert "lower edge of lr" in found.reason


def test_a_diverged_neighbour_is_worse():
    grid = Grid({"lr": (1e-3, 1e-2, 1e-1)})
    found = assert_certificate_is_true({(0,): 4.0, (1,): 3.0, (2,): math.inf}, grid)
    assert (found.state, found.margin) == ("certified", 1.0)
    assert certificate({(0,): math.inf, (1,): 3.0, (2,): math.inf}, grid).margin == math.inf


def test_when_everything_diverges_the_whole_grid_is_tried_nearest_first():
    surface = dict.fromkeys(every_point(PAPER), math.inf)
    results = descend(surface, PAPER, width=1)
    distances = [sum(abs(a - b) for a, b in zip(p, PAPER.middle, strict=True)) for p in results]
    assert distances == sorted(distances)
    assert len(results) == PAPER.size
    found = certificate(results, PAPER)
    assert (found.state, found.best) == ("open", None)
    assert "diverged" in found.reason


def test_an_optimum_on_an_edge_is_a_boundary_and_on_a_natural_edge_is_certified():
    upper = certificate(descend(bowl((3, 4, 6)), PAPER), PAPER)
    assert (upper.state, upper.edges) == ("boundary", (("epochs", "upper"),))
    natural = certificate(descend(bowl((3, 0, 0)), PAPER), PAPER)
    assert (natural.state, natural.best, natural.edges) == ("certified", (3, 0, 0), ())


def test_a_fixed_axis_is_no_edge_and_a_grid_of_one_point_certifies_alone():
    fixed = Grid({"lr": (1e-3, 1e-2, 1e-1), "weight_decay": (0.1,)})
    assert certificate(descend(bowl((1, 0), fixed), fixed), fixed).state == "certified"
    single = Grid({"lr": (1e-3,)})
    found = certificate({(0,): 3.0}, single)
    assert (found.state, found.margin) == ("certified", None)
    assert next_points({(0,): 3.0}, single) == []


def test_the_certificate_names_the_neighbours_that_were_not_run():
    found = certificate({(3, 4, 3): 3.0, (2, 4, 3): 3.1}, PAPER)
    assert (found.state, len(found.missing), found.margin) == ("open", 5, pytest.approx(0.1))
    assert found.reason == "5 of 6 neighbours were not run"
    assert certificate({}, PAPER).reason == "no finite loss: nothing was run"


def test_what_is_no_loss_no_point_and_no_width_is_refused():
    for function in (next_points, certificate):
        with pytest.raises(InputError, match="nan"):
            function({(3, 4, 3): math.nan}, PAPER)
        with pytest.raises(InputError, match="-inf"):
            function({(3, 4, 3): -math.inf}, PAPER)
        with pytest.raises(OffGridError, match="shape"):
            function({(6, 0, 0): 3.0}, PAPER)
    with pytest.raises(OffGridError):
        next_points({}, PAPER, [(0, 0)])
    with pytest.raises(InputError, match="width"):
        next_points({}, PAPER, width=0)
