"""Coordinate descent on a grid, as a pure function from results to the points to run next.

The descent is a state machine that is replayed from its beginning on every call: evaluate the starts, poll the
neighbours of the best point `width` at a time, move when one is strictly better, stop when none is. A stage is
decided only once all its points have a loss, and only points the path asked for count. So the set of points asked
for depends on the loss surface, the grid, the starts and the width, and never on the order in which runs finish,
on restarts, or on what other studies happen to have run.

It keeps no state, runs nothing, and takes a loss at its word: it does not model noise.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from typing import Literal

from dataeff.errors import InputError, OffGridError
from dataeff.specs.grid import Grid, Point

Direction = tuple[int, int]  # axis, and -1 or +1


@dataclass(frozen=True)
class Certificate:
    """What the results say about the best point of a cell.

    `certified`: every in-grid neighbour was run and none is better. `boundary`: the same, but the point lies on an
    edge of the grid, so the optimum may lie outside. `open`: neighbours are missing, or no loss is finite.
    """

    state: Literal["certified", "boundary", "open"]
    best: Point | None  # None when no loss is finite
    loss: float | None  # of `best`
    missing: tuple[Point, ...]  # neighbours of `best`, and of points tied with it, that were not run
    edges: tuple[tuple[str, str], ...]  # (axis, "lower" | "upper") edges that `best` lies on
    margin: float | None  # loss of the best neighbour run minus `loss`; None when no neighbour was run
    ties: int  # neighbours of `best` with exactly its loss
    reason: str  # one sentence


def next_points(
    results: Mapping[Point, float],
    grid: Grid,
    starts: Sequence[Point] = (),
    width: int = 2,
    limit: int | None = None,
) -> list[Point]:
    """Return the points of the current stage that are not in `results`; empty when the path is done.

    `results` holds the loss of every point tried, lower is better, `math.inf` for a diverged run. The path begins at
    `starts` (the middle of the grid unless given), all in one stage. On a plateau of exactly equal losses, and while
    every run has diverged, the path widens to the neighbours of every such point, nearest first. A `limit` cuts the path
    after that many points.
    Raises `InputError` for a loss of NaN or -inf or a width below one, `OffGridError` for a point off the grid.
    """
    _check(results, grid, starts, width)
    tried: dict[Point, float] = {}
    centre: Point | None = None
    last_direction: Direction | None = None
    steps = cache(partial(_steps, grid))  # a call may poll the same plateau hundreds of times
    stage: dict[Point, Direction | None] = dict.fromkeys(starts or (grid.middle,))
    while stage:
        allowed = list(stage)[: None if limit is None else max(0, limit - len(tried))]
        waiting = [point for point in allowed if point not in results]
        if waiting or len(allowed) < len(stage):
            return waiting
        tried.update((point, results[point]) for point in stage)
        best = min(stage, key=tried.__getitem__)
        if centre is None or tried[best] < tried[centre]:
            centre, last_direction = best, stage[best]
        stage = dict(islice(_polls(tried, grid, centre, last_direction, steps), width))
    return []


def walk(
    value: Callable[[Point], float | None],
    grid: Grid,
    starts: Sequence[Point] = (),
    width: int = 2,
    limit: int | None = None,
    others: Callable[[], Iterable[Point]] = tuple,
) -> tuple[dict[Point, float], list[Point]]:
    """Return the results of the path as far as `value` has them, in its order, and the points that it needs next.

    `value` gives the loss of a point, None where it was not run. A path that is done goes on from the best of `others`, points
    run for other reasons, where that is better than all it has: so no certificate is contradicted by what is recorded.
    """
    results: dict[Point, float] = {}
    starts = tuple(starts) or (grid.middle,)
    while True:
        stage = next_points(results, grid, starts, width=width, limit=limit)
        losses = {point: loss for point in stage if (loss := value(point)) is not None}
        results |= losses
        if len(losses) < len(stage):
            return results, [point for point in stage if point not in losses]
        if stage:
            continue
        if limit is not None and len(results) >= limit:
            return results, []
        outside = {point: loss for point in others() if point not in results and (loss := value(point)) is not None}
        best = min(outside, key=lambda point: (outside[point], point), default=None)
        if best is None or outside[best] == math.inf or outside[best] > min(results.values(), default=math.inf):
            return results, []
        results[best] = outside[best]
        starts = (*starts, best)


def certificate(results: Mapping[Point, float], grid: Grid) -> Certificate:
    """Return the certificate of the best of all `results`, on the path or not; see `Certificate`.

    Points tied with the best and connected to it are one plateau: it is open until the neighbours of all of them were
    run, and is represented by a point off the edges when it has one. Of several plateaus the most complete one counts,
    then one with a point off the edges, then the lowest point. Raises as `next_points` does.
    """
    _check(results, grid)
    loss = min(results.values(), default=math.inf)
    if loss == math.inf:
        diverged = f"all {len(results)} runs of {grid.size} points diverged" if results else "nothing was run"
        return Certificate("open", None, None, (), (), None, 0, f"no finite loss: {diverged}")

    def rank(candidate: Point) -> tuple[bool, bool, Point]:
        return bool(_unrun(plateaus[candidate], results, grid)), bool(grid.edges(candidate)), candidate

    plateaus: dict[Point, dict[Point, None]] = {}
    for point in (p for p in results if results[p] == loss):
        if point not in plateaus:
            plateau = _plateau(results, grid, point)
            plateaus.update(dict.fromkeys(plateau, plateau))
    best = min(plateaus, key=rank)
    missing = _unrun(plateaus[best], results, grid)
    edges = tuple(grid.edges(best))
    losses = [results[p] for p in grid.neighbours(best) if p in results]
    margin, ties = (min(losses) - loss if losses else None), losses.count(loss)
    state = "open" if missing else "boundary" if edges else "certified"
    reason = _reason(len(grid.neighbours(best)), len(plateaus[best]), missing, edges, margin)
    reason += f"; {ties} have exactly the same loss" if ties else ""
    return Certificate(state, best, loss, missing, edges, margin, ties, reason)


def certificate_columns(best: Certificate | None, results: Mapping[Point, float], grid: Grid) -> dict[str, object]:
    """Return a certificate as columns of table `cell`; a margin to diverged neighbours alone is NULL."""
    if best is None:
        best = certificate({}, grid)
    around = grid.neighbours(best.best) if best.best is not None else []
    known = best.best is not None
    return {
        "state": best.state,
        "reason": best.reason,
        "best": list(best.best) if known else None,
        "best_loss": best.loss,
        "margin": best.margin if best.margin is not None and math.isfinite(best.margin) else None,
        "ties": best.ties if known else None,
        "neighbours_run": sum(point in results for point in around) if known else None,
        "neighbours_missing": [list(point) for point in best.missing] if known else None,
        "edges": [f"{axis} {side}" for axis, side in best.edges] if known else None,
    }


def _check(results: Mapping[Point, float], grid: Grid, starts: Iterable[Point] = (), width: int = 1) -> None:
    if width < 1:
        raise InputError(f"width is {width}: a stage needs at least one point; give 1 or more")
    for point in chain(results, starts):
        if point not in grid:
            raise OffGridError(f"point {point} is not on the grid of shape {grid.shape}; give indices below it, from 0")
    for point, loss in results.items():
        if not loss > -math.inf:
            raise InputError(f"the loss at {grid.values(point)} is {loss}: a loss is a number; give inf for a diverged run")


def _polls(
    tried: Mapping[Point, float],
    grid: Grid,
    centre: Point,
    last_direction: Direction | None,
    steps: Callable[[Point], list[tuple[Point, Direction]]],
) -> Iterator[tuple[Point, Direction]]:
    """Yield each untried neighbour with its direction: those of the centre, most promising first, then of its plateau."""
    # While everything has diverged, all points are one plateau, wherever the starts lay.
    plateau = tried if tried[centre] == math.inf else _plateau(tried, grid, centre)
    around = steps(centre)
    if last_direction:
        around = sorted(
            around, key=lambda step: (step[1] != last_direction, _reverse_step_cost(tried, grid, centre, last_direction, step[1]))
        )
    seen = set(tried)
    for point, direction in chain(around, chain.from_iterable(map(steps, plateau))):
        if point not in seen:
            seen.add(point)
            yield point, direction


def _reverse_step_cost(
    tried: Mapping[Point, float], grid: Grid, centre: Point, last_direction: Direction, direction: Direction
) -> float:
    """Return how much worse this step made the point the path came from; minus the opposite step's cost, or 0, if unknown.

    A slope changes little over one step of `last_direction`, so what failed there is best tried last here. On quadratic surfaces
    on the 6 x 8 x 7 grid of arXiv 2509.14786 this order needs about 13% fewer runs than a fixed one.
    """
    back = grid.step(centre, last_direction[0], -last_direction[1])
    if back is None or not math.isfinite(tried[back]):
        return 0.0
    axis, by = direction
    for sign in (1, -1):
        point = grid.step(back, axis, sign * by)
        if point in tried:
            return sign * (tried[point] - tried[back])
    return 0.0


def _steps(grid: Grid, point: Point) -> list[tuple[Point, Direction]]:
    directions = [(axis, by) for axis in range(len(point)) for by in (-1, 1)]
    return [(p, d) for d in directions if (p := grid.step(point, *d)) is not None]


def _plateau(results: Mapping[Point, float], grid: Grid, point: Point) -> dict[Point, None]:
    """Return the points connected to `point` through neighbours of exactly its loss, nearest first, itself included."""
    plateau = {point: None}
    queue = [point]
    for member in queue:
        for neighbour in grid.neighbours(member):
            if neighbour not in plateau and results.get(neighbour) == results[point]:
                plateau[neighbour] = None
                queue.append(neighbour)
    return plateau


def _unrun(points: Iterable[Point], results: Mapping[Point, float], grid: Grid) -> tuple[Point, ...]:
    return tuple(dict.fromkeys(n for p in points for n in grid.neighbours(p) if n not in results))


def _reason(neighbours: int, tied: int, missing: Sequence[Point], edges: Sequence[tuple[str, str]], margin: float | None) -> str:
    if missing and tied > 1:
        return f"{len(missing)} neighbours of {tied} points with exactly this loss were not run"
    if missing:
        return f"{len(missing)} of {neighbours} neighbours were not run"
    if margin is None:
        return "the grid has one point, and it was run"
    if tied > 1:
        reason = f"all neighbours of {tied} points with exactly this loss were run and none is better"
    elif margin == math.inf:
        reason = f"all {neighbours} neighbours were run and diverged"
    else:
        reason = f"all {neighbours} neighbours were run and the best of them is {margin:.4g} worse"
    if edges:
        reason += f", but it lies on the {' and the '.join(f'{side} edge of {axis}' for axis, side in edges)}"
    return reason
