"""Sampling: one SampleSpec in, one folder of sequences out, for students to be trained on.

Every sequence begins with the separator and goes on token by token. Sequence j is drawn by team j mod K: of K members
each is a team by itself ("members"), or there is one team of all, who draw from the softmax of their mean logits ("joint").
A team draws all its sequences before the next begins, so one is in memory at a time. Each batch draws its numbers from a
generator of its own, seeded by the spec's seed and the batch's number: what is drawn is a function of the spec, stopped on
the way or not, on the same CPU to the bit. It does not train, hold locks, or write attempts.

    checkpoint/tokens.bin   all sequences, those of finished batches filled in; renamed to tokens.bin at the end
    checkpoint/state.json   the number of finished batches, written after their tokens are synced
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from dataeff.errors import InputError, TrainingError
from dataeff.specs.ensemble import SampleResult, SampleSpec
from dataeff.specs.identity import identity
from dataeff.specs.result import RunFolder, Store, load_fact, write_atomically
from dataeff.specs.run import ModelSpec, RunSpec
from dataeff.training.checkpoint import digest, load_member
from dataeff.training.device import describe_device, is_out_of_memory, one_thread, pick_device
from dataeff.training.evaluate import autocast
from dataeff.training.model import Decoder
from dataeff.training.trainer import PROGRESS_SECONDS, OutOfMemory, Preempted, Progress

SEQUENCES_A_BATCH = 256  # decides what is drawn: another number is another sampler_version


class _State(BaseModel):
    """Where a sampling stands after its last whole batch."""

    batches: int = 0
    tokens: int = 0  # drawn
    cross_entropy: float = 0.0  # sums over them, in nats
    entropy: float = 0.0
    wall_seconds: float = 0.0


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw a token for each row of logits (B, V): the one at which the distribution function reaches uniform (B, 1), in (0, 1].

    The distribution is softmax(logits / temperature), cut to its nucleus, the fewest most probable tokens that hold `top_p`
    of it (Holtzman et al., arXiv 1904.09751, eq. 2-3). Returns the tokens (B, 1) and the sums over the rows of their -log p
    and of the distributions' entropies, (2,), in nats.
    """
    log_p, last = (logits.float() / temperature).log_softmax(dim=-1), logits.shape[1] - 1
    if top_p < 1:
        log_p, order = log_p.sort(dim=-1, descending=True)
        p = log_p.exp()
        beyond = p.cumsum(dim=-1) - p >= top_p
        log_p = log_p.masked_fill(beyond, -1e4).log_softmax(dim=-1)  # finite, so that 0 * log 0 is 0
        last = (~beyond).sum(dim=-1, keepdim=True) - 1
    p = log_p.exp()
    reached = p.cumsum(dim=-1)
    place = torch.searchsorted(reached, uniform * reached[:, -1:]).clamp(max=last)  # beyond it only rounding reaches
    sums = torch.stack((-log_p.gather(1, place).sum(), -(p * log_p).sum()))
    return order.gather(1, place) if top_p < 1 else place, sums


def _shape_of(spec: SampleSpec, store: Store) -> ModelSpec:
    """Return the model of the first member, once all are known to be there and to write alike."""
    models = {member: load_fact(RunSpec, store.run(member.partition("@")[0]).spec).model for member in spec.members}
    shape = models[spec.members[0]]
    for member, model in models.items():
        if (model.vocabulary, model.context_length) != (shape.vocabulary, shape.context_length):
            raise InputError(
                f"member {member} has a vocabulary of {model.vocabulary} and {model.context_length} tokens of context, "
                f"{spec.members[0]} has {shape.vocabulary} and {shape.context_length}; sample from members that have the same"
            )
        if not store.weights(member).exists():
            raise TrainingError(f"member {member} has no weights at {store.weights(member)}; train it, or sample without it")
    if spec.separator >= shape.vocabulary:
        raise InputError(f"separator {spec.separator} is not in the vocabulary; valid: 0 to {shape.vocabulary - 1}")
    return shape


