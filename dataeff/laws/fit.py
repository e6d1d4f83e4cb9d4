"""Fits of a form to points, by variable projection: no start to choose, and a certificate at the end.

With the parameters in `form.bounds` (theta) fixed a form is linear in the rest, so their best values, none below zero, come
in closed form: the best of the least-squares solutions over all subsets of columns. What is left is a function of theta
(Golub and Pereyra 1973, SIAM J. Numer. Anal. 10): looked up on a grid of log theta, then polished by damped Newton steps
on its exact gradient. Many fits share each step, so 10,000 resamples take as long as a few hundred calls of scipy.

A fit never raises because a law fits badly: what is doubtful about it is in `warnings`, and `limit` is None where the
points show none. It raises `InputError` where there is nothing to fit. It gives no intervals: see `intervals`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import minimum_filter

from dataeff.errors import InputError
from dataeff.laws.forms import ALPHA_BOUNDS, Form, PowerLaw

Array = NDArray[np.float64]
DELTA = 1e-3  # where Huber's loss of log L turns from square to absolute: Hoffmann et al., arXiv 2203.15556, eq. 3
GRID = {0: 1, 1: 256, 2: 40, 4: 9}  # values of each of theta's axes a single fit tries; resamples try a quarter (at least 8)
NO_FREEDOM = "no_freedom"
WARNINGS = {
    "points_do_not_fall": "the best fit has nothing that falls: exponents mean nothing and e is the mean",
    "alpha_at_lower_bound": f"alpha is at its lower bound {ALPHA_BOUNDS[0]}: the points show no limit",
    "alpha_at_upper_bound": f"alpha is at its upper bound {ALPHA_BOUNDS[1]}: no power law falls so abruptly",
    "e_at_zero": "e is at its bound 0: the points show no limit",
    NO_FREEDOM: "as many points as parameters: the law passes through them, and nothing tests its form",
    "undetermined": "the points do not determine all parameters (condition number above 1e10)",
    "not_certified": "the optimum could not be certified",
    **{f"{name}_at_{side}_bound": f"{name} is at its {side} bound: the points do not determine it"
       for name in ("beta", "tau", "r_tokens", "r_parameters") for side in ("lower", "upper")},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. Losses and residuals (y - law) in nats per token; `objective`: their weighted sum of squares, or Huber's.

    `condition`: of the law's derivatives by its parameters, each scaled to length 1. `certified`: the projected gradient
    promises no further fall and, with up to two exponents, no point of a grid twice as fine is better.
    """

    law: Any
    objective: float
    x: Array  # (points,) or (variables, points)
    y: Array  # (points,)
    weights: Array  # (points,)
    residuals: Array  # (points,)
    condition: float
    certified: bool
    loss: str = "least_squares"
    left_out: Mapping[int, str] = field(default_factory=dict)  # row -> why
    warnings: tuple[str, ...] = ()  # keys of WARNINGS

    @property
    def points(self) -> int:
        return len(self.y)

    @property
    def parameters(self) -> int:
        return _parameters(type(self.law))

    @property
    def rmse(self) -> float:
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def limit(self) -> float | None:
        """The law's limit in nats per token, None where a warning other than `no_freedom` says the points show none."""
        return None if set(self.warnings) - {NO_FREEDOM} else self.law.limit

    @property
    def rising(self) -> tuple[float, ...]:
        """Each x whose loss is above that of the next smaller x; for forms of several variables, nothing."""
        if self.x.ndim > 1:
            return ()
        order = np.argsort(self.x)
        return tuple(float(x) for x in self.x[order][1:][np.diff(self.y[order]) > 0])


@dataclass(frozen=True, eq=False)
class Refits:
    """Many fits of one form: each parameter and the objectives, of shape (resamples,)."""

    form: type[Form]
    parameters: dict[str, Array]
    objective: Array
    theta: Array  # (resamples, len(form.bounds)), log of the non-linear parameters

    def laws(self) -> list[Any]:
        return [self.form(**{k: float(v[i]) for k, v in self.parameters.items()}) for i in range(len(self.objective))]


def fit_power_law(x: ArrayLike, y: ArrayLike) -> Fit:
    """Return `fit(PowerLaw, x, y)`."""
    return fit(PowerLaw, x, y)


