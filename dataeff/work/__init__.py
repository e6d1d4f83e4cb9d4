"""Kinds of work, one file each: spec, result, how it runs. Importing this package makes them known."""

from dataeff.work import ensemble, perturb, sample, train  # noqa: F401
