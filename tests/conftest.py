"""Shared by all tests: a study small enough to run for real in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
hypothesis.settings.register_profile("untimed", deadline=None)  # how fast a machine is, is no property of the code
hypothesis.settings.load_profile("untimed")

EIGHT_RECIPES = Path(__file__).parent / "eight_recipes"  # an export of a study of every kind of recipe, named laptop
TINY = """
question = "Does a study of a few seconds hold together?"
seed_tokens = [1024, 2048]
sizes = [
    { name = "a", hidden = 8, layers = 1, heads = 1, kv_heads = 1, feed_forward = 16 },
    { name = "b", hidden = 16, layers = 1, heads = 2, kv_heads = 1, feed_forward = 32 },
    { name = "c", hidden = 32, layers = 1, heads = 2, kv_heads = 1, feed_forward = 64 },
]
seeds = [0, 1]

[corpus]
name = "tiny"
path = "text"
validation_fraction = 0.2

[tokenizer]
kind = "bpe"
vocabulary = 300

[training]
context_length = 16
batch_size = 8
validation_sequences = 32
precision = "float32"

[grid]
lr = [3e-3, 1e-2, 3e-2]
weight_decay = [0.1, 1.6]
epochs = [1, 2, 4]

[recipes.standard]
fixed = { weight_decay = 0.1 }
limit = "best"

[recipes.regularized]
base = "standard"

[recipes.ensemble]
base = "regularized"
tune = []
members = 4
limit = "K"

[recipes.distilled]
sizes = ["a"]
base = "regularized"
tune = []
teacher = { recipe = "ensemble", tokens_per_seed_token = 1 }
limit = "best"

[resources]
evaluations = 2
"""


def write_tiny_study(folder: Path) -> Path:
    """Write the tiny study and its text, drawn from the embedded corpus, into `folder`; return the study file."""
    from dataeff.data.corpora import documents
    from dataeff.specs.corpus import CorpusSpec

    text = folder / "text"
    text.mkdir(parents=True)
    for number, document in enumerate(documents(CorpusSpec(), folder)):
        if number == 12:
            break
        (text / f"{number:02d}.txt").write_text(document[:3000])
    study = folder / "tiny.toml"
    study.write_text(TINY)
    return study


def dataeff(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in `cwd`; return what it printed and its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "dataeff", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=240,
    )


def start_study(folder: Path, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start `dataeff run tiny.toml` in `folder`, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dataeff", "run", "tiny.toml"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder in which the tiny study was run to its end: tiny.toml, dataeff.duckdb, dataeff.files. Do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    write_tiny_study(folder)
    done = dataeff("run", "tiny.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def chromium():
    """A real browser; what needs one is skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium; install Debian's package of that name")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
