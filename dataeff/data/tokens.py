"""Token files: a corpus, tokenized once, cached by what went in and identified by what came out.

    <store>/tokens/<key>/train.bin        token ids, little-endian uint16 (uint32 above 65,536 tokens of vocabulary)
    <store>/tokens/<key>/validation.bin   the same, of the documents held out
    <store>/tokens/<key>/tokenizer.json
    <store>/tokens/<key>/tokens.json      the facts about them, written last
    <store>/tokens/<key>.lock             held by the process that builds

The key is made of specs, paths, sizes and times of change: it says when to build again. The fingerprint is made of the
content alone. A folder without tokens.json is not built, and its lock says whether somebody builds it.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel

from dataeff.data.corpora import Texts, file_state, sources, split
from dataeff.errors import CorpusError
from dataeff.facts.store import Store, replacing, write_atomically
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec
from dataeff.specs.identity import identity

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20  # of text that is encoded at once; the last document of a batch may exceed it
BUILDER_VERSION = 1  # raised when the same corpus would give other files than before

OnProgress = Callable[[str, int, "int | None"], None]  # stage, bytes of text processed, bytes in all (None: unknown)


class Tokens(BaseModel, frozen=True):
    """One built corpus. Bytes are of UTF-8 text without separators; tokens include one separator a document."""

    folder: Path
    fingerprint: str
    dtype: str  # of the files, as numpy spells it
    vocabulary: int  # tokens in the vocabulary; for bpe it can be fewer than asked for
    separator: int  # id of the token that precedes each document
    train_tokens: int
    validation_tokens: int
    train_bytes: int
    validation_bytes: int
    corpus: CorpusSpec
    tokenizer: TokenizerSpec
    created_at: datetime

    @property
    def name(self) -> str:
        return self.corpus.name

    def train(self, seed_tokens: int, draw: int = 0) -> np.ndarray:
        """Return the first `seed_tokens` training tokens of a draw, (seed_tokens,). Raises `CorpusError` if there are fewer.

        Draw 0 has the documents as they lie in the file; draw d > 0 has them in the order of random keys that d alone seeds.
        """
        if not 1 <= seed_tokens <= self.train_tokens:
            has = f"corpus '{self.name}' has for training: 1 to {self.train_tokens} tokens"
            raise CorpusError(f"seed_tokens {seed_tokens} is not within what {has}; ask for fewer or give more text")
        tokens = np.memmap(self.folder / "train.bin", dtype=self.dtype, mode="r", shape=(self.train_tokens,))
        if draw == 0:
            return tokens[:seed_tokens]
        starts = np.flatnonzero(tokens == self.separator)
        lengths = np.diff(starts, append=len(tokens))
        order = np.argsort(np.random.PCG64(draw).random_raw(len(starts)), kind="stable")  # raw bits never change with numpy
        taken = order[: 1 + np.searchsorted(np.cumsum(lengths[order]), seed_tokens)]
        texts = [tokens[start : start + length] for start, length in zip(starts[taken], lengths[taken], strict=True)]
        return np.concatenate(texts)[:seed_tokens]

    def documents(self, seed_tokens: int) -> int:
        """Return how many documents, or passages of them, the first `seed_tokens` training tokens begin."""
        return int(np.count_nonzero(self.train(seed_tokens) == self.separator))

    def validation(self, sequences: int, context_length: int) -> np.ndarray:
        """Return evenly spaced windows of the held-out tokens that do not overlap: int64, shape (sequences, context_length).

        Raises `CorpusError` if they do not fit.
        """
        most = self.validation_tokens // context_length
        if not 1 <= sequences <= most:
            has = f"corpus '{self.name}' holds out {self.validation_tokens} tokens, room for at most {most}"
            rule = f"validation_sequences {sequences} of {context_length} tokens do not fit: {has}"
            raise CorpusError(f"{rule}; ask for fewer or raise validation_fraction")
        held_out = np.memmap(self.folder / "validation.bin", dtype=self.dtype, mode="r", shape=(self.validation_tokens,))
        starts = np.arange(sequences) * self.validation_tokens // sequences
        return np.stack([held_out[start : start + context_length] for start in starts]).astype(np.int64)


def build_tokens(
    corpus: CorpusSpec, tokenizer: TokenizerSpec, directory: Path, store: Store, on_progress: OnProgress | None = None
) -> Tokens:
    """Return the tokens of `corpus`, built unless the store has them already; paths are relative to `directory`.

    Processes that ask for the same at once build it once: the others wait. `on_progress` is called with the stage
    ("read", "train tokenizer", "encode"), the bytes of text processed and the bytes in all. Raises `CorpusError`.
    """
    folder = store.tokens / _key(corpus, tokenizer, directory)
    if not _is_built(folder):
        store.tokens.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_built(folder):
                shutil.rmtree(folder, ignore_errors=True)
                _remove_unfinished(store.tokens)
                folder.mkdir()
                try:
                    _build(folder, corpus, tokenizer, directory, on_progress or (lambda stage, size, total: None))
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
    return open_tokens(folder)


def open_tokens(folder: Path) -> Tokens:
    """Open token files that are built. Raises `CorpusError` when they are missing or not of the size they were written."""
    if not _is_built(folder):
        raise CorpusError(f"there are no tokens in {folder}; build the corpus first")
    tokens = _load_facts(folder)
    for name, count in (("train.bin", tokens.train_tokens), ("validation.bin", tokens.validation_tokens)):
        file, size = folder / name, count * np.dtype(tokens.dtype).itemsize
        if not file.is_file() or file.stat().st_size != size:
            raise CorpusError(f"{file} is missing or not of its {size} bytes; remove {folder} and build the corpus again")
    return tokens


def built_tokens(store: Store) -> list[Tokens]:
    """Return all tokens in the store, by name of the corpus, then by age. Their files are checked by `open_tokens` alone."""
    facts = [_load_facts(file.parent) for file in store.tokens.glob("*/tokens.json")]
    return sorted(facts, key=lambda tokens: (tokens.name, tokens.created_at))


def find_tokens(store: Store, fingerprint: str) -> Tokens:
    """Return the tokens in the store that have this fingerprint. Raises `CorpusError` when none do, and lists those there."""
    built = built_tokens(store)
    for tokens in built:
        if tokens.fingerprint == fingerprint:
            return open_tokens(tokens.folder)
    present = ", ".join(f"{tokens.fingerprint} ({tokens.name})" for tokens in built) or "none"
    raise CorpusError(f"no tokens in {store.tokens} have the fingerprint {fingerprint}; present: {present}; build the corpus")


def _key(corpus: CorpusSpec, tokenizer: TokenizerSpec, directory: Path) -> str:
    files = sources(corpus, directory)
    if tokenizer.path:
        files.append(file_state(directory / Path(tokenizer.path).expanduser()))
    specs = {"corpus": corpus.model_dump(exclude_defaults=True), "tokenizer": tokenizer.model_dump(exclude_defaults=True)}
    return identity({"builder": BUILDER_VERSION, "sources": files, **specs})


def _is_built(folder: Path) -> bool:
    return (folder / "tokens.json").is_file()


def _load_facts(folder: Path) -> Tokens:
    return Tokens(folder=folder, **json.loads((folder / "tokens.json").read_text()))


def _remove_unfinished(root: Path) -> None:
    """Remove the folders that killed builders of other corpora left."""
    for folder in [folder for folder in root.glob("*/") if not _is_built(folder)]:
        with suppress(Timeout), FileLock(f"{folder}.lock", timeout=0):  # else its builder is alive
            if not _is_built(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _build(folder: Path, corpus: CorpusSpec, spec: TokenizerSpec, directory: Path, on_progress: OnProgress) -> None:
    """Write the token files, the tokenizer and, last, the facts about them."""
    from dataeff.data.tokenizer import load, separator_id, train_bpe, vocabulary_size  # heavy

    texts = split(corpus, directory, folder / "texts", lambda size: on_progress("read", size, None))
    train_bytes, validation_bytes = texts.train.size, texts.validation.size
    if spec.kind == "bpe":
        batches = _batches(texts.train, lambda size: on_progress("train tokenizer", size, train_bytes))
        tokenizer = train_bpe(chain.from_iterable(batches), spec.vocabulary)
    else:
        tokenizer = load(spec, directory)
    vocabulary, separator = vocabulary_size(tokenizer), separator_id(tokenizer)
    if spec.vocabulary and vocabulary < spec.vocabulary:
        given = f"the text gives {vocabulary} tokens, as pairs that occur once are not merged"
        log.warning("tokenizer.vocabulary = %d: %s; models are built for those; set it to %d", spec.vocabulary, given, vocabulary)
    dtype = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")

    def write(file: Path, documents: Texts, encoded: int) -> int:
        """Write the tokens of the documents and return how many they are; `encoded` bytes of text were encoded before."""
        batches = _batches(documents, lambda size: on_progress("encode", encoded + size, train_bytes + validation_bytes))
        with replacing(file) as temporary, open(temporary, "wb") as stream:
            for batch in batches:
                for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                    stream.write(np.array([separator, *encoding.ids], dtype).tobytes())
        return file.stat().st_size // dtype.itemsize

    counts = {"train_bytes": train_bytes, "validation_bytes": validation_bytes}
    counts["train_tokens"] = write(folder / "train.bin", texts.train, 0)
    counts["validation_tokens"] = write(folder / "validation.bin", texts.validation, train_bytes)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str())
    (folder / "texts").unlink()
    tokens = Tokens(
        folder=folder,
        fingerprint=_fingerprint(folder, dtype.str, vocabulary),
        dtype=dtype.str,
        vocabulary=vocabulary,
        separator=separator,
        **counts,
        corpus=corpus,
        tokenizer=spec,
        created_at=datetime.now(UTC),
    )
    write_atomically(folder / "tokens.json", tokens.model_dump_json(exclude={"folder"}, indent=2))


def _batches(texts: Texts, on_done: Callable[[int], None]) -> Iterator[list[str]]:
    """Yield texts in batches, the fewest that reach `BATCH_BYTES`; `on_done` is called with the bytes of all taken so far."""
    batch, size, done = [], 0, 0
    for text in texts:
        batch.append(text.decode())
        size += len(text)
        if size - done >= BATCH_BYTES or size == texts.size:
            yield batch
            batch, done = [], size
            on_done(done)


def _fingerprint(folder: Path, dtype: str, vocabulary: int) -> str:
    """Return the id of what a run is trained and judged on: the bytes of both token files, and how many tokens there are. The
    tokenizer's own file stays out: the library that writes it changes its layout.
    """
    files = [np.memmap(folder / name, np.uint8, "r") for name in ("train.bin", "validation.bin")]
    return identity({"files": [hashlib.sha256(file).hexdigest() for file in files], "dtype": dtype, "vocabulary": vocabulary})
