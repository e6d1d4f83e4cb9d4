"""Run ids: one value one id, on any machine, for ever."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataeff.errors import UnstableValueError
from dataeff.specs.identity import canonical_json, identity
from dataeff.specs.run import PRESETS, ModelSpec, RunSpec, Synthetic, TeacherLogits

MODEL = ModelSpec(vocabulary=1024, context_length=64, **PRESETS["width32"].model_dump(exclude={"name"}))
SPEC = RunSpec(
    trainer_version=1,
    corpus="0123456789abcdef",
    seed_tokens=32768,
    model=MODEL,
    epochs=2,
    lr=1e-3,
    weight_decay=0.1,
    batch_size=16,
    validation_sequences=512,
    precision="float32",
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_canonical_json_reads_back_as_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2, max_size=6))
def test_the_order_of_keys_does_not_change_an_identity(value):
    assert identity(dict(reversed(value.items()))) == identity(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1: 2}, {"a": {1, 2}}, b"bytes", 1j])
def test_a_value_without_stable_bytes_is_an_error(value):
    with pytest.raises(UnstableValueError):
        identity(value)


def test_the_identity_is_the_hash_of_the_canonical_json():
    assert identity({"b": 1, "a": [0.1, -0.0]}) == hashlib.sha256(b'{"a":[0.1,0.0],"b":1}').hexdigest()[:16]


def test_a_known_spec_keeps_the_run_id_it_always_had():
    # Changing this breaks every database there is: a default was changed or a field renamed.
    assert SPEC.run_id == "52ad7e90a6dfec14"


def test_another_process_gives_the_same_run_id():
    code = f"from dataeff.specs.run import RunSpec; print(RunSpec.model_validate_json({SPEC.model_dump_json()!r}).run_id)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert out.stdout.strip() == SPEC.run_id


OTHER = {
    "trainer_version": 2,
    "corpus": "f" * 16,
    "seed_tokens": 65536,
    "epochs": 4,
    "lr": 2e-3,
    "weight_decay": 0.2,
    "batch_size": 8,
    "validation_sequences": 256,
    "precision": "bfloat16",
    "train_seed": 1,
    "data_seed": 1,
    "draw": 1,
    "optimizer": "muon",
    "beta1": 0.8,
    "beta2": 0.99,
    "epsilon": 1e-6,
    "gradient_clip": 2.0,
    "warmup_fraction": 0.02,
    "order": "reshuffled",
    "dropout": 0.1,
    "model": MODEL.model_copy(update={"layers": 3}),
    "schedule": "wsd",
    "decay_fraction": 0.5,
    "cycles": 2,
    "ema": 0.99,
    "swa_fraction": 0.25,
    "z_loss": 1e-4,
    "label_smoothing": 0.1,
    "balance_loss": 0.1,
    "synthetic": Synthetic(samples="fedcba9876543210", share=0.5),
    "teacher_logits": TeacherLogits(members=["fedcba9876543210"], weight=0.5),
}


@pytest.mark.parametrize("name", RunSpec.model_fields)
def test_every_field_changes_the_run_id_when_set(name):
    assert RunSpec(**{**dict(SPEC), name: OTHER[name]}).run_id != SPEC.run_id


@pytest.mark.parametrize("name", [n for n, field in RunSpec.model_fields.items() if not field.is_required()])
def test_a_field_left_at_its_default_does_not_change_the_run_id(name):
    assert RunSpec(**{**dict(SPEC), name: RunSpec.model_fields[name].default}).run_id == SPEC.run_id


@pytest.mark.parametrize(
    ("name", "non_embedding", "total"),
    [
        ("150m", 22.8, 154),
        ("300m", 103, 300),
        ("600m", 340, 602),
        ("1.4b", 906, 1431),
        ("1.5b", 1147, 1541),
        ("3.2b", 2718, 3243),
    ],
)
def test_the_presets_have_the_parameters_the_paper_states(name, non_embedding, total):
    model = ModelSpec(vocabulary=128_256, context_length=4096, **PRESETS[name].model_dump(exclude={"name"}))
    assert model.parameters_non_embedding / 1e6 == pytest.approx(non_embedding, rel=0.005)
    assert model.parameters_total / 1e6 == pytest.approx(total, rel=0.002)


@pytest.mark.parametrize(
    "changes", [{"experts": 4}, {"experts": 4, "experts_per_token": 2}, {"loops": 2}, {"rope_theta": 5e5}]
)
def test_every_option_of_a_model_changes_the_run_id_when_set(changes):
    assert RunSpec(**{**dict(SPEC), "model": ModelSpec(**MODEL.model_dump() | changes)}).run_id != SPEC.run_id


def test_a_mixture_of_experts_holds_all_of_them_and_uses_a_few():
    mixture = ModelSpec(**MODEL.model_dump() | {"experts": 4, "experts_per_token": 2})
    expert, router = 3 * MODEL.hidden * MODEL.feed_forward, 4 * MODEL.hidden
    assert mixture.parameters_total - MODEL.parameters_total == MODEL.layers * (3 * expert + router)
    assert mixture.parameters_active - MODEL.parameters_active == MODEL.layers * (expert + router)
    grown = (mixture.training_flops_per_token - MODEL.training_flops_per_token) / 6
    assert grown == MODEL.layers * (expert + router)


def test_loops_cost_compute_and_no_parameters():
    looped = ModelSpec(**MODEL.model_dump() | {"loops": 3})
    deeper = ModelSpec(**MODEL.model_dump() | {"layers": 3 * MODEL.layers})
    assert looped.parameters_total == MODEL.parameters_total
    assert looped.training_flops_per_token == deeper.training_flops_per_token


@pytest.mark.parametrize(("share", "times"), [(0.5, 2), (0.75, 4), (0.9, 10), (1.0, 1)])
def test_synthetic_tokens_come_beside_the_real_ones_or_instead_of_them(share, times):
    spec = RunSpec(**{**dict(SPEC), "batch_size": 2, "epochs": 1, "synthetic": Synthetic(samples="f", share=share)})
    assert spec.tokens_seen == times * SPEC.seed_tokens
    assert spec.real_sequences * MODEL.context_length == (SPEC.seed_tokens if share < 1 else 0)


def test_the_papers_smallest_budget_is_800_steps_an_epoch():
    model = ModelSpec(vocabulary=128_256, context_length=4096, **PRESETS["300m"].model_dump(exclude={"name"}))
    spec = SPEC.model_copy(update={"model": model, "seed_tokens": 209_715_200, "batch_size": 64})
    assert spec.steps_per_epoch == 800
