"""The trainer: one RunSpec in, one finished run folder out.

A run is a function of its spec. The order of the sequences is drawn from the data seed and the epoch, dropout from the
train seed and the step; so on the same CPU and version of torch a run, resumed from a checkpoint or not, ends in the same
bits. On a GPU it ends the same up to rounding: kernels there add in no fixed order. Tokens live on the device; losses and
gradient norms stay there too and are read at checks, every hundredth of the run and at least every 50 steps: there
divergence is seen and checkpoints are written. It does not read corpora, hold locks, write attempts or talk to a database.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from dataeff.errors import InputError, TrainingError
from dataeff.specs.result import Evaluation, RunFolder, RunResult, load_fact, write_atomically
from dataeff.specs.run import RunSpec
from dataeff.training.checkpoint import CheckpointError, State, load_checkpoint, save_checkpoint, save_weights
from dataeff.training.device import (
    compile_pays,
    describe_device,
    is_out_of_memory,
    one_thread,
    peak_flops,
    peak_memory_bytes,
    pick_device,
)
from dataeff.training.evaluate import validation_loss
from dataeff.training.model import Decoder
from dataeff.training.optim import averaging_weight, cycle_bounds, learning_rate, optimizers, warmup_steps
from dataeff.training.step import accumulate_gradients, device_tokens, sequence_order, training_loss, uniform_loss_bound

log = logging.getLogger(__name__)

CURVE_POINTS = 100  # at most, a run
STEPS_BETWEEN_CHECKS = 50  # at most
PROGRESS_SECONDS = 0.25  # at least, between two calls of on_progress


class OutOfMemory(TrainingError):
    """Not even one sequence at a time fits on the device."""


class Preempted(TrainingError):
    """The run was asked to stop; a checkpoint of its last step is in its folder."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. Losses in nats per token; the last ones read, None before the first."""

    run_id: str
    step: int
    steps: int
    tokens_seen: int
    tokens_per_second: float
    train_loss: float | None
    val_loss: float | None


