"""What a study would cost here: its plan over the recorded runs, priced at the speed that runs reached before.

The speed of a size is the median of its recorded runs; a size never run takes the median of all; with no run at all
a stated assumption is used. Nothing is trained, and the database is only read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataeff.data.tokens import build_tokens
from dataeff.errors import NotFoundError
from dataeff.execution.local import default_workers, usable_gpus
from dataeff.facts import Facts
from dataeff.planning.plan import plan
from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.specs.demand import Demand
from dataeff.specs.ensemble import EnsembleResult
from dataeff.specs.result import Store
from dataeff.specs.study import Study

# Assumed FLOP/s of a worker before anything was recorded: a CPU core on tiny models, measured at 1.5e10 to 4e10 on a
# 2020s server core; a GPU at 40% of an H100's dense bfloat16 peak of 9.9e14.
ASSUMED_CPU_FLOPS = 2e10
ASSUMED_GPU_FLOPS = 4e14


@dataclass(frozen=True)
class Price:
    """A priced plan: one row a cell, and the totals. `speed` says what `seconds` rests on; `note` what is not known yet."""

    rows: list[tuple[Any, ...]]
    runs: int
    flops: float
    seconds: float
    workers: int
    speed: str
    note: str | None = None


def price(study: Study, database: Database, on_progress: Callable[[str, int, int | None], None] | None = None) -> Price:
    """Return the priced plan of `study`. Raises `CorpusError` when the corpus cannot be read.

    A corpus whose tokenizer comes from the hub with its `vocabulary` stated is not tokenized for a plan: that may take
    hours and gigabytes, so nothing counts as recorded then.
    """
    from dataeff.launch import check_budgets

    spec, store, note = study.spec, Store.beside(database.path), None
    losses: dict[str, float] = {}
    ensembles: dict[str, EnsembleResult] = {}
    speeds: dict[int, float] = {}
    if spec.tokenizer.kind == "hugging_face" and spec.tokenizer.vocabulary:
        demand = Demand(spec, "not tokenized", spec.tokenizer.vocabulary, 0)
        note = "the corpus was not read: its size is not checked, and no run counts as recorded"
    else:
        tokens = build_tokens(spec.corpus, spec.tokenizer, study.directory, store, on_progress)
        check_budgets(study, tokens)
        demand = Demand(spec, tokens.fingerprint, tokens.vocabulary, tokens.separator)
        try:
            with database.read() as connection:
                losses = queries.recorded_losses(connection, tokens.fingerprint)
                ensembles = queries.recorded_ensembles(connection, tokens.fingerprint)
                speeds = queries.flops_per_second(connection)
        except NotFoundError:  # no database yet: nothing is recorded
            pass
    facts = Facts(store, losses, ensembles)
    assumed = ASSUMED_GPU_FLOPS if usable_gpus() else ASSUMED_CPU_FLOPS
    usual = sorted(speeds.values())[len(speeds) // 2] if speeds else assumed
    workers = default_workers()
    rows, seconds, flops, runs = [], 0.0, 0.0, 0
    for item in plan(demand, lambda cell, point: facts.value(demand, cell, point), facts.loss):
        cell = item.cell
        parameters = spec.model(cell.size, demand.vocabulary).parameters_total
        cell_seconds = item.flops_left / speeds.get(parameters, usual) / workers
        rows.append(
            (
                cell.recipe,
                cell.seed_tokens,
                cell.size.name,
                parameters,
                cell.grid.size,
                item.state,
                item.recorded,
                item.expected,
                item.flops_left,
                cell_seconds / 3600,
            )
        )
        seconds, flops, runs = seconds + cell_seconds, flops + item.flops_left, runs + item.expected
    said = (
        "median of the recorded runs of each size" if speeds else f"assumed {assumed:.0e} FLOP/s a worker; no run is recorded yet"
    )
    return Price(rows, runs, flops, seconds, workers, said, note)
