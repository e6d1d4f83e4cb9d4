"""What a launch costs beside its training: a study of 10,000 cells and 100,000 recorded runs, resolved, then brought up to date
run by run; and 100,000 job folders, indexed into a new database.

    python benchmarks/resolve.py [--json] [--cells 10000] [--folders 100000]

Losses are made up (a bowl around a middle that moves with size and budget, noise by hash), folders hold small curves. Nothing is
trained. It says nothing of file systems other than the one of the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from dataeff.facts.store import Store
from dataeff.records.store import Database
from dataeff.specs.run import ModelSpec
from dataeff.specs.study import StudySpec
from dataeff.study.demand import Demand
from dataeff.study.index import rebuild
from dataeff.study.resolve import Resolution, resolve
from dataeff.study.results import Results
from dataeff.training.result import Curve, Evaluation, RunResult
from dataeff.work.train import Train

EVENTS = 2000


def study(cells: int) -> Demand:
    """Return a study of so many cells: two recipes, 50 sizes, as many budgets as that takes."""
    shape = {"layers": 1, "heads": 1, "kv_heads": 1, "feed_forward": 16}
    spec = StudySpec.model_validate(
        {
            "name": "large",
            "question": "how long does it take?",
            "seed_tokens": [1024 * (n + 1) for n in range(max(1, cells // 100))],
            "sizes": [{"name": f"n{n}", "hidden": 2 * (n + 4), **shape} for n in range(50)],
            "seeds": [0, 1, 2, 3, 4],
            "tokenizer": {"kind": "bpe", "vocabulary": 300},
            "training": {"context_length": 16, "batch_size": 8, "validation_sequences": 8, "precision": "float32"},
            "grid": {"lr": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "weight_decay": [0.1, 0.4, 1.6], "epochs": [1.0, 2.0, 4.0, 8.0]},
            "recipes": {"standard": {"fixed": {"weight_decay": 0.1}}, "regularized": {"base": "standard"}},
        }
    )
    return Demand(spec, "corpus", 300, 0)


def loss(run: Train) -> float:
    noise = int(run.id[:4], 16) / 65536 * 0.01
    middle = 1e-2 / (1 + run.model.hidden / 100)
    steps = (run.lr / middle, run.weight_decay / 1.6, run.epochs / 4)
    return 3 + 0.1 * sum(math.log(step) ** 2 for step in steps) + noise


def finish_one(resolution: Resolution, run: Train) -> float:
    """Record a run and bring the resolution up to date; return the seconds that took."""
    begin = time.perf_counter()
    surface = resolution.results.add_run(run.id, run.model_dump(), loss(run))
    resolution.update([run.id], [surface])
    return time.perf_counter() - begin


def measure_events(cells: int) -> dict[str, float]:
    demand, results = study(cells), Results()
    resolution = resolve(demand, results)
    recorded = 0
    seconds: list[float] = []
    while wanted := [job for state in resolution.states.values() for job in state.wanted]:
        seconds += [finish_one(resolution, run) for run in wanted]
        recorded += len(wanted)
    begin = time.perf_counter()
    resolve(demand, results)
    anew = time.perf_counter() - begin
    last = seconds[-EVENTS:]
    return {
        "cells": len(demand.cells),
        "runs": recorded,
        "resolved anew (s)": anew,
        "an event, median (ms)": 1e3 * statistics.median(last),
        "an event, 99th percentile (ms)": 1e3 * statistics.quantiles(last, n=100)[98],
        "an event, mean (ms)": 1e3 * statistics.mean(last),
    }


def write_folders(store: Store, count: int) -> None:
    model = ModelSpec(vocabulary=300, context_length=16, hidden=8, layers=1, heads=1, kv_heads=1, feed_forward=16)
    now = datetime.now(UTC)
    curve = Curve(step=[8, 16], tokens=[1024, 2048], train_loss=[4.0, 3.5], gradient_norm=[1.0, 0.5], lr=[1e-3, 0.0])
    for number in range(count):
        run = Train(
            trainer_version=1, corpus="corpus", seed_tokens=1024, model=model, epochs=2, lr=1e-3, weight_decay=0.1, batch_size=8,
            validation_sequences=8, precision="float32", train_seed=number,
        )  # fmt: skip
        folder = store.folder(run)
        folder.path.mkdir(parents=True)
        folder.spec.write_text(run.model_dump_json())
        evaluation = Evaluation(step=16, tokens=2048, val_loss=3.5, standard_error=0.1)
        result = RunResult(
            run_id=run.id, status="finished", reason=None, val_loss=3.5, val_loss_standard_error=0.1, train_loss=3.5,
            evaluations=[evaluation], curve=curve, steps=16, tokens_seen=2048, parameters_total=model.parameters_total,
            parameters_non_embedding=model.parameters_non_embedding, training_flops=run.training_flops, wall_seconds=1.0,
            tokens_per_second=2048.0, model_flops_utilisation=None, peak_memory_bytes=None, device="none", host="none",
            torch_version="none", started_at=now, ended_at=now, weights_bytes=None,
        )  # fmt: skip
        folder.result.write_text(result.model_dump_json())


def measure_index(folders: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        database = Database(Path(directory) / "large.duckdb")
        write_folders(Store.beside(database.path), folders)
        begin = time.perf_counter()
        rebuild(database)
        seconds = time.perf_counter() - begin
        with database.read() as connection:
            (count,) = connection.execute("SELECT count(*) FROM run").fetchone()
    return {"folders": count, "indexed (s)": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--folders", type=int, default=100_000)
    options = parser.parse_args()
    rows = [measure_events(options.cells), measure_index(options.folders)]
    if options.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print("\n".join(f"{name:>32}  {value:,.4g}" for name, value in row.items()), end="\n\n")


if __name__ == "__main__":
    main()
