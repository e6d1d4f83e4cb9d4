"""How far to trust a law: intervals, a held-out largest point, and forms beside each other.

An interval is about a quantity of the law: a parameter by name, its "limit", its loss `At` an x, or the x `Reaching` a loss.
By default it is a profile-likelihood interval: every value that some law of the form reaches with a sum of squares of at
most best + s^2 F(level; 1, freedom), where s^2 is the variance of one loss and `freedom` says how well it is known:
infinite for a given sd (then F is chi-square), that of the replicates, or points - parameters with s^2 = best / freedom
(Bates and Watts 1988, section 6.1; Seber and Wild 1989, section 5.4). It needs no straight-line approximation and stops
at bounds by itself.

benchmarks/laws.py measures what covers. Residual bootstraps do not, with few points. Nothing here does where losses share
their noise, as those of 1 ... K members of one ensemble do: take the jackknife over members (the view `ensemble_asymptote`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dataeff.errors import InputError
from dataeff.laws.fit import Array, Fit, columns_of, fit, refit, search
from dataeff.laws.forms import Falling, Form

METHODS = ("profile", "residual_bootstrap", "parametric_bootstrap", "jackknife")
ZOOM = 33  # values a profile is taken at in each round of closing in on an end
STIFF = 1e5  # weight of the row that holds a quantity at a value, beside rows of weight 1


@dataclass(frozen=True)
class At:
    """The law's loss at x (one number a variable), in nats per token."""

    x: float | tuple[float, ...]

    def __call__(self, law: Form) -> float:
        return float(law(*np.atleast_1d(self.x)))


@dataclass(frozen=True)
class Reaching:
    """The x at which a law of one variable falls to `loss`, infinite where it never does."""

    loss: float

    def __call__(self, law: Falling) -> float:
        x = law.inverse(self.loss)
        return math.inf if x is None else x


Quantity = str | At | Reaching


@dataclass(frozen=True)
class Interval:
    """A two-sided interval at `level`; both ends None where there is none, and `reason` says why."""

    low: float | None
    high: float | None
    level: float
    method: str | None
    reason: str | None = None


def default_interval(points: int, parameters: int, sd_known: bool, replicates: int = 1) -> tuple[str | None, str]:
    """Return the method `interval` takes, None where no interval can be had, and one sentence that says why."""
    spare = points - parameters
    if spare < 0:
        return None, f"{points} points cannot determine {parameters} parameters"
    if sd_known:
        return "profile", "the noise of one run is known, so the likelihood is too, whatever the number of points (chi-square)"
    if replicates > 1:
        freedom = points * (replicates - 1)
        return "profile", f"replicates estimate the noise with {freedom} degrees of freedom, whether or not the form holds (F)"
    if spare == 0:
        return None, "the law passes through every point: only a known run-to-run noise can give an interval"
    degrees = "one degree" if spare == 1 else f"{spare} degrees"
    return "profile", f"the residuals have {degrees} of freedom, and F of 1 and {spare} widens the interval for it"


