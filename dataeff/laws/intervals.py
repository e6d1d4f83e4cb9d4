"""How far to trust a law: the interval of its limit, a held-out largest point, and forms beside each other.

The interval is a profile-likelihood interval: every limit that some law of the form reaches with a sum of squares of at
most best + s^2 F(level; 1, freedom), where s^2 is the variance of one loss and `freedom` says how well it is known:
infinite for a given sd (then F is chi-square), or points - parameters with s^2 = best / freedom (Bates and Watts 1988,
section 6.1; Seber and Wild 1989, section 5.4). It needs no straight-line approximation and stops at bounds by itself. Huber's
loss is no likelihood: there the interval is by the bootstrap, which needs more points.

benchmarks/laws.py measures that it covers, unlike residual bootstraps of few points. Nothing here does where losses share
their noise, as those of 1 ... K members of one ensemble do: take the jackknife over members (the view `ensemble_asymptote`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from scipy.optimize import brentq

from dataeff.errors import InputError
from dataeff.laws.fit import Array, Fit, Projection, fit, refit, refit_huber
from dataeff.laws.forms import Form


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of a limit, in nats per token; both ends None where there is none. `reason`: why, or why not."""

    low: float | None
    high: float | None
    reason: str


def interval(fitted: Fit, *, level: float = 0.9, sd: float | None = None, freedom: float = math.inf) -> Interval:
    """Return the interval of the limit of a law: by profile likelihood, or by the bootstrap for one by Huber's loss.

    `sd`: standard deviation in nats per token of a loss of weight 1, with the degrees of `freedom` it was estimated with
    (infinite: known); by default that of the residuals. Raises `InputError` for values out of range.
    """
    form, spare, best = type(fitted.law), fitted.points - fitted.parameters, fitted.law.limit
    if not 0 < level < 1 or not (sd is None or sd > 0):
        raise InputError(f"level = {level:g}, sd = {sd}: an interval needs 0 < level < 1 and sd > 0")
    if "e" not in form.linear:
        why = "held" if "e" in form.constants else "by its form"
        return Interval(None, None, f"the limit of {form.__name__} is {best:g}, {why}")
    if fitted.loss == "huber":
        return _bootstrap(fitted, level)
    if sd is not None:
        reason = "profile: the noise of one run is given, so the likelihood is too, whatever the number of points (chi-square)"
    elif spare == 0:
        return Interval(None, None, "the law passes through every point: only a known run-to-run noise can give an interval")
    else:
        degrees = "one degree" if spare == 1 else f"{spare} degrees"
        reason = f"profile: the residuals have {degrees} of freedom, and F of 1 and {spare} widens the interval for it"
        sd, freedom = math.sqrt(fitted.objective / spare), spare
    ceiling = fitted.objective * (1 + 1e-9) + sd**2 * special.fdtri(1, min(freedom, 1e12), level)
    highest = 4 * max(best, float(fitted.y.max()))
    return Interval(_end(fitted, 0.0, ceiling), _end(fitted, highest, ceiling), reason)


def _bootstrap(fitted: Fit, level: float, resamples: int = 400) -> Interval:
    """Return the percentile interval over resamples of the points (Efron 1979, Annals of Statistics 7; Besiroglu et al., arXiv
    2404.10102, for these laws), widened for the parameters as residuals are: Davison and Hinkley 1997, section 2.8 and 6.2.
    """
    points, least = fitted.points, 5 * fitted.parameters
    if points < least:
        return Interval(None, None, f"a bootstrap of {fitted.parameters} parameters needs {least} points; there are {points}")
    drawn = np.random.default_rng(0).multinomial(points, np.full(points, 1 / points), resamples)
    limits = [law.limit for law in refit_huber(fitted, drawn * fitted.weights)]
    spare = points - fitted.parameters
    wider = math.sqrt(points / spare) * special.stdtrit(spare, (1 + level) / 2) / special.ndtri((1 + level) / 2)
    ends = fitted.law.limit + wider * (np.quantile(limits, [(1 - level) / 2, (1 + level) / 2]) - fitted.law.limit)
    return Interval(max(float(ends[0]), 0.0), float(ends[1]), f"bootstrap: {resamples} resamples of the {points} points")


