"""Averaged weights and snapshots, against plain runs that are stopped after every step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from dataeff.errors import Preempted
from dataeff.facts.job import Context
from dataeff.facts.store import JobFolder
from dataeff.specs.run import RunSpec
from dataeff.training.evaluate import validation_loss
from dataeff.training.model import Decoder
from dataeff.training.trainer import train


def plain_weights(spec: RunSpec, folder: JobFolder, *texts: np.ndarray) -> Iterator[dict[str, Tensor]]:
    """Train `spec` a step at a time and yield the weights that training goes on from after each but the last."""
    for _ in range(1, spec.steps):
        with pytest.raises(Preempted):
            train(spec, folder, *texts, context=Context(should_stop=lambda: True))
        tensors = load_file(folder.checkpoint / "run.safetensors")
        yield {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    train(spec, folder, *texts)
    yield load_file(folder.weights)


def test_saved_and_judged_weights_are_the_average_while_training_goes_on_from_the_plain_ones(
    spec, tmp_path, train_tokens, validation
) -> None:
    model = Decoder(spec.model, seed=0)
    exponential: dict[str, Tensor] = {}
    uniform = AveragedModel(model)
    for step, weights in enumerate(plain_weights(spec, JobFolder(tmp_path / "plain"), train_tokens, validation), start=1):
        new = max(0.2, 1 / step)
        exponential = {name: new * w + (1 - new) * exponential.get(name, w) for name, w in weights.items()}
        model.load_state_dict(weights)
        if step > 24 - 6:
            uniform.update_parameters(model)
    for change, expected in (({"ema": 0.8}, exponential), ({"swa_fraction": 0.25}, uniform.module.state_dict())):
        folder = JobFolder(tmp_path / str(change))
        result = train(spec.model_copy(update=change), folder, train_tokens, validation)
        saved = load_file(folder.weights)
        torch.testing.assert_close(saved, dict(expected), rtol=1e-5, atol=1e-7)
        model.load_state_dict(saved)
        judged = validation_loss(model, torch.from_numpy(validation.astype(np.int32)), "float32")
        assert (result.val_loss, result.val_loss_standard_error) == pytest.approx(judged, rel=1e-6)


def test_until_the_last_part_of_a_run_begins_its_losses_are_those_of_the_plain_weights(
    spec, tmp_path, train_tokens, validation
) -> None:
    plain = train(spec, JobFolder(tmp_path / "plain"), train_tokens, validation)
    averaged = train(spec.model_copy(update={"swa_fraction": 0.5}), JobFolder(tmp_path / "swa"), train_tokens, validation)
    assert averaged.evaluations[:2] == plain.evaluations[:2]  # after 6 and 12 of 24 steps
    assert all(a != b for a, b in zip(averaged.evaluations[2:], plain.evaluations[2:], strict=True))
    assert averaged.curve == plain.curve


def test_an_average_is_part_of_the_checkpoint(spec, folder, train_tokens, validation) -> None:
    with pytest.raises(Preempted):
        train(spec.model_copy(update={"ema": 0.5}), folder, train_tokens, validation, context=Context(should_stop=lambda: True))
    held = load_file(folder.checkpoint / "run.safetensors")
    assert torch.equal(held["averaged.lm_head.weight"], held["model.lm_head.weight"])  # of one step


@pytest.mark.parametrize("change", [{}, {"ema": 0.8}, {"schedule": "wsd", "optimizer": "muon"}])
def test_a_snapshot_is_what_a_run_of_one_cycle_ends_with(change, spec, tmp_path, train_tokens, validation) -> None:
    spec = spec.model_copy(update=change)
    alone, cycled = JobFolder(tmp_path / "alone"), JobFolder(tmp_path / "cycled")
    train(spec.model_copy(update={"epochs": 2}), alone, train_tokens, validation)
    result = train(spec.model_copy(update={"cycles": 2}), cycled, train_tokens, validation)
    expected, snapshot = load_file(alone.weights), load_file(cycled.snapshot(1))
    assert expected.keys() == snapshot.keys() and all(torch.equal(expected[name], snapshot[name]) for name in expected)
    assert [path.name for path in cycled.snapshot(1).parent.iterdir()] == ["1.safetensors"]  # the last cycle left weights
    assert result.curve.lr[:12] == result.curve.lr[12:]


def test_there_may_be_a_cycle_a_step_and_no_more(spec, folder, train_tokens, validation) -> None:
    with pytest.raises(ValidationError, match="cycles 25 are more than the 24 steps of the run; use at most"):
        RunSpec(**spec.model_dump() | {"cycles": 25})
    train(spec.model_copy(update={"cycles": 24}), folder, train_tokens, validation)
    assert folder.snapshot(23).exists()


def test_every_cycle_but_the_last_leaves_a_snapshot_also_between_the_steps_where_losses_are_read(
    spec, folder, train_tokens, validation
) -> None:
    result = train(spec.model_copy(update={"epochs": 20, "cycles": 8}), folder, train_tokens, validation)
    assert result.curve.step[:8] == [2, 4, 6, 8, 10, 12, 14, 16]  # cycles end after 15, 30, ... of 120 steps
    assert sorted(path.name for path in folder.snapshot(1).parent.iterdir()) == [f"{k}.safetensors" for k in range(1, 8)]