def interval(
    fitted: Fit,
    of: Quantity | Callable[[Form], float] = "limit",
    *,
    level: float = 0.9,
    method: str | None = None,
    sd: float | None = None,
    freedom: float = math.inf,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return an interval of a quantity of a least-squares law, in its units.

    `sd`: standard deviation in nats per token of a loss of weight 1, with the degrees of `freedom` it was estimated with
    (infinite: known). `method`: of `METHODS`; by default `default_interval`. "profile" takes a `Quantity`, the others any
    function of the law too. Bootstraps give percentiles (Efron and Tibshirani 1993, chapter 13): of refits to the law plus
    residuals drawn with replacement and widened by sqrt(points / (points - parameters)), or plus normal noise of `sd`. The
    jackknife gives estimate -+ t(points - 1) standard errors (chapter 11). Raises `InputError` for what it cannot take.
    """
    n, spare = fitted.points, fitted.points - fitted.parameters
    method = method or default_interval(n, fitted.parameters, sd is not None)[0]
    if fitted.loss != "least_squares" or method not in (None, *METHODS) or not (0 < level < 1 and (sd is None or sd > 0)):
        raise InputError(f"intervals need a least-squares fit, 0 < level < 1, sd > 0 and one of {METHODS}; not method '{method}'")
    if isinstance(of, str) and of != "limit" and of not in _names(fitted):
        raise InputError(f"'{of}' is no parameter of {type(fitted.law).__name__}; valid: limit, {', '.join(_names(fitted))}")
    value = (lambda law: getattr(law, of)) if isinstance(of, str) else of
    needs = {
        "profile": spare > 0 or sd is not None,
        "residual_bootstrap": spare > 0,
        "parametric_bootstrap": sd is not None,
        "jackknife": spare > 0,
        None: False,
    }
    if not needs[method]:
        why = "parametric_bootstrap needs sd" if method == "parametric_bootstrap" else default_interval(n, n - spare, False)[1]
        return Interval(None, None, level, method, why)
    if method == "profile":
        return _profile_interval(fitted, of, value(fitted.law), level, sd, freedom)
    draw, root = np.random.default_rng(seed), np.sqrt(fitted.weights)
    center, estimate = fitted.y - fitted.residuals, value(fitted.law)
    if method == "jackknife":
        left = _values(fitted, value, fitted.y[None].repeat(n, 0), fitted.weights * (1 - np.eye(n)))
        if not np.isfinite([*left, estimate]).all():
            return Interval(None, None, level, method, "without one of the points it is not finite")
        error = math.sqrt((n - 1) / n * np.sum((left - left.mean()) ** 2)) * stats.t.ppf((1 + level) / 2, n - 1)
        return Interval(float(estimate - error), float(estimate + error), level, method)
    if method == "parametric_bootstrap":
        noise = draw.normal(0, sd, (resamples, n))
    else:
        noise = draw.choice(fitted.residuals * root * math.sqrt(n / spare), (resamples, n))
    values = _values(fitted, value, center + noise / root, fitted.weights)
    ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="closest_observation")  # some may be infinite
    return Interval(*map(float, ends), level, method)


def _values(fitted: Fit, value: Callable, ys: Array, weights: Array) -> Array:
    return np.array([value(law) for law in refit(type(fitted.law), fitted.x, ys, weights=weights).laws()])


def _names(fitted: Fit) -> tuple[str, ...]:
    return (*fitted.law.linear, *fitted.law.bounds)


def profile(form: type[Form], x: Array, ys: Array, of: Quantity, values: Sequence[float], weights: Array | None = None) -> Array:
    """Return the least sum of squares of a law of `form` whose quantity `of` has each value, (values,).

    ys: (points,) or (values, points). A linear parameter, a loss at x and an x reaching a loss are all one equation in the
    linear parameters, so they are held by one more row of great weight; an exponent is held by its bounds.
    """
    values = np.asarray(values, dtype=np.float64)
    x, ys = np.asarray(x, dtype=np.float64), np.broadcast_to(ys, (len(values), np.shape(ys)[-1]))
    root = np.broadcast_to(np.sqrt(np.ones(ys.shape[1]) if weights is None else weights), ys.shape)
    of, linear = ("e" if of == "limit" else of), np.array(form.linear)[:, None, None]
    if of in form.bounds:
        return refit(form, x, ys, weights=root**2, pinned={of: values}).objective
    at = np.atleast_1d(of.x if isinstance(of, At) else 1.0)[:, None, None] * np.ones((1, len(values), 1))
    held = values
    if isinstance(of, Reaching):
        at, held = values[None, :, None], np.full(len(values), of.loss)
    elif of in form.linear and of != "e":  # in nats: a / value * mean loss = mean loss
        at, held = np.mean(ys) / values[None, :, None], np.full(len(values), np.mean(ys))
    inner, extra = columns_of(form, x), columns_of(form, at)

    def columns(theta: Array, rows: Array, shape: tuple[int, int]) -> Array:
        if isinstance(of, str):
            row = (linear == of) * (1.0 if of == "e" else at[0, rows]) * np.ones((1, shape[0], 1))
        else:
            row = extra(theta, rows, (shape[0], 1))
        return np.concatenate([inner(theta, rows, (shape[0], shape[1] - 1)), row], axis=2)

    stiff = np.full((len(values), 1), STIFF)
    return search(form, columns, np.hstack([ys, held[:, None]]), np.hstack([root, stiff * root.max()])).objective


def _profile_interval(fitted: Fit, of: Quantity, best: float, level: float, sd: float | None, freedom: float) -> Interval:
    form, a_loss = type(fitted.law), of in ("limit", "e") or isinstance(of, At)
    if of == "limit" and "e" not in form.linear:
        return Interval(None, None, level, "profile", f"the limit of {form.__name__} is {fitted.law.limit:g} by its form")
    if not (isinstance(of, str | At) or (isinstance(of, Reaching) and issubclass(form, Falling))):
        raise InputError("a profile is taken of a parameter, the limit, At(x) or, for one variable, Reaching(loss)")
    if not 0 <= best < math.inf or (best == 0 and not a_loss):
        return Interval(None, None, level, "profile", f"the law has no {of}")
    if sd is None:
        freedom = fitted.points - fitted.parameters
        sd = math.sqrt(fitted.objective / freedom)
    ceiling = fitted.objective * (1 + 1e-9) + sd**2 * stats.f.ppf(level, 1, min(freedom, 1e12))
    if a_loss:
        center, ends, to = best, (0.0, 4 * max(best, fitted.y.max())), np.asarray
    else:  # looked for on a log scale
        center, to = math.log(best), np.exp
        ends = np.log(form.bounds[of]) if of in form.bounds else (center - 60, center + 60)
    found = []
    for far in ends:
        inside, share = center, np.append(0, np.geomspace(1e-9, 1, ZOOM - 1))
        for _ in range(5):  # first over nine orders of magnitude, then within a step of the round before
            tried = inside + (far - inside) * share
            within = profile(form, fitted.x, fitted.y, of, to(tried), fitted.weights) <= ceiling
            last = int(np.flatnonzero(within)[-1]) if within.any() else 0
            if last == ZOOM - 1:
                break
            inside, far, share = tried[last], tried[last + 1], np.linspace(0, 1, ZOOM)
        found.append(float(to(tried[last])))
        if last == ZOOM - 1 and abs(tried[last] - center) > 59 and to is np.exp:  # as far as is looked
            found[-1] = 0.0 if tried[last] < center else math.inf
    return Interval(*found, level, "profile")


@dataclass(frozen=True)
class Miss:
    """A law fitted without the point of the largest x, and its loss there: nats per token, miss = measured - predicted."""

    x: float
    measured: float
    predicted: float | None
    miss: float | None
    law: Form | None = None
    reason: str | None = None


def leave_largest_out(fitted: Fit) -> Miss:
    """Return how well the form foretells the point of the largest x from the others; `InputError` for several variables."""
    if fitted.x.ndim > 1:
        raise InputError(f"{type(fitted.law).__name__} has several variables: no one point is the largest")
    i, rest = int(np.argmax(fitted.x)), np.arange(fitted.points) != np.argmax(fitted.x)
    x, y = float(fitted.x[i]), float(fitted.y[i])
    if fitted.points <= fitted.parameters:
        why = f"without it {fitted.points - 1} points are too few for {fitted.parameters} parameters"
        return Miss(x, y, None, None, reason=why)
    law = fit(type(fitted.law), fitted.x[rest], fitted.y[rest], weights=fitted.weights[rest], loss=fitted.loss).law
    return Miss(x, y, float(law(x)), y - float(law(x)), law)


@dataclass(frozen=True)
class Comparison:
    """A form's standing: lower is better. None with a reason where it is undefined."""

    form: type[Form]
    aicc: float | None
    held_out: float | None  # root mean square of leave-one-out errors, nats per token
    reason: str | None


def compare(forms: Sequence[type[Form]], x: Array, y: Array) -> list[Comparison]:
    """Return each form's AICc and leave-one-out error on the same points, best held-out error first.

    AICc = n log(sse / n) + 2k + 2k(k + 1) / (n - k - 1), with the noise counted among the k parameters (Hurvich and Tsai
    1989, Biometrika 76; Burnham and Anderson 2002, section 7.4): undefined for n <= k + 1 or where the law is exact.
    """
    rows = []
    for form in forms:
        n, k = len(y), len(form.linear) + len(form.bounds) + 1
        if n < k - 1:
            rows.append(Comparison(form, None, None, f"too few points: {n} for {k - 1} parameters"))
            continue
        fitted = fit(form, x, y)
        few = [f"AICc needs {k + 2} points, there are {n}"] if n <= k + 1 else []
        few += [f"leaving one out needs {k} points, there are {n}"] if n < k else []
        aicc = held_out = None
        if n > k + 1 and fitted.objective > 0:
            aicc = n * math.log(fitted.objective / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
        if n >= k:
            laws = refit(form, fitted.x, np.broadcast_to(fitted.y, (n, n)), weights=1 - np.eye(n)).laws()
            errors = [fitted.y[i] - law(*np.atleast_2d(fitted.x)[:, i]) for i, law in enumerate(laws)]
            held_out = float(np.sqrt(np.mean(np.square(errors))))
        rows.append(Comparison(form, aicc, held_out, "too few points: " + "; ".join(few) if few else None))
    return sorted(rows, key=lambda row: math.inf if row.held_out is None else row.held_out)
