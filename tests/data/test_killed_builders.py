"""Builders that are killed or meet: real processes, one small corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataeff.data.tokens import built_tokens
from dataeff.facts.store import Store

BUILDER = """
import json, sys
from pathlib import Path
from dataeff.data.tokens import build_tokens
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec
from dataeff.facts.store import Store

def build(folder, store, on_progress=None):
    spec = CorpusSpec(name="test", path="a.jsonl", passage_bytes=256)
    return build_tokens(spec, TokenizerSpec(vocabulary=300), Path(folder), Store(Path(store)), on_progress).fingerprint
"""

# Forks a builder that kills itself before the n-th line of tokens.py, for every n; then builds again in another process.
KILLED_EVERYWHERE = (
    BUILDER
    + """
import os, signal, tempfile
from dataeff.data import tokenizer, tokens  # before the forks, so that each is quick

def killed_at(line, folder, store):
    seen = 0
    def trace(frame, event, arg):
        nonlocal seen
        if frame.f_code.co_filename != tokens.__file__:
            return None
        seen += event == "line"
        if seen == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    if (child := os.fork()) == 0:
        sys.settrace(trace)
        build(folder, store)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

def rebuilt(folder, store):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, build(folder, store).encode())
        os._exit(0)
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0
    with open(reader) as pipe:
        return pipe.read()

folder, line, outcomes = sys.argv[1], 1, []
while True:
    store = Path(tempfile.mkdtemp(dir=folder))
    killed = killed_at(line, folder, store)
    files = Store(store).tokens
    left = [path.name for path in files.glob("*/") if not (path / "tokens.json").exists()]
    whole = len([tokens.open_tokens(each.folder) for each in tokens.built_tokens(Store(store))])  # all of it or nothing
    fingerprint = rebuilt(folder, store)
    after = sorted(path.suffix for path in files.iterdir())
    outcomes.append({"line": line, "left": len(left), "whole": whole, "fingerprint": fingerprint, "after": after})
    if not killed:
        break
    line += int(sys.argv[2])
print(json.dumps(outcomes))
"""
)

# Says what it does, a line each; before the first line of the corpus is read it waits for a line on its input, if told to.
TALKING = (
    BUILDER
    + """
folder, store, waits = sys.argv[1:]
calls = 0
def on_progress(stage, size, total):
    global calls
    calls += 1
    if calls == 1 and waits == "waits":
        print("building", flush=True)
        sys.stdin.readline()
print("started", flush=True)
fingerprint = build(folder, store, on_progress)
print(json.dumps([fingerprint, calls > 0]), flush=True)
"""
)


@pytest.fixture
def folder(tmp_path, texts, write_jsonl) -> Path:
    write_jsonl(tmp_path / "a.jsonl", texts[:6])
    return tmp_path


@pytest.fixture
def start(folder):
    started = []

    def start_builder(waits: str) -> subprocess.Popen:
        command = [sys.executable, "-c", TALKING, folder, folder / "store", waits]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "started\n"
        return process

    yield start_builder
    for process in started:
        process.kill()
        process.communicate()


def test_a_builder_killed_anywhere_leaves_all_or_nothing_and_the_next_one_the_same_tokens(folder):
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", KILLED_EVERYWHERE, folder, "5"]
    run = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    outcomes = json.loads(run.stdout)
    assert len({outcome["fingerprint"] for outcome in outcomes}) == 1
    assert all(outcome["after"] == ["", ".lock"] for outcome in outcomes)
    # The kills fell before, within and after the building, or nothing was shown.
    assert {(outcome["left"], outcome["whole"]) for outcome in outcomes} == {(0, 0), (1, 0), (0, 1)}


def test_two_builders_at_once_build_once(folder, start):
    first = start("waits")
    assert first.stdout.readline() == "building\n"
    second = start("goes on")
    first_says, _ = first.communicate("go on\n")
    second_says, _ = second.communicate()
    (one, first_built), (other, second_built) = json.loads(first_says), json.loads(second_says)
    assert one == other and first_built and not second_built
    assert len(built_tokens(Store(folder / "store"))) == 1


def test_a_builder_that_waits_takes_over_from_one_that_is_killed(folder, start):
    first = start("waits")
    assert first.stdout.readline() == "building\n"
    second = start("goes on")
    first.kill()
    fingerprint, built = json.loads(second.communicate()[0])
    assert built and [tokens.fingerprint for tokens in built_tokens(Store(folder / "store"))] == [fingerprint]


def test_leftovers_of_another_corpus_are_removed_unless_its_builder_lives(folder, start):
    tokens = folder / "store" / "tokens"
    dead = tokens / "0123456789abcdef"
    dead.mkdir(parents=True)
    (dead / "train.bin").write_bytes(b"half")
    builder = start("waits")
    assert builder.stdout.readline() == "building\n"
    assert not dead.exists()
    [lock] = [file for file in tokens.glob("*.lock") if not file.name.startswith("0123")]
    alive = tokens / lock.stem
    assert alive.exists()
    (folder / "b").mkdir()
    (folder / "b" / "a.jsonl").write_bytes((folder / "a.jsonl").read_bytes())
    other = [sys.executable, "-c", TALKING, folder / "b", folder / "store", "goes on"]
    subprocess.run(other, check=True, capture_output=True)
    assert alive.exists()
