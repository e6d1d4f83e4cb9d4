"""The trainer: one RunSpec in, one result and its weights out.

A run is a function of its spec. The order of the sequences is drawn from the data seed and the epoch, dropout from the
train seed and the step; so on the same CPU and version of torch a run, resumed from a checkpoint or not, ends in the same
bits. On a GPU it ends the same up to rounding: kernels there add in no fixed order. Losses and gradient norms stay on the
device and are read at checks, every hundredth of the run and at least every 50 steps: there divergence is seen and
checkpoints are written. It does not read corpora, hold locks, write attempts or results.
"""

import copy
import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from dataeff.errors import Preempted
from dataeff.facts.job import Context, Progress
from dataeff.facts.store import JobFolder
from dataeff.specs.run import RunSpec
from dataeff.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from dataeff.training.device import describe_device, peak_flops, peak_memory_bytes, pick_device
from dataeff.training.evaluate import validation_loss
from dataeff.training.model import Decoder
from dataeff.training.optim import averaging_weight, cycle_bounds, learning_rate, optimizers
from dataeff.training.result import Curve, Evaluation, RunResult
from dataeff.training.step import accumulate_gradients, device_tokens, sequence_order, training_loss, uniform_loss_bound

CURVE_POINTS = 100  # at most, a run
STEPS_BETWEEN_CHECKS = 50  # at most

