"""RunSpec: everything that decides a run's loss, and nothing else.

Paths, hosts, devices, executors and worker counts never enter it. Fields that equal their default are left out
of the identity, so a new axis leaves every earlier run id as it was; therefore a default may never change.
Loss is validation cross-entropy in nats per token.
"""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dataeff.specs.identity import identity
from dataeff.specs.spec import Input, Spec

TRAINER_VERSION = 1  # raised when the same RunSpec would give another loss than before


class Shape(Spec):
    """The shape of a decoder, without what the corpus and the training decide (vocabulary, context)."""

    hidden: int = Field(ge=2)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    feed_forward: int = Field(ge=1, description="of one expert, where there are several")
    experts: int = Field(default=1, ge=1, description="feed-forwards a layer; more than one is a mixture of experts")
    experts_per_token: int = Field(default=1, ge=1, description="experts that a token is routed to")
    loops: int = Field(default=1, ge=1, description="times the stack of layers is applied, with the same weights")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden % (2 * self.heads):
            rule = f"hidden {self.hidden} does not divide into {self.heads} heads of an even size, as rotary embeddings need"
            raise ValueError(f"{rule}; use a multiple of {2 * self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not divide into {self.kv_heads} kv_heads; use a divisor of {self.heads}")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than experts {self.experts}; use at most that")
        return self


class SizeSpec(Shape):
    """A shape by the name that studies, tables and charts call it."""

    name: str = Field(min_length=1)


# The six sizes of arXiv 2509.14786, then tiny ones (two layers, the paper's feed-forward ratio of 3.5) for CPUs.
_SHAPES = {  # hidden, layers, heads, kv_heads, feed_forward
    "150m": (512, 6, 8, 8, 1792),
    "300m": (768, 12, 12, 12, 2688),
    "600m": (1024, 24, 16, 8, 3584),
    "1.4b": (2048, 16, 16, 8, 7168),
    "1.5b": (1536, 36, 16, 8, 5376),
    "3.2b": (2048, 48, 16, 8, 7168),
    "width16": (16, 2, 2, 2, 56),
    "width32": (32, 2, 2, 2, 112),
    "width64": (64, 2, 4, 4, 224),
    "width128": (128, 2, 8, 8, 448),
    "width256": (256, 2, 8, 8, 896),
}
PRESETS = {name: SizeSpec(name=name, **dict(zip(Shape.model_fields, shape, strict=False))) for name, shape in _SHAPES.items()}


class ModelSpec(Shape):
    """A Llama-style decoder: RMSNorm, SwiGLU, rotary embeddings, grouped-query attention, untied head."""

    vocabulary: int = Field(ge=2, description="tokens in the vocabulary")
    context_length: int = Field(ge=2, description="tokens in a sequence")
    rope_theta: float = Field(default=10_000.0, gt=0)

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def _layer(self, experts: int) -> int:
        """Weights of one layer with so many experts: attention, feed-forwards, their router and the norms."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        router = self.hidden * self.experts if self.experts > 1 else 0
        return attention + experts * 3 * self.hidden * self.feed_forward + router + 2 * self.hidden

    @property
    def parameters_non_embedding(self) -> int:
        """Weights of attention, feed-forward and norms; the token embedding and the output head are left out."""
        return self.layers * self._layer(self.experts) + self.hidden

    @property
    def parameters_total(self) -> int:
        """All weights: non-embedding, the token embedding and the untied output head; those of every expert."""
        return self.parameters_non_embedding + 2 * self.vocabulary * self.hidden

    @property
    def parameters_active(self) -> int:
        """Active parameters, each counted once: all but those of the experts that a token is not routed to."""
        return self.parameters_total - self.layers * (self._layer(self.experts) - self._layer(self.experts_per_token))

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward FLOPs per trained token: 6 per weight that multiplies, plus attention.

        6 (N_non_embedding + N_head) + 12 * layers * hidden * context: PaLM (arXiv 2204.02311), appendix B. Of experts those a
        token is routed to count, layers as often as they are applied. Causal masking is not discounted, as is the custom.
        """
        applied = self.loops * self.layers
        weights = applied * self._layer(self.experts_per_token) + self.hidden + self.vocabulary * self.hidden
        return 6 * weights + 12 * applied * self.hidden * self.context_length


