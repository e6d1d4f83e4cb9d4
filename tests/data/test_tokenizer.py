from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dataeff.data.corpora import documents
from dataeff.data.tokenizer import END_OF_TEXT, load, separator_id, train_bpe, vocabulary_size
from dataeff.errors import CorpusError
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec

SAMPLE = list(documents(CorpusSpec(), Path()))[::40]  # six addresses from 1790 to 2000
TRAINED = train_bpe(SAMPLE, 512)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def word_level(*tokens: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_embedded_documents_come_back_from_their_tokens_exactly():
    for text in list(documents(CorpusSpec(), Path()))[::10]:
        assert TRAINED.decode(encode(TRAINED, text), skip_special_tokens=False) == text


@given(st.text())
def test_any_text_comes_back_from_its_tokens_exactly(text):
    assert TRAINED.decode(encode(TRAINED, text), skip_special_tokens=False) == text


def test_the_vocabulary_is_the_separator_then_256_bytes_then_merges():
    assert TRAINED.token_to_id(END_OF_TEXT) == separator_id(TRAINED) == 0
    alphabet = {TRAINED.id_to_token(i) for i in range(1, 257)}
    assert alphabet == set(pre_tokenizers.ByteLevel.alphabet())
    assert all(len(TRAINED.id_to_token(i)) > 1 for i in range(257, 512))
    assert vocabulary_size(TRAINED) == 512


def test_a_text_that_spells_the_separator_does_not_become_one():
    ids = encode(TRAINED, f"before {END_OF_TEXT} after")
    assert 0 not in ids
    assert TRAINED.decode(ids, skip_special_tokens=False) == f"before {END_OF_TEXT} after"


def test_a_small_text_gives_fewer_tokens_than_asked_for():
    small = train_bpe(["aaaa bbbb aaaa", "bbbb"], 5000)
    assert 257 < vocabulary_size(small) < 300


def test_the_same_documents_give_the_same_tokenizer_in_another_process():
    code = (
        "import hashlib; from pathlib import Path; from dataeff.data.corpora import documents\n"
        "from dataeff.data.tokenizer import train_bpe; from dataeff.specs.corpus import CorpusSpec\n"
        "sample = list(documents(CorpusSpec(), Path()))[::40]\n"
        "print(train_bpe(sample, 512).to_str(), end='')"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert other.stdout == TRAINED.to_str()


def test_a_file_is_loaded_ready_for_whole_documents(tmp_path):
    tokenizer = Tokenizer.from_str(TRAINED.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load(TokenizerSpec(kind="file", path="tokenizer.json"), tmp_path)
    assert encode(loaded, SAMPLE[0]) == encode(TRAINED, SAMPLE[0])


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_a_file_that_is_missing_or_no_tokenizer_is_refused(tmp_path, content):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CorpusError, match="cannot load the tokenizer .*tokenizer.json: .*; give a tokenizer.json"):
        load(TokenizerSpec(kind="file", path="tokenizer.json"), tmp_path)


def test_a_hub_tokenizer_that_cannot_be_had_names_the_extra(tmp_path):
    with pytest.raises(CorpusError, match=r"cannot load the tokenizer not a name!: .*pip install 'dataeff\[hugging-face\]'"):
        load(TokenizerSpec(kind="hugging_face", name="not a name!"), tmp_path)


@pytest.mark.parametrize("name", ["<|end_of_text|>", "</s>", "<eos>"])
def test_common_names_of_the_end_of_a_text_serve_as_separator(name):
    assert separator_id(word_level("<unk>", "a", name)) == 2


def test_endoftext_is_preferred_as_separator():
    assert separator_id(word_level("<unk>", "</s>", END_OF_TEXT)) == 2


def test_a_vocabulary_without_a_separator_is_refused_with_the_names_that_would_do():
    with pytest.raises(CorpusError, match=r"no token that ends a text.*<\|endoftext\|>, .*</s>"):
        separator_id(word_level("<unk>", "a"))


def test_ids_with_gaps_count_up_to_the_highest():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 9}, unk_token="<unk>"))
    assert vocabulary_size(tokenizer) == 10
