"""Fits of a form to points, by variable projection: no start to choose, and a certificate at the end.

With the parameters in `form.bounds` (theta) fixed a form is linear in the rest, so their best values, none below zero, come
in closed form: the best of the least-squares solutions over all subsets of columns. What is left is a function of theta
(Golub and Pereyra 1973, SIAM J. Numer. Anal. 10): looked up on a grid of log theta, then polished by damped Newton steps
on its exact gradient. Many fits share each step, so 10,000 resamples take as long as a few hundred calls of scipy.

A law that fits badly raises nothing: what is doubtful about it is in `warnings`, and `limit` is None where the points show
none. Intervals are in `dataeff.laws.intervals`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    "points_do_not_fall": "the losses do not fall: exponents mean nothing and e is the mean",
    "alpha_at_lower_bound": f"alpha is at its lower bound {ALPHA_BOUNDS[0]}: the points show no limit",
    "alpha_at_upper_bound": f"alpha is at its upper bound {ALPHA_BOUNDS[1]}: the loss does not fall beyond the smallest x",
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


def fit(
    form: type[Form], x: ArrayLike, y: ArrayLike, *, loss: str = "least_squares", weights: ArrayLike | None = None
) -> Fit:
    """Return the law of `form` that fits best.

    x: (points,), or (variables, points) in the order of `form.variables`; y: losses in nats per token, (points,); weights:
    (points,), 1 / variance up to a factor. `loss`: "least_squares", the weighted sum of (y - L)^2; or "huber", the weighted
    sum of Huber's loss of log L - log y (`DELTA`). Raises `InputError`, which names the rows, for what is no number, not
    finite, x <= 0, y < 0, weights <= 0, rows of equal x, and too few points.
    """
    x, y, w = _checked(form, x, y, weights)
    if loss not in ("least_squares", "huber") or (loss == "huber" and not np.all(y > 0)):
        raise InputError(f"loss '{loss}': valid are 'least_squares' and, where every y is above 0, 'huber'")
    root, low, high = np.sqrt(w), *_bounds(form)
    problem = _Projected(columns_of(form, x), y[None] * root, root[None])
    t, value, slack = _least(problem, low, high)
    c = problem.linear(t[None])[:, 0]
    if loss == "huber":
        c, t, value, slack = _huber(form, x, y, w, np.concatenate([c, t]))
    law = form(**_named(form, c, t))
    residuals = y - law(*np.atleast_2d(x))
    rounding = 1e-14 * np.sqrt(value * (w @ y**2)) + 1e-22 * (w @ y**2)
    certified = bool(min(slack, value) <= 1e-9 * value + rounding)
    condition = _condition(columns_of(form, x), root, c, t)
    warnings = _warnings(law, t, low, high, len(y), condition, certified)
    return Fit(law, value, x, y, w, residuals, condition, certified, loss, warnings)


def _least(problem: _Projected, low: Array, high: Array) -> tuple[Array, float, float]:
    """Return (t, value, slack) of the least minimum that the valleys of a grid lead to, or a grid twice as fine."""
    q = len(low)
    axes = [np.linspace(a, b, GRID[q]) for a, b in zip(low, high, strict=True)]
    grid = _lattice(axes)
    values = problem(grid)[0]
    table = values.reshape([GRID[q]] * q)
    valleys = np.flatnonzero((table == minimum_filter(table, 3, mode="nearest")).ravel() if q else [True])
    t, value, slack = _polish(problem, grid[valleys[np.argsort(values[valleys])][:16]], low, high)
    best = int(np.argmin(value))
    finer = _lattice([(axis[1:] + axis[:-1]) / 2 for axis in axes])
    if q <= 2 and (more := problem(finer)[0]).min() < value[best]:
        t, value, slack = _polish(problem, np.array([finer[np.argmin(more)], t[best]]), low, high)
        best = int(np.argmin(value))
    return t[best], float(value[best]), float(slack[best])


def fit_power_law(x: ArrayLike, y: ArrayLike) -> Fit:
    """Return `fit(PowerLaw, x, y)`."""
    return fit(PowerLaw, x, y)


def refit(
    form: type[Form],
    x: ArrayLike,
    ys: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    pinned: Mapping[str, ArrayLike] | None = None,
) -> Refits:
    """Return the least-squares fits of many resamples, shape (resamples, points), of the losses.

    x: as for `fit`. `weights`: (points,) or (resamples, points), 0 for a row left out. `pinned`: non-linear parameters held
    at a value, (resamples,). Raises `InputError` where shapes differ or a value is not finite, but not for too few points.
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
        problem = _Projected(columns, ys[part] * root[part], root[part])
        tried = np.clip(grid[:, None], low[part], high[part])  # (grid, chunk, q)
        value = problem(tried.reshape(len(grid) * len(part), q))[0].reshape(len(grid), len(part))
        t, value, _ = _polish(problem, tried[value.argmin(axis=0), np.arange(len(part))], low[part], high[part])
        parts.append((problem.linear(t), t, value))
    c, t, value = (np.concatenate(piece, axis=axis) for piece, axis in zip(zip(*parts, strict=True), (1, 0, 0), strict=True))
    return Refits(form, _named(form, c, t.T), value, t)


