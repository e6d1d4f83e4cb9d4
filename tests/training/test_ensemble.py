"""Ensembles, against the loss of each subset computed by itself from whole logits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataeff.errors import InputError, Preempted, TrainingError
from dataeff.facts.job import Context
from dataeff.facts.store import Store, write_atomically
from dataeff.specs.spec import Input
from dataeff.training.checkpoint import load_member, save_weights
from dataeff.training.evaluate import ensemble_losses, subset_orders, validation_loss
from dataeff.training.model import Decoder
from dataeff.work.ensemble import Ensemble


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def member(store, spec):
    """Return a function that writes the run of one seed, its weights far from their small beginning; it returns the run id."""

    def write(seed: int, **model) -> str:
        run = spec.model_copy(update={"train_seed": seed, "model": spec.model.model_copy(update=model)})
        decoder = Decoder(run.model, seed=seed)
        with torch.no_grad():
            for weight in decoder.parameters():
                weight.mul_(10)
        write_atomically(store.run(run.run_id).spec, run.model_dump_json())
        save_weights(decoder, store.run(run.run_id).weights)
        return run.run_id

    return write


def load(store: Store, member: str) -> Decoder:
    return load_member(store, Input(member), torch.device("cpu"))


@pytest.fixture
def evaluate(store, validation):
    def evaluate(members: list[str], precision="float32", **keywords) -> list[tuple]:
        return ensemble_losses([load(store, member) for member in members], validation, precision, **keywords)

    return evaluate


def by_subset(losses: list[tuple], averaging: str) -> dict[tuple[int, ...], float | None]:
    return {subset: loss for kind, subset, loss in losses if kind == averaging}


def naive(store, members, validation, averaging: str) -> float:
    """The loss of members judged together, from all of their logits at once, in float64."""
    tokens = torch.from_numpy(validation.astype(np.int64))
    models = [load(store, member) for member in members]
    if averaging == "weights":
        states = [model.state_dict() for model in models]
        models[0].load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
        return validation_loss(models[0], tokens, "float32")[0]
    logits = torch.stack([model(tokens)[:, :-1].double() for model in models])
    mean = logits.mean(0).softmax(-1) if averaging == "logits" else logits.softmax(-1).mean(0)
    return F.nll_loss(mean.log().flatten(0, 1), tokens[:, 1:].flatten()).item()


@pytest.mark.parametrize("averaging", ["logits", "probabilities", "weights"])
def test_every_subset_has_the_loss_of_its_members_judged_together(member, evaluate, store, validation, averaging) -> None:
    members = [member(seed) for seed in range(4)]
    found = by_subset(evaluate(members), averaging)
    wanted = [s for k in range(1, 5) for s in combinations(range(4), k) if averaging != "weights" or s == tuple(range(k))]
    assert sorted(found) == sorted(wanted)
    for subset, loss in found.items():
        assert loss == pytest.approx(naive(store, [members[i] for i in subset], validation, averaging), abs=2e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_ensemble_of_one_has_the_validation_loss_of_its_member(member, evaluate, store, validation, precision) -> None:
    members = [member(seed) for seed in range(2)]
    result = evaluate(members, precision)
    tokens = torch.from_numpy(validation.astype(np.int64))
    for i, run_id in enumerate(members):
        alone = validation_loss(load(store, run_id), tokens, precision)[0]
        for averaging in ("logits", "probabilities", "weights")[: 3 - i]:
            assert by_subset(result, averaging)[i,] == pytest.approx(alone, abs=1e-5)


def test_identical_members_change_nothing(member, evaluate) -> None:
    result = evaluate([member(0)] * 3)
    assert len(result) == 7 + 7 + 3
    assert [loss for _, _, loss in result] == pytest.approx([result[0][2]] * 17, abs=1e-6)


def test_the_order_of_the_members_does_not_change_the_loss_of_all(member, evaluate) -> None:
    members = [member(seed) for seed in range(3)]
    there, back = evaluate(members), evaluate(members[::-1])
    for averaging in ("logits", "probabilities", "weights"):
        assert by_subset(there, averaging)[0, 1, 2] == pytest.approx(by_subset(back, averaging)[0, 1, 2], abs=1e-6)


def test_beyond_eight_members_the_windows_of_their_ring_are_evaluated(member, evaluate, store, validation) -> None:
    members = [member(seed) for seed in range(9)]
    found = by_subset(evaluate(members), "logits")
    assert set(found) == {tuple(sorted((s + i) % 9 for i in range(k))) for s in range(9) for k in range(1, 10)}
    for subset in ((0, 1, 8), tuple(range(9))):
        assert found[subset] == pytest.approx(naive(store, [members[i] for i in subset], validation, "logits"), abs=2e-6)


def test_every_path_extends_the_one_that_its_parent_left_behind() -> None:
    for members in range(1, 12):
        stack = []
        for path in subset_orders(members):
            stack = [*stack[: len(path) - 1], path[-1]]
            assert tuple(stack) == path


def test_members_of_several_architectures_have_no_averaged_weights(member, evaluate, store, validation) -> None:
    members = [member(0), member(1, hidden=32), member(2, layers=1)]
    result = evaluate(members)
    assert {averaging for averaging, _, _ in result} == {"logits", "probabilities"}
    assert by_subset(result, "logits")[0, 1, 2] == pytest.approx(naive(store, members, validation, "logits"), abs=2e-6)


def test_mixtures_of_experts_and_looped_layers_are_members_like_any_other(member, evaluate, store, validation) -> None:
    members = [member(0, experts=4, experts_per_token=2), member(1, loops=2)]
    assert by_subset(evaluate(members), "logits")[0, 1] == pytest.approx(naive(store, members, validation, "logits"), abs=2e-6)


def test_a_member_that_is_not_finite_takes_the_losses_it_is_part_of(member, evaluate, store) -> None:
    members = [member(0), member(1)]
    decoder = load(store, members[1])
    decoder.lm_head.weight.fill_(float("nan"))
    save_weights(decoder, store.run(members[1]).weights)
    losses = by_subset(evaluate(members), "logits")
    assert [losses[s] is None for s in ((0,), (1,), (0, 1))] == [False, True, True]


def test_an_ensemble_asked_to_stop_says_so(member, evaluate) -> None:
    with pytest.raises(Preempted, match="evaluate them again"):
        evaluate([member(0)], should_stop=lambda: True)


def test_a_member_is_loaded_as_it_was_saved_without_drawing_weights(member, store, spec) -> None:
    before = torch.get_rng_state()
    for changes in ({}, {"experts": 4, "experts_per_token": 2}, {"loops": 2}):
        run_id = member(3, **changes)
        expected = Decoder(load(store, run_id).spec, seed=3)
        with torch.no_grad():
            for weight in expected.parameters():
                weight.mul_(10)
        loaded = load(store, run_id)
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), expected.state_dict().values(), strict=True))
        tokens = torch.arange(16)[None]
        assert torch.equal(loaded(tokens), expected(tokens)) and not any(weight.requires_grad for weight in loaded.parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_a_decoder_without_a_seed_holds_no_weights(spec) -> None:
    with torch.device("meta"):
        model = Decoder(spec.model, seed=None)
    assert all(weight.is_meta for weight in model.parameters()) and not any(table.is_meta for table in model.buffers())


def test_a_member_that_is_not_there_is_named_with_a_remedy(member, store) -> None:
    run_id = member(0)
    store.run(run_id).weights.unlink()
    for name in (run_id, f"{run_id}@2", "0000"):
        with pytest.raises(TrainingError, match=rf"member {name} cannot be loaded from .*safetensors.*train it again"):
            load(store, name)


@pytest.mark.parametrize(("change", "said"), [({"vocabulary": 128}, "128, 16"), ({"context_length": 8}, "64, 8")])
def test_members_that_do_not_fit_together_are_refused(member, store, change, said) -> None:
    job = Ensemble(corpus="any", members=[member(0), member(1, **change)], validation_sequences=1, precision="float32")
    with pytest.raises(InputError, match=rf"differ in \(vocabulary, context_length\): .*\({said}\).*use runs"):
        job.run(store.folder(job), store, Context("cpu"))