@dataclass
class _Sampling:
    """The state of one call of `sample`."""

    spec: SampleSpec
    folder: RunFolder
    shape: ModelSpec
    device: torch.device
    on_progress: Callable[[Progress], None] | None
    should_stop: Callable[[], bool] | None
    rows: int = SEQUENCES_A_BATCH  # that fit on the device
    last_progress: float = -math.inf

    def __post_init__(self) -> None:
        self.state_file, self.tokens_file = self.folder.checkpoint / "state.json", self.folder.checkpoint / "tokens.bin"
        self.folder.checkpoint.mkdir(parents=True, exist_ok=True)
        if self.folder.tokens.exists():  # an earlier call ended between its last two files
            os.replace(self.folder.tokens, self.tokens_file)
        whole = self.state_file.exists() and self.tokens_file.exists()
        self.state = load_fact(_State, self.state_file) if whole else _State()
        shape = (self.spec.sequences, self.shape.context_length)
        dtype = np.dtype("<u2" if self.shape.vocabulary <= 1 << 16 else "<u4")
        self.tokens = np.memmap(self.tokens_file, dtype, "r+" if whole else "w+", shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, and not a bus error at some batch
            with open(self.tokens_file, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, self.tokens.nbytes)
        self.started = time.monotonic() - self.state.wall_seconds

    def run(self, store: Store) -> None:
        """Draw every batch that is missing, each followed by its state on disk."""
        spec, number = self.spec, 0
        teams = [spec.members] if spec.pool == "joint" else [[member] for member in spec.members]
        for place, team in enumerate(teams):
            models: list[Decoder] = []
            for first in range(place, spec.sequences, len(teams) * SEQUENCES_A_BATCH):
                if number == self.state.batches:
                    models = models or [load_member(store, member, self.device) for member in team]
                    batch = self.tokens[first :: len(teams)][:SEQUENCES_A_BATCH]  # a view of the file
                    self._draw_batch(models, batch, number)
                number += 1

    def _draw_batch(self, models: list[Decoder], batch: np.ndarray, number: int) -> None:
        """Fill in one batch, as many of its sequences at a time as fit on the device."""
        state, (count, length) = self.state, batch.shape
        seed = int(np.random.SeedSequence((self.spec.seed, number)).generate_state(1)[0])
        uniform = 1 - torch.rand(SEQUENCES_A_BATCH, length - 1, generator=torch.Generator().manual_seed(seed))  # in (0, 1]
        start, sums = 0, torch.zeros(2, dtype=torch.float64)
        while start < count:
            try:
                part = uniform[start : min(start + self.rows, count)].to(self.device)
                tokens, added = self._draw_rows(models, part, state.tokens + start * (length - 1))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.rows == 1:
                    raise OutOfMemory(
                        f"samples {self.spec.sample_id}: one sequence of {length} tokens does not fit on "
                        f"{describe_device(self.device)}: {error}; use smaller members, or a device with more memory"
                    ) from error
                self.rows = (self.rows + 1) // 2
                continue
            batch[start : start + len(tokens)] = tokens.cpu().numpy()
            start, sums = start + len(tokens), sums + added
        self.tokens.flush()
        state.batches, state.tokens, state.wall_seconds = number + 1, state.tokens + count * (length - 1), self._seconds()
        state.cross_entropy, state.entropy = state.cross_entropy + sums[0].item(), state.entropy + sums[1].item()
        write_atomically(self.state_file, state.model_dump_json())

    @torch.inference_mode()
    def _draw_rows(self, models: list[Decoder], uniform: Tensor, before: int) -> tuple[Tensor, Tensor]:
        """Return the sequences (B, T) that uniform (B, T - 1) draws, and their (2,) sums of -log p and entropy in nats.

        `before` counts the tokens that were drawn before these.
        """
        spec, (count, predicted) = self.spec, uniform.shape
        tokens = torch.full((count, predicted + 1), spec.separator, device=self.device)
        sums = torch.zeros(predicted, 2, device=self.device)
        with autocast(self.device, spec.precision):
            caches = [model.caches(count) for model in models]
            for t in range(predicted):
                self._pause(before + count * t)
                held = zip(models, caches, strict=True)
                logits = sum(model.next_logits(tokens[:, t : t + 1], cache).float() for model, cache in held) / len(models)
                tokens[:, t + 1 : t + 2], sums[t] = draw(logits, uniform[:, t : t + 1], spec.temperature, spec.top_p)
        return tokens, sums.cpu().double().sum(dim=0)

    def _pause(self, drawn: int) -> None:
        if self.should_stop is not None and self.should_stop():
            raise Preempted(f"samples {self.spec.sample_id}: asked to stop after {self.state.batches} batches; sample again")
        if time.monotonic() - self.last_progress >= PROGRESS_SECONDS:
            self.report(drawn)

    def report(self, drawn: int) -> None:
        """Tell how many tokens are drawn; steps are tokens."""
        self.last_progress, total = time.monotonic(), self.spec.sequences * (self.shape.context_length - 1)
        if self.on_progress is not None:
            self.on_progress(Progress(self.spec.sample_id, drawn, total, drawn, drawn / self._seconds(), None, None))

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def finish(self) -> SampleResult:
        """Rename the tokens, write result.json, then remove the checkpoint."""
        state, dtype = self.state, self.tokens.dtype.str
        self.report(state.tokens)
        sha256 = digest(self.tokens_file)
        os.replace(self.tokens_file, self.folder.tokens)
        result = SampleResult(
            sample_id=self.spec.sample_id,
            fingerprint=identity({"sha256": sha256, "dtype": dtype}),
            sequences=self.spec.sequences,
            context_length=self.shape.context_length,
            dtype=dtype,
            cross_entropy=state.cross_entropy / state.tokens,
            entropy=state.entropy / state.tokens,
            tokens_per_second=state.tokens / state.wall_seconds,
            wall_seconds=state.wall_seconds,
            device=describe_device(self.device),
        )
        write_atomically(self.folder.result, result.model_dump_json(indent=1))
        shutil.rmtree(self.folder.checkpoint)
        return result


def sample(
    spec: SampleSpec,
    folder: RunFolder,
    store: Store,
    *,
    device: str = "auto",
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SampleResult:
    """Draw the sequences of `spec` in `folder` and return what is known of them; at once where they are there already, after
    the last whole batch where an earlier call was stopped or killed.

    `should_stop` is asked before every token. Progress counts tokens drawn as its steps. Raises `InputError` (device,
    separator, members that differ in vocabulary or context, folder of other samples), `TrainingError` (a member without
    weights), `OutOfMemory`, `Preempted`. Writes spec.json, checkpoints, tokens.bin, (sequences, context_length) in
    little-endian uint16 or, above 65,536 tokens of vocabulary, uint32, and result.json.
    """
    if folder.spec.exists() and load_fact(SampleSpec, folder.spec) != spec:
        raise InputError(f"{folder.path} holds other samples than {spec.sample_id}; give each sampling its own folder")
    if folder.result.exists():
        return load_fact(SampleResult, folder.result)
    chosen, shape = pick_device(device), _shape_of(spec, store)
    write_atomically(folder.spec, spec.model_dump_json(indent=1))
    with one_thread(chosen):
        sampling = _Sampling(spec, folder, shape, chosen, on_progress, should_stop)
        sampling.run(store)
        return sampling.finish()
