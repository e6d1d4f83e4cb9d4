"""Token files: a corpus, tokenized once, cached by what went in and identified by what came out.

    <store>/tokens/<key>/train.bin        token ids, little-endian uint16 (uint32 above 65,536 tokens of vocabulary)
    <store>/tokens/<key>/validation.bin   the same, of the documents held out
    <store>/tokens/<key>/tokenizer.json
    <store>/tokens/<key>/tokens.json      the facts about them, written last
    <store>/tokens/<key>.lock             held by the process that builds

The key is made of specs, paths, sizes and times of change: it says when to build again. The fingerprint is made of
the bytes of the first three files alone: the same content built elsewhere has the same one. A folder is built under a
temporary name, synced, then renamed, so it is there whole or not at all. Reading needs numpy only, no tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from dataeff.data.corpora import Split, describe, sources, split
from dataeff.errors import CorpusError, InputError
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec
from dataeff.specs.ensemble import SampleResult
from dataeff.specs.identity import identity
from dataeff.specs.result import RunFolder, Store, load_fact

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BUILDER_VERSION = 1  # raised when the same corpus would give other files than before
BATCH_BYTES = 1 << 20  # of text that is encoded at once; a longer document is a batch of its own

OnProgress = Callable[[str, int, "int | None"], None]  # stage, bytes of text done, bytes in all (None: not known)


@dataclass(frozen=True)
class Tokens:
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
    train_documents: int  # whole documents, before they are cut into passages
    validation_documents: int
    duplicates_dropped: int
    passages: int | None  # that the training documents were cut into; None where they were not
    corpus: CorpusSpec
    tokenizer: TokenizerSpec
    created_at: datetime

    @property
    def name(self) -> str:
        return self.corpus.name

    def train(self, seed_tokens: int) -> np.memmap:
        """Return the first `seed_tokens` training tokens, shape (seed_tokens,), read from disk as they are used.

        Raises `CorpusError` if the corpus has fewer.
        """
        if not 1 <= seed_tokens <= self.train_tokens:
            raise CorpusError(
                f"seed_tokens {seed_tokens} is not within what corpus '{self.name}' has for training: "
                f"1 to {self.train_tokens} tokens; ask for fewer or give more text"
            )
        return np.memmap(self.folder / "train.bin", dtype=self.dtype, mode="r", shape=(seed_tokens,))

    def validation(self, sequences: int, context_length: int) -> np.ndarray:
        """Return evenly spaced windows of the held-out tokens that do not overlap.

        int64, shape (sequences, context_length); the same for the same arguments. Raises `CorpusError` if they do not fit.
        """
        most = self.validation_tokens // context_length
        if not 1 <= sequences <= most:
            raise CorpusError(
                f"validation_sequences {sequences} of {context_length} tokens do not fit: corpus '{self.name}' holds out "
                f"{self.validation_tokens} tokens, room for at most {most}; ask for fewer or raise validation_fraction"
            )
        held_out = np.memmap(self.folder / "validation.bin", dtype=self.dtype, mode="r", shape=(self.validation_tokens,))
        starts = np.arange(sequences) * self.validation_tokens // sequences
        return np.stack([held_out[start : start + context_length] for start in starts]).astype(np.int64)


def build_tokens(
    corpus: CorpusSpec, tokenizer: TokenizerSpec, directory: Path, store: Store, on_progress: OnProgress | None = None
) -> Tokens:
    """Return the tokens of `corpus`, built unless the store has them already; paths are relative to `directory`.

    Processes that ask for the same at once build it once: the others wait. `on_progress` is called with the stage
    ("read", "train tokenizer", "encode"), the bytes of text done and the bytes in all. Raises `CorpusError`.
    """
    key = _key(corpus, tokenizer, directory)
    folder = store.tokens / key
    if not _is_built(folder):
        store.tokens.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            _remove_leftovers(store.tokens, key)
            if not _is_built(folder):
                _build(folder, corpus, tokenizer, directory, on_progress or (lambda stage, done, total: None))
    return open_tokens(folder)


def open_tokens(folder: Path) -> Tokens:
    """Open token files that are built. Raises `CorpusError` when they are missing or not of the size they were written."""
    if not _is_built(folder):
        raise CorpusError(f"there are no tokens in {folder}; build the corpus first")
    facts = json.loads((folder / "tokens.json").read_text())
    tokens = Tokens(
        folder=folder,
        corpus=CorpusSpec(**facts.pop("corpus")),
        tokenizer=TokenizerSpec(**facts.pop("tokenizer")),
        created_at=datetime.fromisoformat(facts.pop("created_at")),
        **facts,
    )
    for name, count in (("train.bin", tokens.train_tokens), ("validation.bin", tokens.validation_tokens)):
        file, size = folder / name, count * np.dtype(tokens.dtype).itemsize
        if not file.is_file() or file.stat().st_size != size:
            raise CorpusError(f"{file} is missing or not of its {size} bytes; remove {folder} and build the corpus again")
    return tokens


def open_samples(folder: RunFolder) -> np.memmap:
    """Return the sequences of a sampling, (sequences, context_length), read from disk as they are used.

    Raises `CorpusError` when they are missing or not of the size they were written.
    """
    try:
        facts = load_fact(SampleResult, folder.result)
        return np.memmap(folder.tokens, dtype=facts.dtype, mode="r", shape=(facts.sequences, facts.context_length))
    except (InputError, OSError, ValueError) as error:
        raise CorpusError(f"the samples in {folder.path} cannot be read: {error}; move it away to draw them again") from error


def drawn_samples(store: Store) -> list[tuple[RunFolder, SampleResult]]:
    """Return the folder and the facts of every sampling in the store, the oldest first."""
    results = sorted((store.path / "samples").glob("*/result.json"), key=os.path.getmtime)
    return [(RunFolder(file.parent), load_fact(SampleResult, file)) for file in results]


def built_tokens(store: Store) -> list[Tokens]:
    """Return all tokens in the store, by name of the corpus, then by age."""
    folders = [facts.parent for facts in store.tokens.glob("*/tokens.json") if ".building-" not in facts.parent.name]
    return sorted(map(open_tokens, folders), key=lambda tokens: (tokens.name, tokens.created_at))


def _key(corpus: CorpusSpec, tokenizer: TokenizerSpec, directory: Path) -> str:
    files = sources(corpus, directory)
    if tokenizer.path:
        files.append(describe(directory / Path(tokenizer.path).expanduser()))
    specs = {"corpus": corpus.model_dump(exclude_defaults=True), "tokenizer": tokenizer.model_dump(exclude_defaults=True)}
    return identity({"builder": BUILDER_VERSION, "sources": files, **specs})


def _is_built(folder: Path) -> bool:
    return (folder / "tokens.json").is_file()


def _remove_leftovers(root: Path, key: str) -> None:
    """Remove what killed builders left: the folders of `key`, whose lock the caller holds, and of keys nobody builds."""
    for folder in list(root.glob("*.building-*")):
        its_key = folder.name.split(".")[0]
        lock = nullcontext() if its_key == key else FileLock(root / f"{its_key}.lock", timeout=0)
        try:
            with lock:
                if folder.exists():
                    shutil.rmtree(folder)
        except Timeout:
            continue  # its builder is alive


def _build(folder: Path, corpus: CorpusSpec, spec: TokenizerSpec, directory: Path, on_progress: OnProgress) -> None:
    texts = split(corpus, directory, on_read=lambda read: on_progress("read", read, None))
    tokenizer = _tokenizer(spec, directory, texts, on_progress)
    temporary = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    temporary.mkdir()
    try:
        facts = _write_files(temporary, tokenizer, texts, on_progress)
        facts |= {"corpus": corpus.model_dump(), "tokenizer": spec.model_dump(), "created_at": datetime.now(UTC).isoformat()}
        _write(temporary / "tokens.json", [json.dumps(facts, indent=2).encode()])
        _sync_folder(temporary)
        if folder.exists():  # without tokens.json: somebody removed it
            shutil.rmtree(folder)
        temporary.rename(folder)
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _tokenizer(spec: TokenizerSpec, directory: Path, texts: Split, on_progress: OnProgress) -> Tokenizer:
    from dataeff.data.tokenizer import load, train_bpe  # here, because who only opens tokens needs no tokenizers

    if spec.kind != "bpe":
        return load(spec, directory)
    total = sum(map(len, texts.train))

    def training_documents() -> Iterator[str]:
        done = 0
        for text in texts.train:
            yield text.decode()
            on_progress("train tokenizer", done := done + len(text), total)

    return train_bpe(training_documents(), spec.vocabulary)


def _write_files(folder: Path, tokenizer: Tokenizer, texts: Split, on_progress: OnProgress) -> dict[str, object]:
    """Write the three files that make the fingerprint and return the facts about them."""
    from dataeff.data.tokenizer import separator_id, vocabulary_size

    vocabulary, separator = vocabulary_size(tokenizer), separator_id(tokenizer)
    dtype = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    train_bytes, validation_bytes = sum(map(len, texts.train)), sum(map(len, texts.validation))

    def encoded(documents: list[bytes], done: int) -> Iterator[bytes]:
        for batch in _batches(documents):
            for encoding in tokenizer.encode_batch_fast([text.decode() for text in batch], add_special_tokens=False):
                yield np.array([separator, *encoding.ids], dtype).tobytes()
            done += sum(map(len, batch))
            on_progress("encode", done, train_bytes + validation_bytes)

    files = [folder / name for name in ("train.bin", "validation.bin", "tokenizer.json")]
    _write(files[0], encoded(texts.train, 0))
    _write(files[1], encoded(texts.validation, train_bytes))
    _write(files[2], [tokenizer.to_str().encode()])
    return {
        "fingerprint": _fingerprint(files[:2], dtype.str, vocabulary),
        "dtype": dtype.str,
        "vocabulary": vocabulary,
        "separator": separator,
        "train_tokens": files[0].stat().st_size // dtype.itemsize,
        "validation_tokens": files[1].stat().st_size // dtype.itemsize,
        "train_bytes": train_bytes,
        "validation_bytes": validation_bytes,
        "train_documents": texts.train_documents,
        "validation_documents": len(texts.validation),
        "duplicates_dropped": texts.duplicates_dropped,
        "passages": texts.passages,
    }


def _batches(documents: list[bytes]) -> Iterator[list[bytes]]:
    batch, size = [], 0
    for text in documents:
        if batch and size + len(text) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _fingerprint(files: list[Path], dtype: str, vocabulary: int) -> str:
    """Return the id of what a run is trained and judged on: the bytes of both token files, and how many tokens there are.

    The tokenizer itself stays out: its file is written by a library whose layout changes from version to version.
    """
    digests = []
    for file in files:
        with open(file, "rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return identity({"files": digests, "dtype": dtype, "vocabulary": vocabulary})


def _write(file: Path, chunks: Iterable[bytes]) -> None:
    with open(file, "wb") as stream:
        for chunk in chunks:
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
