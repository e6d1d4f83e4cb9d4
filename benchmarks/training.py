"""Training speed of `dataeff` beside what a user would write instead: Hugging Face's Llama, torch's AdamW, a plain loop.

Both train the same tokens with the same shape, batch, clipping and schedule, on one CPU thread, in turn, so that what
else the machine does falls on both. Reported: the median of tokens per second over the rounds, evaluations left out, and
the median of the rounds' ratios.

    python benchmarks/training.py [rounds]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataeff.facts.job import Context
from dataeff.facts.store import JobFolder
from dataeff.specs.run import PRESETS, ModelSpec, RunSpec
from dataeff.training.device import describe_device
from dataeff.training.optim import learning_rate
from dataeff.training.trainer import train

VOCABULARY, CONTEXT, BATCH, STEPS = 1024, 64, 16, 60


def run_spec(width: int) -> RunSpec:
    size = PRESETS[f"width{width}"].model_dump(exclude={"name"})
    return RunSpec(
        trainer_version=1,
        corpus="benchmark",
        seed_tokens=STEPS * BATCH * CONTEXT,
        model=ModelSpec(vocabulary=VOCABULARY, context_length=CONTEXT, **size),
        epochs=1,
        lr=1e-3,
        weight_decay=0.1,
        batch_size=BATCH,
        validation_sequences=1,
        precision="float32",
    )


def ours(spec: RunSpec, tokens: np.ndarray) -> float:
    """Return tokens per second of a whole run, checks and curve included."""
    with tempfile.TemporaryDirectory() as folder:
        validation = tokens[:CONTEXT].reshape(1, CONTEXT)
        context = Context("cpu", evaluations=1)
        return train(spec, JobFolder(Path(folder)), tokens, validation, context=context).tokens_per_second


def hugging_face(spec: RunSpec, tokens: np.ndarray) -> float:
    """Return tokens per second of LlamaForCausalLM with AdamW in a plain loop that reads the loss every ten steps."""
    shape = spec.model
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.context_length,
            tie_word_embeddings=False,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=(0.9, 0.95), weight_decay=spec.weight_decay)
    batches = torch.from_numpy(tokens.astype(np.int64)).view(STEPS, BATCH, CONTEXT)
    began = time.perf_counter()
    for step, batch in enumerate(batches):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, spec)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            loss.item()
    return tokens.size / (time.perf_counter() - began)


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, STEPS * BATCH * CONTEXT).astype(np.uint16)
    print(f"{describe_device('cpu')}, one thread, torch {torch.__version__}, {rounds} rounds in turn")
    print(f"two layers, vocabulary {VOCABULARY}, {BATCH} x {CONTEXT} tokens a step, float32; tokens per second")
    print("| width | dataeff | Hugging Face + AdamW | ratio |\n|---|---|---|---|")
    for width in (16, 32, 64, 128, 256):
        spec = run_spec(width)
        pairs = [(ours(spec, tokens), hugging_face(spec, tokens)) for _ in range(rounds + 1)][1:]  # the first warms up
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {width} | {mine:,.0f} | {theirs:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
