"""What one CUDA GPU does for `dataeff`: the chunked loss beside whole logits, the 150m model eager and compiled, runs a GPU.

    python benchmarks/gpu.py [loss] [model] [workers]

`loss`: seconds and memory of the loss and its gradients, in bfloat16, of 16,384 tokens over the vocabulary of Llama 3.
`model`: tokens per second, model FLOPs utilisation (of the dense bfloat16 peak) and memory of the 150m model of the paper.
`workers`: finished runs a minute when 1, 2, 4 and 8 warm workers share the GPU, with models of 1M to 20M parameters.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dataeff.data.tokens import build_tokens
from dataeff.execution.base import Ended, Request
from dataeff.execution.local import LocalExecutor
from dataeff.facts.job import Context
from dataeff.facts.store import JobFolder, Store
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec
from dataeff.specs.run import PRESETS, ModelSpec, RunSpec
from dataeff.training import trainer
from dataeff.training.device import describe_device
from dataeff.training.model import DEVICE_CHUNK, tf32_products
from dataeff.work.train import Train

VOCABULARY = 128256
RUNS, SIZES = 8, {"1M": (128, 4), "5M": (256, 6), "20M": (512, 6)}  # hidden, layers


def loss_table() -> None:
    print(f"\nloss of 16,384 tokens, vocabulary {VOCABULARY:,}, hidden 512: median of 7")
    print("| products and loss | ms | peak GiB | error of the gradient | error of the loss (nats) |\n|---|---|---|---|---|")
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(16384, 512, device="cuda", generator=generator)
    weight = 0.02 * torch.randn(VOCABULARY, 512, device="cuda", generator=generator)
    targets = torch.randint(VOCABULARY, (16384,), device="cuda", generator=generator)
    exact, value = weight.clone().requires_grad_(), 0.0
    for rows in range(0, 16384, 2048):
        part = slice(rows, rows + 2048)
        loss = F.cross_entropy(hidden[part] @ exact.T, targets[part], reduction="sum") / 16384
        loss.backward()
        value += loss.item()
    kinds = {
        "whole logits": lambda x, w: F.cross_entropy(F.linear(x, w).float(), targets),
        "chunked, a loss for each token": lambda x, w: (
            F.linear_cross_entropy(x, w, targets, reduction="none", options=DEVICE_CHUNK).float().mean()
        ),
        "chunked, their mean": lambda x, w: F.linear_cross_entropy(x, w, targets, options=DEVICE_CHUNK).float(),
    }
    kinds = {f"bfloat16, {name}": (torch.bfloat16, loss_of) for name, loss_of in kinds.items()}
    kinds["TF32, chunked, their mean (ours)"] = torch.float32, kinds["bfloat16, chunked, their mean"][1]
    for name, (dtype, loss_of) in kinds.items():
        seconds = []
        for _ in range(9):
            w = weight.clone().requires_grad_()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            torch.cuda.synchronize()
            began = time.perf_counter()
            with tf32_products():
                loss = loss_of(hidden.to(dtype), w.to(dtype))
            loss.backward()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        peak = (torch.cuda.max_memory_allocated() - held) / 2**30
        error = ((w.grad - exact.grad).norm() / exact.grad.norm()).item()
        milliseconds, off = 1e3 * sorted(seconds[2:])[3], loss.item() - value
        print(f"| {name} | {milliseconds:.1f} | {peak:.2f} | {error:.2%} | {off:+.4f} |", flush=True)


def model_table() -> None:
    print("\n150m of the paper: bfloat16, 64 x 4,096 tokens a step")
    print("| step | tokens a second | MFU | peak GiB | wall seconds | val_loss |\n|---|---|---|---|---|---|")
    shape = ModelSpec(vocabulary=VOCABULARY, context_length=4096, **PRESETS["150m"].model_dump(exclude={"name"}))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 8 * 64 * 4096)
    validation = tokens[: 32 * 4096].reshape(32, 4096)
    for name, epochs, compile_from in (("compiled", 3, 0), ("eager", 2, 1e30)):
        trainer.COMPILE_FROM_FLOPS = compile_from
        spec = RunSpec(
            trainer_version=1,
            corpus="random",
            seed_tokens=tokens.size,
            model=shape,
            epochs=epochs,
            lr=1e-3,
            weight_decay=0.1,
            batch_size=64,
            validation_sequences=32,
            precision="bfloat16",
        )
        marks: list[tuple[float, int]] = []

        def mark(progress, marks=marks) -> None:
            marks.append((time.perf_counter(), progress.step))

        with tempfile.TemporaryDirectory() as folder:
            result = trainer.train(spec, JobFolder(Path(folder)), tokens, validation, context=Context("cuda", 1, mark))
        (begin, first), (end, last) = marks[0], marks[-2]  # before the first is warm-up; the last holds the evaluation
        speed = (last - first) * 64 * 4096 / (end - begin)
        peak = trainer.peak_flops(torch.device("cuda"), "bfloat16")
        used = f"{speed * shape.training_flops_per_token / peak:.1%}" if peak else "unknown"
        memory, seconds = result.peak_memory_bytes / 2**30, result.wall_seconds
        print(f"| {name} | {speed:,.0f} | {used} | {memory:.1f} | {seconds:.0f} | {result.val_loss:.4f} |", flush=True)
        torch.cuda.empty_cache()


def workers_table() -> None:
    print(f"\n{RUNS} runs of 100 steps of 8 x 256 tokens, bfloat16, on one GPU: runs a minute by warm workers")
    print("| workers | " + " | ".join(SIZES) + " |\n|" + "---|" * (1 + len(SIZES)))
    with tempfile.TemporaryDirectory() as folder:
        corpus = CorpusSpec(name="state-of-the-union", passage_bytes=4096)
        store = Store(Path(folder) / "files")
        tokens = build_tokens(corpus, TokenizerSpec(kind="bpe", vocabulary=2048), Path(folder), store)
        for workers in (1, 2, 4, 8):
            with LocalExecutor(workers) as executor:
                warm_up = [_run(tokens, SIZES["1M"], 1000 * workers + seed) for seed in range(workers)]
                _wait(executor, [Request(job, store, 1) for job in warm_up])
                speeds = []
                for size in SIZES.values():
                    jobs = [_run(tokens, size, 100 * workers + seed) for seed in range(RUNS)]
                    speeds.append(60 * RUNS / _wait(executor, [Request(job, store, 1) for job in jobs]))
                print(f"| {workers} | {' | '.join(f'{speed:.0f}' for speed in speeds)} |", flush=True)


def _run(tokens, size: tuple[int, int], seed: int) -> Train:
    hidden, layers = size
    heads = {"heads": hidden // 64, "kv_heads": hidden // 64}
    shape = ModelSpec(
        vocabulary=tokens.vocabulary, context_length=256, hidden=hidden, layers=layers, **heads, feed_forward=7 * hidden // 2
    )
    return Train(
        trainer_version=1,
        corpus=tokens.fingerprint,
        seed_tokens=50 * 8 * 256,
        model=shape,
        epochs=2,
        lr=1e-3,
        weight_decay=0.1,
        batch_size=8,
        validation_sequences=64,
        precision="bfloat16",
        train_seed=seed,
        data_seed=seed,
    )


def _wait(executor: LocalExecutor, requests: list[Request]) -> float:
    """Return the seconds until all have ended."""
    began, open_ = time.perf_counter(), {request.id for request in requests}
    for request in requests:
        executor.submit(request)
    while open_:
        for event in executor.events(0.1):
            if isinstance(event, Ended):
                if event.outcome != "finished":
                    sys.exit(f"run {event.id}: {event.outcome}: {event.reason}")
                open_.discard(event.id)
    return time.perf_counter() - began


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        sys.exit()
    print(f"{describe_device('cuda')}, torch {torch.__version__}")
    tables = {"loss": loss_table, "model": model_table, "workers": workers_table}
    for name in sys.argv[1:] or tables:
        tables[name]()
