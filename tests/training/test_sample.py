"""Samples follow the model they are drawn from, and are the same tokens whatever interrupts them."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from dataeff.errors import CorpusError, InputError, Preempted, TrainingError
from dataeff.facts.job import Context, Progress
from dataeff.facts.store import JobFolder, Store, write_atomically
from dataeff.specs.run import RunSpec
from dataeff.specs.spec import Input
from dataeff.training.checkpoint import load_member, save_weights
from dataeff.training.model import Decoder
from dataeff.training.sample import draw
from dataeff.work.sample import SEQUENCES_A_BATCH, Sample, SampleResult, open_samples

SEPARATOR = 5
FACTS_OF_TIME = {"wall_seconds", "tokens_per_second"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "tiny.files")


def member(store: Store, spec: RunSpec, **change: object) -> str:
    """Put a run with weights far from uniform into the store; return its id."""
    spec = spec.model_copy(update=change)
    model = Decoder(spec.model, seed=spec.train_seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(20) if weight.ndim == 2 else None
    write_atomically(store.run(spec.run_id).spec, spec.model_dump_json())
    save_weights(model, store.run(spec.run_id).weights)
    return spec.run_id


def load(store: Store, name: str) -> Decoder:
    return load_member(store, Input(name), torch.device("cpu"))


def samples_of(members: list[str], **change: object) -> Sample:
    plain = {"members": members, "sequences": 600, "separator": SEPARATOR, "seed": 1, "precision": "float32"}
    return Sample(**{**plain, **change})


def drawn(spec: Sample, store: Store, folder: JobFolder | None = None) -> tuple[np.ndarray, SampleResult]:
    folder = folder or store.folder(spec)
    result = spec.run(folder, store, Context("cpu"))
    return np.fromfile(folder.tokens, result.dtype).reshape(result.sequences, result.context_length), result


def uncached(model: Decoder, spec: Sample, rows: int, batch: int) -> torch.Tensor:
    """Draw one batch with whole forward passes, by looking each uniform number up in the summed probabilities."""
    seed = int(np.random.SeedSequence((spec.seed, batch)).generate_state(1)[0])
    uniform = 1 - torch.rand(SEQUENCES_A_BATCH, model.spec.context_length - 1, generator=torch.Generator().manual_seed(seed))
    tokens = torch.full((rows, 1), spec.separator)
    for t in range(model.spec.context_length - 1):
        p = torch.softmax(model(tokens)[:, -1] / spec.temperature, dim=-1)
        places = [np.searchsorted(row, u) for row, u in zip(p.cumsum(dim=-1).numpy(), uniform[:, t].numpy(), strict=False)]
        tokens = torch.cat((tokens, torch.tensor(places)[:, None]), dim=1)
    return tokens


def test_tokens_are_those_of_whole_forward_passes(store: Store, spec: RunSpec) -> None:
    names = [member(store, spec, train_seed=seed) for seed in (0, 1)]
    wanted = samples_of(names, sequences=2 * SEQUENCES_A_BATCH + 7, temperature=0.8)
    tokens, result = drawn(wanted, store)
    first, second = (load(store, name) for name in names)
    assert tokens.dtype == np.uint16 and (tokens[:, 0] == SEPARATOR).all()
    # Even sequences are the first member's, in batches 0 and 1; odd ones the second's, in batches 2 and 3.
    expected = [uncached(first, wanted, 256, 0), uncached(first, wanted, 4, 1), uncached(second, wanted, 256, 2)]
    assert np.array_equal(tokens[::2], torch.cat(expected[:2]).numpy())
    assert np.array_equal(tokens[1::2][:256], expected[2].numpy())
    assert result.sequences == len(tokens) == 519 and result.context_length == 16


@pytest.mark.parametrize(
    "change", [{}, {"pool": "joint"}, {"temperature": 0.7, "top_p": 0.8}, {"precision": "bfloat16"}], ids=str
)
def test_the_cross_entropy_of_samples_is_the_entropy_of_their_teacher(store: Store, spec: RunSpec, change) -> None:
    names = [member(store, spec, train_seed=seed) for seed in (0, 1)]
    tokens, result = drawn(samples_of(names, sequences=1500, **change), store)
    # -log p less the entropy has mean 0, and its variance is at most log^2(V - 1) / 4 + 1 (Reeb and Wolf, arXiv 1304.0036).
    error = math.hypot(math.log(spec.model.vocabulary - 1) / 2, 1) / math.sqrt(tokens[:, 1:].size)
    assert result.cross_entropy == pytest.approx(result.entropy, abs=4 * error)
    assert 0.3 < result.entropy < math.log(64) - 0.3


def test_the_mean_cross_entropy_is_the_validation_loss_of_the_teacher_on_its_samples(store: Store, spec: RunSpec) -> None:
    name = member(store, spec)
    tokens, result = drawn(samples_of([name]), store)
    losses = load(store, name).token_losses(torch.from_numpy(tokens.astype(np.int64)))
    assert result.cross_entropy == pytest.approx(losses.mean().item(), rel=1e-5)


def test_second_tokens_have_the_frequencies_of_the_softmax(store: Store, spec: RunSpec) -> None:
    name = member(store, spec)
    tokens, _ = drawn(samples_of([name], sequences=3000, temperature=1.5), store)
    logits = load(store, name)(torch.tensor([[SEPARATOR]]))[0, 0]
    expected = 3000 * torch.softmax(logits.double() / 1.5, dim=-1).numpy()
    counts, often = np.bincount(tokens[:, 1], minlength=64), expected >= 5
    assert often.sum() > 10 and expected.max() > 100
    rest = [counts[~often].sum()], [expected[~often].sum()]
    assert chisquare(np.append(counts[often], rest[0]), np.append(expected[often], rest[1])).pvalue > 1e-3


def test_top_p_draws_all_of_the_nucleus_and_nothing_else() -> None:
    p = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.2, 0.05])
    for top_p, nucleus in ((0.1, {1}), (0.65, {1, 3}), (0.75, {1, 3, 4}), (1.0, {0, 1, 3, 4, 5})):
        uniform = torch.linspace(0, 1, 1001)[1:, None]  # both ends of (0, 1] among them
        tokens, sums = draw(p.log().clamp(min=-1e30).expand(1000, 6), uniform, 1.0, top_p)
        kept = torch.zeros(6)
        kept[list(nucleus)] = p[list(nucleus)] / p[list(nucleus)].sum()
        assert set(tokens.flatten().tolist()) == nucleus
        torch.testing.assert_close(tokens.flatten().bincount(minlength=6) / 1000, kept, atol=0.002, rtol=0)
        entropy = torch.special.entr(kept).sum().item()
        assert (sums / 1000).tolist() == pytest.approx([entropy, entropy], abs=0.01)


def test_equal_members_write_together_what_one_writes_alone(store: Store, spec: RunSpec) -> None:
    name = member(store, spec)
    alone, _ = drawn(samples_of([name]), store)
    together, result = drawn(samples_of([name, name], pool="joint"), store)
    assert np.array_equal(alone, together)
    assert not np.array_equal(alone, drawn(samples_of([name], seed=2), store)[0])
    assert len(np.unique(alone, axis=0)) > 550


def test_joint_samples_follow_the_softmax_of_the_mean_logits(store: Store, spec: RunSpec) -> None:
    names = [member(store, spec, train_seed=seed) for seed in (0, 1, 2)]
    tokens, result = drawn(samples_of(names, pool="joint"), store)
    inputs = torch.from_numpy(tokens.astype(np.int64))
    logits = sum(load(store, name)(inputs) for name in names)[:, :-1] / 3
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), inputs[:, 1:]).item()
    assert result.cross_entropy == pytest.approx(expected, rel=1e-5)


def stop_after(calls: int) -> Callable[[], bool]:
    """Return a `should_stop` that is true from its `calls`-th call on; it is asked once a token of a sequence."""
    numbers = iter(range(1, 10**9))
    return lambda: next(numbers) >= calls


@pytest.mark.parametrize("pool", ["members", "joint"])
def test_samples_stopped_on_the_way_end_in_the_same_bytes(store: Store, spec: RunSpec, tmp_path: Path, pool: str) -> None:
    names = [member(store, spec, train_seed=seed) for seed in (0, 1)]
    wanted, folder = samples_of(names, pool=pool, top_p=0.9), JobFolder(tmp_path / "parts")  # 4 or 3 batches of 15 tokens
    whole, facts = drawn(wanted, store)
    for calls in (1, 20, 20):
        with pytest.raises(Preempted, match="sample again"):
            wanted.run(folder, store, Context("cpu", should_stop=stop_after(calls)))
        assert not folder.tokens.exists()
    assert len(list(folder.checkpoint.iterdir())) >= 2
    progress: list[Progress] = []
    result = wanted.run(folder, store, Context("cpu", on_progress=progress.append))
    assert folder.tokens.read_bytes() == store.folder(wanted).tokens.read_bytes()
    assert result.model_dump(exclude=FACTS_OF_TIME) == facts.model_dump(exclude=FACTS_OF_TIME)
    assert progress[0].step > 600 * 15 / 3 and progress[-1].step == progress[-1].steps == 600 * 15


KILLED = """
import os, signal, sys
from pathlib import Path
from dataeff.facts.job import Context
from dataeff.facts.store import JobFolder, Store
from dataeff.work.sample import Sample
spec, steps = Sample.model_validate_json(sys.argv[1]), iter(range(40))
kill = lambda: next(steps, None) is None and os.kill(os.getpid(), signal.SIGKILL)
spec.run(JobFolder(Path(sys.argv[3])), Store(Path(sys.argv[2])), Context("cpu", should_stop=kill))
"""


def test_samples_killed_on_the_way_end_in_the_same_bytes(store: Store, spec: RunSpec, tmp_path: Path) -> None:
    wanted, folder = samples_of([member(store, spec)]), JobFolder(tmp_path / "killed")
    command = [sys.executable, "-c", KILLED, wanted.model_dump_json(), str(store.path), str(folder.path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert len(list(folder.checkpoint.iterdir())) == 2
    killed, result = drawn(wanted, store, folder)
    whole, facts = drawn(wanted, store)
    assert np.array_equal(killed, whole)
    assert (result.fingerprint, result.cross_entropy, result.entropy) == (facts.fingerprint, facts.cross_entropy, facts.entropy)


def test_a_call_that_ended_between_tokens_and_result_is_finished_without_drawing(store: Store, spec: RunSpec) -> None:
    wanted = samples_of([member(store, spec)])
    whole, facts = drawn(wanted, store)
    again = wanted.run(store.folder(wanted), store, Context("cpu", should_stop=lambda: True))
    assert again == facts
    write_atomically(store.folder(wanted).result, again.model_dump_json())
    assert np.array_equal(open_samples(store, Input(wanted)), whole)


def test_the_last_team_may_have_fewer_sequences_than_the_first_or_none(store: Store, spec: RunSpec) -> None:
    names = [member(store, spec, train_seed=seed) for seed in (0, 1)]
    three, _ = drawn(samples_of(names, sequences=3), store)
    one, _ = drawn(samples_of(names, sequences=1), store)
    assert three.shape == (3, 16) and np.array_equal(one, three[:1])


def test_samples_that_are_not_whole_are_refused(store: Store, spec: RunSpec) -> None:
    wanted = samples_of([member(store, spec)], sequences=3)
    with pytest.raises(InputError, match="cannot be read.*move its folder away"):
        open_samples(store, Input(wanted))
    _, result = drawn(wanted, store)
    write_atomically(store.folder(wanted).result, result.model_dump_json())
    store.folder(wanted).tokens.write_bytes(b"cut short")
    with pytest.raises(CorpusError, match="cannot be read.*move it away"):
        open_samples(store, Input(wanted))


def test_members_that_cannot_be_sampled_are_refused(store: Store, spec: RunSpec) -> None:
    name = member(store, spec)
    longer = member(store, spec, model=spec.model.model_copy(update={"context_length": 32}))
    with pytest.raises(InputError, match=r"differ in .*\(64, 16\), \(64, 32\).*use runs that were trained with the same"):
        drawn(samples_of([name, longer]), store)
    with pytest.raises(InputError, match="valid: 0 to 63"):
        drawn(samples_of([name], separator=64), store)
    with pytest.raises(TrainingError, match=f"{name}@2 cannot be loaded from .*2.safetensors.*train it again"):
        drawn(samples_of([name, f"{name}@2"]), store)
    with pytest.raises(InputError, match="0000/spec.json"):
        drawn(samples_of(["0000"]), store)
