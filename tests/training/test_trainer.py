"""Whole runs: the same bits every time, with or without interruption; and how runs end."""

from __future__ import annotations

import json
import math
import random
import shutil
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dataeff.errors import CorpusError, InputError, Preempted
from dataeff.facts.job import Context, Progress
from dataeff.facts.store import JobFolder
from dataeff.specs.run import ModelSpec, RunSpec
from dataeff.training.model import Decoder
from dataeff.training.optim import learning_rate
from dataeff.training.result import RunResult
from dataeff.training.step import accumulate_gradients, sequence_order, training_loss, uniform_loss_bound
from dataeff.training.trainer import train

FACTS_OF_TIME = {"wall_seconds", "tokens_per_second", "started_at", "ended_at", "peak_memory_bytes"}


def losses(result: RunResult) -> dict[str, object]:
    return result.model_dump(exclude=FACTS_OF_TIME)


def stop_after(steps: int) -> Callable[[], bool]:
    """Return a `should_stop` that is true from its `steps`-th call on; it is asked once a step."""
    calls = iter(range(1, 10**9))
    return lambda: next(calls) >= steps


def assert_same_weights(first: Path, second: Path) -> None:
    """Final weights and snapshots of two run folders have the same bits."""
    files = [sorted(path.relative_to(run) for path in run.rglob("*.safetensors")) for run in (first, second)]
    assert files[0] == files[1] != []
    for file in files[0]:
        a, b = load_file(first / file), load_file(second / file)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(params=["plain", "dropout, reshuffled", "muon, bfloat16", "ema, cycles", "swa, wsd, experts"])
def variant(request: pytest.FixtureRequest, spec: RunSpec) -> RunSpec:
    changes = {
        "plain": {},
        "dropout, reshuffled": {"dropout": 0.1, "order": "reshuffled"},
        "muon, bfloat16": {"optimizer": "muon", "precision": "bfloat16"},
        "ema, cycles": {"ema": 0.8, "cycles": 3},
        "swa, wsd, experts": {
            "swa_fraction": 0.5,
            "schedule": "wsd",
            "z_loss": 1e-3,
            "label_smoothing": 0.1,
            "model": spec.model.model_copy(update={"experts": 3, "experts_per_token": 2}),
        },
    }
    return spec.model_copy(update=changes[request.param])


def test_the_same_spec_gives_the_same_bits(variant, tmp_path, train_tokens, validation) -> None:
    first = train(variant, JobFolder(tmp_path / "a"), train_tokens, validation, context=Context("cpu"))
    torch.manual_seed(99)  # nothing outside the spec may matter
    second = train(variant, JobFolder(tmp_path / "b"), train_tokens, validation, context=Context("cpu"))
    assert losses(first) == losses(second)
    assert_same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("stops", [[1], [7, 5], [8, 15]])
def test_a_run_resumed_after_preemption_ends_in_the_same_bits(variant, stops, tmp_path, train_tokens, validation) -> None:
    whole = train(variant, JobFolder(tmp_path / "whole"), train_tokens, validation, context=Context("cpu"))
    folder = JobFolder(tmp_path / "parts")
    for stop in stops:
        with pytest.raises(Preempted, match="train it again"):
            train(variant, folder, train_tokens, validation, context=Context("cpu", should_stop=stop_after(stop)))
    resumed = train(variant, folder, train_tokens, validation, context=Context("cpu"))
    assert losses(resumed) == losses(whole)
    shutil.rmtree(folder.checkpoint)  # which the caller does, once it has written the result
    assert_same_weights(tmp_path / "whole", folder.path)


def test_a_resumed_run_trains_only_the_missing_steps_and_adds_up_its_time(spec, folder, train_tokens, validation) -> None:
    with pytest.raises(Preempted):
        train(spec, folder, train_tokens, validation, context=Context(should_stop=stop_after(20)))
    with safe_open(folder.checkpoint / "run.safetensors", "pt") as file:
        held = json.loads(file.metadata()["state"])
    assert held["step"] == 20
    steps: list[int] = []
    result = train(spec, folder, train_tokens, validation, context=Context(on_progress=lambda p: steps.append(p.step)))
    assert min(steps) > 20
    assert result.wall_seconds > held["wall_seconds"] > 0
    assert result.started_at.isoformat() == held["started_at"].replace("Z", "+00:00")


