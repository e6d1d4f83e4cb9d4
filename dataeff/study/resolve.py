"""How a study stands: a pure function of what it asks for and what is recorded.

    resolve(demand, results)  ->  the state of every cell, the jobs it wants now, what the rest is likely to cost

A launch submits what is wanted, a plan prices what is left, and both show the same states. A cell starts when the cells it
builds on have ended, moves when its stage is complete, and goes on from any recorded run of its own that is better than all it
has; so what is wanted depends on results alone, never on timing. After a job has ended, `update` works out again only the
cells that read its result, and those that build on them. Nothing here trains, waits or writes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from dataeff.errors import OffGridError
from dataeff.facts.job import Job
from dataeff.search.coordinate_descent import Certificate, certificate, walk
from dataeff.specs.grid import Point
from dataeff.specs.spec import Input
from dataeff.specs.study import Cell
from dataeff.study.demand import Demand, Origin
from dataeff.study.results import Failure, Results, surface
from dataeff.work.train import Train


@dataclass(frozen=True)
class Use:
    """A run that a cell has used, at a point of its search or for its optimum, or an ensemble of such runs."""

    job_id: str
    role: str  # search | member | replicate | claim
    number: int  # place of the point in the order of the search, from 0
    point: Point
    draw: int = 0  # of the data
    is_ensemble: bool = False


@dataclass(frozen=True)
class CellState:
    """How one cell stands."""

    cell: Cell  # with the axes that follow its base set, once its base has ended
    state: str  # waiting | blocked | searching | certified | boundary | open
    reason: str
    starts: tuple[Point, ...] = ()
    note: str | None = None
    results: Mapping[Point, float] = field(default_factory=dict)  # in the order of the search, inf for a diverged run
    certificate: Certificate | None = None
    ended: bool = False  # nothing is left to search; what builds on it may start
    stopped: str | None = None  # why the search ended without a certificate
    origin: str = ""  # id of the cell whose search its optimum comes from
    wanted: tuple[Job, ...] = ()
    points_wanted: tuple[Point, ...] = ()
    uses: tuple[Use, ...] = ()
    runs_left: int = 0
    flops_left: float = 0.0

    @property
    def best(self) -> Point | None:
        return self.certificate.best if self.certificate else None

    @property
    def optimum(self) -> dict[str, float] | None:
        """The values at its optimum, once its search has ended."""
        return self.cell.grid.values(self.best) if self.ended and self.best is not None else None


class Resolution:
    """The states of a study's cells, by id, in the order in which they can start.

    In a `provisional` one no cell waits for another that has any result: it builds on the best that is recorded so far. That
    is what a plan prices; a launch waits.
    """

    def __init__(self, demand: Demand, results: Results, provisional: bool = False) -> None:
        self.demand, self.results, self.provisional = demand, results, provisional
        self.states: dict[str, CellState] = {}
        self._readers: dict[str, set[str]] = {}  # cells that read the result of a job, or the runs on a surface
        self._children: dict[str, list[str]] = {}
        self._pairs: dict[str, int] = {}  # of claims, that a cell was asked for
        self._run_ids: dict[object, tuple[str, ...]] = {}  # by cell and values of a point
        for cell in demand.cells.values():
            for parent in cell.builds_on:
                self._children.setdefault(parent, []).append(cell.id)
            self.states[cell.id] = _CellResolver(self, cell).state()

    def update(self, job_ids: Iterable[str], surfaces: Iterable[str] = ()) -> list[CellState]:
        """Work out again what depends on these jobs, and on runs of these surfaces; return the states that have changed."""
        return self._resolve_again({cell_id for name in (*job_ids, *surfaces) for cell_id in self._readers.get(name, ())})

    def _resolve_again(self, stale: set[str]) -> list[CellState]:
        """Work out again these cells, and those that build on one that changes; return the states that have changed."""
        changed = []
        for cell_id, before in self.states.items():
            if cell_id in stale and (state := _CellResolver(self, self.demand.cells[cell_id]).state()) != before:
                self.states[cell_id] = state
                changed.append(state)
                stale.update(self._children.get(cell_id, ()))
        return changed

    def ask(self, cell_ids: Iterable[str], pairs: int) -> list[CellState]:
        """Have these cells want so many pairs of claims; return the states that have changed."""
        for cell_id in cell_ids:
            self._pairs[cell_id] = max(pairs, self._pairs.get(cell_id, 0))
        return self._resolve_again(set(cell_ids))

    def pairs_asked(self, cell: Cell) -> list[Origin]:
        return [origin for pair in self.demand.pairs(cell)[: self._pairs.get(cell.id, 0)] for origin in pair]

    def pair_flops(self, cell_ids: Iterable[str], number: int) -> float:
        """Return the training FLOPs of one more pair of these cells, the `number`th from 0; what teaches them is not counted."""
        states = [self.states[cell_id] for cell_id in cell_ids]
        origins = [(state, origin) for state in states for origin in self.demand.pairs(state.cell)[number]]
        return float(sum(run.flops for state, at in origins for run in self.demand.members(state.cell, state.best, origin=at)))

    def run_ids(self, cell: Cell, point: Point) -> tuple[str, ...]:
        """Return the ids of the runs whose losses are a point's objective: hashing a spec costs more than all else here."""
        key = (cell.id, cell.taught and str(cell.taught), tuple(cell.grid.values(point).items()))
        if key not in self._run_ids:
            self._run_ids[key] = tuple(run.id for run in self.demand.searched(cell, point))
        return self._run_ids[key]

    def reads(self, name: str, cell: Cell) -> None:
        self._readers.setdefault(name, set()).add(cell.id)

    def reading(self, job_id: str) -> list[CellState]:
        """Return the states of the cells that read the result of a job."""
        return [self.states[cell_id] for cell_id in self._readers.get(job_id, ())]

    def is_finished(self, cell_id: str) -> bool:
        """Whether a cell, and every cell that builds on it, has nothing left to do."""
        state = self.states[cell_id]
        return state.ended and not state.wanted and all(map(self.is_finished, self._children.get(cell_id, ())))


