"""RunSpec: everything that decides a run's loss, and nothing else.

Paths, hosts, devices, executors and worker counts never enter it. Fields that equal their default are left out
of the identity, so a new axis leaves every earlier run id as it was; therefore a default may never change.
Loss is validation cross-entropy in nats per token.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dataeff.specs.identity import identity

TRAINER_VERSION = 1  # raised when the same RunSpec would give another loss than before


class Spec(BaseModel):
    """Base of all specs: immutable, strict about unknown keys and about numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SizeSpec(Spec):
    """The shape of a decoder, without what the corpus and the training decide (vocabulary, context)."""

    name: str = Field(min_length=1, description="how studies, tables and charts call this size")
    hidden: int = Field(ge=2)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    feed_forward: int = Field(ge=1)

    @model_validator(mode="after")
    def _divides(self) -> SizeSpec:
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden {self.hidden} does not divide into {self.heads} heads; use a multiple of {self.heads}, such as "
                f"{max(self.heads, round(self.hidden / self.heads) * self.heads)}"
            )
        if (self.hidden // self.heads) % 2:
            raise ValueError(f"hidden/heads is {self.hidden // self.heads}: rotary embeddings need an even head size")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not divide into {self.kv_heads} kv_heads; use a divisor of {self.heads}")
        return self


def _size(name: str, hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int) -> SizeSpec:
    return SizeSpec(name=name, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, feed_forward=feed_forward)


# The six sizes of arXiv 2509.14786, then tiny ones (two layers, the paper's feed-forward ratio of 3.5) for CPUs.
PRESETS: dict[str, SizeSpec] = {
    size.name: size
    for size in (
        _size("150m", 512, 6, 8, 8, 1792),
        _size("300m", 768, 12, 12, 12, 2688),
        _size("600m", 1024, 24, 16, 8, 3584),
        _size("1.4b", 2048, 16, 16, 8, 7168),
        _size("1.5b", 1536, 36, 16, 8, 5376),
        _size("3.2b", 2048, 48, 16, 8, 7168),
        _size("width16", 16, 2, 2, 2, 56),
        _size("width32", 32, 2, 2, 2, 112),
        _size("width64", 64, 2, 4, 4, 224),
        _size("width128", 128, 2, 8, 8, 448),
        _size("width256", 256, 2, 8, 8, 896),
    )
}


class ModelSpec(Spec):
    """A Llama-style decoder: RMSNorm, SwiGLU, rotary embeddings, grouped-query attention, untied head."""

    vocabulary: int = Field(ge=2, description="tokens in the vocabulary")
    context_length: int = Field(ge=2, description="tokens in a sequence")
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    rope_theta: float = Field(default=10_000.0, gt=0)

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters_non_embedding(self) -> int:
        """Weights of attention, feed-forward and norms; the token embedding and the output head are left out."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        norms = 2 * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.feed_forward + norms) + self.hidden

    @property
    def parameters_total(self) -> int:
        """All weights: non-embedding, the token embedding and the untied output head."""
        return self.parameters_non_embedding + 2 * self.vocabulary * self.hidden

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward FLOPs per trained token: 6 per weight that multiplies, plus attention.

        6 (N_non_embedding + N_head) + 12 * layers * hidden * context: PaLM (arXiv 2204.02311), appendix B. The
        embedding is a look-up and costs nothing. Causal masking is not discounted, as is the custom.
        """
        weights = self.parameters_non_embedding + self.vocabulary * self.hidden
        return 6 * weights + 12 * self.layers * self.hidden * self.context_length


def require_whole_steps(seed_tokens: int, batch_size: int, context_length: int) -> None:
    """Raise `ValueError` unless a pass over the seed tokens is a whole number of optimiser steps."""
    step = batch_size * context_length
    if seed_tokens % step:
        low = seed_tokens // step * step
        nearest_valid = f"{low} or {low + step}" if low else f"{step}"
        raise ValueError(
            f"seed_tokens {seed_tokens} is not a whole number of steps of {batch_size} sequences x {context_length} = {step} "
            f"tokens; nearest valid: {nearest_valid}"
        )


class TrainingSpec(Spec):
    """How a run is trained, apart from what is tuned; what a study's `[training]` table may say.

    Defaults are the paper's protocol (arXiv 2509.14786, section 2 and appendix).
    """

    batch_size: int = Field(ge=1, description="sequences a step")
    validation_sequences: int = Field(ge=1, description="sequences of context_length in the validation loss")
    precision: Literal["float32", "bfloat16"] = Field(description="of the forward pass; parameters are float32")
    optimizer: Literal["adamw", "muon"] = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    gradient_clip: float = Field(default=1.0, gt=0, description="global norm")
    warmup_fraction: float = Field(default=0.01, ge=0, lt=1, description="of all steps")
    order: Literal["same", "reshuffled"] = Field(default="same", description="of the sequences, from epoch to epoch")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class RunSpec(TrainingSpec):
    """One training run, declared in full. `run_id` is its identity."""

    trainer_version: int = Field(ge=1)
    corpus: str = Field(min_length=1, description="fingerprint of the token files")
    seed_tokens: int = Field(ge=1, description="distinct training tokens: the first D of the corpus")
    model: ModelSpec
    epochs: int = Field(ge=1)
    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(ge=0, description="decoupled, multiplied by the scheduled learning rate")
    train_seed: int = Field(default=0, ge=0, description="initialisation and dropout")
    data_seed: int = Field(default=0, ge=0, description="order of the sequences")

    @model_validator(mode="after")
    def _whole_steps(self) -> RunSpec:
        require_whole_steps(self.seed_tokens, self.batch_size, self.model.context_length)
        return self

    @property
    def run_id(self) -> str:
        return identity(self.model_dump(exclude_defaults=True))

    @property
    def steps_per_epoch(self) -> int:
        return self.seed_tokens // (self.batch_size * self.model.context_length)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def tokens_seen(self) -> int:
        return self.seed_tokens * self.epochs

    @property
    def training_flops(self) -> int:
        return self.tokens_seen * self.model.training_flops_per_token
