"""Small corpora on disk for the tests of the data layer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dataeff.data.tokens import Tokens, build_tokens
from dataeff.facts.store import Store
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec

SYLLABLES = ("ra", "me", "to", "li", "no", "sé", "ku", "da", "vi", "語", "pe", "so")


@pytest.fixture
def texts() -> list[str]:
    """Forty distinct documents, with accents, line breaks, runs of spaces and characters outside the basic plane."""
    draw = random.Random(7)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(60)]
    gaps = (" ", " ", " ", "\n", "  ", "\r\n", " 🜂 ")
    return [f"{i} " + "".join(draw.choice(words) + draw.choice(gaps) for _ in range(draw.randint(20, 200))) for i in range(40)]


@pytest.fixture
def write_jsonl() -> Callable[[Path, list[str]], Path]:
    def write(file: Path, documents: list[str]) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        return file

    return write


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Tokens]:
    """Build the corpus at a path, with a vocabulary of 300 by default."""

    def built(path: Path, tokenizer: TokenizerSpec | None = None, store: Path | None = None, **corpus: object) -> Tokens:
        spec = CorpusSpec(name="test", path=str(path), **corpus)
        return build_tokens(spec, tokenizer or TokenizerSpec(vocabulary=300), tmp_path, Store(store or tmp_path / "store"))

    return built
