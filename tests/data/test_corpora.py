from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import random
import sys
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataeff.data.corpora import Split, cut_into_passages, documents, sources, split
from dataeff.errors import CorpusError
from dataeff.specs.corpus import CorpusSpec


def corpus(path: object, **fields: object) -> CorpusSpec:
    return CorpusSpec(name="test", path=str(path), **fields)


def split_texts(spec: CorpusSpec, directory: Path) -> Split:
    return split(spec, directory, directory / f"texts of {Path(spec.path).name}")


def refusal(spec: CorpusSpec, directory: Path) -> str:
    with pytest.raises(CorpusError) as caught:
        list(documents(spec, directory))
    return str(caught.value)


def test_the_embedded_corpus_holds_the_233_addresses_its_readme_counts():
    texts = list(documents(CorpusSpec(), Path()))
    assert len(texts) == len(set(texts)) == 233
    assert sum(len(text.encode()) for text in texts) == 10_761_202
    assert sum(len(text.split()) for text in texts) == 1_794_884


def test_documents_are_in_the_order_of_the_hash_of_their_text(tmp_path, texts, write_jsonl):
    parts = split_texts(corpus(write_jsonl(tmp_path / "a.jsonl", texts)), tmp_path)
    expected = sorted((text.encode() for text in texts), key=lambda text: hashlib.sha256(text).hexdigest())
    assert [*parts.validation, *parts.train] == expected


def test_names_and_listing_order_of_files_do_not_matter(tmp_path, texts):
    for folder, names in (("up", range(40)), ("down", reversed(range(40)))):
        for name, text in zip(names, texts, strict=True):
            file = tmp_path / folder / f"{name % 3}" / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode())
    up, down = split_texts(corpus("up"), tmp_path), split_texts(corpus("down"), tmp_path)
    assert list(up.train) == list(down.train) and list(up.validation) == list(down.validation)


def test_exact_duplicates_are_dropped(tmp_path, texts, write_jsonl):
    write_jsonl(tmp_path / "once.jsonl", texts)
    write_jsonl(tmp_path / "more.jsonl", texts + texts[:5] + texts[:2])
    once, more = split_texts(corpus("once.jsonl"), tmp_path), split_texts(corpus("more.jsonl"), tmp_path)
    assert list(more.train) == list(once.train) and list(more.validation) == list(once.validation)


@pytest.mark.parametrize("passage_bytes", [None, 256])
@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5])
def test_the_held_out_documents_are_whole_the_fewest_that_reach_the_fraction_and_not_in_training(
    tmp_path, texts, write_jsonl, fraction, passage_bytes
):
    write_jsonl(tmp_path / "a.jsonl", texts)
    parts = split_texts(corpus("a.jsonl", validation_fraction=fraction, passage_bytes=passage_bytes), tmp_path)
    whole = {text.encode() for text in texts}
    target = fraction * sum(map(len, whole))
    held_out = list(parts.validation)
    assert set(held_out) <= whole
    assert parts.validation.size == sum(map(len, held_out)) >= target > sum(map(len, held_out[:-1]))
    left = whole - set(held_out)
    assert passage_bytes or len(parts.train) == len(left)
    assert parts.train.size == sum(map(len, parts.train)) == sum(map(len, left))
    assert all(any(passage in text for text in left) for passage in parts.train)


def test_passages_of_the_training_documents_are_mixed_by_their_own_hash(tmp_path, texts, write_jsonl):
    write_jsonl(tmp_path / "a.jsonl", texts)
    whole = split_texts(corpus("a.jsonl"), tmp_path)
    parts = split_texts(corpus("a.jsonl", passage_bytes=256), tmp_path)
    cut = [passage for text in whole.train for passage in cut_into_passages(text, 256)]
    assert list(parts.train) == sorted(cut, key=lambda passage: hashlib.sha256(passage).digest())
    assert list(parts.validation) == list(whole.validation)
    assert len(cut) > len(whole.train)


@given(st.text(st.sampled_from("ab é語🜂 \n\t\u00a0"), max_size=400), st.integers(4, 60))
def test_passages_join_to_the_text_and_never_cut_a_word_or_a_character(text, size):
    passages = cut_into_passages(text.encode(), size)
    assert b"".join(passages) == text.encode()
    assert [word for passage in passages for word in passage.split()] == text.encode().split()
    for passage in passages:
        passage.decode()
    if len(passages) > 1:
        assert all(len(passage) >= size for passage in passages[:-1]) and len(passages[-1]) >= size // 2


