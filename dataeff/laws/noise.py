"""The noise of estimated optima: where it comes from, how large it is, and what a noisy choice costs.

    value of a cell in one draw of the data = its loss + draw effect (one for all cells at that D) + the rest (seeds, members)

With several draws both parts are read off a two-way table of cells and draws; with one draw the effect of the draw is not known,
and the rest is what seeds or the jackknife over members say. Variances of few degrees of freedom are drawn towards one another.
Whatever chose a point (the first draw and seed) is not in the table. Losses in nats per token.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from dataeff.laws.fit import Array


@dataclass(frozen=True, eq=False)
class Sample:
    """What estimates a cell: its loss, or its limit in K, in each draw of the data, (draws,)."""

    tokens: float  # D: cells of one D saw the same draws
    recipe: str  # cells of one recipe and D have noise of one size, but for `unit`
    is_ensemble: bool
    values: Array
    variance: float  # of a value, by seeds or members within a draw; NaN: not known
    freedom: float  # of `variance`
    unit: float = 1.0  # of its noise: 1 / sqrt(runs) of a mean of single models, the jackknife's error of an ensemble


@dataclass(frozen=True)
class Estimate:
    """A cell's mean over draws, its standard error but for the effect of the draws, and the degrees of freedom of that."""

    value: float
    error: float
    freedom: float
    sd: float  # of one value in its unit: for single models of one run


@dataclass(frozen=True)
class DrawEffect:
    """What all cells at one D have in common: the standard error of their means, its freedom, and the sd of one draw."""

    error: float = 0.0
    freedom: float = math.inf
    sd: float | None = None


def estimates(samples: Sequence[Sample]) -> tuple[list[Estimate], dict[float, DrawEffect]]:
    """Return the estimate of each cell, and the effect of the draws at each D that has several."""
    squares: dict[Hashable, Array] = defaultdict(lambda: np.zeros(2))  # and degrees of freedom, by group of cells
    tables: dict[tuple[float, int], list[Sample]] = defaultdict(list)
    drawn: dict[float, tuple[int, float, float, int]] = {}
    for sample in samples:
        tables[sample.tokens, len(sample.values)].append(sample)
    for (tokens, draws), own in tables.items():
        if draws > 1:
            left, freedom, effect, noise = two_way([s.values for s in own], [s.unit for s in own])
            if tokens not in drawn or len(own) > drawn[tokens][3]:
                drawn[tokens] = draws, effect, noise, len(own)
            for sample, square in zip(own, left, strict=True):
                squares[sample.is_ensemble, sample.recipe, tokens] += square, freedom
        for sample in own if draws == 1 else ():
            if not sample.is_ensemble and sample.freedom > 0 and math.isfinite(sample.variance):
                squares[False, sample.recipe, tokens] += sample.freedom * sample.variance / sample.unit**2, sample.freedom
    scales: dict[Hashable, tuple[float, float]] = {}
    for is_ensemble in (False, True):
        if groups := [group for group in squares if group[0] == is_ensemble]:
            total, freedom = np.array([squares[group] for group in groups]).T
            scales |= dict(zip(groups, zip(*shrunken(total / freedom, freedom), strict=True), strict=True))
    result = []
    for s in samples:
        group = s.is_ensemble, s.recipe, s.tokens
        variance, freedom = scales.get(group) or _borrowed(scales, group)
        if s.is_ensemble and len(s.values) == 1:
            variance, freedom = s.variance / s.unit**2, s.freedom or math.inf
        sd = math.sqrt(variance)
        # Equal but for rounding, freedoms share what a resample draws of them.
        result.append(Estimate(float(np.mean(s.values)), sd * s.unit / math.sqrt(len(s.values)), round(float(freedom), 6), sd))
    return result, _effects(drawn)


def _borrowed(scales: dict[Hashable, tuple[float, float]], group: tuple[bool, str, float]) -> tuple[float, float]:
    """Return variance and freedom of a recipe at a D where nothing was repeated: the mean of its other budgets."""
    others = [scale for key, scale in scales.items() if key[:2] == group[:2]]
    return (float(np.mean([v for v, _ in others])), min(f for _, f in others)) if others else (math.nan, math.inf)


