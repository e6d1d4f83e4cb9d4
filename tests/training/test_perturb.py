"""Noise on the weights: its size, its pairing, and the curvature that it shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dataeff.specs.run import ModelSpec
from dataeff.training.evaluate import perturbed_losses, validation_loss
from dataeff.training.model import INIT_STD, Decoder

SPEC = ModelSpec(vocabulary=32, context_length=16, hidden=16, layers=2, heads=2, kv_heads=1, feed_forward=32)
TOKENS = np.random.default_rng(0).integers(0, 32, (8, 16))


def losses(model: Decoder, gammas: list[float], seeds: range) -> list[float | None]:
    return list(perturbed_losses(model, TOKENS, "float32", gammas, seeds))


@pytest.fixture
def model() -> Decoder:
    return Decoder(SPEC, seed=0).eval()


def test_no_noise_leaves_the_loss_and_noise_leaves_the_model_as_it_was(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    base, none, noisy, none_again = losses(model, [0.0, 3.0], range(1)) + losses(model, [0.0], range(1))[1:]
    assert base == none == none_again != noisy
    assert base == validation_loss(model, torch.from_numpy(TOKENS), "float32")[0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_noise_of_a_seed_is_one_for_all_gammas_and_another_seed_is_another(model):
    one, other = losses(model, [1.0, 2.0], range(2)), losses(model, [2.0], range(1))
    assert one[2] == other[1] and one[1] != one[3]


def test_a_loss_that_is_not_finite_is_none(model):
    assert losses(model, [math.inf], range(1))[1] is None


def test_small_noise_raises_the_loss_by_half_its_product_with_the_curvature(model):
    """Noise and its opposite together are free of the slope: gamma^2 / 2 z'Hz, with H z by two passes of autograd."""
    for _ in range(40):  # a little training, so that the curvature is not that of the start alone
        loss = model.token_losses(torch.from_numpy(TOKENS)).mean()
        weights = list(model.parameters())
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data.sub_(slope, alpha=0.5)
    gamma, tokens = 0.3, torch.from_numpy(TOKENS)
    rises = []
    for seed in range(4):
        base, up, down = losses(model, [gamma, -gamma], range(seed, seed + 1))
        matrices, generator = [w for w in model.parameters() if w.ndim >= 2], torch.Generator().manual_seed(seed)
        z = [torch.randn(weight.shape, generator=generator) * INIT_STD for weight in matrices]
        with sdpa_kernel(SDPBackend.MATH):  # the one with a second derivative
            logits = model(tokens)[:, :-1].flatten(0, 1)
            slopes = torch.autograd.grad(F.cross_entropy(logits, tokens[:, 1:].flatten()), matrices, create_graph=True)
        product = torch.autograd.grad(sum((a * b).sum() for a, b in zip(slopes, z, strict=True)), matrices)
        curvature = float(sum((a * b).sum() for a, b in zip(product, z, strict=True)))
        rises.append(((up + down) / 2 - base, gamma**2 / 2 * curvature))
    measured, predicted = np.array(rises).T
    assert measured == pytest.approx(predicted, rel=0.1)
    assert (np.abs(predicted) > 1e-5).all()
