"""Training, ensembles, memory and workers on a real CUDA device agree with the CPU. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataeff.errors import OutOfMemory, Preempted
from dataeff.execution.local import LocalExecutor
from dataeff.facts.job import Context
from dataeff.facts.store import JobFolder, Store, recorded_attempts
from dataeff.specs.run import ModelSpec, RunSpec
from dataeff.training.device import computing_on
from dataeff.training.evaluate import autocast, ensemble_losses
from dataeff.training.model import Decoder
from dataeff.training.sample import draw_batch
from dataeff.training.step import accumulate_gradients
from dataeff.training.trainer import train
from tests.contracts.test_executors import request_of, result_of, store_in, tiny, wait_for_end  # noqa: F401  a fixture
from tests.training.conftest import CONTEXT
from tests.training.test_trainer import stop_after

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda")
LARGE = ModelSpec(vocabulary=32768, context_length=512, hidden=256, layers=2, heads=4, kv_heads=2, feed_forward=512)


@pytest.fixture
def small_memory():
    """Let this process use a given number of bytes of the device more than it holds."""

    def allow(extra: float) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + extra) / total)

    yield allow
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def tokens_of(spec: ModelSpec, sequences: int) -> torch.Tensor:
    shape = (sequences, spec.context_length)
    return torch.randint(spec.vocabulary, shape, generator=torch.Generator().manual_seed(0)).to(CUDA)


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_the_chunked_loss_and_its_gradients_are_those_of_whole_logits_in_double(precision: str, error: float) -> None:
    model, tokens = Decoder(LARGE, seed=0).to(CUDA), tokens_of(LARGE, 16)
    with autocast(CUDA, precision):
        loss = model.loss(tokens)
    loss.backward()
    exact = Decoder(LARGE, seed=0).to(CUDA).double()
    logits = exact(tokens)[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=error)
    for name, weight in exact.named_parameters():
        own = model.get_parameter(name).grad.double()
        assert (own - weight.grad).norm() <= 4 * error * weight.grad.norm(), name


VARIANTS = [{}, {"optimizer": "muon"}, {"ema": 0.8}, {"z_loss": 1e-3, "label_smoothing": 0.1}, {"experts": 3}]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize(("precision", "error"), [("float32", 2e-3), ("bfloat16", 3e-2)])
def test_a_run_ends_where_it_ends_on_a_cpu(spec: RunSpec, changes, precision, error, tmp_path, train_tokens, validation) -> None:
    changes = {**changes, "precision": precision}
    if "experts" in changes:
        changes["model"] = spec.model.model_copy(update={"experts": changes.pop("experts"), "experts_per_token": 2})
    spec = spec.model_copy(update=changes)
    results = [
        train(spec, JobFolder(tmp_path / device), train_tokens, validation, context=Context(device)) for device in ("cpu", "cuda")
    ]
    assert results[1].device.startswith("cuda")
    assert results[1].val_loss == pytest.approx(results[0].val_loss, abs=error)


def test_a_run_resumed_on_the_device_ends_as_undisturbed(spec: RunSpec, tmp_path: Path, train_tokens, validation) -> None:
    spec = spec.model_copy(update={"dropout": 0.1, "precision": "bfloat16"})
    whole = train(spec, JobFolder(tmp_path / "whole"), train_tokens, validation, context=Context("cuda"))
    folder = JobFolder(tmp_path / "parts")
    with pytest.raises(Preempted):
        train(spec, folder, train_tokens, validation, context=Context("cuda", should_stop=stop_after(11)))
    resumed = train(spec, folder, train_tokens, validation, context=Context("cuda"))
    assert resumed.val_loss == pytest.approx(whole.val_loss, abs=1e-3)


def test_a_batch_too_large_for_the_memory_is_halved_and_ends_the_same(small_memory) -> None:
    model, tokens = Decoder(LARGE, seed=0).to(CUDA), tokens_of(LARGE, 64)
    expected, rows = accumulate_gradients(model, tokens, "bfloat16", 64, model.loss)
    assert rows == 64
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    small_memory(peak / 2)
    loss, rows = accumulate_gradients(model, tokens, "bfloat16", 64, model.loss)
    assert 1 <= rows < 64
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        assert (weight.grad - gradient).norm() <= 0.03 * gradient.norm()


def test_what_does_not_fit_at_all_ends_as_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match="cuda .*use a smaller model"), computing_on(CUDA):
        torch.empty(2**42, device=CUDA)


def test_an_ensemble_and_its_samples_are_those_of_the_cpu(model_spec: ModelSpec, validation: np.ndarray) -> None:
    def members(device: str) -> list[Decoder]:
        models = [Decoder(model_spec, seed=seed).eval().requires_grad_(False) for seed in range(3)]
        for model in models:
            model.lm_head.weight.mul_(20)
        return [model.to(device) for model in models]

    here, there = (ensemble_losses(members(device), validation, "float32") for device in ("cpu", "cuda"))
    assert [row[:2] for row in here] == [row[:2] for row in there]
    np.testing.assert_allclose([row[2] for row in there], [row[2] for row in here], atol=1e-4)
    how = {"separator": 0, "temperature": 1.0, "top_p": 0.9, "precision": "float32", "on_token": lambda drawn: None}
    (ours, our_sums), (theirs, their_sums) = (draw_batch(members(device), 64, (0, 0), **how) for device in ("cpu", "cuda"))
    assert ours.shape == theirs.shape == (64, CONTEXT)
    assert (ours == theirs).mean() > 0.9  # a token drawn otherwise, by rounding, changes those after it
    np.testing.assert_allclose(their_sums, our_sums, rtol=0.03)


def test_workers_share_one_device_and_end_as_on_a_cpu(tiny, tmp_path: Path) -> None:  # noqa: F811
    store: Store = store_in(tmp_path / "files", tiny)
    requests = [request_of(tiny, store, seed, precision="bfloat16") for seed in range(6)]
    with LocalExecutor(3) as executor:
        for request in requests:
            executor.submit(request)
        ended = wait_for_end(executor, {request.id for request in requests}, seconds=120)
    assert {event.outcome for event in ended.values()} == {"finished"}
    assert all(result_of(request).device.startswith("cuda") for request in requests)
    assert len({recorded_attempts(request.folder)[0].process_id for request in requests}) == 3