def _lattice(axes: list[Array]) -> Array:
    return np.array(list(itertools.product(*axes)))


class _Projected:
    """Sum of squares left by the best linear parameters, as a function of log theta (members, q), with its gradient.

    y and root: (fits, points). A member of log theta is about the fit of its number, modulo the number of fits.
    """

    def __init__(self, columns: Callable, y: Array, root: Array) -> None:
        self.columns, self.y, self.root = columns, y, root

    def _solve(self, t: Array, members: Array | None = None) -> tuple[Array, Array, Array]:
        fits = (np.arange(len(t)) if members is None else members) % len(self.y)
        root = self.root[fits]
        return *_nonnegative(self.columns(t) * root, self.y[fits]), root

    def __call__(self, t: Array, members: Array | None = None, gradient: bool = False) -> tuple[Array, Array | None]:
        c, residual, root = self._solve(t, members)
        value = _dot(residual, residual)
        if not gradient:
            return value, None
        slopes = np.empty(t.shape)
        for k, moved in enumerate(_stepped(self.columns, t)):  # the linear parameters' own change adds nothing
            slopes[:, k] = -2 * _dot(residual * root, np.einsum("pm,pmn->mn", c, moved.imag * 1e30))
        return value, slopes

    def linear(self, t: Array) -> Array:
        """Return the best linear parameters, (linear, members)."""
        return self._solve(t)[0]


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("mn,mn->m", a, b)


def columns_of(form: type[Form], x: Array) -> Callable:
    """Return the columns (linear, members, points) of x, (points,) or (variables, points), given log theta (members, q)."""
    x = np.atleast_2d(x)

    def columns(t: Array) -> Array:
        terms = form.columns(*x, *np.exp(t.T)[..., None])
        return np.stack([np.broadcast_to(term, (len(t), x.shape[1])) for term in terms])

    return columns


def _stepped(columns: Callable, t: Array) -> Iterator[Array]:
    """Yield the columns after a step of 1e-30j in each of log theta: the imaginary part is the derivative, exact to rounding."""
    for step in 1e-30j * np.eye(t.shape[1]):
        yield columns(t + step)


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
    t, low, high = t.copy(), np.broadcast_to(low, t.shape), np.broadcast_to(high, t.shape)
    members, q = np.arange(len(t)), t.shape[1]
    value, slope = problem(t, members, True)
    floor = 1e-30 * np.maximum(1.0, value)
    damping, slack = np.full(len(t), 1e-9), np.zeros(len(t))
    active = members if q else members[:0]
    for _ in range(200):
        if not len(active):
            break
        here, g, box = t[active], slope[active], (low[active], high[active])
        hessian = _hessian(problem, here, g, active, box[1])
        at_bound = ((here <= box[0]) & (g >= 0)) | ((here >= box[1]) & (g <= 0))
        g, free = np.where(at_bound, 0.0, g), ~at_bound
        hessian = (hessian + hessian.swapaxes(1, 2)) / 2 * (free[:, :, None] & free[:, None, :])
        hessian += at_bound[:, :, None] * np.eye(q)
        curvature, axes = np.linalg.eigh(hessian)
        scale = np.abs(curvature).max(axis=1, keepdims=True) + 1e-300
        bent, along = np.maximum(np.abs(curvature), 1e-12 * scale), np.einsum("mji,mj->mi", axes, g)
        damped = bent + damping[active][:, None] * scale
        full, trial = (np.clip(here + _within_1(np.einsum("mij,mj->mi", axes, -along / by)), *box) for by in (bent, damped))
        slack[active] = np.abs(_dot(g, full - here)) / 2
        new, new_slope = problem(trial, active, True)
        better = new < value[active]
        won = active[better]
        t[won], value[won], slope[won] = trial[better], new[better], new_slope[better]
        damping[active] = np.where(better, damping[active] / 30, np.maximum(damping[active], 1e-9) * 30)
        done = (slack[active] <= 1e-14 * value[active] + floor[active]) | (damping[active] > 1e12)
        active = active[~done]
    return t, value, slack


