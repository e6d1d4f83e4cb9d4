from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from dataeff.data.tokens import build_tokens, built_tokens, find_tokens, open_tokens
from dataeff.errors import CorpusError
from dataeff.facts.store import Store
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec


@pytest.fixture
def built(tmp_path, texts, write_jsonl, build):
    return build(write_jsonl(tmp_path / "a.jsonl", texts), validation_fraction=0.2)


def save_word_level(file, vocabulary):
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(file))
    return TokenizerSpec(kind="file", path=str(file))


def test_the_files_hold_every_document_once_in_order_of_its_hash_after_a_separator(built, texts):
    tokenizer = Tokenizer.from_file(str(built.folder / "tokenizer.json"))
    decoded = []
    for name in ("validation.bin", "train.bin"):
        ids = np.fromfile(built.folder / name, dtype="<u2")
        assert ids[0] == built.separator == 0
        starts = np.flatnonzero(ids == built.separator)
        decoded += [tokenizer.decode(part[1:].tolist(), skip_special_tokens=False) for part in np.split(ids, starts[1:])]
    assert decoded == sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def test_a_built_folder_holds_tokens_tokenizer_and_facts_and_no_text(built):
    assert {file.name for file in built.folder.iterdir()} == {"train.bin", "validation.bin", "tokenizer.json", "tokens.json"}


def test_the_facts_agree_with_the_files(built, texts):
    assert built.train_tokens * 2 == (built.folder / "train.bin").stat().st_size
    assert built.validation_tokens * 2 == (built.folder / "validation.bin").stat().st_size
    assert built.train_bytes + built.validation_bytes == sum(len(text.encode()) for text in texts)
    assert built.vocabulary == 300 and built.dtype == "<u2" and built.name == "test"


def test_the_tokenizer_never_sees_the_held_out_documents(tmp_path, texts, write_jsonl, build):
    def order(text):
        return hashlib.sha256(text.encode()).digest()

    first = min(map(order, texts))
    held_out = next(text for i in range(10**6) if order(text := "zqx " * 500 + str(i)) < first)
    tokens = build(write_jsonl(tmp_path / "a.jsonl", [*texts, held_out]), validation_fraction=1e-6)
    tokenizer = Tokenizer.from_file(str(tokens.folder / "tokenizer.json"))
    assert tokenizer.decode(tokens.validation(1, tokens.validation_tokens)[0].tolist()) == held_out
    assert not [token for token in tokenizer.get_vocab() if "zq" in token or "qx" in token]


def test_budgets_nest(built):
    longest = built.train(built.train_tokens)
    assert longest.shape == (built.train_tokens,)
    for budget in (1, 100, 2048):
        assert np.array_equal(built.train(budget), longest[:budget])


