"""What text is trained on and how it becomes tokens; declared here, built by `dataeff.data`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dataeff.specs.spec import Spec

EMBEDDED_CORPUS = "state-of-the-union"


class CorpusSpec(Spec):
    """Where the documents come from and which are held out.

    `name` names the embedded corpus (`state-of-the-union`), or, with `path` or `hugging_face`, labels your own.
    Documents are ordered by the hash of their text; the first are held out, whole, until `validation_fraction`
    of the bytes is reached; the rest, in that order, are the training tokens, of which a budget is the first D.
    """

    name: str = EMBEDDED_CORPUS
    path: str | None = None  # file, directory or glob of .txt, .md, .jsonl, .parquet (.gz, .xz)
    hugging_face: str | None = None  # dataset name, needs the extra dataeff[hugging-face]
    split: str = "train"  # of the Hugging Face dataset
    text_field: str = "text"  # JSONL key or Parquet column that holds a document
    validation_fraction: float = Field(default=0.05, gt=0, lt=1, description="of the bytes, in whole documents")
    passage_bytes: int | None = Field(default=None, ge=256, description="cut training documents into pieces of about this size")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path and self.hugging_face:
            raise ValueError("give path or hugging_face, not both")
        if not self.path and not self.hugging_face and self.name != EMBEDDED_CORPUS:
            raise ValueError(f"no corpus is named '{self.name}'; use '{EMBEDDED_CORPUS}', or give path or hugging_face")
        return self


class TokenizerSpec(Spec):
    """Byte-level BPE trained on the training documents, a `tokenizer.json`, or a named one from the Hugging Face hub."""

    kind: Literal["bpe", "file", "hugging_face"] = "bpe"
    vocabulary: int | None = Field(default=None, ge=257, description="bpe: tokens, 257 at least; else for `plan`")
    path: str | None = None  # for file: a tokenizer.json
    name: str | None = None  # for hugging_face: such as meta-llama/Llama-3.1-8B

    @model_validator(mode="after")
    def _what_the_kind_needs(self) -> Self:
        needed = {"bpe": "vocabulary", "file": "path", "hugging_face": "name"}[self.kind]
        for key in ("path", "name") if self.kind == "hugging_face" else ("vocabulary", "path", "name"):
            if (getattr(self, key) is not None) != (key == needed):
                raise ValueError(f"kind = '{self.kind}' needs {needed} and nothing else; {key} is {getattr(self, key)!r}")
        return self
