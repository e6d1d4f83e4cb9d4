"""Training: `train(spec, folder, tokens, validation)` turns one RunSpec into one finished run folder."""