def fit(
    form: type[Form],
    x: ArrayLike,
    y: ArrayLike,
    *,
    loss: str = "least_squares",
    weights: ArrayLike | None = None,
    leave_out: Mapping[int, str] | None = None,
) -> Fit:
    """Return the law of `form` that fits best.

    x: (points,), or (variables, points) in the order of `form.variables`; y: losses in nats per token, (points,); weights:
    (points,), 1 / variance up to a factor. `loss`: "least_squares", the weighted sum of (y - L)^2; or "huber", the weighted
    sum of Huber's loss of log L - log y (`DELTA`). `leave_out`: rows not to use, and why. Raises `InputError`, which names
    the rows, for what is no number, not finite, x <= 0, y < 0, weights <= 0, rows of equal x, and too few points.
    """
    x, y, w, left_out = checked(form, x, y, weights, leave_out or {})
    if loss not in ("least_squares", "huber") or (loss == "huber" and not np.all(y > 0)):
        raise InputError(f"loss '{loss}': valid are 'least_squares' and, where every y is above 0, 'huber'")
    root, low, high = np.sqrt(w), *_bounds(form)
    problem = _Projected(columns_of(form, x), y[None] * root, root[None])
    q = len(form.bounds)
    axes = [np.linspace(a, b, GRID[q]) for a, b in zip(low, high, strict=True)]
    grid = _lattice(axes)
    found = problem(grid)[0]
    table = found.reshape([GRID[q]] * q)
    valleys = np.flatnonzero((table == minimum_filter(table, 3, mode="nearest")).ravel() if q else [True])
    t, value, slack = _polish(problem, grid[valleys[np.argsort(found[valleys])][:16]], low, high)
    best = int(np.argmin(value))
    finer = _lattice([(axis[1:] + axis[:-1]) / 2 for axis in axes])
    if q <= 2 and (more := problem(finer)[0]).min() < value[best]:  # cannot be ruled out; then the search goes on from there
        t, value, slack = _polish(problem, np.array([finer[np.argmin(more)], t[best]]), low, high)
        best = int(np.argmin(value))
    c, t, value, slack = problem.linear(t[best : best + 1])[:, 0], t[best], float(value[best]), float(slack[best])
    if loss == "huber":
        c, t, value, slack = _huber(form, x, y, w, low, high, np.concatenate([c, t]))
    law = form(**_named(form, c, t))
    residuals = y - law(*np.atleast_2d(x))
    rounding = 1e-14 * np.sqrt(value * (w @ y**2)) + 1e-22 * (w @ y**2)
    certified = bool(min(slack, value) <= 1e-9 * value + rounding)
    condition = _condition(form, x, root, c, t)
    warnings = _warnings(law, t, low, high, len(y), condition, certified)
    return Fit(law, value, x, y, w, residuals, condition, certified, loss, left_out, warnings)


