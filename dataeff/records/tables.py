"""The tables as SQLModel classes: the declared schema, and what `Database.session()` returns rows of.

The schema itself is created by `db/migrations/*.sql`; a test holds the two together. Meanings and units of every
column are in `db/README.md`. Rows are written in bulk by plain SQL, never through these classes. `metric`, `evaluation`
and `ensemble_loss` have a primary key here alone: DuckDB keeps no index over them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, JSON, TIMESTAMP, BigInteger, Double, Integer, String
from sqlmodel import Field, SQLModel


def _count(**keywords: Any) -> Any:
    """A BIGINT column; SQLModel alone would take 32 bits."""
    return Field(sa_type=BigInteger, **keywords)


def _real(**keywords: Any) -> Any:
    """A DOUBLE column; SQLModel alone would take 32 bits."""
    return Field(sa_type=Double, **keywords)


def _time(**keywords: Any) -> Any:
    return Field(sa_type=TIMESTAMP(timezone=True), **keywords)


class SchemaMigration(SQLModel, table=True):
    __tablename__ = "schema_migration"

    version: int = Field(primary_key=True)
    name: str
    applied_at: datetime = _time()


class SchemaViews(SQLModel, table=True):
    __tablename__ = "schema_views"

    hash: str = Field(primary_key=True)
    applied_at: datetime = _time()


class Run(SQLModel, table=True):
    __tablename__ = "run"

    run_id: str = Field(primary_key=True)
    status: str
    reason: str | None
    corpus: str | None
    corpus_name: str | None
    seed_tokens: int = _count()
    parameters_total: int = _count()
    parameters_non_embedding: int | None = _count()
    hidden: int | None = _count()
    layers: int | None = _count()
    heads: int | None = _count()
    kv_heads: int | None = _count()
    feed_forward: int | None = _count()
    vocabulary: int | None = _count()
    context_length: int | None = _count()
    lr: float | None = _real()
    weight_decay: float | None = _real()
    epochs: int | None = _count()
    batch_size: int | None = _count()
    optimizer: str | None
    dropout: float | None = _real()
    order: str | None
    precision: str | None
    train_seed: int | None = _count()
    data_seed: int | None = _count()
    trainer_version: int | None = _count()
    val_loss: float | None = _real()
    val_loss_standard_error: float | None = _real()
    train_loss: float | None = _real()
    steps: int | None = _count()
    tokens_seen: int | None = _count()
    training_flops: float | None = _real()
    wall_seconds: float | None = _real()
    tokens_per_second: float | None = _real()
    model_flops_utilisation: float | None = _real()
    peak_memory_bytes: int | None = _count()
    device: str | None
    host: str | None
    torch_version: str | None
    started_at: datetime | None = _time()
    ended_at: datetime | None = _time()
    spec: dict[str, Any] = Field(sa_type=JSON)
    recorded_at: datetime = _time()
    parameters_active: int | None = _count()
    experts: int | None = _count()
    loops: int | None = _count()
    synthetic_share: float | None = _real()
    samples: str | None
    source: str | None


class Metric(SQLModel, table=True):
    __tablename__ = "metric"

    run_id: str = Field(primary_key=True)
    step: int = _count(primary_key=True)
    tokens: int = _count()
    name: str = Field(primary_key=True)
    value: float | None = _real()


class Evaluation(SQLModel, table=True):
    __tablename__ = "evaluation"

    run_id: str = Field(primary_key=True)
    step: int = _count(primary_key=True)
    tokens: int = _count()
    split: str = Field(primary_key=True)
    val_loss: float | None = _real()
    standard_error: float | None = _real()


class Attempt(SQLModel, table=True):
    __tablename__ = "attempt"

    run_id: str = Field(primary_key=True)
    number: int = _count(primary_key=True)
    started_at: datetime = _time()
    ended_at: datetime | None = _time()
    outcome: str
    reason: str | None
    host: str
    process_id: int = _count()
    device: str


class Study(SQLModel, table=True):
    __tablename__ = "study"

    name: str = Field(primary_key=True)
    question: str | None
    baseline: str | None
    text: str
    text_hash: str
    asks: str
    started_at: datetime = _time()
    updated_at: datetime = _time()
    spec: dict[str, Any] = Field(sa_type=JSON)


class Cell(SQLModel, table=True):
    __tablename__ = "cell"

    cell_id: str = Field(primary_key=True)
    study: str
    recipe: str
    recipe_limit: str
    objective: str
    averaging: str
    members: int = _count()
    base: str | None
    teacher: str | None
    seed_tokens: int = _count()
    size: str
    parameters_total: int = _count()
    parameters_non_embedding: int | None = _count()
    axes: dict[str, list[float]] = Field(sa_type=JSON)
    shape: list[int] = Field(sa_type=ARRAY(Integer))
    starts: list[list[int]] = Field(sa_type=JSON)
    note: str | None
    search_ended_at: datetime | None = _time()
    search_stopped: str | None


class Trial(SQLModel, table=True):
    __tablename__ = "trial"

    cell_id: str = Field(primary_key=True)
    run_id: str = Field(primary_key=True)
    role: str
    number: int = _count()
    coordinates: list[int] = Field(sa_type=ARRAY(Integer))


class Artifact(SQLModel, table=True):
    __tablename__ = "artifact"

    run_id: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    path: str
    bytes: int = _count()


class Ensemble(SQLModel, table=True):
    __tablename__ = "ensemble"

    ensemble_id: str = Field(primary_key=True)
    corpus: str
    members: list[str] = Field(sa_type=ARRAY(String))
    validation_sequences: int = _count()
    precision: str
    wall_seconds: float = _real()
    device: str
    recorded_at: datetime = _time()


class EnsembleLoss(SQLModel, table=True):
    __tablename__ = "ensemble_loss"

    ensemble_id: str = Field(primary_key=True)
    number: int = _count(primary_key=True)
    averaging: str
    subset: list[int] = Field(sa_type=ARRAY(Integer))
    val_loss: float | None = _real()


class CellEnsemble(SQLModel, table=True):
    __tablename__ = "cell_ensemble"

    cell_id: str = Field(primary_key=True)
    ensemble_id: str = Field(primary_key=True)
    number: int = _count()
    coordinates: list[int] = Field(sa_type=ARRAY(Integer))


class Sample(SQLModel, table=True):
    __tablename__ = "sample"

    sample_id: str = Field(primary_key=True)
    members: list[str] = Field(sa_type=ARRAY(String))
    pool: str
    sequences: int = _count()
    context_length: int = _count()
    temperature: float = _real()
    top_p: float = _real()
    seed: int = _count()
    fingerprint: str
    cross_entropy: float = _real()
    entropy: float = _real()
    tokens_per_second: float = _real()
    wall_seconds: float = _real()
    device: str
    recorded_at: datetime = _time()


class Fit(SQLModel, table=True):
    __tablename__ = "fit"

    fit_id: str = Field(primary_key=True)
    study: str
    recipe: str
    seed_tokens: int | None = _count()
    quantity: str
    value: float | None = _real()
    low: float | None = _real()
    high: float | None = _real()
    method: str | None
    resamples: int = _count()
    undefined: int = _count()
    points: int = _count()
    a: float | None = _real()
    alpha: float | None = _real()
    e: float | None = _real()
    objective: float | None = _real()
    condition: float | None = _real()
    certified: bool | None
    warnings: list[str] = Field(sa_type=ARRAY(String))
    left_out: list[str] = Field(sa_type=ARRAY(String))
    run_ids: list[str] = Field(sa_type=ARRAY(String))
    evidence: str
    fitted_at: datetime = _time()