def test_a_draw_holds_every_document_once_in_another_order_and_its_budgets_nest(built):
    def documents(draw: int) -> list[bytes]:
        tokens = built.train(built.train_tokens, draw)
        return [text.tobytes() for text in np.split(tokens, np.flatnonzero(tokens == built.separator)[1:])]

    orders = [documents(draw) for draw in range(3)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    for budget in (1, 100, 1000):
        assert (built.train(budget, 1) == built.train(built.train_tokens, 1)[:budget]).all()


def test_the_documents_of_a_budget_are_counted(built):
    first, second = np.flatnonzero(built.train(built.train_tokens) == built.separator)[:2]
    assert (built.documents(int(second)), built.documents(int(second) + 1)) == (1, 2)


@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_budget_beyond_the_corpus_is_refused_with_what_there_is(built, budget):
    with pytest.raises(CorpusError, match=f"seed_tokens {budget} .* 1 to {built.train_tokens} tokens"):
        built.train(budget)


@pytest.fixture
def numbered(tmp_path, write_jsonl, build):
    """A corpus that holds out one document in which no token comes twice, so that a token tells its place."""
    names = [f"w{i}" for i in range(998)]
    file = write_jsonl(tmp_path / "numbered.jsonl", [" ".join(names), " ".join(reversed(names))])
    words = {"<unk>": 0, "</s>": 1} | {name: i for i, name in enumerate(names, start=2)}
    return build(file, save_word_level(tmp_path / "words.json", words))


@pytest.mark.parametrize("sequences", [1, 2, 7, 15])
def test_validation_windows_are_evenly_spaced_and_do_not_overlap(numbered, sequences):
    place = {int(token): i for i, token in enumerate(np.fromfile(numbered.folder / "validation.bin", dtype="<u2"))}
    assert len(place) == numbered.validation_tokens == 999
    windows = numbered.validation(sequences, 64)
    assert windows.shape == (sequences, 64) and windows.dtype == np.int64
    places = np.vectorize(place.get)(windows)
    assert (np.diff(places, axis=1) == 1).all()
    starts = [*places[:, 0].tolist(), 999]
    assert starts[0] == 0
    assert set(np.diff(starts)) <= {999 // sequences, 999 // sequences + 1}


@pytest.mark.parametrize("sequences", [0, 16])
def test_validation_windows_that_do_not_fit_are_refused_with_how_many_would(numbered, sequences):
    with pytest.raises(CorpusError, match=f"validation_sequences {sequences} of 64 .* holds out 999 tokens, room for at most 15"):
        numbered.validation(sequences, 64)


def test_passages_have_a_separator_each(tmp_path, texts, write_jsonl, build):
    tokens = build(write_jsonl(tmp_path / "a.jsonl", texts), passage_bytes=256)
    assert np.count_nonzero(tokens.train(tokens.train_tokens) == tokens.separator) > 40


def test_a_vocabulary_above_65536_is_written_in_four_bytes(tmp_path, write_jsonl, build):
    words = {"<unk>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, 65_537)}
    write_jsonl(tmp_path / "a.jsonl", ["w2 w65536", "w65536 w3", "w65536 w4"])
    wide = build("a.jsonl", save_word_level(tmp_path / "wide.json", words))
    assert (wide.dtype, wide.vocabulary, wide.separator) == ("<u4", 65_537, 1)
    assert 65_536 in wide.train(wide.train_tokens)
    del words["w65536"]
    narrow = build("a.jsonl", save_word_level(tmp_path / "narrow.json", words))
    assert (narrow.dtype, narrow.vocabulary) == ("<u2", 65_536)


def test_the_vocabulary_counted_is_the_one_obtained_and_a_smaller_one_is_said(tmp_path, write_jsonl, build, caplog):
    tokens = build(write_jsonl(tmp_path / "a.jsonl", ["aaaa aaaa", "bbbb bbbb"]), TokenizerSpec(vocabulary=20_000))
    assert 257 <= tokens.vocabulary < 300
    assert f"tokenizer.vocabulary = 20000: the text gives {tokens.vocabulary} tokens" in caplog.text


def test_the_fingerprint_is_that_of_the_content_wherever_and_however_it_lies(tmp_path, texts, write_jsonl, build, built):
    for i, text in enumerate(texts):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / f"{i}.txt").write_bytes(text.encode())
    other = build(tmp_path / "elsewhere", store=tmp_path / "other store", validation_fraction=0.2)
    assert other.fingerprint == built.fingerprint
    assert other.folder.name != built.folder.name


def test_the_fingerprint_of_the_embedded_corpus_is_what_stored_runs_name(tmp_path):
    tokens = build_tokens(CorpusSpec(passage_bytes=4096), TokenizerSpec(vocabulary=512), tmp_path, Store(tmp_path))
    assert tokens.fingerprint == "535798c05030d84c"


def test_the_fingerprint_differs_when_text_split_or_tokenizer_differ(tmp_path, texts, write_jsonl, build, built):
    changed = write_jsonl(tmp_path / "b.jsonl", [texts[0] + "!", *texts[1:]])
    file = tmp_path / "a.jsonl"
    others = [
        build(changed, validation_fraction=0.2),
        build(file, validation_fraction=0.3),
        build(file, validation_fraction=0.2, passage_bytes=256),
        build(file, TokenizerSpec(vocabulary=299), validation_fraction=0.2),
    ]
    assert len({built.fingerprint, *(tokens.fingerprint for tokens in others)}) == 5


def test_what_is_built_is_not_built_again(tmp_path, built):
    stages = []
    spec = CorpusSpec(name="test", path=str(tmp_path / "a.jsonl"), validation_fraction=0.2)
    again = build_tokens(
        spec, TokenizerSpec(vocabulary=300), tmp_path, Store(tmp_path / "store"), lambda *stage: stages.append(stage)
    )
    assert again == built and stages == []


def test_a_text_changed_after_a_build_is_built_again(tmp_path, texts, write_jsonl, build, built):
    write_jsonl(tmp_path / "a.jsonl", [texts[0].swapcase(), *texts[1:]])
    again = build(tmp_path / "a.jsonl", validation_fraction=0.2)
    assert again.fingerprint != built.fingerprint
    assert open_tokens(built.folder) == built


def test_a_tokenizer_file_changed_after_a_build_is_built_again(tmp_path, texts, write_jsonl, build):
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    first = build(file, save_word_level(tmp_path / "words.json", {"<unk>": 0, "</s>": 1}))
    second = build(file, save_word_level(tmp_path / "words.json", {"<unk>": 0, "</s>": 1, "ra": 2}))
    assert (first.vocabulary, second.vocabulary) == (2, 3)


def test_a_missing_tokenizer_file_is_refused(tmp_path, texts, write_jsonl, build):
    with pytest.raises(CorpusError, match=r"there is no file .*none.json"):
        build(write_jsonl(tmp_path / "a.jsonl", texts), TokenizerSpec(kind="file", path="none.json"))


def test_progress_tells_stage_bytes_done_and_bytes_in_all(tmp_path, texts, write_jsonl):
    write_jsonl(tmp_path / "a.jsonl", texts)
    calls = []
    spec = CorpusSpec(name="test", path="a.jsonl")
    tokens = build_tokens(spec, TokenizerSpec(vocabulary=300), tmp_path, Store(tmp_path / "s"), lambda *c: calls.append(c))
    last = {stage: (size, total) for stage, size, total in calls}
    total = tokens.train_bytes + tokens.validation_bytes
    assert last == {
        "read": (total, None),
        "train tokenizer": (tokens.train_bytes, tokens.train_bytes),
        "encode": (total, total),
    }


def test_a_refused_build_leaves_nothing_but_its_lock(tmp_path, texts, write_jsonl, build):
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(CorpusError, match="no token that ends a text"):
        build(file, save_word_level(tmp_path / "words.json", {"<unk>": 0}))
    assert [path.suffix for path in (tmp_path / "store" / "tokens").iterdir()] == [".lock"]
    assert built_tokens(Store(tmp_path / "store")) == []


def test_all_that_is_built_is_listed_by_name(tmp_path, texts, write_jsonl, build):
    store = Store(tmp_path / "store")
    assert built_tokens(store) == []
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    tokens = [
        build_tokens(CorpusSpec(name=name, path=str(file)), TokenizerSpec(vocabulary=300), tmp_path, store) for name in "ba"
    ]
    assert built_tokens(store) == tokens[::-1]


def test_tokens_are_found_by_their_fingerprint(tmp_path, texts, write_jsonl, build, built):
    other = build(write_jsonl(tmp_path / "b.jsonl", texts[1:]))
    store = Store(tmp_path / "store")
    assert find_tokens(store, built.fingerprint) == built and find_tokens(store, other.fingerprint) == other
    os.truncate(other.folder / "train.bin", 10)
    assert find_tokens(store, built.fingerprint) == built
    with pytest.raises(CorpusError, match="train.bin is missing or not of its"):
        find_tokens(store, other.fingerprint)


def test_a_fingerprint_that_is_not_there_is_refused_with_those_that_are(tmp_path, built):
    with pytest.raises(CorpusError, match=rf"fingerprint 0123456789abcdef.*present: {built.fingerprint} \(test\)"):
        find_tokens(Store(tmp_path / "store"), "0123456789abcdef")
    with pytest.raises(CorpusError, match=r"fingerprint 0123456789abcdef.*present: none"):
        find_tokens(Store(tmp_path / "empty"), "0123456789abcdef")


def test_tokens_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="there are no tokens in .*none; build the corpus first"):
        open_tokens(tmp_path / "none")


def test_tokens_cut_short_are_refused_with_the_remedy(built):
    os.truncate(built.folder / "train.bin", 10)
    with pytest.raises(CorpusError, match=f"train.bin is missing or not of its {built.train_tokens * 2} bytes; remove"):
        open_tokens(built.folder)


def test_tokens_without_their_facts_are_built_again(tmp_path, texts, write_jsonl, build):
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    first = build(file)
    (first.folder / "tokens.json").unlink()
    assert built_tokens(Store(tmp_path / "store")) == []
    assert build(file).fingerprint == first.fingerprint


def test_opening_tokens_imports_no_tokenizer_no_parquet_reader_and_no_torch(built):
    code = (
        "import json, sys; from pathlib import Path; from dataeff.data.tokens import open_tokens\n"
        "open_tokens(Path(sys.argv[1])).train(8)\n"
        "print(json.dumps(sorted({'tokenizers', 'pyarrow', 'torch', 'datasets'} & set(sys.modules))))"
    )
    run = subprocess.run([sys.executable, "-c", code, built.folder], capture_output=True, check=True, text=True)
    assert json.loads(run.stdout) == []
