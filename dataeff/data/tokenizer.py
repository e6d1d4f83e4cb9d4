"""Tokenizers: trained here as byte-level BPE, read from a `tokenizer.json`, or named on the Hugging Face hub.

Whatever its kind, a tokenizer leaves here ready for whole documents: nothing is truncated or padded, and text that
spells a special token, such as <|endoftext|>, is encoded as the characters it is, so a document cannot forge a
separator. Training and encoding are deterministic: the same documents in any process give the same bytes.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dataeff.errors import CorpusError
from dataeff.specs.corpus import TokenizerSpec

END_OF_TEXT = "<|endoftext|>"
# How well-known tokenizers spell the end of a text: GPT-2, Llama 3, Llama 2, Gemma, DeepSeek, ModernBERT.
SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>", "[SEP]")


def train_bpe(documents: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2) of at most `vocabulary` tokens.

    <|endoftext|> has id 0, the 256 bytes follow, then the merges. Pairs that occur once are not merged, so a small text
    gives fewer tokens than asked for: `vocabulary_size` says how many. Decoding an encoded text gives it back exactly.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return _for_whole_documents(tokenizer)


def load(spec: TokenizerSpec, directory: Path) -> Tokenizer:
    """Load the tokenizer of kind `file` (relative to `directory`) or `hugging_face`. Raises `CorpusError` if it cannot."""
    if spec.kind == "file":
        read, name, remedy = Tokenizer.from_file, str(directory / Path(spec.path).expanduser()), "give a tokenizer.json"
    else:
        read, name = Tokenizer.from_pretrained, spec.name
        remedy = "check name, connection and access, and pip install 'dataeff[hugging-face]'; or use kind = 'file'"
    try:
        return _for_whole_documents(read(name))
    except Exception as error:  # tokenizers raises bare Exception for whatever it cannot read
        raise CorpusError(f"cannot load the tokenizer {name}: {error}; {remedy}") from error


def separator_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token that precedes each document. Raises `CorpusError` when the vocabulary has none."""
    for token in SEPARATORS:
        if (separator := tokenizer.token_to_id(token)) is not None:
            return separator
    raise CorpusError(f"the tokenizer has no token that ends a text; add one of {', '.join(SEPARATORS)}")


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return one more than the highest id, which is what an embedding needs, also where ids have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def _for_whole_documents(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
