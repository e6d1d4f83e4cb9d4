"""Documents: where text is read from, in which order it stands, and what is held out.

A corpus is a set of texts. Files, their names and the order of their listing do not matter: exact duplicates are
dropped and the rest is ordered by the SHA-256 of the text. The first documents in that order are held out, whole;
the others are for training. The texts are kept in a file and memory holds the place of each, so a corpus may be
larger than memory; a single document may not. This module knows no tokens.
"""

import glob
import gzip
import hashlib
import json
import lzma
import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

from dataeff.errors import CorpusError
from dataeff.specs.corpus import CorpusSpec

EMBEDDED = Path(__file__).parent / "state_of_the_union" / "documents.jsonl.xz"
OPENERS = {".gz": gzip.open, ".xz": lzma.open}
WHITE_SPACE = re.compile(rb"\s")  # in bytes: ASCII white space, which is never a part of another UTF-8 character

FileState = tuple[str, int, int]  # path, size in bytes, time of the last change in nanoseconds
Span = tuple[int, int]  # place and size of a text in a file, in bytes


@dataclass(frozen=True)
class Texts:
    """UTF-8 texts in a fixed order, read from a file each time they are iterated over."""

    file: Path
    spans: list[Span]

    @cached_property
    def size(self) -> int:  # in bytes
        return sum(size for _, size in self.spans)

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[bytes]:
        with open(self.file, "rb") as stream:
            for start, size in self.spans:
                stream.seek(start)
                yield stream.read(size)


class Split(NamedTuple):
    """Documents for training, or their passages, and those held out, each in its order."""

    train: Texts
    validation: Texts


def documents(spec: CorpusSpec, directory: Path) -> Iterator[str]:
    """Return all documents but the empty and the blank ones, duplicates included, in the order of the files; `spec.path` is
    relative to `directory`. Raises `CorpusError` when a source is missing or cannot be read.
    """
    if spec.hugging_face:
        texts = _read_hugging_face(spec)
    elif spec.path:
        texts = chain.from_iterable(_reader(file)(file, spec.text_field) for file in _files(spec.path, directory))
    else:
        texts = _read_jsonl(EMBEDDED, "text")
    return (text for text in texts if text.strip())


def sources(spec: CorpusSpec, directory: Path) -> list[FileState]:
    """Return the files that a corpus is read from. A Hugging Face dataset has none: a new revision goes unnoticed."""
    if spec.path:
        return [file_state(file) for file in _files(spec.path, directory)]
    return [] if spec.hugging_face else [(EMBEDDED.name, EMBEDDED.stat().st_size, 0)]


def file_state(file: Path) -> FileState:
    """Raises `CorpusError` when there is no such file."""
    if not file.is_file():
        raise CorpusError(f"there is no file {file}; a path is relative to the study file")
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def split(spec: CorpusSpec, directory: Path, file: Path, on_read: Callable[[int], None] = lambda size: None) -> Split:
    """Read the corpus into `file`, drop duplicates, order it by hash and hold out its first documents, of a lone one its end.

    `on_read` is called with the bytes read so far. Raises `CorpusError` where nothing would be left to train on.
    """
    spans: dict[bytes, Span] = {}
    read = 0
    with open(file, "wb") as stream:
        for document in documents(spec, directory):
            text = document.encode()
            if (digest := hashlib.sha256(text).digest()) not in spans:
                spans[digest] = (stream.tell(), len(text))
                stream.write(text)
            read += len(text)
            on_read(read)
    if not spans:
        raise CorpusError(f"corpus '{spec.name}' has no text: every document is empty; give at least two with text")
    ordered = Texts(file, [spans[digest] for digest in sorted(spans)])
    train, validation = _hold_out(ordered, spec) if len(ordered) > 1 else _cut_lone_document(ordered, spec)
    return Split(_sorted_passages(train, spec.passage_bytes) if spec.passage_bytes else train, validation)


