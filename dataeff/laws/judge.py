"""Claims decided beforehand: is the mean of paired differences positive? Asked again after every pair, at no cost in errors.

A claim says that the loss of one recipe is lower than that of another by more than a margin. Its differences d_1 ... d_n, one a
pair of runs (the other's loss - its own - margin, in nats per token), are taken as independent and normal, of unknown mean and
sd. The evidence that their mean is positive is the likelihood ratio of Student's t: effect size delta = mean / sd is half-normal
with scale g under the alternative and 0 under the null; the right Haar prior makes the sd drop out. With r = sum d /
sqrt(sum d^2), b = r / sqrt(n + 1 / g^2), and F_n the distribution function of Student's t with n degrees of freedom,

    E = 2 (1 + n g^2)^(-1/2) (1 - b^2)^(-n/2) F_n(b sqrt(n / (1 - b^2)))

the positive half of the Gaussian mixture of Wang and Ramdas (arXiv 2310.03722); the construction: Perez-Ortiz, Lardy, de Heide
and Gruenwald (2024, Annals of Statistics 52, 1410). For a mean of 0, E is a martingale of what is known of the d up to their
scale, with mean 1; for a negative one it is below that of the same noise around 0, as E rises with r. So, by Ville's inequality,
P(E ever reaches 1 / 0.05) <= 0.05 for every mean <= 0 and every sd, however often and for whatever reason one looks and stops.
The mirror (-d) refutes a claim with the same guarantee, for every mean >= 0. Where pairs are not normal it is approximate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq

EFFECT = 2.0  # g: of 0.5 ... 8, it decides in few pairs at effect sizes of 1, 2 and 4 alike (tests/laws/test_judge.py)
DECIDES = -math.log(0.05)  # a log e-value
FAR = 1000  # pairs beyond which none are predicted


@dataclass(frozen=True)
class Verdict:
    """What the pairs so far say of a claim: `supported`, `refuted` or `undecided`. `low` and `high` hold the mean of the
    differences (nats/token) with 90% over all looks together: a claim is decided where they exclude 0.
    """

    state: str
    pairs: int
    mean: float | None
    low: float | None
    high: float | None
    log_e_for: float  # against a mean <= 0
    log_e_against: float  # against a mean >= 0
    pairs_expected: int | None  # until it is decided, were the mean and the sd those of the pairs so far
    reason: str | None  # why none are expected, or there is no interval


def log_e_value(pairs: ArrayLike, ratio: ArrayLike) -> np.ndarray:
    """Return log E (see above) of `pairs` differences of which `ratio` = sum d / sqrt(sum d^2)."""
    n, b = np.asarray(pairs), np.asarray(ratio) / np.sqrt(np.asarray(pairs) + EFFECT**-2)
    log_tail = stats.t.logcdf(b * np.sqrt(n / (1 - b**2)), n)
    return math.log(2) - np.log1p(n * EFFECT**2) / 2 - n / 2 * np.log1p(-(b**2)) + log_tail


def critical_t(pairs: int) -> float | None:
    """Return the t statistic from which on a claim is decided; None where no t is enough, as with one or two pairs."""

    def excess(ratio: float) -> float:
        return float(log_e_value(pairs, ratio)) - DECIDES

    if pairs < 2 or excess(math.sqrt(pairs)) <= 0:
        return None
    ratio = brentq(excess, 0, math.sqrt(pairs), xtol=1e-13)
    return ratio * math.sqrt((pairs - 1) / (pairs - ratio**2))


def judge(differences: Sequence[float]) -> Verdict:
    """Return what is known of a claim after these pairs, in whatever order."""
    n, d = len(differences), np.asarray(differences, dtype=np.float64)
    if n == 0:
        return Verdict("undecided", 0, None, None, None, 0.0, 0.0, None, "there is no pair yet")
    mean, size = float(d.mean()), float(np.sqrt(d @ d))
    ratio = n * mean / size if size else 0.0
    both = [float(log_e_value(n, sign * ratio)) for sign in (1, -1)]
    state = next((name for name, e in zip(("supported", "refuted"), both, strict=True) if e >= DECIDES), "undecided")
    t = critical_t(n)
    half = None if t is None else t * float(d.std(ddof=1)) / math.sqrt(n)
    ends = (None, None) if half is None else (mean - half, mean + half)
    expected, reason = (0, None) if state != "undecided" else _pairs_expected(d)
    reason = reason or ("three pairs are the fewest that give an interval" if t is None else None)
    return Verdict(state, n, mean, *ends, *both, expected, reason)


def _pairs_expected(d: np.ndarray) -> tuple[int | None, str | None]:
    """Return the further pairs that decide, were each to add the mean and the variance of those so far; or why none is known."""
    n, more = len(d), np.arange(1, FAR + 1)
    if n < 2:
        return None, "two pairs are the fewest that show their noise"
    if not d.any():
        return None, "the pairs do not differ: both recipes may have the same runs"
    squares = d @ d + more * (d.mean() ** 2 + d.var(ddof=1))
    enough = log_e_value(n + more, (n + more) * abs(d.mean()) / np.sqrt(squares)) >= DECIDES
    return (int(more[enough.argmax()]), None) if enough.any() else (None, f"more than {FAR:,} further pairs, at this difference")


def next_pair(claims: Mapping[str, Sequence[float]], flops: Mapping[str, float], most: int) -> str | None:
    """Return the undecided claim whose next pair is worth most, of those with fewer than `most` pairs; None where none is left.

    `claims`: differences so far; `flops`: of a pair. Worth: expected growth of the log e-value a FLOP, on the way to a decision
    (Gruenwald, de Heide and Koolen 2024, Safe testing). Claims without a noise, of under two pairs, come first, the cheapest
    before the others.
    """
    verdicts = {name: judge(differences) for name, differences in claims.items()}

    def worth(name: str) -> tuple[bool, float]:
        of = verdicts[name]
        missing = DECIDES - max(of.log_e_for, of.log_e_against)
        return of.pairs < 2, (1.0 if of.pairs < 2 else missing / (of.pairs_expected or FAR)) / flops[name]

    return max((name for name, of in verdicts.items() if of.state == "undecided" and of.pairs < most), key=worth, default=None)
