"""Data efficiency: how many times more tokens the baseline needs to reach a loss that a recipe reaches with D tokens.

    data efficiency = D_baseline(loss) / D                                      (arXiv 2509.14786, section 2)

D_baseline comes from the inverse of the baseline's data law, which extrapolates, or from a line in log D between its points.
"""

from __future__ import annotations

import numpy as np

from dataeff.laws.fit import Array


def tokens_by_law(a: Array, alpha: Array, e: Array, losses: Array) -> Array:
    """Return D where L = a / D^alpha + e falls to the loss, in the law's unit of D; all of shape (resamples,).

    Infinite where the law never does (loss <= e), 0 where it lies below it everywhere (a = 0).
    """
    gap = losses - e
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        needed = np.exp(np.log(a / gap) / alpha)
    return np.where(gap > 0, np.where(a > 0, needed, 0.0), np.inf)


def tokens_by_interpolation(x: Array, ys: Array, losses: Array) -> Array:
    """Return D where a line in log D between the baseline's points falls to the loss. x: tokens, rising, (points,); ys: nats
    per token, (resamples, points); losses: (resamples,).

    Losses that rise with tokens are pooled first (isotonic regression in its min-max form: Barlow et al. 1972, section 1.2),
    and of a stretch of equal losses the fewest tokens count. Infinite below the least loss, minus infinite above the greatest.
    """
    n = len(x)
    means = [[ys[:, j : k + 1].mean(axis=1) for k in range(j, n)] for j in range(n)]
    level = np.stack([np.min([np.max(means[j][i - j :], axis=0) for j in range(i + 1)], axis=0) for i in range(n)], axis=1)
    after = np.argmax(level <= losses[:, None], axis=1)
    rows, before, at = np.arange(len(ys)), np.maximum(after - 1, 0), np.log(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(after > 0, (level[rows, before] - losses) / (level[rows, before] - level[rows, after]), 0.0)
    needed = np.exp(at[before] + share * (at[after] - at[before]))
    return np.where(losses > level[:, 0], -np.inf, np.where(losses < level[:, -1], np.inf, needed))