def _hessian(problem: Callable, t: Array, slope: Array, members: Array, high: Array) -> Array:
    """Return the second derivatives (members, q, q) by differences of slopes, taken inwards at an upper bound."""
    rows = []
    for k in range(t.shape[1]):
        step = np.where(t[:, k] + 1e-6 > high[:, k], -1e-6, 1e-6)
        moved = t.copy()
        moved[:, k] += step
        rows.append((problem(moved, members, True)[1] - slope) / step[:, None])
    return np.stack(rows, axis=1)


def _within_1(step: Array) -> Array:
    return step / np.maximum(1.0, np.abs(step).max(axis=1, keepdims=True))


class _LogHuber:
    """Huber's loss of log L as a function of all parameters s (members, parameters), with its gradient.

    s: the linear parameters, each in nats at the row of `largest`, where its column is largest (the valley is straight then),
    and log theta.
    """

    def __init__(self, form: type[Form], x: Array, y: Array, w: Array, t: Array) -> None:
        self.columns, self.y, self.w, self.p = columns_of(form, x), y, w, len(form.linear)
        self.largest = np.abs(self.columns(t[None])[:, 0]).argmax(axis=1)

    def tops(self, terms: Array) -> Array:
        """Return each column's value at its row of `largest`, (linear, members, 1)."""
        top = terms[np.arange(self.p), :, self.largest][..., None]
        return np.where(top == 0, 1, top)

    def nats(self, t: Array) -> Array:
        """Return what one unit of each linear parameter is in nats at log theta (members, q), (members, linear)."""
        return self.tops(self.columns(t))[..., 0].T

    def __call__(self, s: Array, members: Array | None = None, gradient: bool = True) -> tuple[Array, Array]:
        c, t = s[:, : self.p].T, s[:, self.p :]
        terms = self.columns(t)
        terms /= self.tops(terms)
        law = np.maximum(np.einsum("pm,pmn->mn", c, terms), 1e-300)
        r = np.log(law) - np.log(self.y)
        size = np.abs(r)
        value = np.sum(self.w * np.where(size <= DELTA, r * r / 2, DELTA * (size - DELTA / 2)), axis=1)
        outer = self.w * np.clip(r, -DELTA, DELTA) / law
        slopes = [_dot(outer, term) for term in terms]
        for moved in _stepped(self.columns, t):
            slopes.append(_dot(outer, np.einsum("pm,pmn->mn", c, (moved / self.tops(moved)).imag * 1e30)))
        return value, np.stack(slopes, axis=1)


