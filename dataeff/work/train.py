"""Train: one run. Its fields are those of `RunSpec`, everything that decides its loss."""

from typing import Any, ClassVar

from dataeff.data.tokens import find_tokens
from dataeff.facts.job import Context, Fact, Job
from dataeff.facts.store import JobFolder, Store
from dataeff.specs.run import RunSpec
from dataeff.training.result import RunResult
from dataeff.work.sample import open_samples


class Train(RunSpec, Job):
    """Train one run, from the first step or from its checkpoint. A run that diverges is a result, without weights."""

    kind: ClassVar[str] = "train"
    always_hashed: ClassVar[set[str]] = set()  # `trainer_version` is the version; runs were the only kind once
    Result: ClassVar[type[Fact]] = RunResult

    @property
    def outputs(self) -> tuple[str, ...]:
        return "weights.safetensors", *(f"snapshots/{cycle}.safetensors" for cycle in range(1, self.cycles))

    @property
    def flops(self) -> float:
        return self.training_flops

    def useless(self, result: Fact) -> str | None:
        return f"run {self.id} diverged: {result.reason}" if result.status == "diverged" else None

    def run(self, folder: JobFolder, store: Store, context: Context) -> RunResult:
        from dataeff.training.checkpoint import common_model, load_member
        from dataeff.training.device import pick_device
        from dataeff.training.trainer import train

        device, teachers = pick_device(context.device), self.teacher_logits.members if self.teacher_logits else []
        if teachers:
            common_model(store, teachers, self.model)
        tokens = find_tokens(store, self.corpus)
        return train(
            self,
            folder,
            tokens.train(self.seed_tokens, self.draw),
            tokens.validation(self.validation_sequences, self.model.context_length),
            context=context,
            synthetic=open_samples(store, self.synthetic.samples) if self.synthetic else None,
            teachers=[load_member(store, member, device) for member in teachers],
        )

    def rows(self, result: RunResult) -> dict[str, list[dict[str, Any]]]:
        fields = {"corpus", "seed_tokens", "lr", "weight_decay", "epochs", "batch_size", "optimizer", "dropout", "order"}
        row = {
            **self.model_dump(include=fields | {"precision", "train_seed", "data_seed", "draw", "trainer_version"}),
            **self.model.model_dump(exclude={"rope_theta", "experts_per_token"}),
            **result.model_dump(exclude={"evaluations", "curve", "weights_bytes"}),
            "parameters_active": self.model.parameters_active,
            "synthetic_share": self.synthetic_share,
            "samples": self.synthetic.samples.name if self.synthetic else None,
            "spec": self.model_dump(mode="json"),
        }
        evaluations = [{"run_id": self.id, "split": "validation", **each.model_dump()} for each in result.evaluations]
        curve = result.curve.model_dump()
        every = {"run_id": self.id, "step": curve.pop("step"), "tokens": curve.pop("tokens")}
        return {"run": [row], "evaluation": evaluations, "curve": [every | {"name": n, "value": v} for n, v in curve.items()]}
