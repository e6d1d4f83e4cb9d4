"""What a study would train, what is recorded already, and what the rest would cost here. Nothing is trained or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataeff.data.tokens import build_tokens
from dataeff.errors import NotFoundError
from dataeff.execution.local import default_workers, usable_gpus
from dataeff.facts.store import Store
from dataeff.records import queries
from dataeff.records.ingest import read_job, unrecorded
from dataeff.records.store import Database
from dataeff.specs.study import Study, StudySpec
from dataeff.study.cost import Speed
from dataeff.study.demand import Demand
from dataeff.study.index import load_results
from dataeff.study.launch import check_budgets
from dataeff.study.resolve import CellState, Resolution, resolve
from dataeff.study.results import Results

COLUMNS = ("recipe", "seed_tokens", "size", "parameters_total", "grid", "state", "recorded", "expected", "flops", "hours")


@dataclass(frozen=True)
class Changes:
    """What a study that was launched before is now: cells by what became of them."""

    kept: int
    searched_again: int
    new: int
    dropped: int
    runs_reused: int


@dataclass(frozen=True)
class Plan:
    """Rows of `COLUMNS`, one a cell, and the totals. `speed` says what `seconds` rests on; `note` what is not known yet."""

    rows: list[tuple[Any, ...]]
    runs: int
    flops: float
    seconds: float
    workers: int
    speed: str
    changes: Changes | None  # None for a study that was not launched before
    note: str | None = None


def plan(study: Study, database: Database, on_progress: Callable[[str, int, int | None], None] | None = None) -> Plan:
    """Return the priced plan of `study`. Raises `CorpusError` when the corpus cannot be read.

    A corpus whose tokenizer comes from the hub with its `vocabulary` stated is not tokenized for a plan: that may take
    hours and gigabytes, so nothing counts as recorded then.
    """
    spec, store, note = study.spec, Store.beside(database.path), None
    results, recorded_speeds, before = Results(), {}, {}
    if spec.tokenizer.kind == "hugging_face" and spec.tokenizer.vocabulary:
        demand = Demand(spec, "not tokenized", spec.tokenizer.vocabulary, 0)
        note = "the corpus was not read: its size is not checked, and no run counts as recorded"
    else:
        tokens = build_tokens(spec.corpus, spec.tokenizer, study.directory, store, on_progress)
        check_budgets(study, tokens)
        demand = Demand(spec, tokens.fingerprint, tokens.vocabulary, tokens.separator)
        try:
            with database.read() as connection:
                results = load_results(connection, tokens.fingerprint)
                recorded_speeds = queries.flops_per_second(connection)
                before = _recorded_cells(queries.records(connection, RECORDED_CELLS, [spec.name]))
                folders = unrecorded(connection, store)
        except NotFoundError:  # no database yet
            folders = unrecorded(None, store)
        for kind, folder in folders:
            if folder.result.exists():
                results.add(*read_job(kind, folder))
    workers, speed = default_workers(), Speed.of(recorded_speeds, bool(usable_gpus()))
    now, estimate = resolve(demand, results).states, resolve(demand, results, provisional=True)
    states = estimate.states.values()
    rows = [_row(demand, now[state.cell.id], state, speed.seconds(demand, state) / workers) for state in states]
    return Plan(
        rows,
        sum(state.runs_left for state in states),
        sum(state.flops_left for state in states),
        sum(speed.seconds(demand, state) for state in states) / workers,
        workers,
        speed.source,
        _changes(estimate, before) if before else None,
        note,
    )


RECORDED_CELLS = "SELECT cell_id, axes, best, search_ended_at IS NOT NULL AS ended FROM cell WHERE study = $1"


def _row(demand: Demand, now: CellState, estimate: CellState, seconds: float) -> tuple[Any, ...]:
    cell = now.cell
    parameters = demand.study.model(cell.size, demand.vocabulary).parameters_total
    where = (cell.recipe, cell.seed_tokens, cell.size.name, parameters, cell.grid.size)
    return *where, now.state, len(estimate.results), estimate.runs_left, estimate.flops_left, seconds / 3600


def _recorded_cells(rows: list[dict[str, Any]]) -> dict[str, dict[str, float] | None]:
    """Return the optimum of each recorded cell, None where its search had not ended."""
    optima: dict[str, dict[str, float] | None] = {}
    for row in rows:
        axes, best = json.loads(row["axes"]), row["best"] if row["ended"] else None
        optima[row["cell_id"]] = best and {axis: values[i] for (axis, values), i in zip(axes.items(), best, strict=True)}
    return optima


def _changes(resolution: Resolution, before: dict[str, dict[str, float] | None]) -> Changes:
    states = resolution.states
    both = states.keys() & before.keys()
    again = sum(before[cell_id] is not None and before[cell_id] != states[cell_id].optimum for cell_id in both)  # None: goes on
    used = {use.job_id for state in states.values() for use in state.uses if use.role != "ensemble"}
    return Changes(len(both) - again, again, len(states.keys() - before.keys()), len(before.keys() - states.keys()), len(used))


def unanswerable(spec: StudySpec) -> list[str]:
    """Say what a study cannot answer as it is declared: a law of three parameters needs three points, its jackknife four."""
    budgets, lines = len(spec.seed_tokens), []
    if budgets < 3 and len(spec.recipes) > 1:
        lines.append(f"no data efficiency: the baseline's law over D needs 3 budgets, and seed_tokens has {budgets}; add some")
    for name, recipe in spec.recipes.items():
        sizes, members = len(spec.sizes_of(name)), recipe.members
        if "N" in recipe.limit and sizes < 3:
            lines.append(f'recipes.{name}: limit = "{recipe.limit}" needs 3 sizes, and it has {sizes}; add some, or use "best"')
        if "K" in recipe.limit and members < 3:
            lines.append(f"recipes.{name}: no limit in K, which needs 3 members; raise members to 4")
        elif "K" in recipe.limit and members == 3:
            lines.append(f"recipes.{name}: no interval of the limit in K, which needs 4 members; raise members to 4")
    return lines
