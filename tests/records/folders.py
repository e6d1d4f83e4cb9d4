"""Run folders as training leaves them, and rows of runs, with losses of one's choosing."""

from __future__ import annotations

from datetime import UTC, datetime

from dataeff.facts.job import Attempt
from dataeff.facts.store import JobFolder, Store, write_atomically
from dataeff.specs.run import ModelSpec
from dataeff.training.result import Curve, Evaluation, RunResult
from dataeff.work.train import Train

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MODEL = ModelSpec(vocabulary=64, context_length=8, hidden=8, layers=1, heads=2, kv_heads=2, feed_forward=16)

# A row of `run` by its $id, $status and $loss.
RUN = """
    INSERT INTO run BY NAME SELECT $id AS run_id, $status AS status, 'c' AS corpus, 64 AS seed_tokens, 1 AS parameters_total,
        1 AS parameters_non_embedding, 1 AS hidden, 1 AS layers, 1 AS heads, 1 AS kv_heads, 1 AS feed_forward,
        1 AS vocabulary, 1 AS context_length, 1 AS lr, 0 AS weight_decay, 1 AS epochs, 1 AS batch_size,
        'adamw' AS optimizer, 0 AS dropout, 'same' AS "order", 'float32' AS precision, 0 AS train_seed, 0 AS data_seed,
        1 AS trainer_version, $loss AS val_loss, 1 AS steps, 1 AS tokens_seen, 1 AS training_flops, 1 AS wall_seconds,
        1 AS tokens_per_second, 'd' AS device, 'h' AS host, 't' AS torch_version, now() AS started_at, now() AS ended_at,
        '{}' AS spec, 1 AS parameters_active, 1 AS experts, 1 AS loops"""


def run_spec(**changes) -> Train:
    given = dict(
        trainer_version=1,
        corpus="c0ffee",
        seed_tokens=64,
        model=MODEL,
        epochs=2,
        lr=3e-3,
        weight_decay=0.1,
        batch_size=2,
        validation_sequences=4,
        precision="float32",
    )
    return Train(**given | changes)


def write_run(store: Store, spec: Train, val_loss: float | None = 3.5, points: int = 2) -> JobFolder:
    """Write the folder of a finished run, or of a diverged one where `val_loss` is None."""
    folder = store.folder(spec)
    steps = list(range(1, points + 1))
    result = RunResult(
        run_id=spec.id,
        status="diverged" if val_loss is None else "finished",
        reason="loss was not finite" if val_loss is None else None,
        val_loss=val_loss,
        val_loss_standard_error=0.01,
        train_loss=3.25,
        evaluations=[Evaluation(step=2, tokens=32, val_loss=val_loss, standard_error=0.01)],
        curve=Curve(
            step=steps,
            tokens=[16 * step for step in steps],
            train_loss=[4.0 / step for step in steps],
            gradient_norm=[None] * points,
            lr=[1e-3] * points,
        ),
        steps=points,
        tokens_seen=16 * points,
        parameters_total=MODEL.parameters_total,
        parameters_non_embedding=MODEL.parameters_non_embedding,
        training_flops=2**60 + 1,
        wall_seconds=2.0,
        tokens_per_second=64.0,
        model_flops_utilisation=None,
        peak_memory_bytes=5_000_000_000,
        device="cpu (test)",
        host="here",
        torch_version="2.13.0",
        started_at=NOW,
        ended_at=NOW,
        weights_bytes=None if val_loss is None else 1234,
    )
    write_attempt(folder, spec, 1, result.status)
    write_atomically(folder.result, result.model_dump_json())
    return folder


def write_attempt(folder: JobFolder, spec: Train, number: int, outcome: str) -> None:
    attempt = Attempt(
        job_id=spec.id,
        number=number,
        started_at=NOW,
        ended_at=None if outcome == "running" else NOW,
        outcome=outcome,
        host="here",
        process_id=4242,
        device="cpu",
    )
    write_atomically(folder.spec, spec.model_dump_json())
    write_atomically(folder.attempts / f"{number:04d}.json", attempt.model_dump_json())
