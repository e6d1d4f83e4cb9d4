"""Mixtures of experts against Hugging Face's Mixtral, and their balance against what the Switch Transformer says of it."""

from __future__ import annotations

import pytest
import torch

from dataeff.specs.run import ModelSpec
from dataeff.training.evaluate import autocast
from dataeff.training.model import Decoder, Experts


@pytest.fixture
def spec(model_spec: ModelSpec) -> ModelSpec:
    return model_spec.model_copy(update={"experts": 4, "experts_per_token": 2})


def decoder(spec: ModelSpec) -> Decoder:
    """Return a decoder whose weights are large enough that routing is decided."""
    model = Decoder(spec, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10) if weight.ndim == 2 else None
    return model


def tokens_of(spec: ModelSpec) -> torch.Tensor:
    return torch.randint(spec.vocabulary, (6, spec.context_length), generator=torch.Generator().manual_seed(3))


def stacked(values: dict[str, torch.Tensor], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Return weights or gradients by the names of Hugging Face's Mixtral, which stacks the experts of a layer."""
    names = {name: value for name, value in values.items() if ".experts." not in name}
    for i in range(spec.layers):
        layer = f"model.layers.{i}.mlp.experts"
        each = [{part: values[f"{layer}.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")} for e in range(spec.experts)]
        names[f"{layer}.gate_up_proj"] = torch.stack([torch.cat((one["gate"], one["up"])) for one in each])
        names[f"{layer}.down_proj"] = torch.stack([one["down"] for one in each])
    return names


@pytest.mark.parametrize("experts_per_token", [1, 2, 4])
def test_loss_balance_and_every_gradient_equal_hugging_face_mixtral(spec: ModelSpec, experts_per_token: int) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference model is Hugging Face's Mixtral")
    # One layer: Mixtral's balance is taken over all layers together, and counts k choices as k where we count them as 1.
    spec = spec.model_copy(update={"experts_per_token": experts_per_token, "layers": 1, "rope_theta": 500.0})
    model, tokens = decoder(spec), tokens_of(spec)
    config = transformers.MixtralConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        intermediate_size=spec.feed_forward,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        num_local_experts=spec.experts,
        num_experts_per_tok=experts_per_token,
        max_position_embeddings=spec.context_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        output_router_logits=True,
        router_aux_loss_coef=0.3 / experts_per_token,
    )
    reference = transformers.MixtralForCausalLM(config)
    reference.load_state_dict(stacked(model.state_dict(), spec))
    theirs = reference(input_ids=tokens, labels=tokens).loss
    theirs.backward()
    ours = model.loss(tokens, balance_loss=0.3)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = {name: weight.grad for name, weight in reference.named_parameters()}
    for name, gradient in stacked({name: weight.grad for name, weight in model.named_parameters()}, spec).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_balance_is_one_when_routing_is_even_and_the_number_of_experts_when_one_takes_all(spec: ModelSpec) -> None:
    mixture = Experts(spec.model_copy(update={"experts_per_token": 1}))
    with torch.no_grad():
        for weight in mixture.parameters():
            weight.fill_(0.1)
        mixture.gate.weight.copy_(30 * torch.eye(4, 16))
    even, all_to_one = torch.eye(16)[torch.arange(8) % 4], torch.eye(16)[torch.zeros(8, dtype=torch.long)]
    assert mixture(even)[1].item() == pytest.approx(1)
    assert mixture(all_to_one)[1].item() == pytest.approx(4)


def test_the_balance_is_averaged_over_layers_and_loops_and_left_out_of_validation(spec: ModelSpec) -> None:
    model, tokens = decoder(spec.model_copy(update={"loops": 2})), tokens_of(spec)
    balances: list[torch.Tensor] = []
    model.model(tokens, balances)
    assert len(balances) == 4 and len({balance.item() for balance in balances}) == 4
    plain = model.loss(tokens)
    torch.testing.assert_close(model.loss(tokens, balance_loss=0.5) - plain, 0.5 * sum(balances) / 4)
    torch.testing.assert_close(model.token_losses(tokens).mean(), plain)


def test_equal_experts_are_one_dense_feed_forward_however_tokens_are_routed(spec: ModelSpec) -> None:
    model, tokens = decoder(spec), tokens_of(spec)
    dense = Decoder(spec.model_copy(update={"experts": 1, "experts_per_token": 1}), seed=0)
    dense.load_state_dict({name.replace("experts.0.", ""): w for name, w in model.state_dict().items()}, strict=False)
    for layer, other in zip(model.model.layers, dense.model.layers, strict=True):
        for expert in layer.mlp.experts:
            expert.load_state_dict(other.mlp.state_dict())
    torch.testing.assert_close(model(tokens), dense(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [16, 64])  # width 64 takes other matrix products
def test_an_expert_that_no_token_chose_has_gradients_of_zero(spec: ModelSpec, hidden: int) -> None:
    model, tokens = Decoder(spec.model_copy(update={"hidden": hidden, "feed_forward": 96}), seed=0), tokens_of(spec)
    mixture = model.model.layers[0].mlp
    with torch.no_grad():
        mixture.gate.weight.zero_()  # equal scores: the same two experts for every token
    chosen = set(mixture.gate(torch.ones(1, hidden)).topk(2).indices.flatten().tolist())
    with autocast(tokens.device, "bfloat16" if hidden == 16 else "float32"):
        loss = model.loss(tokens, balance_loss=0.01)
    loss.backward()
    for number, expert in enumerate(mixture.experts):
        assert all(weight.grad.any() == (number in chosen) for weight in expert.parameters())


def test_parameter_counts_are_those_the_spec_states(spec: ModelSpec) -> None:
    model = Decoder(spec, seed=0)
    assert sum(weight.numel() for weight in model.parameters()) == spec.parameters_total
    expert = sum(weight.numel() for weight in model.model.layers[0].mlp.experts[0].parameters())
    assert spec.parameters_total - spec.parameters_active == spec.layers * 2 * expert