def test_a_checkpoint_on_disk_is_one_file_that_holds_no_pickle(spec, folder, train_tokens, validation) -> None:
    with pytest.raises(Preempted):
        train(spec, folder, train_tokens, validation, checkpoint_seconds=0, context=Context(should_stop=stop_after(5)))
    assert sorted(path.name for path in folder.checkpoint.iterdir()) == ["run.safetensors"]
    kinds = {name.partition(".")[0] for name in load_file(folder.checkpoint / "run.safetensors")}
    assert kinds == {"model", "history", "optimizer"}


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "changed state", "empty"])
def test_from_a_damaged_checkpoint_the_run_starts_afresh(
    damage, spec, folder, tmp_path, train_tokens, validation, caplog
) -> None:
    with pytest.raises(Preempted):
        train(spec, folder, train_tokens, validation, context=Context(should_stop=stop_after(5)))
    file = folder.checkpoint / "run.safetensors"
    content = file.read_bytes()
    changed = {
        "flipped byte": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "cut short": content[: len(content) // 2],
        "changed state": content.replace(rb'\"step\":5', rb'\"step\":6'),
        "empty": b"",
    }
    assert changed[damage] != content
    file.write_bytes(changed[damage])
    steps: list[int] = []
    resumed = train(spec, folder, train_tokens, validation, context=Context(on_progress=lambda p: steps.append(p.step)))
    assert "starts afresh" in caplog.text and steps[0] == 1
    whole = train(spec, JobFolder(tmp_path / "whole"), train_tokens, validation)
    assert losses(resumed) == losses(whole)


def test_from_the_checkpoint_of_another_run_the_run_starts_afresh(
    spec, folder, tmp_path, train_tokens, validation, caplog
) -> None:
    with pytest.raises(Preempted):
        train(spec, folder, train_tokens, validation, context=Context(should_stop=stop_after(2)))
    other = spec.model_copy(update={"lr": 2e-2})
    result = train(other, folder, train_tokens, validation)
    assert f"it is of run {spec.run_id}" in caplog.text
    assert losses(result) == losses(train(other, JobFolder(tmp_path / "whole"), train_tokens, validation))


@pytest.mark.parametrize("lr", [1e3, 3.0])
def test_a_run_with_a_huge_learning_rate_is_recorded_as_diverged(lr, spec, folder, train_tokens, validation) -> None:
    result = train(spec.model_copy(update={"lr": lr}), folder, train_tokens, validation)
    assert result.status == "diverged"
    assert result.val_loss is None and result.val_loss_standard_error is None and result.weights_bytes is None
    assert result.reason is not None and "of 24" in result.reason
    assert result.steps < 24
    assert RunResult.model_validate_json(result.model_dump_json()) == result and not folder.weights.exists()


def test_a_run_that_spikes_early_and_comes_back_is_not_diverged(spec, folder) -> None:
    generator, often = np.random.default_rng(0), 1 / np.arange(1, 65)
    draw = partial(generator.choice, 64, p=often / often.sum())
    model = spec.model.model_copy(update={"vocabulary": 64, "hidden": 64, "feed_forward": 128})
    length = model.context_length
    high = spec.model_copy(update={"model": model, "seed_tokens": 40 * spec.batch_size * length, "epochs": 1, "lr": 0.1})
    validation = draw(size=(spec.validation_sequences, length))
    result = train(high, folder, draw(size=high.seed_tokens), validation)
    losses = np.array(result.curve.train_loss)
    assert losses[: len(losses) // 2].max() > 1.2 * uniform_loss_bound(high)
    assert result.status == "finished" and result.val_loss < math.log(64) - 0.3


def test_weights_that_overflow_are_told_by_the_step_where_the_loss_was_not_finite(spec, folder, train_tokens, validation) -> None:
    result = train(spec.model_copy(update={"lr": 1e30}), folder, train_tokens, validation)
    assert result.status == "diverged" and result.reason is not None
    assert result.reason.startswith("train loss is nan at step ") or result.reason.startswith("train loss is inf at step ")
    assert result.train_loss is None and None in result.curve.train_loss


def test_a_tiny_learning_rate_is_slow_but_not_diverged(spec, folder, train_tokens, validation) -> None:
    result = train(spec.model_copy(update={"lr": 1e-9}), folder, train_tokens, validation)
    assert result.status == "finished"
    assert result.val_loss == pytest.approx(math.log(spec.model.vocabulary), abs=0.05)


@pytest.mark.parametrize("terms", [{}, {"label_smoothing": 0.3}, {"z_loss": 0.1}, {"experts": 4, "balance_loss": 0.5}])
def test_an_untrained_model_is_near_the_bound_of_divergence_and_below_it(terms: dict, spec: RunSpec) -> None:
    model = spec.model.model_copy(update={"hidden": 64, "experts": terms.get("experts", 1)})
    spec = spec.model_copy(update={**terms, "model": model})
    batch = torch.randint(64, (64, 16), generator=torch.Generator().manual_seed(0))
    loss = training_loss(Decoder(model, seed=0), spec, (), batch).item()
    assert loss < uniform_loss_bound(spec)
    assert loss > 0.95 * (uniform_loss_bound(spec) - (0.5 * 3 if "experts" in terms else 0))  # an even balance is 1, not 4


def test_label_smoothing_and_z_loss_hold_logits_back(spec, tmp_path, train_tokens, validation) -> None:
    spec, found = spec.model_copy(update={"epochs": 40}), {}
    for name, change in {"plain": {}, "smooth": {"label_smoothing": 0.2}, "z": {"z_loss": 0.1}}.items():
        folder = JobFolder(tmp_path / name)
        assert train(spec.model_copy(update=change), folder, train_tokens, validation).status == "finished"
        model = Decoder(spec.model, seed=0)
        model.load_state_dict(load_file(folder.weights))
        with torch.inference_mode():
            logits = model(torch.from_numpy(train_tokens.astype(np.int64)).view(-1, 16))
        found[name] = logits.softmax(dim=-1).amax(dim=-1).mean(), logits.logsumexp(dim=-1).square().mean()
    assert found["smooth"][0] < found["plain"][0] - 0.05
    assert found["z"][1] < 0.1 * found["plain"][1]


def test_a_run_overfits_a_small_text(spec, folder, train_tokens, validation) -> None:
    result = train(spec.model_copy(update={"epochs": 60}), folder, train_tokens, validation)
    assert result.status == "finished"
    assert result.train_loss is not None and result.val_loss is not None
    assert result.train_loss < result.val_loss - 0.3
    assert result.evaluations[0].val_loss < math.log(spec.model.vocabulary) - 1
    assert result.weights_bytes == folder.weights.stat().st_size


def test_the_curve_and_the_evaluations_say_when_they_were_taken(spec, folder, train_tokens, validation) -> None:
    spec = spec.model_copy(update={"epochs": 40})  # 240 steps
    progress: list[Progress] = []
    result = train(spec, folder, train_tokens, validation, context=Context(on_progress=progress.append))
    assert [e.step for e in result.evaluations] == [60, 120, 180, 240]
    assert result.evaluations[-1].val_loss == result.val_loss
    assert result.curve.step == list(range(3, 241, 3))
    assert result.curve.tokens[-1] == result.tokens_seen == spec.tokens_seen
    assert result.curve.lr == [learning_rate(step - 1, spec) for step in result.curve.step]
    assert progress[-1].step == progress[-1].steps == 240 and progress[-1].train_loss == result.train_loss
    assert {each.id for each in progress} == {spec.run_id}


def test_fewer_steps_than_evaluations_evaluate_after_every_step(spec, folder, train_tokens, validation) -> None:
    spec = spec.model_copy(update={"epochs": 1, "seed_tokens": 2 * 8 * 16})
    result = train(spec, folder, train_tokens[: spec.seed_tokens], validation)
    assert [e.step for e in result.evaluations] == [1, 2]


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_accumulated_gradients_equal_those_of_the_whole_batch(model_spec: ModelSpec, rows: int) -> None:
    batch = torch.randint(model_spec.vocabulary, (8, 16), generator=torch.Generator().manual_seed(0))
    whole, parts = Decoder(model_spec, seed=0), Decoder(model_spec, seed=0)
    expected, _ = accumulate_gradients(whole, batch, "float32", 8, whole.loss)
    loss, used = accumulate_gradients(parts, batch, "float32", rows, parts.loss)
    assert used == rows
    torch.testing.assert_close(loss, expected)
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)


class SmallMemory(Decoder):
    """A decoder on a device that holds the activations of so many sequences and no more."""

    capacity = 3

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        if len(tokens) > self.capacity:
            raise torch.OutOfMemoryError(f"{len(tokens)} sequences")
        return super().loss(tokens)


class Held:
    """What a graph keeps of one tensor, so that a test can see whether the graph is gone."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()  # with its graph it would keep that graph alive itself


class SmallMemoryBackwards(Decoder):
    """A decoder on a device that holds the graphs of seven sequences, old ones included, and the gradients of four."""

    def __init__(self, spec: ModelSpec, *, seed: int) -> None:
        super().__init__(spec, seed=seed)
        self.graphs: list[tuple[int, list[weakref.ref]]] = []

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        held = sum(rows for rows, kept in self.graphs if any(one() is not None for one in kept))
        if held + len(tokens) > 7:
            raise torch.OutOfMemoryError(f"{held} sequences held and {len(tokens)} more")
        kept: list[weakref.ref] = []

        def pack(tensor: torch.Tensor) -> Held:
            holder = Held(tensor)
            kept.append(weakref.ref(holder))
            return holder

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
            loss = super().loss(tokens)
        self.graphs.append((len(tokens), kept))
        # Going back through this view asks the allocator for four petabytes: a real failure, from inside autograd.
        return loss.expand(2**50)[0] if len(tokens) > 4 else loss


def test_a_backward_pass_that_does_not_fit_leaves_no_memory_behind(model_spec: ModelSpec) -> None:
    batch = torch.randint(model_spec.vocabulary, (7, 16), generator=torch.Generator().manual_seed(0))
    model = SmallMemoryBackwards(model_spec, seed=0)
    _, rows = accumulate_gradients(model, batch, "float32", 7, model.loss)
    assert rows == 4


def test_a_batch_that_does_not_fit_is_halved_until_it_does(model_spec: ModelSpec) -> None:
    batch = torch.randint(model_spec.vocabulary, (8, 16), generator=torch.Generator().manual_seed(0))
    whole, small = Decoder(model_spec, seed=0), SmallMemory(model_spec, seed=0)
    expected, _ = accumulate_gradients(whole, batch, "float32", 8, whole.loss)
    loss, rows = accumulate_gradients(small, batch, "float32", 8, small.loss)
    assert rows == 2
    torch.testing.assert_close(loss, expected)
    for a, b in zip(small.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)
    small.capacity = 0
    with pytest.raises(torch.OutOfMemoryError):
        accumulate_gradients(small, batch, "float32", 8, small.loss)


def test_the_order_is_a_permutation_kept_or_drawn_afresh_each_epoch(spec: RunSpec) -> None:
    fresh = spec.model_copy(update={"order": "reshuffled"})
    same = [sequence_order(spec, epoch).tolist() for epoch in range(3)]
    drawn = [sequence_order(fresh, epoch).tolist() for epoch in range(3)]
    assert same[0] == same[1] == same[2] == drawn[0]
    assert len({tuple(order) for order in drawn}) == 3
    assert all(sorted(order) == list(range(48)) for order in same + drawn)
    assert sequence_order(spec.model_copy(update={"data_seed": 1}), 0).tolist() != same[0]


def test_both_seeds_and_the_order_change_the_result(spec, tmp_path, train_tokens, validation) -> None:
    found = set()
    for i, change in enumerate(({}, {"train_seed": 1}, {"data_seed": 1}, {"order": "reshuffled"}, {"dropout": 0.1})):
        result = train(spec.model_copy(update=change), JobFolder(tmp_path / str(i)), train_tokens, validation)
        found.add(result.val_loss)
    assert len(found) == 5


def test_training_leaves_random_numbers_and_threads_of_the_caller_as_they_were(spec, folder, train_tokens, validation) -> None:
    random.seed(0)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(spec.model_copy(update={"dropout": 0.1}), folder, train_tokens, validation, context=Context("cpu"))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_tokens_that_are_not_the_specs_are_refused(spec, folder, train_tokens, validation) -> None:
    with pytest.raises(CorpusError, match="48 x 16"):
        train(spec, folder, train_tokens[:-1], validation)
    with pytest.raises(CorpusError, match="0 to 63"):
        train(spec, folder, train_tokens + np.uint16(64), validation)
    with pytest.raises(InputError, match="use one of: auto"):
        train(spec, folder, train_tokens, validation, context=Context("abacus"))