def cut_into_passages(text: bytes, size: int) -> list[bytes]:
    """Cut `text` before the first white space at or after every `size` bytes; joined, the passages are the text again.

    A word is never cut, so a text without ASCII white space stays whole. The last passage has at least half of `size`.
    """
    passages, start = [], 0
    while gap := WHITE_SPACE.search(text, start + size, len(text) - size // 2):
        passages.append(text[start : gap.start()])
        start = gap.start()
    return [*passages, text[start:]]


def _cut_lone_document(lone: Texts, spec: CorpusSpec) -> Split:
    """Hold out the end of the text, `validation_fraction` of it: one document cannot be held out whole."""
    [text] = lone
    gap = WHITE_SPACE.search(text, int(len(text) * (1 - spec.validation_fraction)))
    if not gap or not gap.start():
        raise CorpusError(f"corpus '{spec.name}' is one document without white space to cut it at; give more documents")
    return Split(Texts(lone.file, [(0, gap.start())]), Texts(lone.file, [(gap.start(), len(text) - gap.start())]))


def _hold_out(ordered: Texts, spec: CorpusSpec) -> Split:
    """Hold out the first documents, until they have `validation_fraction` of the bytes."""
    ends = list(accumulate(size for _, size in ordered.spans))
    held_out = bisect_left(ends, spec.validation_fraction * ordered.size) + 1
    if held_out == len(ordered):
        held = f"{len(ordered)} distinct document(s), and holding out {spec.validation_fraction} of the bytes in whole ones"
        remedy = "give more or shorter documents, or a smaller validation_fraction"
        raise CorpusError(f"corpus '{spec.name}' has {held} leaves none to train on; {remedy}")
    return Split(Texts(ordered.file, ordered.spans[held_out:]), Texts(ordered.file, ordered.spans[:held_out]))


def _sorted_passages(texts: Texts, size: int) -> Texts:
    passages: list[tuple[bytes, Span]] = []
    for (start, _), text in zip(texts.spans, texts, strict=True):
        for passage in cut_into_passages(text, size):
            passages.append((hashlib.sha256(passage).digest(), (start, len(passage))))
            start += len(passage)
    return Texts(texts.file, [span for _, span in sorted(passages)])


def _reader(file: Path) -> Callable[[Path, str], Iterator[str]] | None:
    name = file.name.lower()
    return next((reader for suffix, reader in _READERS.items() if name.endswith(suffix)), None)


def _files(path: str, directory: Path) -> list[Path]:
    """Return the files that `path` means, sorted: a file, all that can be read below a directory, or a glob."""
    full = directory / Path(path).expanduser()
    if full.is_dir():
        visible = (file for file in full.rglob("*") if "/." not in f"/{file.relative_to(full).as_posix()}")
        files = [file for file in visible if _reader(file) and file.is_file()]
    elif full.exists():
        files = [full]
    else:
        names = glob.glob(str(Path(path).expanduser()), root_dir=directory, recursive=True)
        files = [directory / name for name in names if (directory / name).is_file()]
    suffixes = ", ".join(_READERS)
    if not files:
        remedy = f"a path is relative to the study file and means a file, a folder or a glob of {suffixes}"
        raise CorpusError(f"corpus path '{path}' does not exist or matches no file: {full}; {remedy}")
    if unknown := [file for file in files if not _reader(file)]:
        raise CorpusError(f"{unknown[0]} has the suffix '{unknown[0].suffix}', which is unknown; valid: {suffixes}")
    return sorted(files)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield each line with its place, for messages."""
    where = str(file)
    try:
        with OPENERS.get(file.suffix.lower(), open)(file, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                where = f"{file}, line {number}"
                yield where, line.decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not valid UTF-8: {error.reason}; convert the file to UTF-8") from error
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(f"{file} is damaged or not a {file.suffix} file: {error}; compress it again") from error


def _read_text(file: Path, text_field: str) -> Iterator[str]:
    yield "".join(line for _, line in _lines(file))


def _read_jsonl(file: Path, text_field: str) -> Iterator[str]:
    for where, line in _lines(file):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{where}: not valid JSON: {error}; put one JSON object on each line") from error
            yield _text(row, text_field, where)


def _read_parquet(file: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _require_field(text_field, table.schema_arrow.names, str(file))
            batches = table.iter_batches(batch_size=1024, columns=[text_field])
            for number, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), start=1):
                yield _text(row, text_field, f"{file}, row {number}")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}, column '{text_field}': not valid UTF-8: {error.reason}; write the file again") from error
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{file} is damaged or not a Parquet file: {error}; write the file again") from error


def _read_hugging_face(spec: CorpusSpec) -> Iterator[str]:
    try:
        import datasets

        rows = datasets.load_dataset(spec.hugging_face, split=spec.split, streaming=True)
    except ImportError as error:
        raise CorpusError(f"hugging_face = '{spec.hugging_face}': {error}; pip install 'dataeff[hugging-face]'") from error
    except (OSError, ValueError) as error:  # an unknown name, configuration or split; no connection
        raise CorpusError(f"cannot open the dataset '{spec.hugging_face}', split '{spec.split}': {error}") from error
    for number, row in enumerate(rows, start=1):
        yield _text(row, spec.text_field, f"{spec.hugging_face}, row {number}")


def _require_field(text_field: str, present: Iterable[str], where: str) -> None:
    if text_field not in (names := list(present)):
        raise CorpusError(f"{where}: no '{text_field}'; set text_field to one of those present: {', '.join(names) or 'none'}")


def _text(row: object, text_field: str, where: str) -> str:
    """Return the document of one row; null is an empty document."""
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: of type {type(row).__name__}, not a JSON object; put one JSON object on each line")
    _require_field(text_field, row, where)
    text = "" if row[text_field] is None else row[text_field]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise CorpusError(f"{where}: '{text_field}' is of type {kind}, not text; set text_field to a field of text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell but UTF-8 cannot
        raise CorpusError(f"{where}: '{text_field}' is not valid Unicode: {error.reason}; correct the text") from error
    return text


_READERS = {".txt": _read_text, ".md": _read_text, ".jsonl": _read_jsonl}
_READERS |= {suffix + packed: reader for suffix, reader in _READERS.items() for packed in OPENERS}
_READERS[".parquet"] = _read_parquet