def test_passages_of_plain_text_are_of_about_the_size_asked_for():
    text = b"word " * 10_000
    assert {len(passage) for passage in cut_into_passages(text, 1000)[:-1]} <= set(range(1000, 1006))


@pytest.mark.parametrize("passage_bytes", [None, 4096])
def test_memory_holds_no_more_than_a_fraction_of_the_text(tmp_path, passage_bytes):
    draw = random.Random(5)
    with open(tmp_path / "a.jsonl", "w") as stream:
        for _ in range(1000):
            stream.write(json.dumps({"text": f"{draw.randbytes(8).hex()} " * 1200}) + "\n")
    tracemalloc.start()
    try:
        parts = split_texts(corpus("a.jsonl", passage_bytes=passage_bytes), tmp_path)
        read = sum(map(len, parts.train)) + sum(map(len, parts.validation))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read > 20_000_000 and peak < read / 10


def write_formats(folder: Path, texts: list[str]) -> list[str]:
    rows = "".join(json.dumps({"id": i, "body": text}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(texts)).encode()
    (folder / "a.jsonl").write_bytes(rows)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(rows))
    (folder / "a.jsonl.xz").write_bytes(lzma.compress(rows))
    table = pyarrow.table({"id": list(range(len(texts))), "body": texts})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    for suffix, pack in ((".txt", bytes), (".md", bytes), (".txt.gz", gzip.compress), (".md.xz", lzma.compress)):
        (folder / f"each{suffix}").mkdir()
        for i, text in enumerate(texts):
            (folder / f"each{suffix}" / f"{i}{suffix}").write_bytes(pack(text.encode()))
    files = ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.parquet"]
    return [*files, "each.txt", "each.md", "each.txt.gz", "each.txt/*.txt", "**/*.md.xz"]


def test_every_format_gives_the_same_documents(tmp_path, texts):
    for path in write_formats(tmp_path, texts):
        assert sorted(documents(corpus(path, text_field="body"), tmp_path)) == sorted(texts), path


def test_a_path_is_relative_to_the_directory_or_absolute(tmp_path, texts, write_jsonl):
    file = write_jsonl(tmp_path / "study" / "a.jsonl", texts)
    assert list(documents(corpus("a.jsonl"), file.parent)) == list(documents(corpus(file), tmp_path)) == texts


