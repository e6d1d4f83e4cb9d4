"""Documents: where text is read from, in which order it stands, and what is held out.

A corpus is a set of texts. Files, their names and the order of their listing do not matter: exact duplicates are
dropped and the rest is ordered by the SHA-256 of the text. The first documents in that order are held out, whole;
the others are for training. This module reads every text once and keeps the distinct ones in memory, so a corpus
must fit there (a Hugging Face dataset is streamed, but read to its end). It knows no tokens.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from dataeff.errors import CorpusError
from dataeff.specs.corpus import CorpusSpec

EMBEDDED = resources.files("dataeff.data") / "state_of_the_union" / "documents.jsonl.xz"
OPENERS = {".gz": gzip.open, ".xz": lzma.open}
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
SUFFIXES = (*TEXT_SUFFIXES, *(text + packed for text in TEXT_SUFFIXES for packed in OPENERS), ".parquet")
WHITE_SPACE = re.compile(rb"\s")  # in bytes: ASCII white space, which is never a part of another UTF-8 character

Source = tuple[str, int, int]  # path, size in bytes, time of the last change in nanoseconds


@dataclass(frozen=True)
class Split:
    """Documents as UTF-8, training and held out, each in its order; `passages` is None where documents were not cut."""

    train: list[bytes]
    validation: list[bytes]
    train_documents: int
    duplicates_dropped: int
    passages: int | None


def documents(spec: CorpusSpec, directory: Path) -> Iterator[str]:
    """Yield every document that is not empty or only white space, in the order of the files; duplicates included.

    `spec.path` is relative to `directory`. Raises `CorpusError` when a source is missing, cannot be read, or has no text.
    """
    empty = True
    for text in _every_text(spec, directory):
        if text.strip():
            empty = False
            yield text
    if empty:
        raise CorpusError(f"corpus '{spec.name}' has no text: every document is empty; give at least two with text")


def sources(spec: CorpusSpec, directory: Path) -> list[Source]:
    """Return path, size and time of change of each file: with the spec, what tells that a corpus has changed.

    A Hugging Face dataset has none: a new revision under the same name goes unnoticed. Raises `CorpusError` as `documents`.
    """
    if spec.hugging_face:
        return []
    if not spec.path:
        return [(EMBEDDED.name, len(EMBEDDED.read_bytes()), 0)]
    return [describe(file) for file in _files(spec.path, directory)]


def describe(file: Path) -> Source:
    """Return the `Source` of one file. Raises `CorpusError` when there is none."""
    if not file.is_file():
        raise CorpusError(f"there is no file {file}; a path is relative to the study file")
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def split(spec: CorpusSpec, directory: Path, on_read: Callable[[int], None] | None = None) -> Split:
    """Read the corpus, drop duplicates, order it by hash and hold out its first documents.

    Documents are held out until `validation_fraction` of the bytes is reached; of a lone document its end is. `on_read` is
    told the bytes read so far. Raises `CorpusError` where nothing would be left to train on.
    """
    texts: dict[bytes, bytes] = {}
    count = read = 0
    for document in documents(spec, directory):
        text = document.encode()
        texts[hashlib.sha256(text).digest()] = text
        count += 1
        read += len(text)
        if on_read:
            on_read(read)
    ordered = [texts[digest] for digest in sorted(texts)]
    validation, train = _cut_lone_document(ordered[0], spec) if len(ordered) == 1 else _hold_out(ordered, spec)
    train_documents, passages = len(train), None
    if spec.passage_bytes:
        cut = [passage for text in train for passage in cut_into_passages(text, spec.passage_bytes)]
        train, passages = sorted(cut, key=lambda passage: hashlib.sha256(passage).digest()), len(cut)
    return Split(train, validation, train_documents, count - len(texts), passages)


def cut_into_passages(text: bytes, size: int) -> list[bytes]:
    """Cut `text` before the first white space at or after every `size` bytes; joined, the passages are the text again.

    A word is never cut, so a text without ASCII white space stays whole. The last passage has at least half of `size`.
    """
    passages, start = [], 0
    while len(text) - start >= size + size // 2:
        found = WHITE_SPACE.search(text, start + size, len(text) - size // 2)
        if not found:
            break
        passages.append(text[start : found.start()])
        start = found.start()
    return [*passages, text[start:]]


def _cut_lone_document(text: bytes, spec: CorpusSpec) -> tuple[list[bytes], list[bytes]]:
    """Return the end of the text, `validation_fraction` of it, and the rest: one document cannot be held out whole."""
    found = WHITE_SPACE.search(text, int(len(text) * (1 - spec.validation_fraction)))
    if not found or not found.start():
        raise CorpusError(f"corpus '{spec.name}' is one document without white space to cut it at; give more documents")
    return [text[found.start() :]], [text[: found.start()]]


def _hold_out(ordered: list[bytes], spec: CorpusSpec) -> tuple[list[bytes], list[bytes]]:
    """Return the first documents, until they hold `validation_fraction` of the bytes, and the rest."""
    wanted = spec.validation_fraction * sum(map(len, ordered))
    held_out = reached = 0
    while reached < wanted:
        reached += len(ordered[held_out])
        held_out += 1
    if held_out == len(ordered):
        raise CorpusError(
            f"corpus '{spec.name}' has {len(ordered)} distinct document(s), and holding out whole ones up to "
            f"validation_fraction = {spec.validation_fraction} of the bytes leaves none to train on; "
            "give more or shorter documents, or a smaller validation_fraction"
        )
    return ordered[:held_out], ordered[held_out:]


def _every_text(spec: CorpusSpec, directory: Path) -> Iterator[str]:
    if spec.hugging_face:
        yield from _hugging_face(spec)
    elif spec.path:
        for file in _files(spec.path, directory):
            yield from _READERS[_suffix(file).split(".")[1]](file, spec.text_field)
    else:
        with resources.as_file(EMBEDDED) as file:
            yield from _read_jsonl(file, "text")


def _suffix(file: Path) -> str:
    name = file.name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), "")


def _files(path: str, directory: Path) -> list[Path]:
    """Return the files that `path` means, sorted: a file, all that can be read below a directory, or a glob."""
    full = directory / Path(path).expanduser()
    if full.is_dir():
        below = (file for file in full.rglob("*") if not any(part.startswith(".") for part in file.relative_to(full).parts))
        files = [file for file in below if file.is_file() and _suffix(file)]
    elif full.exists():
        files = [full]
    elif glob.has_magic(path):
        files = [directory / name for name in glob.glob(str(Path(path).expanduser()), root_dir=directory, recursive=True)]
        files = [file for file in files if file.is_file()]
    else:
        raise CorpusError(f"corpus path '{path}' does not exist: there is no {full}; a path is relative to the study file")
    if not files:
        raise CorpusError(f"corpus path '{path}' matches no file in {directory}; it takes {', '.join(SUFFIXES)}")
    for file in files:
        if not _suffix(file):
            raise CorpusError(f"{file} has the suffix '{file.suffix}', which is unknown; valid: {', '.join(SUFFIXES)}")
    return sorted(files)


def _open(file: Path) -> BinaryIO:
    return OPENERS.get(file.suffix.lower(), open)(file, "rb")


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with _open(file) as stream:
            yield from stream
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(f"{file} is damaged or not a {file.suffix} file: {error}; compress it again") from error


def _decode(data: bytes, file: Path, first_line: int = 1) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise CorpusError(f"{file}, line {line}: not valid UTF-8: {error.reason}; convert the file to UTF-8") from error


def _read_text(file: Path, text_field: str) -> Iterator[str]:
    yield _decode(b"".join(_lines(file)), file)


def _read_jsonl(file: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(_decode(line, file, number))
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: not valid JSON: {error}; put one JSON object on each line") from error
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: of type {type(row).__name__}, not a JSON object; put one JSON object on each line")
        yield _text(row, text_field, where)


def _read_parquet(file: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _require_field(text_field, table.schema_arrow.names, str(file))
            batches = table.iter_batches(batch_size=1024, columns=[text_field])
            values = (value for batch in batches for value in batch.column(0))
            for number, value in enumerate(values, start=1):
                yield _text({text_field: value.as_py()}, text_field, f"{file}, row {number}")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}, column '{text_field}': not valid UTF-8: {error.reason}; write the file again") from error
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{file} is damaged or not a Parquet file: {error}; write the file again") from error


def _hugging_face(spec: CorpusSpec) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise CorpusError(
            f"hugging_face = '{spec.hugging_face}' needs the package datasets: pip install 'dataeff[hugging-face]'"
        ) from error
    try:
        rows = datasets.load_dataset(spec.hugging_face, split=spec.split, streaming=True)
    except (OSError, ValueError) as error:  # an unknown name, configuration or split; no connection
        raise CorpusError(f"cannot open the dataset '{spec.hugging_face}', split '{spec.split}': {error}") from error
    for number, row in enumerate(rows, start=1):
        yield _text(row, spec.text_field, f"{spec.hugging_face}, row {number}")


def _require_field(text_field: str, present: Iterable[str], where: str) -> None:
    if text_field not in (names := list(present)):
        raise CorpusError(f"{where}: no '{text_field}'; set text_field to one of those present: {', '.join(names) or 'none'}")


def _text(row: Mapping[str, object], text_field: str, where: str) -> str:
    """Return the document of one row; null is an empty document."""
    _require_field(text_field, row, where)
    text = row[text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: '{text_field}' is of type {type(text).__name__}, not text; set text_field to a field of text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell but UTF-8 cannot
        raise CorpusError(f"{where}: '{text_field}' is not valid Unicode: {error.reason}; correct the text") from error
    return text


_READERS = {"jsonl": _read_jsonl, "txt": _read_text, "md": _read_text, "parquet": _read_parquet}
