"""Runs that learn from other models: from text sampled by them, and from their logits."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dataeff.errors import CorpusError, InputError, Preempted
from dataeff.facts.job import Context
from dataeff.facts.store import JobFolder, Store, write_atomically
from dataeff.specs.run import ModelSpec, RunSpec, Synthetic, TeacherLogits
from dataeff.training.evaluate import autocast
from dataeff.training.model import Decoder
from dataeff.training.result import RunResult
from dataeff.training.step import sequence_order, training_loss, uniform_loss_bound
from dataeff.training.trainer import train
from dataeff.work.train import Train


def mixed(spec: RunSpec, share: float, **change: object) -> RunSpec:
    return spec.model_copy(update={"synthetic": Synthetic(samples="pool", share=share), **change})


def taught(spec: RunSpec, members: int = 1, weight: float = 1.0, temperature: float = 1.0, **change: object) -> RunSpec:
    asked = TeacherLogits(members=["teacher"] * members, weight=weight, temperature=temperature)
    return spec.model_copy(update={"teacher_logits": asked, **change})


def teacher_of(model_spec: ModelSpec, seed: int, scale: float = 20.0) -> Decoder:
    """A model whose predictions are far from uniform."""
    model = Decoder(model_spec, seed=seed).eval().requires_grad_(False)
    model.lm_head.weight.mul_(scale)
    return model


def outcome(result: RunResult, folder: JobFolder) -> tuple[object, ...]:
    return result.val_loss, result.curve, [weight.tolist() for weight in load_file(folder.weights).values()]


@pytest.fixture
def pool() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 64, (100, 16)).astype(np.uint16)


@pytest.fixture
def batch() -> torch.Tensor:
    """150 sequences: 2,250 predicted positions, more than are matched at once."""
    return torch.randint(64, (150, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("order", ["same", "reshuffled"])
@pytest.mark.parametrize(("share", "real", "synthetic"), [(0.5, 48, 48), (0.75, 48, 144), (1.0, 0, 48), (0.1, 48, 8)])
def test_an_epoch_holds_every_real_sequence_once_and_the_next_of_the_pool(share, real, synthetic, order, spec) -> None:
    spec = mixed(spec, share, order=order)
    following = 0
    for epoch in range(4):
        seen = sequence_order(spec, epoch, real + 100).tolist()
        assert len(seen) == spec.steps_per_epoch * spec.batch_size
        expected = [real + (following + j) % 100 for j in range(synthetic)]
        assert sorted(seen) == sorted([*range(real), *expected])
        assert seen != sorted(seen)
        following += synthetic


def test_a_run_on_a_pool_of_the_real_text_alone_is_the_run_on_the_real_text(spec, tmp_path, train_tokens, validation) -> None:
    folders = JobFolder(tmp_path / "real"), JobFolder(tmp_path / "pool")
    real = train(spec, folders[0], train_tokens, validation)
    same = train(mixed(spec, 1.0), folders[1], train_tokens[::-1].copy(), validation, synthetic=train_tokens.reshape(-1, 16))
    assert outcome(real, folders[0]) == outcome(same, folders[1])  # and the real tokens it was given were never seen


def test_a_mixed_run_depends_on_both_texts(spec, tmp_path, train_tokens, validation, pool) -> None:
    found = set()
    for i, (real, sampled) in enumerate([(train_tokens, pool), (train_tokens[::-1].copy(), pool), (train_tokens, pool[::-1])]):
        result = train(mixed(spec, 0.5, epochs=1), JobFolder(tmp_path / str(i)), real, validation, synthetic=sampled)
        found.add(result.val_loss)
        assert result.tokens_seen == 2 * spec.seed_tokens
    assert len(found) == 3


def test_a_resumed_student_ends_in_the_same_bits(spec, tmp_path, train_tokens, validation, pool) -> None:
    spec = mixed(taught(spec, 2, 0.5, 2.0, ema=0.9), 0.5, order="reshuffled", epochs=2)
    given = {"synthetic": pool, "teachers": [teacher_of(spec.model, seed) for seed in (3, 4)]}
    whole, parts = JobFolder(tmp_path / "whole"), JobFolder(tmp_path / "parts")
    expected = train(spec, whole, train_tokens, validation, **given)
    for _ in range(3):
        with pytest.raises(Preempted):
            asked = iter([False] * 4)
            train(spec, parts, train_tokens, validation, **given, context=Context(should_stop=partial(next, asked, True)))
    assert outcome(expected, whole) == outcome(train(spec, parts, train_tokens, validation, **given), parts)


def test_a_pool_that_is_not_the_specs_is_refused(spec, folder, train_tokens, validation, pool) -> None:
    for given, said in ((None, "0 tokens"), (pool[:, :15], "100 x 16"), (pool[:0], "0 tokens"), (pool + 64, "0 to 63")):
        with pytest.raises(CorpusError, match=said):
            train(mixed(spec, 0.5), folder, train_tokens, validation, synthetic=given)


@pytest.mark.parametrize(("change", "said"), [({"vocabulary": 65}, "65, 16"), ({"context_length": 8}, "64, 8")])
def test_a_teacher_of_other_tokens_is_refused(spec, tmp_path, change, said) -> None:
    store, job = Store(tmp_path / "store"), Train(**taught(spec).model_dump())
    other = spec.model_copy(update={"model": spec.model.model_copy(update=change)})
    write_atomically(store.run("teacher").spec, other.model_dump_json())
    with pytest.raises(InputError, match=rf"differ in \(vocabulary, context_length\): .*\({said}\).*use runs"):
        job.run(store.folder(job), store, Context("cpu"))


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.0)])
def test_the_loss_and_its_gradients_are_those_of_kl_div_on_whole_logits(weight, temperature, spec, batch) -> None:
    spec = taught(spec, 2, weight, temperature)
    teachers = [teacher_of(spec.model, seed) for seed in (1, 2)]
    student, reference = Decoder(spec.model, seed=3), Decoder(spec.model, seed=3)
    loss = training_loss(student, spec, teachers, batch)
    logits = reference(batch)[:, :-1].reshape(-1, 64)
    target = (teachers[0](batch) + teachers[1](batch))[:, :-1].reshape(-1, 64) / 2
    soft, hard = (logits / temperature).log_softmax(dim=-1), (target / temperature).softmax(dim=-1)
    expected = (1 - weight) * F.cross_entropy(logits, batch[:, 1:].flatten())
    expected = expected + weight * temperature**2 * F.kl_div(soft, hard, reduction="batchmean")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for a, b in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)
    with autocast(batch.device, "bfloat16"):
        mixed_loss = training_loss(student, spec, teachers, batch)
    assert mixed_loss.dtype == torch.float32
    torch.testing.assert_close(mixed_loss, expected, rtol=0.02, atol=0)


def test_without_the_teachers_part_the_loss_is_that_of_the_model(spec, batch) -> None:
    model_spec = spec.model.model_copy(update={"experts": 3, "experts_per_token": 2})
    terms = {"label_smoothing": 0.1, "z_loss": 0.01, "balance_loss": 0.5}
    spec = taught(spec, weight=0.5, model=model_spec, **terms)
    spec = spec.model_copy(update={"teacher_logits": spec.teacher_logits.model_copy(update={"weight": 0.0})})
    student = Decoder(model_spec, seed=3)
    torch.testing.assert_close(training_loss(student, spec, [teacher_of(spec.model, 1)], batch), student.loss(batch, **terms))


def test_a_student_that_is_its_teacher_has_nothing_to_learn(spec, batch) -> None:
    student = teacher_of(spec.model, seed=1).requires_grad_(True)
    loss = training_loss(student, taught(spec, temperature=2.0), [teacher_of(spec.model, seed=1)], batch)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(weight.grad.abs().max() < 1e-6 for weight in student.parameters())


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.5, 3.0)])
def test_an_untrained_student_is_below_the_bound_of_divergence(weight, temperature, spec, batch) -> None:
    spec = taught(spec, 1, weight, temperature)
    for scale in (1e-3, 1.0, 100.0):
        loss = training_loss(Decoder(spec.model, seed=0), spec, [teacher_of(spec.model, 1, scale)], batch)
        assert loss < uniform_loss_bound(spec)


def test_a_student_of_logits_alone_comes_near_its_teacher(spec, tmp_path, validation) -> None:
    spec = spec.model_copy(update={"seed_tokens": 100 * 8 * 16, "train_seed": 1})  # 400 steps
    draw = np.random.default_rng(0).integers
    walk, noise = draw(1, 5, spec.seed_tokens).cumsum() % 64, draw(0, 64, spec.seed_tokens)
    folder = JobFolder(tmp_path / "teacher")
    expected = train(spec, folder, walk, validation)
    teacher = Decoder(spec.model, seed=0).eval().requires_grad_(False)
    teacher.load_state_dict(load_file(folder.weights))
    before = [weight.clone() for weight in teacher.parameters()]
    # The next tokens of noise teach nothing about the walk; what the teacher expects after each of its tokens does.
    student = train(taught(spec, train_seed=2), JobFolder(tmp_path / "student"), noise, validation, teachers=[teacher])
    assert expected.val_loss < 2 and student.val_loss == pytest.approx(expected.val_loss, abs=0.03)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
