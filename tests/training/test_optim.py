"""Optimisers and schedule against hand-written closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from dataeff.specs.run import RunSpec
from dataeff.training.model import Decoder
from dataeff.training.optim import averaging_weight, cycle_bounds, learning_rate, optimizers


@pytest.fixture
def rates(spec: RunSpec):
    """Return a function that gives the learning rates of a run of so many steps, and of the step after its last."""

    def rates(steps: int, lr: float, **change: object) -> list[float]:
        tokens = steps * spec.batch_size * spec.model.context_length
        run = spec.model_copy(update={"seed_tokens": tokens, "epochs": 1, "lr": lr, **change})
        return [learning_rate(step, run) for step in range(steps + 1)]

    return rates


def decayed(name: str) -> bool:
    return "norm" not in name and "embed_tokens" not in name


def test_adamw_steps_follow_the_closed_form_and_decay_only_matrices(spec: RunSpec) -> None:
    spec = spec.model_copy(update={"weight_decay": 0.8, "lr": 0.01})
    model = Decoder(spec.model, seed=0)
    (adamw,) = optimizers(model, spec)
    weights = {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
    m = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    v = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(0)
    for t in range(1, 4):
        for name, weight in model.named_parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
            g = weight.grad.double()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            update = (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.95**t)).sqrt() + 1e-8)
            decay = 0.8 * weights[name] if decayed(name) else 0.0
            weights[name] = weights[name] - 0.01 * (update + decay)
        adamw.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.double(), weights[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_with_no_gradient_only_decayed_weights_shrink_by_lr_times_decay(spec: RunSpec, optimizer: str, experts: int) -> None:
    model_spec = spec.model.model_copy(update={"experts": experts})
    spec = spec.model_copy(update={"weight_decay": 0.4, "lr": 0.1, "optimizer": optimizer, "model": model_spec})
    model = Decoder(spec.model, seed=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    for each in optimizers(model, spec):
        each.step()
    for name, weight in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.4) if decayed(name) else before[name]
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-8)


def test_muon_orthogonalises_the_hidden_matrices_and_adamw_has_the_rest(spec: RunSpec) -> None:
    spec = spec.model_copy(update={"optimizer": "muon", "weight_decay": 0.0, "lr": 0.1})
    model = Decoder(spec.model, seed=0)
    adamw, muon = optimizers(model, spec)
    names = {id(weight): name for name, weight in model.named_parameters()}
    held = [[names[id(w)] for group in o.param_groups for w in group["params"]] for o in (adamw, muon)]
    assert sorted(held[0] + held[1]) == sorted(names.values())
    assert all("_proj" in name for name in held[1])
    assert not any("_proj" in name for name in held[0])
    weight = model.model.layers[0].mlp.up_proj.weight  # (32, 16)
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    muon.step()
    singular = torch.linalg.svdvals((weight.detach() - before) / (0.1 * 0.2 * math.sqrt(32)))
    assert singular.min() > 0.5 and singular.max() < 1.5  # of any gradient: Newton-Schulz leaves them near 1


def test_the_learning_rate_warms_up_linearly_then_follows_a_cosine_to_zero(rates) -> None:
    steps, peak = 1000, 3e-3
    *rates, after = rates(steps, peak)
    assert rates[:10] == pytest.approx([peak * k / 10 for k in range(1, 11)])
    assert max(rates) == rates[9] == peak
    middle = 9 + (steps - 9) / 2
    assert (rates[math.floor(middle)] + rates[math.ceil(middle)]) / 2 == pytest.approx(peak / 2, rel=1e-6)
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))
    assert 0 < rates[-1] < 1e-5 * peak
    assert after == pytest.approx(0.0, abs=1e-18)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_a_short_run_warms_up_for_one_step_and_starts_at_the_peak(steps: int, rates) -> None:
    rates = rates(steps, 0.1)
    assert rates[0] == 0.1 and rates[steps - 1] > 0


@pytest.mark.parametrize("decay_fraction", [0.2, 0.75, 1.0])
def test_wsd_keeps_the_peak_then_falls_along_a_line_to_zero_one_past_the_end(decay_fraction: float, rates) -> None:
    steps, warmup, peak = 1000, 10, 3e-3
    decay = min(round(decay_fraction * steps), steps - warmup)
    rates = rates(steps, peak, schedule="wsd", decay_fraction=decay_fraction)
    assert rates[:warmup] == pytest.approx([peak * k / 10 for k in range(1, 11)])
    assert rates[warmup : steps - decay] == [peak] * (steps - warmup - decay)
    falls = [a - b for a, b in zip(rates[steps - decay - 1 :], rates[steps - decay :], strict=False)]
    assert falls == pytest.approx([peak / (decay + 1)] * (decay + 1))
    assert rates[-2] > 0 == rates[-1]
    assert sum(rates) == pytest.approx(peak * ((warmup + 1) / 2 + (steps - warmup - decay) + decay / 2))  # the area


def test_the_shortest_wsd_runs_have_no_update_at_rate_zero(rates) -> None:
    assert [rates(steps, 0.1, schedule="wsd")[:-1] for steps in (1, 2, 3)] == [[0.1], [0.1, 0.05], [0.1, 0.1, 0.05]]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize(("steps", "cycles"), [(24, 3), (100, 7), (5, 5), (9, 1)])
def test_each_cycle_is_a_schedule_of_its_own_and_they_are_equally_long(steps: int, cycles: int, schedule: str, rates) -> None:
    bounds = sorted({cycle_bounds(step, steps, cycles) for step in range(steps)})
    lengths = [end - begin for begin, end in bounds]
    assert len(lengths) == cycles and sum(lengths) == steps and max(lengths) - min(lengths) <= 1
    change = {"warmup_fraction": 0.2, "schedule": schedule, "decay_fraction": 0.3}
    alone = [rate for length in lengths for rate in rates(length, 0.1, **change)[:-1]]
    assert alone == rates(steps, 0.1, cycles=cycles, **change)[:-1]


def test_averages_are_plain_means_at_first_or_over_the_last_steps_and_exponential_later(spec: RunSpec) -> None:
    values = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()

    def averages(**change: float) -> list[float]:
        held, found = math.pi, []
        for step, value in enumerate(values, start=1):
            held += averaging_weight(step, spec.model_copy(update=change)) * (value - held)
            found.append(held)
        return found

    exponential, last = averages(ema=0.9), averages(swa_fraction=0.25)
    for n in range(1, 25):
        mean = sum(values[: min(n, 10)]) / min(n, 10)  # of the ten steps in which 1 / n is 1 - 0.9 or more
        closed = 0.9 ** max(0, n - 10) * mean + sum(0.1 * 0.9 ** (n - k) * values[k - 1] for k in range(11, n + 1))
        assert exponential[n - 1] == pytest.approx(closed)
        assert last[n - 1] == pytest.approx(sum(values[18:n]) / (n - 18) if n > 18 else values[n - 1])
