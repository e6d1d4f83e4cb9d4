"""What does not fit on a device is done in smaller parts, and ends the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dataeff.errors import OutOfMemory
from dataeff.training.device import computing_on, halve_until_it_fits, in_batches
from dataeff.training.evaluate import ensemble_losses, validation_loss
from dataeff.training.model import Decoder
from dataeff.training.sample import draw_batch

CPU = torch.device("cpu")


class SmallMemory(Decoder):
    """A decoder on a device that holds the activations of three sequences, or the logits of twenty tokens, and no more."""

    def __init__(self, spec, *, seed: int) -> None:
        super().__init__(spec, seed=seed)
        self.model.register_forward_pre_hook(lambda module, inputs: self.require(len(inputs[0]), 3))
        self.lm_head.register_forward_pre_hook(lambda module, inputs: self.require(inputs[0].shape[0], 20))

    def require(self, rows: int, room: int) -> None:
        if rows > room:
            raise torch.OutOfMemoryError(f"{rows} rows")


@pytest.fixture
def models(model_spec) -> tuple[Decoder, Decoder]:
    """The same weights on a large and on a small device."""
    pair = Decoder(model_spec, seed=0), SmallMemory(model_spec, seed=0)
    for model in pair:
        model.eval().requires_grad_(False)
        model.lm_head.weight.mul_(20)
    return pair


def test_rows_are_worked_on_in_order_as_many_at_a_time_as_fit() -> None:
    def work(rows: slice) -> list[int]:
        if rows.stop - rows.start > 3:
            raise torch.OutOfMemoryError
        return list(range(11)[rows])

    assert list(in_batches(work, 11, 8)) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert list(in_batches(work, 11, 3)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]


def test_what_does_not_fit_at_all_is_an_error_and_other_errors_are_not_tried_again() -> None:
    def fail(size: int) -> None:
        sizes.append(size)
        raise error

    for error, expected in ((torch.OutOfMemoryError("full"), [9, 5, 3, 2, 1]), (RuntimeError("shapes"), [9])):
        sizes: list[int] = []
        with pytest.raises(type(error), match=str(error)):
            halve_until_it_fits(fail, 9)
        assert sizes == expected


def test_a_validation_loss_on_a_small_device_is_the_same(models, validation) -> None:
    tokens = torch.from_numpy(validation.astype(np.int64))
    large, small = (validation_loss(model, tokens, "float32") for model in models)
    assert small == pytest.approx(large, rel=1e-6)


def test_losses_of_an_ensemble_on_a_small_device_are_the_same(models, validation) -> None:
    large, small = (ensemble_losses([model, model], validation, "float32") for model in models)
    assert [row[:2] for row in small] == [row[:2] for row in large]
    assert [row[2] for row in small] == pytest.approx([row[2] for row in large], rel=1e-6)


def test_samples_on_a_small_device_are_the_same(models) -> None:
    settings = {"separator": 5, "temperature": 1.0, "top_p": 1.0, "precision": "float32", "on_token": lambda drawn: None}
    (large, sums), (small, small_sums) = (draw_batch([model], 44, (1, 2), **settings) for model in models)
    assert np.array_equal(large, small) and small_sums == pytest.approx(sums, rel=1e-6)


def test_running_out_of_memory_names_the_device_and_a_remedy_and_threads_are_as_before() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(OutOfMemory, match=r"cpu \(.*\) has too little memory: .*; use a smaller model"), computing_on(CPU):
        assert torch.get_num_threads() == 1
        torch.empty(2**50)
    assert torch.get_num_threads() == threads