def resolve(demand: Demand, results: Results, provisional: bool = False) -> Resolution:
    """Return how a study stands. The same demand on the same results is the same value."""
    return Resolution(demand, results, provisional)


class _CellResolver:
    """Works out one cell's state from those of the cells it builds on."""

    def __init__(self, resolution: Resolution, cell: Cell) -> None:
        self.all, self.demand, self.results, self.cell = resolution, resolution.demand, resolution.results, cell
        self.recipe = self.demand.recipe(cell)
        self.parents = {
            kind: resolution.states[parent]
            for kind, parent in (("start", cell.neighbour), ("base", cell.base), ("teacher", cell.teacher))
            if parent
        }
        self.failures: list[str] = []  # of jobs that stop this search

    def state(self) -> CellState:
        waiting = [state for state in self.parents.values() if not state.ended and self._optimum(state) is None]
        if waiting:
            stops = {state.cell.id: f", which stopped: {state.stopped}" if state.stopped else "" for state in waiting}
            return self._idle("waiting", "; ".join(f"waits for {cell_id}{why}" for cell_id, why in stops.items()))
        base, teacher = self.parents.get("base"), self.parents.get("teacher")
        if base and self.recipe.tune is not None and self._optimum(base) is None:
            return self._idle("blocked", f"its base {base.cell.id} has no optimum")
        optima = {state.cell.id: self._optimum(state) for state in self.parents.values()}
        cell, starts, note = self.demand.place(self.cell, optima)
        if teacher:
            teachers, problem = self._teachers(teacher)
            if problem:
                return self._idle(*problem)
            cell = self.demand.taught(cell, teachers)
        self.cell = cell
        return self._search(starts, note)

    def _optimum(self, state: CellState) -> dict[str, float] | None:
        """The optimum of a cell this one builds on; of a provisional resolution the best that is recorded so far."""
        if self.all.provisional and state.best is not None:
            return state.cell.grid.values(state.best)
        return state.optimum

    def _idle(self, state: str, reason: str) -> CellState:
        blocked = state == "blocked"
        idle = CellState(self.cell, state, reason, note=reason if blocked else None, ended=blocked, origin=self.cell.id)
        return idle if blocked else self._with_cost(idle)

    def _teachers(self, teacher: CellState) -> tuple[list[list[Input]], tuple[str, str] | None]:
        """Return the members that teach, on each draw, or why they cannot (state, reason)."""
        if self._optimum(teacher) is None:
            return [], ("blocked", f"its teacher {teacher.cell.id} has no optimum")
        for run in self.demand.members(teacher.cell, teacher.best):
            loss = self._loss(run.id)
            if loss == math.inf:
                return [], ("blocked", f"its teacher {teacher.cell.id} has a diverged member")
            if loss is None:
                failure = self.results.failures.get(run.id)
                why = f", whose run {run.id} ended so: {failure.outcome}: {failure.reason}" if failure else ""
                return [], ("waiting", f"waits for the members of its teacher {teacher.cell.id}{why}")
        return self.demand.teachers(teacher.cell, teacher.best), None

    # -- reading results ----------------------------------------------------------------------------------------

    def _loss(self, run_id: str) -> float | None:
        self.all.reads(run_id, self.cell)
        return self.results.losses.get(run_id)

    def _failure(self, job_id: str) -> Failure | None:
        self.all.reads(job_id, self.cell)
        return self.results.failures.get(job_id)

    def _value(self, point: Point) -> float | None:
        """Return what the search minimises at a point: inf where a run diverged or did not fit, None if it is not recorded."""
        run_ids = self.all.run_ids(self.cell, point)
        losses = [self._loss(run_id) for run_id in run_ids]
        if None in losses:
            return math.inf if self._did_not_fit(point) else None
        if self.recipe.objective == "single" or math.inf in losses:
            return max(losses)
        ensemble = self.demand.ensemble(self.cell, point)
        self.all.reads(ensemble.id, self.cell)
        result = self.results.others.get(ensemble.id)
        if result is None:
            return math.inf if self._did_not_fit(point) else None
        return dict(result.curve(self.recipe.averaging)).get(self.recipe.members, math.inf)

    def _did_not_fit(self, point: Point) -> bool:
        ensemble = [self.demand.ensemble(self.cell, point).id] if self.recipe.objective == "K" else []
        failures = [self._failure(job_id) for job_id in (*self.all.run_ids(self.cell, point), *ensemble)]
        return any(failure and failure.outcome == "out_of_memory" for failure in failures)

    def _others(self) -> Iterator[Point]:
        """Yield the points of the grid at which anyone has recorded a run."""
        grid = self.cell.grid
        if grid.size == 1:
            return
        name, own = surface(self.demand.searched(self.cell, grid.middle)[0].model_dump())
        self.all.reads(name, self.cell)
        for axes in self.results.by_surface[name].values():
            if all(axes[axis] == own[axis] for axis in own if axis not in grid.axes):
                with suppress(OffGridError):
                    yield grid.point(axes)

    # -- the search ---------------------------------------------------------------------------------------------

    def _search(self, starts: tuple[Point, ...], note: str | None) -> CellState:
        grid, resources = self.cell.grid, self.demand.study.resources
        limit = resources.max_runs_per_cell
        results, needed = walk(self._value, grid, starts, resources.points_in_flight, limit, self._others)
        if needed and self.all.provisional:
            results |= {point: loss for point in self._others() if (loss := self._value(point)) is not None}
        too_large = {point for point, loss in results.items() if loss == math.inf and self._did_not_fit(point)}
        judged = {point: loss for point, loss in results.items() if point not in too_large}
        if too_large and not any(loss < math.inf for loss in judged.values()):
            needed = []  # what does not fit anywhere is not tried all over the grid
        wanted = [job for point in needed for job in self._jobs_at(point)]
        best, stopped, reason = certificate(judged, grid), None, f"{len(results)} points of its search are recorded"
        if self.failures:
            reason = stopped = "; ".join(self.failures)
        elif not needed and too_large:
            stopped = f"{len(too_large)} of its points did not fit into memory"
        elif not needed and limit is not None and len(results) >= limit and best.state == "open":
            stopped = f"its {limit} runs are used up"
        state = CellState(self.cell, "open", reason, starts, note, results, best, not needed, stopped, self.cell.id)
        if state.ended:
            return self._after(state)
        name, uses = "searching" if wanted else "open", tuple(self._uses(results))
        return self._with_cost(replace(state, state=name, wanted=tuple(wanted), points_wanted=tuple(needed), uses=uses))

    def _jobs_at(self, point: Point) -> list[Job]:
        """Return what a point still lacks and can be made now."""
        runs = [run for run in self.demand.searched(self.cell, point) if self._loss(run.id) is None]
        makeable, problems = self._makeable(runs or [self.demand.ensemble(self.cell, point)])
        self.failures += problems
        return [] if problems else makeable

    def _makeable(self, jobs: list[Job]) -> tuple[list[Job], list[str]]:
        """Return the jobs that were not given up, and how the others ended."""
        failed = {job.id: failure for job in jobs if (failure := self._failure(job.id))}
        problems = [f"{job.kind} {job.id}: {failed[job.id].outcome}: {failed[job.id].reason}" for job in jobs if job.id in failed]
        return [job for job in jobs if job.id not in failed], problems

    def _after(self, state: CellState) -> CellState:
        """The search has ended: its optimum is repeated under other seeds, or its members gathered."""
        best, grid = state.certificate, self.cell.grid
        wanted, problems = self._wanted_at_optimum(best.best) if best.best is not None else ([], [])
        note = "; ".join(filter(None, [state.note, *problems])) or None
        name, origin = best.state, self.cell.id
        reason = state.stopped if best.best is None and state.stopped else best.reason
        base = self.parents.get("base")
        if base and self.recipe.tune == [] and grid.size == 1:
            origin = base.origin
            if name == "certified":
                name, reason = base.state, f"follows {base.cell.recipe}: {base.reason}"
        uses, runs = tuple(self._uses(state.results, best.best)), [job for job in wanted if isinstance(job, Train)]
        state = replace(state, state=name, reason=reason, note=note, origin=origin, wanted=tuple(wanted), uses=uses)
        return replace(state, runs_left=len(runs), flops_left=float(sum(run.flops for run in runs)))

    def _wanted_at_optimum(self, best: Point) -> tuple[list[Job], list[str]]:
        """Return the repeats or members that an optimum lacks, then their ensemble, and why some of it cannot be had."""
        jobs: list[Job] = []
        notes = []
        for origin in (self.demand.tuned, *self.demand.repeats(self.cell), *self.all.pairs_asked(self.cell)):
            runs, ensemble = self.demand.members(self.cell, best, origin=origin), self.demand.ensemble(self.cell, best, origin)
            losses = [self._loss(run.id) for run in runs]
            for run, loss in zip(runs, losses, strict=True):
                jobs += [] if loss in (None, math.inf) else self._unmeasured(run)
            if None in losses or not ensemble:
                jobs += [run for run, loss in zip(runs, losses, strict=True) if loss is None]
            elif math.inf in losses:
                notes.append("a member of the optimum diverged: it has no ensemble")
            else:
                self.all.reads(ensemble.id, self.cell)
                jobs += [] if ensemble.id in self.results else [ensemble]
        jobs, problems = self._makeable(jobs)
        return jobs, [*notes, *problems]

    def _unmeasured(self, run: Train) -> list[Job]:
        """Return the measures of a run that are not recorded."""
        measures = self.demand.measures(run)
        for measure in measures:
            self.all.reads(measure.id, self.cell)
        return [measure for measure in measures if measure.id not in self.results]

    def _uses(self, results: Mapping[Point, float], optimum: Point | None = None) -> Iterator[Use]:
        """Yield the recorded jobs behind the points of the search, and behind its optimum."""
        jobs: dict[str, Use] = {}
        for number, point in enumerate(results):
            for place, run_id in enumerate(self.all.run_ids(self.cell, point)):
                jobs.setdefault(run_id, Use(run_id, "member" if place else "search", number, point))
            if self.recipe.objective == "K":
                ensemble = self.demand.ensemble(self.cell, point)
                jobs.setdefault(ensemble.id, Use(ensemble.id, "member", number, point, is_ensemble=True))
        roles = {self.demand.tuned: "member", **dict.fromkeys(self.demand.repeats(self.cell), "replicate")}
        roles |= {origin: "claim" for pair in self.demand.pairs(self.cell) for origin in pair}
        for origin, role in roles.items() if optimum is not None else ():
            use = role, list(results).index(optimum), optimum, origin[0]
            for run in self.demand.members(self.cell, optimum, origin=origin):
                jobs.setdefault(run.id, Use(run.id, *use))
            if ensemble := self.demand.ensemble(self.cell, optimum, origin):
                jobs.setdefault(ensemble.id, Use(ensemble.id, *use, is_ensemble=True))
        return (use for job_id, use in jobs.items() if job_id in self.results)

    def _with_cost(self, state: CellState) -> CellState:
        """Add the runs that a search which goes on is likely to need, and their FLOPs."""
        middle = self.cell.grid.middle
        each = len(self.demand.searched(self.cell, middle))
        runs = max(1, self.demand.typical_points(self.cell) - len(state.results)) * each
        runs += len(self.demand.repeats(self.cell)) * len(self.demand.members(self.cell, middle))
        runs += len(self.demand.members(self.cell, middle)) - each
        return replace(state, runs_left=runs, flops_left=runs * self.demand.typical_flops(self.cell))
