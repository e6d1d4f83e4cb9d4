"""The decoder against Hugging Face's Llama, against itself without a cache, and against what ModelSpec says of it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dataeff.specs.run import PRESETS, ModelSpec
from dataeff.training import evaluate
from dataeff.training.evaluate import autocast, validation_loss
from dataeff.training.model import Decoder


def tokens_of(spec: ModelSpec, sequences: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(spec.vocabulary, (sequences, spec.context_length), generator=generator)


def hugging_face(model: Decoder, spec: ModelSpec):
    """Return LlamaForCausalLM of the same shape with the same weights."""
    transformers = pytest.importorskip("transformers", reason="the reference model is Hugging Face's Llama")
    config = transformers.LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        intermediate_size=spec.feed_forward,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=False,
    )
    reference = transformers.LlamaForCausalLM(config)
    reference.load_state_dict(model.state_dict())
    return reference


@pytest.mark.parametrize(("hidden", "kv_heads"), [(16, 1), (16, 2), (16, 4), (64, 2)])  # width 64 takes other matrix products
def test_loss_and_every_gradient_equal_hugging_face_llama(model_spec: ModelSpec, hidden: int, kv_heads: int) -> None:
    spec = model_spec.model_copy(update={"hidden": hidden, "feed_forward": 96, "kv_heads": kv_heads, "rope_theta": 500.0})
    model, tokens = Decoder(spec, seed=0), tokens_of(spec)
    with torch.no_grad():  # weights large enough that attention is far from uniform, norms that are not 1
        for weight in model.parameters():
            weight.mul_(80 / hidden**0.75) if weight.ndim == 2 else weight.add_(torch.linspace(-0.5, 0.5, len(weight)))
    reference = hugging_face(model, spec)
    theirs = reference(input_ids=tokens, labels=tokens).loss
    theirs.backward()
    ours = model.loss(tokens)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = dict(reference.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(model(tokens), reference(input_ids=tokens).logits, rtol=1e-4, atol=1e-5)


def test_token_losses_are_the_cross_entropy_of_the_logits(model_spec: ModelSpec) -> None:
    model, tokens = Decoder(model_spec, seed=0), tokens_of(model_spec)
    expected = F.cross_entropy(model(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(model.token_losses(tokens), expected)
    torch.testing.assert_close(model.loss(tokens), expected.mean())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_smoothed_and_z_losses_are_those_of_the_whole_logits(model_spec: ModelSpec, precision: str) -> None:
    model, tokens = Decoder(model_spec, seed=0), tokens_of(model_spec)
    with torch.no_grad():  # logits far from 0, so that the log normaliser is too
        model.lm_head.weight.mul_(20).add_(0.3)
    logits = model(tokens)[:, :-1].transpose(1, 2)  # (B, V, T - 1)
    expected = F.cross_entropy(logits, tokens[:, 1:], label_smoothing=0.1) + 0.05 * logits.logsumexp(dim=1).square().mean()
    expected.backward()
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    with autocast(tokens.device, precision):
        loss = model.loss(tokens, label_smoothing=0.1, z_loss=0.05)
    loss.backward()
    tolerance = 1e-5 if precision == "float32" else 0.03
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        assert (weight.grad - gradient).norm() < tolerance * gradient.norm()


@pytest.mark.parametrize(
    "change",
    [{}, {"kv_heads": 4}, {"kv_heads": 1}, {"loops": 3}, {"experts": 4, "experts_per_token": 2, "loops": 2}],
    ids=["grouped", "ungrouped", "one kv head", "looped", "looped experts"],
)
def test_logits_with_a_cache_are_those_of_the_whole_sequence(model_spec: ModelSpec, change: dict[str, int]) -> None:
    spec = model_spec.model_copy(update=change)
    model, tokens = Decoder(spec, seed=0), tokens_of(spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10) if weight.ndim == 2 else None
    expected, cache = model(tokens), model.empty_cache(len(tokens))
    for place in range(spec.context_length):
        logits = model.next_logits(tokens[:, place : place + 1], cache, place)
        torch.testing.assert_close(logits, expected[:, place], rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.5


def test_a_looped_model_is_a_deeper_one_whose_layers_share_weights(model_spec: ModelSpec) -> None:
    looped = Decoder(model_spec.model_copy(update={"loops": 2}), seed=0)
    deep, tokens = Decoder(model_spec.model_copy(update={"layers": 4}), seed=1), tokens_of(model_spec)
    weights = looped.state_dict()
    layers = {name.replace(f"layers.{i}.", f"layers.{i + 2}."): w for name, w in weights.items() for i in (0, 1)}
    deep.load_state_dict(weights | layers)
    losses = looped.loss(tokens), deep.loss(tokens)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    for loss in losses:
        loss.backward()
    theirs = dict(deep.named_parameters())
    for name, weight in looped.model.layers.named_parameters():
        number, _, rest = name.partition(".")
        shared = theirs[f"model.layers.{name}"].grad + theirs[f"model.layers.{int(number) + 2}.{rest}"].grad
        torch.testing.assert_close(weight.grad, shared, rtol=1e-5, atol=1e-7)


def test_bfloat16_losses_are_averaged_in_float32(model_spec: ModelSpec) -> None:
    model, tokens = Decoder(model_spec, seed=0), tokens_of(model_spec, 64)
    with autocast(tokens.device, "bfloat16"):
        loss, losses = model.loss(tokens), model.token_losses(tokens)
    assert loss.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(loss, model.loss(tokens), rtol=1e-3, atol=0)  # the spacing of bfloat16 there is 4e-3
    torch.testing.assert_close(losses.mean(), model.loss(tokens), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["width16", "width64", "150m"])
def test_parameter_counts_are_those_the_spec_states(name: str) -> None:
    spec = ModelSpec(vocabulary=128, context_length=16, **PRESETS[name].model_dump(exclude={"name"}))
    model = Decoder(spec, seed=0)
    total = sum(weight.numel() for weight in model.parameters())
    assert total == spec.parameters_total
    assert total - model.lm_head.weight.numel() - model.model.embed_tokens.weight.numel() == spec.parameters_non_embedding


def test_weights_are_decided_by_the_seed_alone(model_spec: ModelSpec) -> None:
    torch.manual_seed(1)
    first = Decoder(model_spec, seed=5).state_dict()
    torch.manual_seed(2)
    second = Decoder(model_spec, seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = Decoder(model_spec, seed=6).state_dict()
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert first["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(first["model.norm.weight"], torch.ones(model_spec.hidden))


def test_an_untrained_model_is_near_the_uniform_loss(model_spec: ModelSpec) -> None:
    loss, error = validation_loss(Decoder(model_spec, seed=0), tokens_of(model_spec, 32), "float32")
    assert loss == pytest.approx(math.log(model_spec.vocabulary), abs=0.05)
    assert error is not None and 0 < error < 0.01


def test_validation_loss_equals_a_naive_mean_whatever_the_batch(model_spec: ModelSpec, monkeypatch) -> None:
    model, tokens = Decoder(model_spec, seed=0, dropout=0.5), tokens_of(model_spec, 7)
    model.eval()
    naive = []
    for row in tokens:
        log_probabilities = torch.log_softmax(model(row[None])[0].double(), dim=-1)
        naive.append(-log_probabilities[:-1].gather(1, row[1:, None]).mean().item())
    model.train()
    mean = sum(naive) / 7
    deviation = math.sqrt(sum((x - mean) ** 2 for x in naive) / 6)
    for tokens_a_batch in (1, 48, 2048):  # 1, 3 and 7 sequences
        monkeypatch.setattr(evaluate, "TOKENS_A_BATCH", tokens_a_batch)
        loss, error = validation_loss(model, tokens, "float32")
        assert loss == pytest.approx(mean, rel=1e-6)
        assert error == pytest.approx(deviation / math.sqrt(7), rel=1e-3)
    assert model.training
    assert validation_loss(model, tokens[:1], "float32")[1] is None