def refit(
    form: type[Form],
    x: ArrayLike,
    ys: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    pinned: Mapping[str, ArrayLike] | None = None,
) -> Refits:
    """Return the least-squares fits of many resamples, shape (resamples, points), of the losses.

    x: as for `fit`, or (variables, resamples, points) where it differs between resamples.
    `weights`: (points,) or (resamples, points); rows drawn with replacement are counts in it, a row left out is a 0.
    `pinned`: non-linear parameters held at a value, (resamples,).
    Raises `InputError` where shapes differ or a value is not finite. A resample of too few points is fitted without a word.
    """
    ys = np.atleast_2d(np.asarray(ys, dtype=np.float64))
    w = np.ones(ys.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    x = np.asarray(x, dtype=np.float64)
    if x.shape[-1] != ys.shape[1] or not (np.isfinite(ys).all() and np.isfinite(w).all() and np.all(w >= 0)):
        raise InputError(f"x has shape {x.shape} and ys {ys.shape}: refits need finite losses, one column a point, weights >= 0")
    return search(form, columns_of(form, x), ys, np.broadcast_to(np.sqrt(w), ys.shape), pinned=pinned)


def search(form: type[Form], columns: Callable, ys: Array, root: Array, pinned: Mapping | None = None) -> Refits:
    """`refit` with the columns given as a function (see `columns_of`) and the square roots of the weights."""
    q, low, high = len(form.bounds), *_bounds(form)
    grid = _lattice([np.linspace(a, b, max(8, GRID[q] // 4)) for a, b in zip(low, high, strict=True)])
    low, high = (np.broadcast_to(bound, (len(ys), q)).copy() for bound in (low, high))
    for name, values in (pinned or {}).items():
        low[:, list(form.bounds).index(name)] = high[:, list(form.bounds).index(name)] = np.log(values)
    parts = []
    step = max(1, 40_000 // len(grid))  # a chunk's work stays in the processor's cache
    for begin in range(0, len(ys), step):
        part = np.arange(begin, min(begin + step, len(ys)))
        problem = _Projected(columns, ys[part] * root[part], root[part], part)
        tried = np.clip(grid[:, None], low[part], high[part])  # (grid, chunk, q)
        every = problem(tried.reshape(len(grid) * len(part), q), np.tile(np.arange(len(part)), len(grid)))[0]
        found = every.reshape(len(grid), len(part))
        t, value, _ = _polish(problem, tried[found.argmin(axis=0), np.arange(len(part))], low[part], high[part])
        parts.append((problem.linear(t), t, value))
    c, t, value = (np.concatenate(piece, axis=axis) for piece, axis in zip(zip(*parts, strict=True), (1, 0, 0), strict=True))
    return Refits(form, _named(form, c, t.T), value, t)


def _lattice(axes: list[Array]) -> Array:
    return np.array(list(itertools.product(*axes)))


class _Projected:
    """Sum of squares left by the best linear parameters, as a function of log theta (members, q), with its gradient."""

    def __init__(self, columns: Callable, y: Array, root: Array, rows: Array | None = None) -> None:
        self.columns, self.y, self.root, self.rows = columns, y, root, rows

    def _solve(self, t: Array, members: Array) -> tuple[Array, Array, Array]:
        root = self.root[members]
        columns = self.columns(np.exp(t.T)[..., None], None if self.rows is None else self.rows[members], root.shape) * root
        return *_nonnegative(columns, self.y[members]), root

    def __call__(self, t: Array, members: Array | None = None, gradient: bool = False) -> tuple[Array, Array | None]:
        members = np.zeros(len(t), dtype=int) if members is None else members
        c, residual, root = self._solve(t, members)
        value = _dot(residual, residual)
        if not gradient:
            return value, None
        slopes = np.empty(t.shape)
        for k in range(t.shape[1]):  # by complex steps, exact to rounding; the linear parameters' own change adds nothing
            theta = np.exp(t.T + 1e-30j * (np.arange(t.shape[1]) == k)[:, None])[..., None]
            moved = self.columns(theta, None if self.rows is None else self.rows[members], root.shape).imag * 1e30
            slopes[:, k] = -2 * _dot(residual * root, np.einsum("pm,pmn->mn", c, moved))
        return value, slopes

    def linear(self, t: Array) -> Array:
        """Return the best linear parameters, (linear, members)."""
        return self._solve(t, np.arange(len(t)) if self.rows is not None else np.zeros(len(t), dtype=int))[0]


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("mn,mn->m", a, b)


def columns_of(form: type[Form], x: Array) -> Callable:
    """Return (theta, rows, (members, points)) -> columns (linear, members, points), theta an array (members, 1) for each name.

    x: (points,), (variables, points), or (variables, resamples, points), of which the members are `rows`.
    """
    x = x[None] if x.ndim == 1 else x

    def columns(theta: Array, rows: Array | None, shape: tuple[int, ...]) -> Array:
        here = x if x.ndim < 3 or rows is None else x[:, rows]
        terms = form.columns(*here, *theta)
        out = np.empty((len(terms), *shape), dtype=theta.dtype)
        for j, term in enumerate(terms):
            out[j] = term
        return out

    return columns


def _least_squares(columns: Array, y: Array) -> tuple[Array, Array]:
    """Return coefficients (p, members) and residuals (members, n), by modified Gram-Schmidt: stable where columns are alike."""
    p, basis, r = len(columns), [], np.zeros((len(columns),) * 2 + (len(y),))
    z, residual = np.empty((p, len(y))), y
    for j in range(p):
        v, size = columns[j], _dot(columns[j], columns[j])
        for k in range(j):
            r[k, j] = _dot(basis[k], v)
            v = v - r[k, j][:, None] * basis[k]
        left = _dot(v, v)
        r[j, j] = np.sqrt(np.where(left > 1e-26 * size, left, np.inf))  # a column in the span of the others gets 0
        basis.append(v / r[j, j][:, None])
        z[j] = _dot(basis[j], residual)
        residual = residual - z[j][:, None] * basis[j]
    for j in reversed(range(p)):
        for k in range(j + 1, p):
            z[j] -= r[j, k] * z[k]
        z[j] /= r[j, j]
    return z, residual


def _nonnegative(columns: Array, y: Array) -> tuple[Array, Array]:
    """Return the coefficients of least squares, none below 0, and the residuals: the best of all subsets of columns."""
    c, residual = _least_squares(columns, y)
    if len(again := np.flatnonzero((c < 0).any(axis=0))):
        c[:, again], residual[again], best = 0.0, y[again], _dot(y[again], y[again])
        for size in range(len(c) - 1, 0, -1):
            for subset in map(list, itertools.combinations(range(len(c)), size)):
                tried, left = _least_squares(columns[np.ix_(subset, again)], y[again])
                better = (value := _dot(left, left)) < np.where((tried >= 0).all(axis=0), best, -1)
                best = np.where(better, value, best)
                c[:, again[better]] = 0.0
                c[np.ix_(subset, again[better])] = tried[:, better]
                residual[again[better]] = left[better]
    return c, residual


def _polish(problem: Callable, t: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Return (t, value, slack): minima near t by damped projected Newton, and half the fall that one more step promises."""
    members, q = (np.arange(len(t)) if getattr(problem, "rows", None) is not None else np.zeros(len(t), dtype=int)), t.shape[1]
    t, low, high = t.copy(), np.broadcast_to(low, t.shape), np.broadcast_to(high, t.shape)
    value, slope = problem(t, members, True)
    floor = 1e-30 * np.maximum(1.0, value)
    damping, slack = np.full(len(t), 1e-9), np.zeros(len(t))
    active = np.arange(len(t) if q else 0)
    for _ in range(200):
        if not len(active):
            break
        here, g, who = t[active], slope[active], members[active]
        hessian = np.empty((len(active), q, q))
        for k in range(q):
            step = np.where(here[:, k] + 1e-6 > high[active, k], -1e-6, 1e-6)
            moved = here.copy()
            moved[:, k] += step
            hessian[:, k] = (problem(moved, who, True)[1] - g) / step[:, None]
        held = ((here <= low[active]) & (g >= 0)) | ((here >= high[active]) & (g <= 0))
        g, free = np.where(held, 0.0, g), ~held
        hessian = (hessian + hessian.swapaxes(1, 2)) / 2 * (free[:, :, None] & free[:, None, :]) + held[:, :, None] * np.eye(q)
        curvature, axes = np.linalg.eigh(hessian)
        scale = np.abs(curvature).max(axis=1, keepdims=True) + 1e-300
        bent, along = np.maximum(np.abs(curvature), 1e-12 * scale), np.einsum("mji,mj->mi", axes, g)
        box, damped = (low[active], high[active]), bent + damping[active][:, None] * scale
        full, trial = (np.clip(here + _within_1(np.einsum("mij,mj->mi", axes, -along / by)), *box) for by in (bent, damped))
        slack[active] = np.abs(_dot(g, full - here)) / 2
        new, new_slope = problem(trial, who, True)
        better = new < value[active]
        won = active[better]
        t[won], value[won], slope[won] = trial[better], new[better], new_slope[better]
        damping[active] = np.where(better, damping[active] / 30, np.maximum(damping[active], 1e-9) * 30)
        done = (slack[active] <= 1e-14 * value[active] + floor[active]) | (damping[active] > 1e12)
        active = active[~done]
    return t, value, slack


def _within_1(step: Array) -> Array:
    return step / np.maximum(1.0, np.abs(step).max(axis=1, keepdims=True))


def _huber(form, x, y, w, low, high, least_squares: Array) -> tuple[Array, Array, float, float]:
    """Return (c, t, value, slack) of Huber's loss of log L, over all parameters at once: it is not linear in any.

    Its optimum passes (nearly) through as many points as it has parameters off their bounds. So the polish starts from laws
    through that many points, at theta of a coarse grid or free: of all, or of 2,000 drawn with a fixed seed, the best 64.
    """
    p, n, columns, draw = len(form.linear), len(y), columns_of(form, x), np.random.default_rng(0)
    starts = [least_squares[None]]
    for size, grid in ((_parameters(form), None), (p, _lattice(list(np.linspace(low, high, 9).T)))):
        subsets = list(itertools.islice(itertools.combinations(range(n), size), 10_000))
        chosen = np.zeros((len(subsets), n))
        np.put_along_axis(chosen, np.array(subsets), 1.0, axis=1)
        pairs = draw.permutation(len(chosen) * (1 if grid is None else len(grid)))[: 200 if grid is None else 2000]
        held = {} if grid is None else dict(zip(form.bounds, np.exp(grid[pairs // len(chosen)]).T, strict=True))
        weights = w * chosen[pairs % len(chosen)]
        through = refit(form, x, np.broadcast_to(y, weights.shape), weights=weights, pinned=held)
        starts.append(np.column_stack([*(through.parameters[name] for name in form.linear), through.theta]))
    starts = np.concatenate(starts)
    largest = np.abs(columns(np.exp(least_squares[p:])[:, None, None], None, (1, n))[:, 0]).argmax(axis=1)

    def tops(terms: Array) -> Array:  # parameters in nats at the row where their column is largest: their valley is straight
        top = terms[np.arange(p), :, largest][..., None]
        return np.where(top == 0, 1, top)

    def problem(s: Array, members: Array, gradient: bool = True) -> tuple[Array, Array]:
        c, theta, shape = s[:, :p].T, np.exp(s[:, p:].T)[..., None], (len(s), n)
        terms = columns(theta, None, shape)
        terms /= tops(terms)
        law = np.maximum(np.einsum("pm,pmn->mn", c, terms), 1e-300)
        r = np.log(law) - np.log(y)
        size = np.abs(r)
        value = np.sum(w * np.where(size <= DELTA, r * r / 2, DELTA * (size - DELTA / 2)), axis=1)
        outer = w * np.clip(r, -DELTA, DELTA) / law
        slopes = [_dot(outer, term) for term in terms]
        for j in range(len(theta)):
            moved = columns(theta + 1e-30j * theta * (np.arange(len(theta)) == j)[:, None, None], None, shape)
            slopes.append(_dot(outer, np.einsum("pm,pmn->mn", c, (moved / tops(moved)).imag * 1e30)))
        return value, np.stack(slopes, axis=1)

    nats = tops(columns(np.exp(starts[:, p:].T)[..., None], None, (len(starts), n)))[..., 0].T
    starts = np.column_stack([starts[:, :p] * nats, starts[:, p:]])
    low, high = np.concatenate([np.zeros(p), low]), np.concatenate([np.full(p, np.inf), high])
    s, value, slack = _polish(problem, np.clip(starts[np.argsort(problem(starts, None)[0])[:64]], low, high), low, high)
    best = int(np.argmin(value))
    top = tops(columns(np.exp(s[best, p:])[:, None, None], None, (1, n)))[:, 0, 0]
    return s[best, :p] / top, s[best, p:], float(value[best]), float(slack[best])


def _parameters(form: type[Form]) -> int:
    return len(form.linear) + len(form.bounds)


def _bounds(form: type[Form]) -> tuple[Array, Array]:
    low, high = np.log(np.array(list(form.bounds.values())).reshape(-1, 2)).T
    return low, high


def _named(form: type[Form], c: Array, t: Array) -> dict[str, Any]:
    values = [v if np.ndim(v) else float(v) for v in (*c, *np.exp(t))]
    return dict(zip((*form.linear, *form.bounds), values, strict=True))


def _condition(form: type[Form], x: Array, root: Array, c: Array, t: Array) -> float:
    columns, shape = columns_of(form, x), (1, len(root))
    derivatives = list(columns(np.exp(t)[:, None, None], None, shape)[:, 0])
    for k in range(len(t)):
        theta = np.exp(t + 1e-30j * (np.arange(len(t)) == k))[:, None, None]
        derivatives.append(c @ columns(theta, None, shape).imag[:, 0] * 1e30)
    jacobian = np.array(derivatives) * root
    size = np.linalg.norm(jacobian, axis=1, keepdims=True)
    return float(np.linalg.cond((jacobian / np.where(size > 0, size, 1)).T)) if size.all() else float("inf")


def _warnings(law: Form, t: Array, low: Array, high: Array, points: int, condition: float, certified: bool) -> tuple[str, ...]:
    falls = any(getattr(law, name) > 0 for name in law.linear if name in "ab")
    near = 1e-5  # relative, as in db/views/1_power_law.sql
    found = {"points_do_not_fall": not falls}
    for name, at, least, most in zip(law.bounds, t, low, high, strict=True):
        found[f"{name}_at_lower_bound"] = falls and at <= least + near
        found[f"{name}_at_upper_bound"] = falls and at >= most - near
    found |= {
        "e_at_zero": "e" in law.linear and law.e <= 0,
        NO_FREEDOM: points == _parameters(type(law)),
        "undetermined": falls and condition > 1e10 and not any(found.values()),
        "not_certified": not certified,
    }
    return tuple(name for name, holds in found.items() if holds)


def checked(form, x, y, weights, left_out) -> tuple[Array, Array, Array, dict[int, str]]:
    x, y = _numbers("x", x), _numbers("y", y)
    w = np.ones(y.shape) if weights is None else _numbers("weights", weights)
    several, least = len(form.variables) > 1, _parameters(form)
    if y.ndim != 1 or x.shape != ((len(form.variables), len(y)) if several else y.shape) or w.shape != y.shape:
        what = f"one row for each of {', '.join(form.variables)} in x" if several else "one list each"
        raise InputError(f"x has shape {x.shape} and y {y.shape}: a law needs {what}, of equal length, weights too")
    if unknown := set(left_out) - set(range(len(y))):
        raise InputError(f"leave_out names rows {sorted(unknown)}; there are rows 0 to {len(y) - 1}")
    used = np.array([i not in left_out for i in range(len(y))], dtype=bool)
    rows = np.atleast_2d(x).T
    alike = (rows[:, None] == rows[None]).all(axis=2) & used  # (row, other row)
    rules = [
        (~(np.isfinite(rows).all(axis=1) & np.isfinite(y)), "x and y must be finite; leave these rows out"),
        ((rows <= 0).any(axis=1), "x must be above 0; leave these rows out"),
        (((rows < 1e-50) | (rows > 1e50)).any(axis=1), "x must lie between 1e-50 and 1e50; choose another unit"),
        ((y < 0) | (y > 1e90), "y is a loss and cannot be negative, nor above 1e90; leave these rows out"),
        (~(np.isfinite(w) & (w > 0)), "weights must be finite and above 0; leave these rows out"),
        (alike.sum(axis=1) > 1, "x must differ; average rows of equal x"),
    ]
    for broken, rule in rules:
        if (broken := np.flatnonzero(broken & used)).size:
            named = ", ".join(f"row {i}: ({', '.join(f'{v:g}' for v in (*rows[i], y[i]))})" for i in broken)
            raise InputError(f"{named}: {rule}")
    if used.sum() < least:
        count = {2: "two", 3: "three"}.get(least, least)
        points = f"{used.sum()} point{'s' * bool(used.sum() != 1)}"
        raise InputError(f"{points}: a law with {count} parameters needs at least {least}; add sizes or budgets")
    return x[..., used], y[used], w[used], dict(left_out)


def _numbers(name: str, values: ArrayLike) -> Array:
    """Return an array of floats; a masked value is a NaN, and text is no number even where it could be read as one."""
    if isinstance(values, np.ma.MaskedArray):
        return values.astype(np.float64).filled(np.nan)
    try:
        items = np.asarray(values, dtype=object)
        wrong = [(at[-1], v) for at, v in np.ndenumerate(np.atleast_1d(items)) if isinstance(v, str | bytes | complex)]
        if not wrong:
            return items.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers, one a row: {error}") from None
    raise InputError(", ".join(f"{name}, row {i}: {v!r} is no number" for i, v in wrong) + "; leave these rows out")
