"""Real run folders and cells with losses of one's choosing."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime

import pytest

from dataeff.records.ingest import record_cells, record_study, record_trials
from dataeff.records.store import Database
from dataeff.specs.result import Attempt, Curve, Evaluation, RunFolder, RunResult, Store, write_atomically
from dataeff.specs.run import ModelSpec, RunSpec

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MODEL = ModelSpec(vocabulary=64, context_length=8, hidden=8, layers=1, heads=2, kv_heads=2, feed_forward=16)


def run_spec(**changes) -> RunSpec:
    given = dict(
        trainer_version=1, corpus="c0ffee", seed_tokens=64, model=MODEL, epochs=2, lr=3e-3, weight_decay=0.1, batch_size=2,
        validation_sequences=4, precision="float32",
    )  # fmt: skip
    return RunSpec(**given | changes)


def write_run(store: Store, spec: RunSpec, val_loss: float | None = 3.5, points: int = 2) -> RunFolder:
    """Write the folder of a finished run, or of a diverged one where `val_loss` is None."""
    folder = store.run(spec.run_id)
    steps = list(range(1, points + 1))
    result = RunResult(
        run_id=spec.run_id, status="diverged" if val_loss is None else "finished",
        reason="loss was not finite" if val_loss is None else None, val_loss=val_loss,
        val_loss_standard_error=0.01, train_loss=3.25, evaluations=[Evaluation(step=2, tokens=32, val_loss=val_loss, standard_error=0.01)],
        curve=Curve(step=steps, tokens=[16 * s for s in steps], train_loss=[4.0 / s for s in steps], gradient_norm=[None] * points,
                    lr=[1e-3] * points),
        steps=points, tokens_seen=16 * points, parameters_total=MODEL.parameters_total,
        parameters_non_embedding=MODEL.parameters_non_embedding, training_flops=2**60 + 1, wall_seconds=2.0, tokens_per_second=64.0,
        model_flops_utilisation=None, peak_memory_bytes=5_000_000_000, device="cpu (test)", host="here", torch_version="2.13.0",
        started_at=NOW, ended_at=NOW, weights_bytes=None if val_loss is None else 1234,
    )  # fmt: skip
    write_atomically(folder.spec, spec.model_dump_json())
    write_attempt(folder, spec, 1, result.status)
    write_atomically(folder.result, result.model_dump_json())
    return folder


def write_attempt(folder: RunFolder, spec: RunSpec, number: int, outcome: str) -> None:
    attempt = Attempt(
        run_id=spec.run_id, number=number, started_at=NOW, ended_at=None if outcome == "running" else NOW, outcome=outcome,
        host="here", process_id=4242, device="cpu",
    )  # fmt: skip
    write_atomically(folder.spec, spec.model_dump_json())
    write_atomically(folder.attempts / f"{number:04d}.json", attempt.model_dump_json())


@pytest.fixture
def database(tmp_path) -> Database:
    return Database(tmp_path / "results.duckdb")


@pytest.fixture
def store(database) -> Store:
    return Store.beside(database.path)


class Recorded:
    """Writes cells whose points have the losses it is given; `math.inf` is a diverged run."""

    def __init__(self, connection) -> None:
        self.connection = connection
        self.numbers = itertools.count()

    def study(self, name: str = "study", baseline: str = "standard") -> None:
        record_study(self.connection, name, "which?", baseline, "text", {})

    def cell(self, losses, axes=None, study="study", recipe="standard", limit="N", seed_tokens=1_000_000, parameters=10**9,
             replicates=()) -> str:  # fmt: skip
        """`losses`: loss or list of losses by coordinates; `replicates`: further losses at a point."""
        cell_id = f"{study}/{recipe}/{seed_tokens}/{parameters}"
        axes = axes or {"lr": [1e-3]}
        row = {
            "cell_id": cell_id, "study": study, "recipe": recipe, "recipe_limit": limit, "seed_tokens": seed_tokens,
            "size": f"n{parameters}", "parameters_total": parameters, "parameters_non_embedding": parameters, "axes": axes,
            "shape": [len(values) for values in axes.values()], "starts": [], "max_runs": None, "search_ended_at": None,
        }  # fmt: skip
        record_cells(self.connection, [row])
        for role, points in (("search", losses.items()), ("replicate", replicates)):
            for coordinates, loss in points:
                self.trial(cell_id, role, coordinates, loss)
        return cell_id

    def trial(self, cell_id: str, role: str, coordinates, loss: float) -> str:
        run_id = f"run{next(self.numbers):06d}"
        finished = loss != float("inf")
        self.connection.execute(
            """INSERT INTO run BY NAME SELECT $id AS run_id, $status AS status, 'c' AS corpus, 64 AS seed_tokens, 1 AS parameters_total,
            1 AS parameters_non_embedding, 1 AS hidden, 1 AS layers, 1 AS heads, 1 AS kv_heads, 1 AS feed_forward, 1 AS vocabulary,
            1 AS context_length, 1 AS lr, 0 AS weight_decay, 1 AS epochs, 1 AS batch_size, 'adamw' AS optimizer, 0 AS dropout,
            'same' AS "order", 'float32' AS precision, 0 AS train_seed, 0 AS data_seed, 1 AS trainer_version, $loss AS val_loss,
            1 AS steps, 1 AS tokens_seen, 1 AS training_flops, 1 AS wall_seconds, 1 AS tokens_per_second, 'd' AS device, 'h' AS host,
            't' AS torch_version, now() AS started_at, now() AS ended_at, '{}' AS spec, now() AS recorded_at""",
            {"id": run_id, "status": "finished" if finished else "diverged", "loss": loss if finished else None},
        )
        record_trials(
            self.connection,
            [{"cell_id": cell_id, "run_id": run_id, "role": role, "number": 0, "coordinates": list(coordinates)}],
        )
        return run_id

    def rows(self, text: str) -> list[dict]:
        found = self.connection.execute(text)
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.fixture
def recorded(database):
    with database.write() as connection:
        yield Recorded(connection)


def spec_of(connection, run_id: str) -> dict:
    return json.loads(connection.execute("SELECT spec FROM run WHERE run_id = $1", [run_id]).fetchone()[0])