def test_a_folder_leaves_out_hidden_files_and_what_is_not_text(tmp_path):
    for name in ("a.txt", "b/c.md", ".git/d.txt", ".e.txt", "picture.png"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text(name)
    assert list(documents(corpus("f"), tmp_path)) == ["a.txt", "b/c.md"]
    assert [Path(path).name for path, _, _ in sources(corpus("f"), tmp_path)] == ["a.txt", "c.md"]


def test_empty_documents_and_nulls_are_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": " \\n"}\n{"text": null}\n{"text": " kept "}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["", None, " kept "]}), tmp_path / "a.parquet")
    assert list(documents(corpus("a.jsonl"), tmp_path)) == list(documents(corpus("a.parquet"), tmp_path)) == [" kept "]


def test_sources_change_when_a_file_does(tmp_path, texts, write_jsonl):
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    before = sources(corpus("a.jsonl"), tmp_path)
    assert before == [(str(file), file.stat().st_size, file.stat().st_mtime_ns)]
    write_jsonl(file, texts[1:])
    assert sources(corpus("a.jsonl"), tmp_path) != before


def test_a_missing_path_is_refused_with_the_place_looked_at(tmp_path):
    message = refusal(corpus("no/such.txt"), tmp_path)
    assert "'no/such.txt' does not exist" in message and str(tmp_path / "no/such.txt") in message


@pytest.mark.parametrize("path", ["*.txt", "empty"])
def test_a_glob_or_folder_without_a_match_is_refused(tmp_path, path):
    (tmp_path / "empty").mkdir()
    assert "matches no file" in refusal(corpus(path), tmp_path)


@pytest.mark.parametrize("path", ["a.docx", "a.*"])
def test_an_unknown_suffix_is_refused_with_the_valid_ones(tmp_path, path):
    (tmp_path / "a.docx").write_text("x")
    message = refusal(corpus(path), tmp_path)
    assert "'.docx'" in message and ".txt, .md, .jsonl" in message and ".jsonl.xz" in message and ".parquet" in message


def test_a_missing_text_field_is_refused_with_file_line_and_the_fields_present(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"body": "y", "id": 1}\n')
    message = refusal(corpus("a.jsonl"), tmp_path)
    assert "a.jsonl, line 2: no 'text'" in message and "body, id" in message


def test_a_missing_parquet_column_is_refused_with_the_columns_present(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    message = refusal(corpus("a.parquet"), tmp_path)
    assert "a.parquet: no 'text'" in message and "body, id" in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x"', "not valid JSON"),
        (b'["x"]', "of type list, not a JSON object"),
        (b'{"text": 3}', "'text' is of type int, not text"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b'{"text": "\\ud800"}', "'text' is not valid Unicode"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    message = refusal(corpus("a.jsonl"), tmp_path)
    assert f"a.jsonl, line 3: {reason}" in message


def test_a_parquet_column_that_is_not_text_is_refused_with_file_and_row(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), tmp_path / "a.parquet")
    assert "a.parquet, row 1: 'text' is of type int, not text" in refusal(corpus("a.parquet"), tmp_path)


def test_invalid_utf8_in_parquet_is_refused(tmp_path):
    column = pyarrow.array([b"fine", b"\xff"]).cast(pyarrow.large_binary()).view(pyarrow.large_string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert "a.parquet, column 'text': not valid UTF-8" in refusal(corpus("a.parquet"), tmp_path)


def test_invalid_utf8_in_a_text_file_is_refused_with_file_and_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("eins\nzwei\nfünf".encode("latin-1"))
    assert "a.txt, line 3: not valid UTF-8" in refusal(corpus("a.txt"), tmp_path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.parquet"])
def test_a_file_that_is_not_what_its_suffix_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"plain text, however long it may be")
    assert f"{name} is damaged or not a" in refusal(corpus(name), tmp_path)


@pytest.mark.parametrize(("name", "pack"), [("a.txt.gz", gzip.compress), ("a.txt.xz", lzma.compress)])
def test_a_compressed_file_that_was_cut_short_is_refused(tmp_path, texts, name, pack):
    (tmp_path / name).write_bytes(pack("".join(texts).encode())[:-20])
    assert f"{name} is damaged" in refusal(corpus(name), tmp_path)


def test_a_corpus_without_text_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(CorpusError, match="has no text"):
        split_texts(corpus("a.jsonl"), tmp_path)


@pytest.mark.parametrize(("texts_given", "fraction"), [(["one", "another"], 0.9), (["a", "b", "c"], 0.99)])
def test_a_corpus_that_leaves_nothing_to_train_on_is_refused(tmp_path, write_jsonl, texts_given, fraction):
    write_jsonl(tmp_path / "a.jsonl", texts_given)
    with pytest.raises(CorpusError, match=f"{len(texts_given)} distinct.*leaves none to train on.*smaller validation_fraction"):
        split_texts(corpus("a.jsonl", validation_fraction=fraction), tmp_path)


def test_the_end_of_a_lone_document_is_held_out(tmp_path):
    text = " ".join(f"word{i}" for i in range(1000))
    (tmp_path / "only.txt").write_text(text)
    parts = split_texts(corpus("only.txt", validation_fraction=0.1), tmp_path)
    [train], [validation] = parts.train, parts.validation
    assert (train + validation).decode() == text
    assert len(validation) / len(text) == pytest.approx(0.1, abs=0.01)


def test_a_hugging_face_dataset_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    spec = CorpusSpec(name="web", hugging_face="some/dataset")
    assert "pip install 'dataeff[hugging-face]'" in refusal(spec, tmp_path)
    assert sources(spec, tmp_path) == []


def test_a_hugging_face_dataset_is_streamed_by_name_and_split(tmp_path, monkeypatch):
    """The package `datasets` is optional and needs the network; a module with its one function stands in for it."""
    (tmp_path / "datasets.py").write_text(
        "def load_dataset(path, *, split, streaming):\n"
        "    if split != 'train': raise ValueError(f'Bad split: {split}')\n"
        "    return iter([{'id': 1, 'text': path}, {'id': 2, 'text': str(streaming)}])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    assert list(documents(CorpusSpec(name="web", hugging_face="some/dataset"), tmp_path)) == ["some/dataset", "True"]
    assert "Bad split: test" in refusal(CorpusSpec(name="web", hugging_face="some/dataset", split="test"), tmp_path)
    wrong = CorpusSpec(name="web", hugging_face="some/dataset", text_field="body")
    assert "some/dataset, row 1: no 'body'" in refusal(wrong, tmp_path)
