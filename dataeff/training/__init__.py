"""Training, and what is computed with trained weights: losses of ensembles, samples. It writes no specs, attempts or results."""