class TrainingSpec(Spec):
    """How a run is trained, apart from what is tuned. Defaults: arXiv 2509.14786, section 2 and appendix."""

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
    schedule: Literal["cosine", "wsd"] = Field(default="cosine", description="wsd: warm-up, stable, linear decay to zero")
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="of all steps, for wsd")
    cycles: int = Field(default=1, ge=1, description="times the schedule is run through; each cycle's end leaves a snapshot")
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of the exponential moving average of weights; 0: none")
    swa_fraction: float = Field(default=0.0, ge=0, lt=1, description="last part of the run whose weights are averaged; 0: none")
    z_loss: float = Field(default=0.0, ge=0, description="coefficient of the mean squared log normaliser")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="of the training targets; validation has none")
    balance_loss: float = Field(default=0.01, ge=0, description="coefficient of the experts' load balance")

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.ema and self.swa_fraction:
            raise ValueError(f"ema {self.ema} and swa_fraction {self.swa_fraction}: weights are averaged one way; set one to 0")
        return self


class Synthetic(Spec):
    """Sampled text that is mixed with the real tokens of a run."""

    samples: Input = Field(description="the job that draws it")
    share: float = Field(gt=0, le=1, description="of the tokens of an epoch; 1: no real token is seen")


class TeacherLogits(Spec):
    """Trained runs whose averaged logits a run matches (Hinton et al., arXiv 1503.02531): both softmaxes at temperature T,
    loss = (1 - weight) * cross-entropy + weight * T^2 * KL(teacher || run).
    """

    members: list[Input] = Field(min_length=1, description="trained runs, or snapshots of one")
    weight: float = Field(gt=0, le=1)
    temperature: float = Field(default=1.0, gt=0)


class RunSpec(TrainingSpec):
    """One training run, declared in full. `run_id` is its identity."""

    trainer_version: int = Field(ge=1)
    corpus: str = Field(min_length=1, description="fingerprint of the token files")
    model: ModelSpec
    seed_tokens: int = Field(ge=1, description="distinct training tokens: the first D of a draw")
    epochs: int = Field(ge=1)
    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(ge=0, description="decoupled, multiplied by the scheduled learning rate")
    train_seed: int = Field(default=0, ge=0, description="initialisation and dropout")
    data_seed: int = Field(default=0, ge=0, description="order of the sequences")
    draw: int = Field(default=0, ge=0, description="which fixed order of the corpus's documents; 0: by their hash")
    synthetic: Synthetic | None = None
    teacher_logits: TeacherLogits | None = None

    @field_validator("seed_tokens")
    def _whole_steps(cls, seed_tokens: int, info: ValidationInfo) -> int:
        if {"batch_size", "model"} <= info.data.keys():
            batch_size, context_length = info.data["batch_size"], info.data["model"].context_length
            step = batch_size * context_length
            if rest := seed_tokens % step:
                valid = " or ".join(str(each) for each in (seed_tokens - rest, seed_tokens - rest + step) if each)
                rule = f"is not a whole number of steps of {batch_size} sequences x {context_length} = {step} tokens"
                raise ValueError(f"{seed_tokens} {rule}; nearest valid: {valid}")
        return seed_tokens

    @model_validator(mode="after")
    def _cycles_have_steps(self) -> Self:
        if self.cycles > self.steps:
            raise ValueError(f"cycles {self.cycles} are more than the {self.steps} steps of the run; use at most as many")
        return self

    @property
    def run_id(self) -> str:
        return identity(self.model_dump(exclude_defaults=True))

    @property
    def real_sequences(self) -> int:
        """Sequences of seed tokens an epoch: all of them, or none where every token is synthetic."""
        return 0 if self.synthetic and self.synthetic.share == 1 else self.seed_tokens // self.model.context_length

    @property
    def synthetic_sequences(self) -> int:
        """Synthetic sequences an epoch, in whole steps: D share / (1 - share) tokens beside the D real ones, or D alone."""
        if self.synthetic is None:
            return 0
        share, sequences = self.synthetic.share, self.seed_tokens // self.model.context_length
        return sequences if share == 1 else self.batch_size * max(1, round(sequences * share / (1 - share) / self.batch_size))

    @property
    def synthetic_share(self) -> float | None:
        """Share of synthetic tokens in an epoch, as whole steps give it."""
        every = self.real_sequences + self.synthetic_sequences
        return self.synthetic_sequences / every if self.synthetic else None

    @property
    def steps_per_epoch(self) -> int:
        return (self.real_sequences + self.synthetic_sequences) // self.batch_size

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def tokens_seen(self) -> int:
        return self.steps * self.batch_size * self.model.context_length

    @property
    def training_flops(self) -> int:
        """Of this run alone: those of its teacher are the teacher's."""
        return self.tokens_seen * self.model.training_flops_per_token