def _end(fitted: Fit, far: float, ceiling: float) -> float:
    """Return the limit between the fit's and `far` where the profile crosses the ceiling, or `far` where it never does."""

    def excess(limit: float) -> float:
        return float(profile(type(fitted.law), fitted.x, fitted.y, [limit], fitted.weights)[0]) - ceiling

    best = fitted.law.limit
    return far if best == far or excess(far) <= 0 else float(brentq(excess, best, far, xtol=1e-13, rtol=1e-10))


def profile(form: type[Form], x: ArrayLike, ys: ArrayLike, limits: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Return the least sum of squares of a law of `form` with each of the limits, (limits,).

    ys: losses, (points,) or (limits, points). With its limit held a law is one without a limit, of what lies above that.
    """
    above = np.asarray(ys, dtype=np.float64) - np.asarray(limits, dtype=np.float64)[:, None]
    root = np.broadcast_to(np.sqrt(1.0 if weights is None else weights), above.shape)
    problem = Projection(form, np.asarray(x, dtype=np.float64), above, root, [name for name in form.linear if name != "e"])
    return problem(problem.minima())


@dataclass(frozen=True)
class Miss:
    """A law fitted without the point of the largest x, and the loss measured and predicted there, in nats per token."""

    x: float
    measured: float
    predicted: float | None = None
    reason: str | None = None


def leave_largest_out(fitted: Fit) -> Miss:
    """Return how well the form predicts the point of the largest x from the others; `InputError` for several variables."""
    if fitted.x.ndim > 1:
        raise InputError(f"{type(fitted.law).__name__} has several variables: no one point is the largest")
    largest = int(np.argmax(fitted.x))
    x, y, rest = float(fitted.x[largest]), float(fitted.y[largest]), np.arange(fitted.points) != largest
    if fitted.points <= fitted.parameters:
        why = f"without it {fitted.points - 1} points are too few for {fitted.parameters} parameters"
        return Miss(x, y, reason=why)
    law = fit(type(fitted.law), fitted.x[rest], fitted.y[rest], weights=fitted.weights[rest], loss=fitted.loss).law
    return Miss(x, y, float(law(x)))


@dataclass(frozen=True)
class Comparison:
    """A form's standing: lower is better. None with a reason where it is undefined."""

    form: type[Form]
    aicc: float | None
    held_out: float | None  # root mean square of leave-one-out errors, nats per token
    reason: str | None


def compare(forms: Sequence[type[Form]], x: Array, y: Array, weights: Array | None = None) -> list[Comparison]:
    """Return each form's AICc and leave-one-out error on the same points, which count by `weights`; best held-out error first.

    AICc = n log(sse / n) + 2k + 2k(k + 1) / (n - k - 1), with the noise counted among the k parameters (Hurvich and Tsai
    1989, Biometrika 76; Burnham and Anderson 2002, section 7.4): undefined for n <= k + 1 or where the law is exact.
    """
    rows = []
    for form in forms:
        fitted, aicc, held_out, few = fit(form, x, y, weights=weights), None, None, []
        n, k = fitted.points, fitted.parameters + 1
        if n <= k + 1:
            few.append(f"AICc needs {k + 2} points, there are {n}")
        elif fitted.objective > 0:
            aicc = n * math.log(fitted.objective / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
        if n < k:
            few.append(f"leaving one out needs {k} points, there are {n}")
        else:
            laws = refit(form, fitted.x, np.broadcast_to(fitted.y, (n, n)), weights=fitted.weights * (1 - np.eye(n))).laws()
            errors = [fitted.y[i] - law(*np.atleast_2d(fitted.x)[:, i]) for i, law in enumerate(laws)]
            held_out = float(np.sqrt(np.average(np.square(errors), weights=fitted.weights)))
        rows.append(Comparison(form, aicc, held_out, "too few points: " + "; ".join(few) if few else None))
    return sorted(rows, key=lambda row: math.inf if row.held_out is None else row.held_out)
