"""From text to fingerprinted token files: documents, split, tokenizer, tokens. No torch, no database."""
