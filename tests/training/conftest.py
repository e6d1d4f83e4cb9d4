"""One tiny run, small enough that a whole training takes a fraction of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataeff.facts.store import JobFolder
from dataeff.specs.run import ModelSpec, RunSpec

VOCABULARY, CONTEXT = 64, 16


@pytest.fixture
def model_spec() -> ModelSpec:
    return ModelSpec(vocabulary=VOCABULARY, context_length=CONTEXT, hidden=16, layers=2, heads=4, kv_heads=2, feed_forward=32)


@pytest.fixture
def spec(model_spec: ModelSpec) -> RunSpec:
    """24 steps: 8 sequences of 16 tokens a step, 6 steps an epoch, 4 epochs."""
    return RunSpec(
        trainer_version=1,
        corpus="tiny",
        seed_tokens=6 * 8 * CONTEXT,
        model=model_spec,
        epochs=4,
        lr=1e-2,
        weight_decay=0.1,
        batch_size=8,
        validation_sequences=12,
        precision="float32",
    )


def text(count: int, seed: int) -> np.ndarray:
    """Return `count` tokens of a random walk on a ring, which a model can learn to predict."""
    return (np.random.default_rng(seed).integers(1, 5, count).cumsum() % VOCABULARY).astype(np.uint16)


@pytest.fixture
def train_tokens(spec: RunSpec) -> np.ndarray:
    return text(spec.seed_tokens, seed=1)


@pytest.fixture
def validation(spec: RunSpec) -> np.ndarray:
    return text(spec.validation_sequences * CONTEXT, seed=2).reshape(-1, CONTEXT)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path / "run")
