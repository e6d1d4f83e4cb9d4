"""Sample: unconditional text of trained runs, for students to be trained on.

Whole sequences that begin with the separator, drawn token by token. Each batch draws its numbers from a generator of its own,
seeded by the spec's seed and the batch's number: what is drawn is a function of the spec, stopped on the way or not, on the
same CPU to the bit.

    checkpoint/000000.safetensors   the sequences of one batch, the sums of their -log p and entropy, its seconds
"""

import hashlib
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file, save

from dataeff.errors import CorpusError, InputError, Preempted
from dataeff.facts.job import Context, Fact, Job, Progress
from dataeff.facts.store import JobFolder, Store, load_fact, write_atomically
from dataeff.specs.identity import identity
from dataeff.specs.spec import Input

SEQUENCES_A_BATCH = 256  # decides what is drawn: another number is another sampler_version


class SampleResult(Fact):
    sample_id: str
    fingerprint: str  # of the token file
    sequences: int
    context_length: int
    dtype: str
    cross_entropy: float  # mean of -log p of the drawn tokens under the distribution they were drawn from, nats per token
    entropy: float  # mean entropy of that distribution, nats per token
    tokens_per_second: float
    wall_seconds: float
    device: str


class Sample(Job):
    kind: ClassVar[str] = "sample"
    always_hashed: ClassVar[set[str]] = {"sampler_version", "pool", "temperature", "top_p"}
    Result: ClassVar[type[Fact]] = SampleResult
    outputs: ClassVar[tuple[str, ...]] = ("tokens.bin",)

    sampler_version: int = 1
    members: list[Input] = Field(min_length=1, description="trained runs, or snapshots of one")
    pool: Literal["members", "joint"] = "members"
    sequences: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1, description="1: off")
    separator: int = Field(ge=0, description="token id that each sequence begins with")
    seed: int = Field(ge=0)
    precision: Literal["float32", "bfloat16"]

    def run(self, folder: JobFolder, store: Store, context: Context) -> SampleResult:
        """Draw the batches that an earlier attempt has not left in the checkpoint; write all to tokens.bin: (sequences,
        context_length) in little-endian uint16 or, above 65,536 tokens of vocabulary, uint32.
        """
        from dataeff.training.checkpoint import common_model
        from dataeff.training.device import describe_device, pick_device

        model = common_model(store, self.members)
        if self.separator >= model.vocabulary:
            raise InputError(f"separator {self.separator} is not in the vocabulary; valid: 0 to {model.vocabulary - 1}")
        tokens = np.empty((self.sequences, model.context_length), "<u2" if model.vocabulary <= 1 << 16 else "<u4")
        totals = np.zeros(3)
        for rows, batch in self._batches(folder, store, context):
            tokens[rows] = batch["tokens"]
            totals += batch["totals"]
        cross_entropy, entropy, seconds = totals.tolist()
        drawn = tokens[:, 1:].size
        write_atomically(folder.tokens, tokens.data)
        context.on_progress(Progress(self.id, drawn, drawn, drawn / seconds))
        return SampleResult(
            sample_id=self.id,
            fingerprint=identity({"sha256": hashlib.sha256(tokens.data).hexdigest(), "dtype": tokens.dtype.str}),
            sequences=self.sequences,
            context_length=model.context_length,
            dtype=tokens.dtype.str,
            cross_entropy=cross_entropy / drawn,
            entropy=entropy / drawn,
            tokens_per_second=drawn / seconds,
            wall_seconds=seconds,
            device=describe_device(pick_device(context.device)),
        )

    def _batches(self, folder: JobFolder, store: Store, context: Context) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
        """Yield which sequences each batch holds, and the content of its file, drawn if it is not there yet.

        Sequence j is drawn by team j mod K: each of K members by itself ("members"), or one team of all ("joint").
        """
        from dataeff.training.checkpoint import load_member
        from dataeff.training.device import pick_device
        from dataeff.training.sample import draw_batch

        settings = self.model_dump(include={"separator", "temperature", "top_p", "precision"})
        teams = [self.members] if self.pool == "joint" else [[member] for member in self.members]
        step = len(teams) * SEQUENCES_A_BATCH
        number = before = 0
        for place, team in enumerate(teams):
            models = []
            for first in range(place, self.sequences, step):
                rows = range(first, min(first + step, self.sequences), len(teams))
                path = folder.checkpoint / f"{number:06d}.safetensors"
                if not path.exists():
                    models = models or [load_member(store, member, pick_device(context.device)) for member in team]
                    began = time.monotonic()
                    report = partial(self._report, context, before, models[0].spec.context_length - 1, began)
                    tokens, sums = draw_batch(models, len(rows), (self.seed, number), on_token=report, **settings)
                    write_atomically(path, save({"tokens": tokens, "totals": np.append(sums, time.monotonic() - began)}))
                yield rows, load_file(path)
                number += 1
                before += len(rows)

    def _report(self, context: Context, before: int, predicted: int, began: float, drawn: int) -> None:
        """Report `drawn` tokens of the batch that began then, after so many sequences."""
        if context.should_stop():
            raise Preempted(f"sample {self.id} was asked to stop after {before} sequences of {self.sequences}; sample again")
        speed = drawn / max(time.monotonic() - began, 1e-9)
        context.on_progress(Progress(self.id, before * predicted + drawn, self.sequences * predicted, speed))

    def rows(self, result: SampleResult) -> dict[str, list[dict[str, Any]]]:
        columns = {"members", "pool", "sequences", "temperature", "top_p", "seed"}
        return {"sample": [{**self.model_dump(include=columns), **result.model_dump(exclude={"dtype"})}]}


def open_samples(store: Store, sample: Input) -> np.memmap:
    """Return the sequences of a sampling, (sequences, context_length), read from disk as they are used."""
    folder = JobFolder(store.of_kind("sample") / sample.id)
    result = load_fact(SampleResult, folder.result)
    try:
        return np.memmap(folder.tokens, dtype=result.dtype, mode="r", shape=(result.sequences, result.context_length))
    except (OSError, ValueError) as error:
        raise CorpusError(f"the samples in {folder.path} cannot be read: {error}; move it away to draw them again") from error