def _huber(form: type[Form], x: Array, y: Array, w: Array, least_squares: Array) -> tuple[Array, Array, float, float]:
    """Return (c, t, value, slack) of Huber's loss of log L, over all parameters at once: it is not linear in any.

    Its optimum passes (nearly) through as many points as it has parameters off their bounds. So the polish starts from laws
    through that many points, at theta of a coarse grid or free: of all, or of 2,000 drawn with a fixed seed, the best 64.
    """
    p, n, draw, (low, high) = len(form.linear), len(y), np.random.default_rng(0), _bounds(form)
    starts = [least_squares[None]]
    for size, grid in ((_parameters(form), None), (p, _lattice(list(np.linspace(low, high, 9).T)))):
        subsets = list(itertools.islice(itertools.combinations(range(n), size), 10_000))
        chosen = np.zeros((len(subsets), n))
        np.put_along_axis(chosen, np.array(subsets), 1.0, axis=1)
        pairs = draw.permutation(len(chosen) * (1 if grid is None else len(grid)))[: 200 if grid is None else 2000]
        pinned = {} if grid is None else dict(zip(form.bounds, np.exp(grid[pairs // len(chosen)]).T, strict=True))
        weights = w * chosen[pairs % len(chosen)]
        through = refit(form, x, np.broadcast_to(y, weights.shape), weights=weights, pinned=pinned)
        starts.append(np.column_stack([*(through.parameters[name] for name in form.linear), through.theta]))
    starts = np.concatenate(starts)
    problem = _LogHuber(form, x, y, w, least_squares[p:])
    starts[:, :p] *= problem.nats(starts[:, p:])
    low, high = np.concatenate([np.zeros(p), low]), np.concatenate([np.full(p, np.inf), high])
    s, value, slack = _polish(problem, np.clip(starts[np.argsort(problem(starts)[0])[:64]], low, high), low, high)
    best = int(np.argmin(value))
    c, t = s[best, :p], s[best, p:]
    return c / problem.nats(t[None])[0], t, float(value[best]), float(slack[best])


def _parameters(form: type[Form]) -> int:
    return len(form.linear) + len(form.bounds)


def _bounds(form: type[Form]) -> tuple[Array, Array]:
    low, high = np.log(np.array(list(form.bounds.values())).reshape(-1, 2)).T
    return low, high


def _named(form: type[Form], c: Array, t: Array) -> dict[str, Any]:
    values = [v if np.ndim(v) else float(v) for v in (*c, *np.exp(t))]
    return dict(zip((*form.linear, *form.bounds), values, strict=True))


def _condition(columns: Callable, root: Array, c: Array, t: Array) -> float:
    """Return the condition number of the law's derivatives by its parameters, each scaled to length 1."""
    derivatives = [*columns(t[None])[:, 0], *(c @ moved.imag[:, 0] * 1e30 for moved in _stepped(columns, t[None]))]
    jacobian = np.array(derivatives) * root
    size = np.linalg.norm(jacobian, axis=1, keepdims=True)
    return float(np.linalg.cond((jacobian / np.where(size > 0, size, 1)).T)) if size.all() else float("inf")


def _warnings(law: Form, t: Array, low: Array, high: Array, points: int, condition: float, certified: bool) -> tuple[str, ...]:
    falls = any(getattr(law, name) > 0 for name in law.linear if name in "ab")
    near = 1e-5  # relative, as in db/views/1_power_law.sql
    flags = {"points_do_not_fall": not falls}
    for name, at, least, most in zip(law.bounds, t, low, high, strict=True):
        flags[f"{name}_at_lower_bound"] = falls and at <= least + near
        flags[f"{name}_at_upper_bound"] = falls and at >= most - near
    flags |= {
        "e_at_zero": "e" in law.linear and law.e <= 0,
        NO_FREEDOM: points == _parameters(type(law)),
        "undetermined": falls and condition > 1e10 and not any(flags.values()),
        "not_certified": not certified,
    }
    return tuple(name for name, holds in flags.items() if holds)


def _checked(form: type[Form], x: ArrayLike, y: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, Array]:
    x, y = _numbers("x", x), _numbers("y", y)
    w = np.ones(y.shape) if weights is None else _numbers("weights", weights)
    several, least = len(form.variables) > 1, _parameters(form)
    if y.ndim != 1 or x.shape != ((len(form.variables), len(y)) if several else y.shape) or w.shape != y.shape:
        what = f"one row for each of {', '.join(form.variables)} in x" if several else "one list each"
        raise InputError(f"x has shape {x.shape} and y {y.shape}: a law needs {what}, of equal length, weights too")
    rows = np.atleast_2d(x).T
    equal = (rows[:, None] == rows[None]).all(axis=2)  # (row, other row)
    rules = [
        (~(np.isfinite(rows).all(axis=1) & np.isfinite(y)), "x and y must be finite; leave these rows out"),
        ((rows <= 0).any(axis=1), "x must be above 0; leave these rows out"),
        (((rows < 1e-50) | (rows > 1e50)).any(axis=1), "x must lie between 1e-50 and 1e50; choose another unit"),
        ((y < 0) | (y > 1e90), "y is a loss and cannot be negative, nor above 1e90; leave these rows out"),
        (~(np.isfinite(w) & (w > 0)), "weights must be finite and above 0; leave these rows out"),
        (equal.sum(axis=1) > 1, "x must differ; average rows of equal x"),
    ]
    for broken, rule in rules:
        if broken.any():
            names = [f"row {i}: ({', '.join(f'{v:g}' for v in (*rows[i], y[i]))})" for i in np.flatnonzero(broken)]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise InputError(f"{', '.join(names[:5])}{more}: {rule}")
    if len(y) < least:
        count = {2: "two", 3: "three"}.get(least, least)
        points = f"{len(y)} point{'s' * (len(y) != 1)}"
        raise InputError(f"{points}: a law with {count} parameters needs at least {least}; add sizes or budgets")
    return x, y, w


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