@dataclass
class _Run:
    """The state of one call of `train`."""

    spec: RunSpec
    folder: RunFolder
    device: torch.device
    tokens: Tensor  # (real sequences + P synthetic ones, T), int32
    validation: Tensor  # (S, T), int32
    evaluate_at: set[int]
    on_progress: Callable[[Progress], None] | None
    teachers: Sequence[Decoder]
    model: Decoder
    averaged: Decoder | None  # the average of the model's weights over steps, where the spec asks for one
    optimizers: list[Optimizer]
    state: State
    unread: list[Tensor] = field(default_factory=list)  # [loss, gradient norm] of each step since the last check
    diverged: str | None = None
    last_progress: float = -math.inf

    def __post_init__(self) -> None:
        spec, steps, cycles = self.spec, self.spec.steps, self.spec.cycles
        self.interval = math.ceil(steps / CURVE_POINTS)
        self.tenth = math.ceil(steps / (10 * cycles))
        begin, end = cycle_bounds(steps - 1, steps, cycles)
        self.judged_from = begin + max(warmup_steps(end - begin, spec.warmup_fraction), (end - begin) // 2)
        self.snapshots = {steps * cycle // cycles: cycle for cycle in range(1, cycles)}
        decay = spec.decay_fraction if spec.schedule == "wsd" else None
        self.rate = partial(
            learning_rate, steps=steps, peak=spec.lr, warmup_fraction=spec.warmup_fraction, decay_fraction=decay, cycles=cycles
        )
        self.loss = partial(training_loss, self.model, spec, self.teachers)
        self.rows = spec.batch_size
        self.parameters = list(self.model.parameters())
        self.averages = list(self.averaged.parameters()) if self.averaged else []
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.earlier_seconds, self.started = self.state.wall_seconds, time.monotonic()
        self.order, self.order_epoch = torch.empty(0), -1

    @property
    def kept(self) -> Decoder:
        """The model that validation and weight files are of."""
        return self.averaged or self.model

    def update(self) -> None:
        """Do one optimiser step and leave its loss and gradient norm, unread, on the device."""
        spec, step = self.spec, self.state.step
        epoch, place = divmod(step, spec.steps_per_epoch)
        if epoch != self.order_epoch:
            self.order, self.order_epoch = sequence_order(spec, epoch, len(self.tokens)).to(self.device), epoch
        if spec.dropout:
            torch.manual_seed(int(np.random.SeedSequence((spec.train_seed, step)).generate_state(1)[0]))
        batch = self.tokens[self.order[place * spec.batch_size : (place + 1) * spec.batch_size]]  # (B, T)
        loss, self.rows = accumulate_gradients(self.model, batch, spec.precision, self.rows, self.loss)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, spec.gradient_clip)
        for group in self.groups:
            group["lr"] = self.rate(step)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.unread += [loss, norm]
        self.state.step += 1
        if self.averages:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.parameters, averaging_weight(step + 1, spec))

    def check(self) -> None:
        """Read what the steps left on the device into the curve, and see whether the run has diverged."""
        values = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        first = self.state.step - len(values) // 2
        for step, (loss, norm) in enumerate(zip(values[::2], values[1::2], strict=True), start=first + 1):
            self._read(step, loss, norm)
            if self.diverged:
                break

    def _read(self, step: int, loss: float, norm: float) -> None:
        spec, state = self.spec, self.state
        state.losses.append(loss)
        state.gradient_norms.append(norm)
        state.tenth_sum, state.tenth_steps = state.tenth_sum + loss, state.tenth_steps + 1
        if not math.isfinite(loss):
            self.diverged = f"train loss is {loss} at step {step} of {spec.steps}"
        if step % self.tenth == 0 or step == spec.steps:
            mean, begin = state.tenth_sum / state.tenth_steps, step - state.tenth_steps
            # High learning rates may spike above the bound and come back: only the second half of the last cycle is judged.
            if begin >= self.judged_from and mean > uniform_loss_bound(spec) and not self.diverged:
                self.diverged = (
                    f"mean train loss of steps {begin + 1} to {step} of {spec.steps} is {mean:.4g}, above an "
                    f"untrained model's ({uniform_loss_bound(spec):.4g}; uniform is {math.log(spec.model.vocabulary):.4g})"
                )
            state.tenth_sum, state.tenth_steps = 0.0, 0
        if step % self.interval == 0 or step == spec.steps or self.diverged:
            self._extend_curve(step)

    def _extend_curve(self, step: int) -> None:
        state, curve = self.state, self.state.curve
        curve.step.append(step)
        curve.tokens.append(step * self.spec.batch_size * self.spec.model.context_length)
        for values, column in ((state.losses, curve.train_loss), (state.gradient_norms, curve.gradient_norm)):
            mean = sum(values) / len(values)
            column.append(mean if math.isfinite(mean) else None)
            values.clear()
        curve.lr.append(self.rate(step - 1))

    def evaluate(self) -> None:
        """Append the validation loss after this step to the state."""
        loss, error = validation_loss(self.kept, self.validation, self.spec.precision)
        step, finite = self.state.step, math.isfinite(loss)
        tokens = step * self.spec.batch_size * self.spec.model.context_length
        entry = Evaluation(step=step, tokens=tokens, val_loss=loss if finite else None, standard_error=error if finite else None)
        self.state.evaluations.append(entry)
        if step == self.spec.steps and not finite:
            self.diverged = f"validation loss is {loss} after the last step, {step}"

    def report(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self.on_progress is None or not (force or now - self.last_progress >= PROGRESS_SECONDS):
            return
        self.last_progress = now
        spec, state = self.spec, self.state
        seen = state.step * spec.batch_size * spec.model.context_length
        self.on_progress(
            Progress(
                run_id=spec.run_id,
                step=state.step,
                steps=spec.steps,
                tokens_seen=seen,
                tokens_per_second=seen / state.training_seconds,
                train_loss=state.curve.train_loss[-1] if state.curve.train_loss else None,
                val_loss=state.evaluations[-1].val_loss if state.evaluations else None,
            )
        )

    def loop(self, checkpoint_seconds: float, should_stop: Callable[[], bool] | None) -> None:
        """Train to the last step, to divergence, or until `should_stop`, from which `Preempted` is raised."""
        spec, state = self.spec, self.state
        every = min(self.interval, STEPS_BETWEEN_CHECKS)
        saved = began = time.monotonic()
        while state.step < spec.steps and not self.diverged:
            self.update()
            stop = should_stop is not None and should_stop()
            if not (stop or state.step % every == 0 or state.step in self.evaluate_at or state.step in self.snapshots):
                continue
            self.check()
            state.training_seconds += time.monotonic() - began
            if state.step in self.evaluate_at and not self.diverged:
                self.evaluate()
            if state.step in self.snapshots and not self.diverged:  # before a checkpoint that would start after it
                save_weights(self.kept, self.folder.snapshot(self.snapshots[state.step]))
            now = time.monotonic()
            state.wall_seconds = self.earlier_seconds + now - self.started
            self.report(force=state.step == spec.steps)
            unfinished = state.step < spec.steps and not self.diverged
            if unfinished and (stop or now - saved >= checkpoint_seconds):
                save_checkpoint(self.folder.checkpoint, state, self.model, self.optimizers, self.averaged)
                saved = time.monotonic()
            if unfinished and stop:
                raise Preempted(f"run {spec.run_id} was asked to stop after step {state.step} of {spec.steps}; train it again")
            began = time.monotonic()


def _finished(spec: RunSpec, folder: RunFolder) -> RunResult | None:
    if not folder.result.exists():
        return None
    result = load_fact(RunResult, folder.result)
    if result.run_id != spec.run_id:
        raise InputError(f"{folder.path} holds run {result.run_id}, not {spec.run_id}; give each run its own folder")
    return result


def _start(spec: RunSpec, folder: RunFolder, device: torch.device) -> tuple[Decoder, Decoder | None, list[Optimizer], State]:
    """Return model, average, optimisers and state: of the checkpoint where there is a sound one, else of step 0."""
    model = Decoder(spec.model, seed=spec.train_seed, dropout=spec.dropout).to(device)
    averaged = copy.deepcopy(model).requires_grad_(False) if spec.ema or spec.swa_fraction else None
    held = optimizers(model, spec)
    state = State(run_id=spec.run_id, started_at=datetime.now(UTC))
    if (folder.checkpoint / "state.json").exists():
        try:
            state = load_checkpoint(folder.checkpoint, spec.run_id, model, held, averaged)
        except CheckpointError as error:
            log.warning("run %s starts afresh: %s", spec.run_id, error)
    if compile_pays(device, spec.training_flops):
        torch.compiler.reset()  # a warm worker would fill dynamo's cache after a few runs, and compile no more
        model.model.compile()
    return model, averaged, held, state


def _finish(run: _Run) -> RunResult:
    """Write the weights, then result.json, then remove the checkpoint."""
    spec, state = run.spec, run.state
    seen = state.step * spec.batch_size * spec.model.context_length
    speed = seen / state.training_seconds
    peak = peak_flops(run.device, spec.precision)
    last = None if run.diverged else state.evaluations[-1]
    weights_bytes = None if run.diverged else save_weights(run.kept, run.folder.weights)
    result = RunResult(
        run_id=spec.run_id,
        status="diverged" if run.diverged else "finished",
        reason=run.diverged,
        val_loss=last.val_loss if last else None,
        val_loss_standard_error=last.standard_error if last else None,
        train_loss=state.curve.train_loss[-1],
        evaluations=state.evaluations,
        curve=state.curve,
        steps=state.step,
        tokens_seen=seen,
        parameters_total=spec.model.parameters_total,
        parameters_non_embedding=spec.model.parameters_non_embedding,
        training_flops=seen * spec.model.training_flops_per_token,
        wall_seconds=run.earlier_seconds + time.monotonic() - run.started,
        tokens_per_second=speed,
        model_flops_utilisation=spec.model.training_flops_per_token * speed / peak if peak else None,
        peak_memory_bytes=peak_memory_bytes(run.device),
        device=describe_device(run.device),
        host=socket.gethostname(),
        torch_version=torch.__version__,
        started_at=state.started_at,
        ended_at=datetime.now(UTC),
        weights_bytes=weights_bytes,
    )
    write_atomically(run.folder.result, result.model_dump_json(indent=1))
    shutil.rmtree(run.folder.checkpoint, ignore_errors=True)
    return result


def train(
    spec: RunSpec,
    folder: RunFolder,
    train_tokens: np.ndarray,
    validation_sequences: np.ndarray,
    *,
    synthetic: np.ndarray | None = None,
    teachers: Sequence[Decoder] = (),
    device: str = "auto",
    evaluations: int = 4,
    checkpoint_seconds: float = 300,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RunResult:
    """Train `spec` in `folder` and return its result; at once where it is there already, from the checkpoint if there is one.

    `train_tokens` are the first D tokens of the corpus, (D,); `validation_sequences` (S, T). Where the spec asks for them,
    `synthetic` is the pool of sampled sequences (P, T), and `teachers` are the trained models to match, in the spec's order;
    they are moved to the device and not changed. The validation loss is taken `evaluations` times, evenly spaced, the last
    after the last step. `should_stop` is asked after every step. A run that diverges is a result, with status "diverged", a
    reason and no weights. Where weights are averaged, validation losses, snapshots and final weights are the average's.
    Raises `CorpusError` (tokens that are not the spec's), `InputError` (device, folder of another run, teachers, more cycles
    than steps), `OutOfMemory`, `Preempted`. Writes spec.json, checkpoints, snapshots, weights and result.json; attempts are
    the caller's.
    """
    if (result := _finished(spec, folder)) is not None:
        return result
    if spec.cycles > spec.steps:
        raise InputError(f"run {spec.run_id} has {spec.cycles} cycles in {spec.steps} steps; use at most one cycle a step")
    chosen, length = pick_device(device), spec.model.context_length
    tokens = device_tokens(train_tokens, (spec.seed_tokens // length, length), "the training text", spec, chosen)
    if spec.synthetic:
        pool = np.empty(0) if synthetic is None else synthetic
        shape = (max(1, len(pool)), length)
        sampled = device_tokens(pool, shape, f"the text of sample {spec.synthetic.samples}", spec, chosen)
        tokens = torch.cat([tokens[: spec.real_sequences], sampled])
    validation = device_tokens(validation_sequences, (spec.validation_sequences, length), "the validation text", spec, chosen)
    asked, given = spec.teacher_logits.members if spec.teacher_logits else [], [teacher.spec for teacher in teachers]
    if len(given) != len(asked) or any(t.vocabulary != spec.model.vocabulary or t.context_length < length for t in given):
        found = ", ".join(f"{t.vocabulary} and {t.context_length}" for t in given) or "none"
        raise InputError(
            f"run {spec.run_id} matches {len(asked)} teachers of vocabulary {spec.model.vocabulary} and a context of {length} or "
            f"more; given: {found}; name members of the same tokenizer that were trained on sequences as long"
        )
    write_atomically(folder.spec, spec.model_dump_json(indent=1))
    at = {max(1, round(spec.steps * k / evaluations)) for k in range(1, evaluations + 1)}
    with one_thread(chosen), torch.random.fork_rng(enabled=spec.dropout > 0):
        try:
            if chosen.type == "cuda":
                torch.cuda.reset_peak_memory_stats(chosen)
            started = _start(spec, folder, chosen)
            teachers = [teacher.to(chosen) for teacher in teachers]
            run = _Run(spec, folder, chosen, tokens, validation, at, on_progress, teachers, *started)
            run.loop(checkpoint_seconds, should_stop)
            return _finish(run)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"run {spec.run_id}: {spec.model.parameters_total:,} parameters on sequences of {length} tokens do not fit on "
                f"{describe_device(chosen)}: {error}; use a smaller model or context, or a device with more memory"
            ) from error
