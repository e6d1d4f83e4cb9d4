"""What a study would train, what is recorded already, and what the rest would cost here. Nothing is trained or written."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dataeff.data.tokens import OnProgress, Tokens, find_tokens
from dataeff.errors import NotFoundError
from dataeff.execution.local import default_workers, usable_gpus
from dataeff.facts.store import Store
from dataeff.records import queries
from dataeff.records.ingest import read_job, unrecorded
from dataeff.records.store import Database
from dataeff.specs.study import Study, StudySpec
from dataeff.study.demand import Demand
from dataeff.study.index import load_results
from dataeff.study.launch import build_demand
from dataeff.study.resolve import CellState, resolve
from dataeff.study.results import Results

# FLOP/s of a worker before anything was recorded: a CPU core on tiny models, measured at 1.5e10 to 4e10 on a 2020s server
# core; a GPU at 40% of an H100's dense bfloat16 peak of 9.9e14.
ASSUMED_CPU_FLOPS, ASSUMED_GPU_FLOPS = 2e10, 4e14
FEWEST_DOCUMENTS = 30  # in the smallest budget, from which the loss is that of the corpus and not of a few texts
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
    warnings: tuple[str, ...] = ()  # what the study cannot answer as it is declared


def plan(study: Study, database: Database, on_progress: OnProgress | None = None) -> Plan:
    """Return the priced plan of `study`. Raises `CorpusError` when the corpus cannot be read.

    A size is priced at the median speed of its recorded runs, one never run at the median of all, else at an assumed one.

    A corpus whose tokenizer comes from the hub with its `vocabulary` stated is not tokenized for a plan: that may take
    hours and gigabytes, so nothing counts as recorded then.
    """
    spec, store, note = study.spec, Store.beside(database.path), None
    results, speeds, before, warnings = Results(), {}, [], _unanswerable(spec)
    if spec.tokenizer.kind == "hugging_face" and spec.tokenizer.vocabulary:
        demand = Demand(spec, "not tokenized", spec.tokenizer.vocabulary, 0)
        note = "the corpus was not read: its size is not checked, and no run counts as recorded"
    else:
        demand = build_demand(study, store, on_progress)
        warnings += _few_documents(spec, find_tokens(store, demand.corpus))
        try:
            with database.read() as connection:
                results = load_results(connection, demand.corpus)
                speeds = queries.flops_per_second(connection)
                before = queries.records(connection, RECORDED_CELLS, [spec.name])
                folders = unrecorded(connection, store)
        except NotFoundError:  # no database yet
            folders = unrecorded(None, store)
        for kind, folder in folders:
            if folder.result.exists():
                results.add(*read_job(kind, folder))
    now, estimate = resolve(demand, results).states, resolve(demand, results, provisional=True).states
    assumed = ASSUMED_GPU_FLOPS if usable_gpus() else ASSUMED_CPU_FLOPS
    usual = sorted(speeds.values())[len(speeds) // 2] if speeds else assumed
    workers, rows, seconds = default_workers(), [], 0.0
    for state in estimate.values():
        cell = state.cell
        parameters = demand.study.model(cell.size, demand.vocabulary).parameters_total
        needed = state.flops_left / speeds.get(parameters, usual) / workers
        seconds += needed
        left = len(state.results), state.runs_left, state.flops_left, needed / 3600
        rows.append((cell.recipe, cell.seed_tokens, cell.size.name, parameters, cell.grid.size, now[cell.id].state, *left))
    source = "median of the recorded runs of each size"
    if not speeds:
        source = f"assumed {assumed:.0e} FLOP/s a worker; no run is recorded yet"
    runs, flops = (sum(getattr(state, name) for state in estimate.values()) for name in ("runs_left", "flops_left"))
    return Plan(rows, runs, flops, seconds, workers, source, _changes(estimate, before) if before else None, note, (*warnings,))


RECORDED_CELLS = "SELECT cell_id, axes, if(search_ended_at IS NULL, NULL, best) AS optimum FROM cell WHERE study = $1"


def _changes(states: Mapping[str, CellState], recorded: Iterable[Mapping[str, Any]]) -> Changes:
    before: dict[str, dict[str, float] | None] = {}  # optima, None for a search that goes on
    for row in recorded:
        axes, optimum = json.loads(row["axes"]), row["optimum"]
        before[row["cell_id"]] = optimum and {axis: axes[axis][i] for axis, i in zip(axes, optimum, strict=True)}
    both = states.keys() & before.keys()
    again = sum(before[cell_id] not in (None, states[cell_id].optimum) for cell_id in both)
    used = {use.job_id for state in states.values() for use in state.uses if not use.is_ensemble}
    return Changes(len(both) - again, again, len(states.keys() - before.keys()), len(before.keys() - states.keys()), len(used))


def _few_documents(spec: StudySpec, tokens: Tokens) -> list[str]:
    """Say where a budget is so few documents that which ones they are decides the loss, or draws have most of them in common."""
    smallest, largest, lines = spec.seed_tokens[0], spec.seed_tokens[-1], []
    if (count := tokens.documents(smallest)) < FEWEST_DOCUMENTS:
        what = f"seed_tokens {smallest:,} begins {count} documents or passages; losses there are those of a few texts"
        size = max(256, tokens.train_bytes * smallest // tokens.train_tokens // FEWEST_DOCUMENTS // 32 * 32)
        lines.append(f"{what}; set corpus.passage_bytes to {size} for {FEWEST_DOCUMENTS}, or begin with a larger budget")
    if spec.draws > 1 and 2 * largest > tokens.train_tokens:
        shared = f"draws of {largest:,} tokens have {largest / tokens.train_tokens:.0%} of the corpus each, so much in common"
        lines.append(f"{shared}; how they differ understates how other text would; use smaller budgets or a larger corpus")
    return lines


def _unanswerable(spec: StudySpec) -> list[str]:
    """Say what a study cannot answer as it is declared: a law of three parameters needs three points, its jackknife four."""
    budgets, lines = len(spec.seed_tokens), []
    if budgets < 3 and len(spec.recipes) > 1:
        lines.append(f"no data efficiency: the baseline's law over D needs 3 budgets, and seed_tokens has {budgets}; add some")
    if spec.claims and spec.resources.claim_pairs:
        lines.append(f"up to {spec.resources.claim_pairs} further pairs of each claim are not counted here")
    for name, recipe in spec.recipes.items():
        sizes, members = len(spec.sizes_of(name)), recipe.members
        if "N" in recipe.limit and sizes < 3:
            lines.append(f'recipes.{name}: limit = "{recipe.limit}" needs 3 sizes, and it has {sizes}; add some, or use "best"')
        if "K" in recipe.limit and members < 3:
            lines.append(f"recipes.{name}: no limit in K, which needs 3 members; raise members to 4")
        elif "K" in recipe.limit and members == 3:
            lines.append(f"recipes.{name}: no interval of the limit in K, which needs 4 members; raise members to 4")
    return lines