def _effects(drawn: dict[float, tuple[int, float, float, int]]) -> dict[float, DrawEffect]:
    """Return the effects of the draws, from their number, mean square, its noise and the number of cells at each D."""
    if not drawn:
        return {}
    draws, squares, noise, cells = np.array(list(drawn.values())).T
    squares, freedom = shrunken(squares, draws - 1)
    variance = np.where(cells > 1, np.maximum(squares - noise, 0.0), 0.0)
    rows = zip(np.sqrt(variance / draws), freedom.round(6), np.sqrt(variance), strict=True)
    return {tokens: DrawEffect(*map(float, row)) for tokens, row in zip(drawn, rows, strict=True)}


def shrunken(variances: ArrayLike, freedom: ArrayLike) -> tuple[Array, Array]:
    """Return variances drawn towards a common one, and their degrees of freedom with what the others add, both (groups,).

    Each true variance is taken as a draw from a scaled inverse chi-square distribution, whose scale and freedom d0 come from
    the mean and the spread of log s^2: Smyth 2004 (Stat. Appl. Genet. Mol. Biol. 3:3, section 6.2). Freedom is at most the
    sum of all, which is reached where the variances differ by chance alone.
    """
    s, d = np.asarray(variances, dtype=np.float64), np.asarray(freedom, dtype=np.float64)
    if len(s) < 2:
        return s, d
    s = np.maximum(s, 1e-6 * np.median(s))
    if not s.any():
        return s, d
    e = np.log(s) - special.digamma(d / 2) + np.log(d / 2)
    weight = d / d.sum()
    mean = weight @ e
    spread = weight @ (e - mean) ** 2 * len(s) / (len(s) - 1) - weight @ special.polygamma(1, d / 2)
    if spread <= special.polygamma(1, 5e5):
        return np.full(len(s), weight @ s), np.full(len(s), d.sum())
    d0 = 2 * float(optimize.brentq(lambda x: special.polygamma(1, x) - spread, 1e-3, 5e5))
    s0 = math.exp(mean + special.digamma(d0 / 2) - math.log(d0 / 2))
    return (d0 * s0 + d * s) / (d0 + d), np.minimum(d0 + d, d.sum())


def two_way(values: ArrayLike, units: ArrayLike) -> tuple[Array, float, float, float]:
    """Return of a table (cells, draws): the sum of squares that each cell has left, in its unit; the degrees of freedom of one
    cell's; the mean square of the draw effect, which all cells share; and what noise adds to that.

    Two-way analysis of variance without interaction, weighted by 1 / unit^2 (Searle, Casella and McCulloch 1992, Variance
    Components, section 4.3). A lone cell's scatter is all left to it.
    """
    y, w = np.asarray(values, dtype=np.float64), np.asarray(units, dtype=np.float64) ** -2
    cells, draws = y.shape
    y = y - y.mean(axis=1, keepdims=True)
    if cells == 1:
        return (y**2).sum(axis=1) * w, draws - 1.0, 0.0, 0.0
    effect = w @ y / w.sum()
    left = ((y - effect) ** 2).sum(axis=1) * w
    freedom = (cells - 1) * (draws - 1)
    return left, freedom / cells, float((effect**2).sum() / (draws - 1)), float(left.sum() / freedom / w.sum())


def excess(differences: Sequence[Array], variances: Sequence[float]) -> list[tuple[Array, Array]]:
    """Return mean and standard deviation of how much higher each point beside an optimum truly is, one pair a cell.

    differences: measured losses of the points beside each optimum, minus the optimum's; variances: of such a difference.
    True ones are taken as normal, with the mean and the variance that those of all cells have beyond their noise (empirical
    Bayes: Efron and Morris 1973, JASA 68). So a choice among points that differ by less than the noise is not taken for right.
    """
    every = np.concatenate([*differences, np.empty(0)])
    noise = np.concatenate([np.full(len(d), v) for d, v in zip(differences, variances, strict=True)] + [np.empty(0)])
    if not len(every):
        return [(d, d) for d in differences]
    prior = float(every.mean())
    spread = max(float(np.mean((every - prior) ** 2 - noise)), 0.0)
    share = [spread / (spread + v) if spread else 0.0 for v in variances]
    means = [prior + b * (d - prior) for d, b in zip(differences, share, strict=True)]
    return [(mean, np.full(len(mean), math.sqrt(b * v))) for mean, v, b in zip(means, variances, share, strict=True)]


def least_of(points: int) -> float:
    """Return how many standard deviations the least of so many normal values is expected below their mean (Blom 1958)."""
    return float(-special.ndtri((1 - 0.375) / (points + 0.25))) if points > 1 else 0.0