# torch.compile takes about a minute. It is used on CUDA from the training FLOPs that an uncompiled run would need
# more than about a minute for, at 150 TFLOPs a second; below that it cannot pay for itself.
COMPILE_FROM_FLOPS = 1e16


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass
class _Run:
    """One call of `train`: its models, and where they stand."""

    spec: RunSpec
    folder: JobFolder
    context: Context
    device: torch.device
    tokens: Tensor  # (real sequences + P synthetic ones, T), int32
    validation: Tensor  # (S, T), int32
    teachers: Sequence[Decoder]
    reason: str | None = None  # why it counts as diverged

    def __post_init__(self) -> None:
        spec = self.spec
        self.model = self.eval_model = Decoder(spec.model, seed=spec.train_seed, dropout=spec.dropout).to(self.device)
        self.models = nn.ModuleDict({"model": self.model})
        if spec.ema or spec.swa_fraction:
            self.eval_model = self.models["averaged"] = copy.deepcopy(self.model).requires_grad_(False)
        self.parameters = list(self.model.parameters())
        self.averages = list(self.eval_model.parameters())
        self.history = torch.zeros(spec.steps, 2)  # loss and gradient norm of each step
        self.models.register_buffer("history", self.history)
        self.unread: list[Tensor] = []  # those of the steps since the last check, still on the device
        self.optimizers = optimizers(self.model, spec)
        self.checkpoint = self.folder.checkpoint / "run.safetensors"
        self.state = load_checkpoint(self.checkpoint, spec.run_id, self.models, self.optimizers)
        self.read = self.state.step  # steps in the curve; where a run diverges it ends
        self.began = time.monotonic() - self.state.wall_seconds
        if self.device.type == "cuda" and spec.training_flops >= COMPILE_FROM_FLOPS:
            torch.compiler.reset()  # a warm worker would fill dynamo's cache after a few runs, and compile no more
            self.model.model.compile()
        self.rows = spec.batch_size  # of a batch at a time
        self.order = lru_cache(maxsize=1)(lambda epoch: sequence_order(spec, epoch, len(self.tokens)).to(self.device))
        self.interval = math.ceil(spec.steps / CURVE_POINTS)
        self.tokens_a_step = spec.batch_size * spec.model.context_length
        self.tenth = math.ceil(spec.steps / (10 * spec.cycles))
        begin, end = cycle_bounds(spec.steps - 1, spec.steps, spec.cycles)
        self.judged_from = begin + max(1, round(spec.warmup_fraction * (end - begin)), (end - begin) // 2)

    @property
    def tokens_per_second(self) -> float:
        return self.state.step * self.tokens_a_step / self.state.training_seconds

    def loop(self, checkpoint_seconds: float) -> None:
        """Train to the last step, to divergence, or until asked to stop, from which `Preempted` is raised."""
        spec, state, evaluations = self.spec, self.state, self.context.evaluations
        snapshots = {spec.steps * cycle // spec.cycles: cycle for cycle in range(1, spec.cycles)}
        evaluate_at = {max(1, round(spec.steps * k / evaluations)) for k in range(1, evaluations + 1)}
        due = {*range(0, spec.steps + 1, min(self.interval, STEPS_BETWEEN_CHECKS)), *evaluate_at, *snapshots}
        saved = time.monotonic()
        while True:
            stop = self._train_until(due)
            if state.step in evaluate_at and not self.reason:
                self._evaluate()
            if state.step in snapshots and not self.reason:  # before a checkpoint that would start after it
                save_weights(self.eval_model, self.folder.snapshot(snapshots[state.step]))
            state.wall_seconds = time.monotonic() - self.began
            loss, _ = self._means(self.read)
            self.context.on_progress(Progress(spec.run_id, state.step, spec.steps, self.tokens_per_second, loss))
            if self.reason or state.step == spec.steps:
                return
            if stop or time.monotonic() - saved >= checkpoint_seconds:
                save_checkpoint(self.checkpoint, state, self.models, self.optimizers)
                saved = time.monotonic()
            if stop:
                raise Preempted(f"run {spec.run_id} was asked to stop after step {state.step} of {spec.steps}; train it again")

    def _train_until(self, due: set[int]) -> bool:
        """Do the steps up to the next that is due and read their losses; return whether the run was asked to stop."""
        began, stop = time.monotonic(), False
        while not stop and (self.state.step not in due or not self.unread):
            self._update()
            stop = self.context.should_stop()
        self.history[self.read : self.state.step] = torch.stack(self.unread).view(-1, 2)
        self.unread.clear()
        while self.read < self.state.step and not self.reason:
            self.read += 1
            self.reason = self._divergence(self.read)
        self.state.training_seconds += time.monotonic() - began
        return stop

    def _update(self) -> None:
        """Do one optimiser step and leave its loss and gradient norm, unread, on the device."""
        spec, step = self.spec, self.state.step
        epoch, place = divmod(step, spec.steps_per_epoch)
        if spec.dropout:
            torch.manual_seed(int(np.random.SeedSequence((spec.train_seed, step)).generate_state(1)[0]))
        batch = self.tokens[self.order(epoch)[place * spec.batch_size : (place + 1) * spec.batch_size]]  # (B, T)
        loss_of = partial(training_loss, self.model, spec, self.teachers)
        loss, self.rows = accumulate_gradients(self.model, batch, spec.precision, self.rows, loss_of)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, spec.gradient_clip)
        rate = learning_rate(step, spec)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.unread += [loss, norm]
        self.state.step += 1
        if self.eval_model is not self.model:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.parameters, averaging_weight(step + 1, spec))

    def _divergence(self, step: int) -> str | None:
        """Return why the run has diverged, if it has by the loss of this step or by the mean of the tenth of a cycle it ends.

        High learning rates may spike above the bound and come back: only the second half of the last cycle is judged.
        """
        steps, loss = self.spec.steps, self.history[step - 1, 0].item()
        if not math.isfinite(loss):
            return f"train loss is {loss} at step {step} of {steps}"
        start = (step - 1) // self.tenth * self.tenth
        if start >= self.judged_from and (step % self.tenth == 0 or step == steps):
            mean, bound = self.history[start:step, 0].double().mean().item(), uniform_loss_bound(self.spec)
            if mean > bound:
                untrained = f"an untrained model's ({bound:.4g}; uniform is {math.log(self.spec.model.vocabulary):.4g})"
                return f"mean train loss of steps {start + 1} to {step} of {steps} is {mean:.4g}, above {untrained}"
        return None

    def _evaluate(self) -> None:
        step = self.state.step
        loss, error = validation_loss(self.eval_model, self.validation, self.spec.precision)
        values = {"val_loss": _finite(loss), "standard_error": _finite(error)}
        self.state.evaluations.append(Evaluation(step=step, tokens=step * self.tokens_a_step, **values))
        if step == self.spec.steps and not math.isfinite(loss):
            self.reason = f"validation loss is {loss} after the last step, {step}"

    def _means(self, step: int) -> list[float | None]:
        """Return the mean loss and gradient norm of the curve's interval that ends at `step`; None where not finite."""
        columns = self.history[(step - 1) // self.interval * self.interval : step].T.tolist()
        return [_finite(sum(column) / len(column)) for column in columns]

    def _curve(self) -> Curve:
        steps = [*range(self.interval, self.read, self.interval), self.read]
        losses, norms = zip(*map(self._means, steps), strict=True)
        tokens, rates = [step * self.tokens_a_step for step in steps], [learning_rate(step - 1, self.spec) for step in steps]
        return Curve(step=steps, tokens=tokens, train_loss=losses, gradient_norm=norms, lr=rates)

    def finish(self) -> RunResult:
        """Write the weights and return the result."""
        spec, state, curve = self.spec, self.state, self._curve()
        model, last = spec.model, None if self.reason else state.evaluations[-1]
        tokens, peak = state.step * self.tokens_a_step, peak_flops(self.device, spec.precision)
        losses = {"val_loss": last and last.val_loss, "val_loss_standard_error": last and last.standard_error}
        where = {"device": describe_device(self.device), "host": socket.gethostname(), "torch_version": torch.__version__}
        return RunResult(
            run_id=spec.run_id,
            status="diverged" if self.reason else "finished",
            reason=self.reason,
            **losses,
            train_loss=curve.train_loss[-1],
            evaluations=state.evaluations,
            curve=curve,
            steps=state.step,
            tokens_seen=tokens,
            parameters_total=model.parameters_total,
            parameters_non_embedding=model.parameters_non_embedding,
            training_flops=tokens * model.training_flops_per_token,
            weights_bytes=None if self.reason else save_weights(self.eval_model, self.folder.weights),
            wall_seconds=time.monotonic() - self.began,
            tokens_per_second=self.tokens_per_second,
            model_flops_utilisation=peak and model.training_flops_per_token * self.tokens_per_second / peak,
            peak_memory_bytes=peak_memory_bytes(self.device),
            **where,
            started_at=state.started_at,
            ended_at=datetime.now(UTC),
        )


def train(
    spec: RunSpec,
    folder: JobFolder,
    train_tokens: np.ndarray,
    validation_sequences: np.ndarray,
    *,
    context: Context = Context(),  # noqa: B008
    synthetic: np.ndarray | None = None,
    teachers: Sequence[Decoder] = (),
    checkpoint_seconds: float = 300,
) -> RunResult:
    """Train `spec` from the checkpoint in `folder`, if there is one; write checkpoints, snapshots and weights; return the result.

    `train_tokens` are the first D tokens of the corpus, (D,); `validation_sequences` (S, T). Where the spec asks for them,
    `synthetic` is the pool of sampled sequences (P, T), and `teachers` are the trained models to match, in the spec's order. The
    context's `should_stop` is asked after every step. A run that diverges is a result with a reason and no weights. Of averaged
    weights the validation losses, snapshots and final weights are the average's.
    Raises `CorpusError` (tokens that are not the spec's), `InputError` (device), `Preempted`.
    """
    device = pick_device(context.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    tokens = device_tokens(train_tokens, spec.seed_tokens // spec.model.context_length, "the training text", spec, device)
    if spec.synthetic:
        pool = np.empty(0) if synthetic is None else synthetic
        sampled = device_tokens(pool, max(1, len(pool)), f"the text of sample {spec.synthetic.samples}", spec, device)
        tokens = torch.cat([tokens[: spec.real_sequences], sampled])
    validation = device_tokens(validation_sequences, spec.validation_sequences, "the validation text", spec, device)
    with torch.random.fork_rng(enabled=spec.dropout > 0):
        run = _Run(spec, folder, context, device, tokens, validation, [teacher.to(device) for teacher in teachers])
        run.loop(checkpoint_seconds)
    return run.finish()
