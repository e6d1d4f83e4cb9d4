"""Fits of a form to points, by variable projection: no start to choose.

With the parameters in `form.bounds` (theta) fixed a form is linear in the rest, so their best values, none below zero, come
in closed form. What is left is a function of log theta (Golub and Pereyra 1973, SIAM J. Numer. Anal. 10), looked up on a grid
and closed in on from each of its valleys: for one exponent of many resamples at once, else by scipy's `least_squares`.

A law that fits badly raises nothing: what is doubtful about it is in `warnings`, and `limit` is None where the points show
none. Intervals are in `dataeff.laws.intervals`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import elementwise, least_squares, minimize, nnls

from dataeff.errors import InputError
from dataeff.laws.forms import ALPHA_BOUNDS, Form

Array = NDArray[np.float64]
DELTA = 1e-3  # where Huber's loss of log L turns from square to absolute: Hoffmann et al., arXiv 2203.15556, eq. 3
GRID = {0: 1, 1: 64, 2: 40, 3: 16, 4: 8}  # values that are tried of each of theta's axes, by their number
LOSSES = ("least_squares", "huber")
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
    """A fitted law; losses and residuals in nats per token."""

    law: Any
    objective: float  # weighted sum of squared residuals, or of Huber's loss of log L
    x: Array  # (points,) or (variables, points)
    y: Array  # (points,)
    weights: Array  # (points,)
    residuals: Array  # y - law, (points,)
    certified: bool  # no small step is better, nor, by least squares with up to two exponents, a point of a grid twice as fine
    loss: str = "least_squares"
    warnings: tuple[str, ...] = ()  # keys of WARNINGS

    @property
    def points(self) -> int:
        return len(self.y)

    @property
    def parameters(self) -> int:
        return len(self.law.linear) + len(self.law.bounds)

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

    def laws(self) -> list[Any]:
        return [self.form(**{k: float(v[i]) for k, v in self.parameters.items()}) for i in range(len(self.objective))]


def fit(form: type[Form], x: ArrayLike, y: ArrayLike, *, loss: str = "least_squares", weights: ArrayLike | None = None) -> Fit:
    """Return the law of `form` that fits best.

    x: (points,), or (variables, points) in the order of `form.variables`; y: losses in nats per token, (points,); weights:
    (points,), 1 / variance up to a factor. `loss`: "least_squares", the weighted sum of (y - L)^2; or "huber", the weighted
    sum of Huber's loss of log L - log y (`DELTA`). Raises `InputError`, which names the rows, for what is no number, not
    finite, x <= 0, y < 0, weights <= 0, rows of equal x, and too few points.
    """
    x, y, w = _checked(form, x, y, weights)
    if loss not in LOSSES or (loss == "huber" and not np.all(y > 0)):
        raise InputError(f"loss '{loss}': valid are 'least_squares' and, where every y is above 0, 'huber'")
    problem = Projection(form, x, y[None], np.sqrt(w)[None])
    c, t, value, tried = (_huber if loss == "huber" else _least_squares)(problem)
    law = form(**{name: float(value) for name, value in _named(form, c, t).items()})
    rounding = 1e-14 * np.sqrt(value * (w @ y**2)) + 1e-22 * (w @ y**2)
    certified = bool(tried >= value * (1 - 1e-9) - rounding)
    warnings = _warnings(law, problem.condition(c, t), certified, len(y))
    return Fit(law, value, x, y, w, y - law(*np.atleast_2d(x)), certified, loss, warnings)


def refit(form: type[Form], x: ArrayLike, ys: ArrayLike, *, weights: ArrayLike | None = None) -> Refits:
    """Return the least-squares fits of many resamples, shape (resamples, points), of the losses.

    x: as for `fit`. `weights`: (points,) or (resamples, points), 0 for a row left out. Fast for forms with up to one exponent.
    Raises `InputError` where shapes differ or a value is not finite, but not for too few points.
    """
    ys = np.atleast_2d(np.asarray(ys, dtype=np.float64))
    w = np.ones(ys.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    x = np.asarray(x, dtype=np.float64)
    if x.shape[-1] != ys.shape[1] or not (np.isfinite(ys).all() and np.isfinite(w).all() and np.all(w >= 0)):
        raise InputError(f"x has shape {x.shape} and ys {ys.shape}: refits need finite losses, one column a point, weights >= 0")
    problem = Projection(form, x, ys, np.broadcast_to(np.sqrt(w), ys.shape))
    c, residuals = problem.solve(t := problem.minima())
    return Refits(form, _named(form, c, t), _dot(residuals, residuals))


def refit_huber(fitted: Fit, weights: ArrayLike) -> list[Any]:
    """Return the laws by Huber's loss of the points of a fit under other weights, (resamples, points), 0 for a row left out."""
    law, rows = fitted.law, np.asarray(weights, dtype=np.float64)
    start = np.array([*(getattr(law, name) for name in law.linear), *(math.log(getattr(law, name)) for name in law.bounds)])
    laws = []
    for row in rows:
        used = row > 0
        c, t, *_ = _huber(Projection(type(law), fitted.x[..., used], fitted.y[None, used], np.sqrt(row[None, used])), start)
        laws.append(type(law)(**{name: float(value) for name, value in _named(type(law), c, t).items()}))
    return laws


def _named(form: type[Form], c: Array, t: Array) -> dict[str, Array]:
    held = {name: np.full(c.shape[1:], value) for name, value in form.constants.items()}
    return held | dict(zip((*form.linear, *form.bounds), (*c, *np.exp(t.T)), strict=True))


class Projection:
    """Sums of squares that the best linear parameters leave, as functions of log theta.

    y: losses, and root: square roots of the weights, both (fits, points). `linear`: the linear parameters that are free, by
    default all; the others are 0. Members of log theta, (members, q), are about the fits that `rows` names, by default each.
    """

    def __init__(self, form: type[Form], x: Array, y: Array, root: Array, linear: Sequence[str] | None = None) -> None:
        self.form, self.x, self.y, self.root = form, np.atleast_2d(x), y, root
        self.free = [form.linear.index(name) for name in linear or form.linear]
        self.low, self.high = np.log(np.array(list(form.bounds.values())).reshape(-1, 2)).T
        self.q = len(self.low)
        self.axes = [np.linspace(low, high, GRID[self.q]) for low, high in zip(self.low, self.high, strict=True)]

    def columns(self, t: Array) -> Array:
        """Return the columns of the free linear parameters, (linear, members, points)."""
        terms = self.form.columns(*self.x, *np.exp(t.T)[..., None])
        return np.stack([np.broadcast_to(terms[k], (len(t), self.x.shape[1])) for k in self.free])

    def offset(self, t: Array) -> Array:
        """Return what parameters that are held add, (members, points) or a number."""
        return self.form.offset(*self.x, *np.exp(t.T)[..., None])

    def solve(self, t: Array, rows: Array | slice = np.s_[:]) -> tuple[Array, Array]:
        """Return the best linear parameters, (linear, members), and the weighted residuals, (members, points)."""
        root = self.root[rows]
        return _nonnegative(self.columns(t) * root, (self.y[rows] - self.offset(t)) * root)

    def __call__(self, t: Array, rows: Array | slice = np.s_[:]) -> Array:
        residuals = self.solve(t, rows)[1]
        return _dot(residuals, residuals)

    def minima(self) -> Array:
        """Return log theta at the minimum of each fit, (fits, q)."""
        fits = np.arange(len(self.y))
        if self.q == 0:
            return np.empty((len(fits), 0))
        if self.q > 1:
            return np.array([self._least_of_several(fits[[i]]) for i in fits])
        chunks = np.array_split(fits, 1 + len(fits) // 600)  # whose work stays in the processor's cache
        return np.concatenate([self._least_of_one(chunk) for chunk in chunks])[:, None]

    def _least_of_one(self, rows: Array) -> Array:
        """Return log theta (rows,), closed in on from every valley of the grid by Chandrupatla's method."""
        (grid,), (low,), (high,) = self.axes, self.low, self.high
        values = self(np.tile(grid, len(rows))[:, None], np.repeat(rows, len(grid))).reshape(len(rows), len(grid))
        beside = np.pad(values, [(0, 0), (1, 1)], constant_values=np.inf)
        place, column = np.nonzero((values < beside[:, :-2]) & (values <= beside[:, 2:]))
        t, step = grid[column], grid[1] - grid[0]

        def mirrored(t: Array) -> Array:  # at the bounds, so that a minimum at one has a bracket
            return high - np.abs(high - low - np.abs(t - low))

        def value(t: Array, row: Array) -> Array:
            return self(mirrored(t)[:, None], row.astype(int))

        bracket, tolerances = (t - step, t, t + step), {"xatol": 1e-12, "xrtol": 0, "frtol": 1e-16}
        found = elementwise.find_minimum(value, bracket, args=(rows[place],), tolerances=tolerances)
        t = np.where(found.f_x < values[place, column], np.clip(mirrored(found.x), low, high), t)
        order = np.lexsort((np.minimum(found.f_x, values[place, column]), place))
        return t[order][np.unique(place[order], return_index=True)[1]]

    def _least_of_several(self, row: Array) -> Array:
        def residuals(t: Array) -> Array:
            return self.solve(t[None], row)[1][0]

        options = {"bounds": (self.low, self.high), "jac": "3-point", "ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
        grid = _lattice(self.axes)
        starts = grid[_valleys(self(grid, np.repeat(row, len(grid))), self.axes)]
        found = min((least_squares(residuals, start, **options) for start in starts), key=lambda result: result.cost)
        return found.x

    def condition(self, c: Array, t: Array) -> float:
        """Return the condition number of the law's derivatives by its parameters, each scaled to length 1."""
        def law(t: Array) -> Array:
            return c @ self.columns(t)[:, 0] + self.offset(t)

        steps = 1e-30j * np.eye(self.q)  # the imaginary part is the derivative, exact to rounding
        jacobian = [*self.columns(t[None])[:, 0], *(np.ravel(law(t[None] + step)).imag * 1e30 for step in steps)]
        jacobian = np.array(jacobian) * self.root[0]
        size = np.linalg.norm(jacobian, axis=1, keepdims=True)
        return float(np.linalg.cond((jacobian / size).T)) if size.all() else float("inf")


def _lattice(axes: Sequence[Array]) -> Array:
    return np.array(list(itertools.product(*axes)))


def _valleys(values: Array, axes: Sequence[Array], most: int = 8) -> Array:
    """Return the places on a grid of these axes that are no higher than those beside them, lowest first; equals once."""
    table = values.reshape([len(axis) for axis in axes])
    from scipy.ndimage import minimum_filter  # slow to import, and readers fit nothing

    valleys = np.flatnonzero(table == minimum_filter(table, 3, mode="nearest")) if axes else np.array([0])
    _, first = np.unique(np.log(np.maximum(values[valleys], 1e-300)).round(9), return_index=True)
    return valleys[first][:most]


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("mn,mn->m", a, b)


def _nonnegative(columns: Array, y: Array) -> tuple[Array, Array]:
    """Return the coefficients of least squares, none below 0, (linear, members), and the residuals. No column is negative."""
    u, *others = columns
    size = np.maximum(_dot(u, u), 1e-300)
    alone = np.maximum(_dot(u, y) / size, 0)
    if not others:
        return alone[None], y - alone[:, None] * u
    if len(others) > 1:
        scale = np.maximum(np.linalg.norm(columns, axis=2), 1e-150)
        scaled = (columns / scale[..., None]).transpose(1, 2, 0)
        c = np.array([nnls(a, b)[0] for a, b in zip(scaled, y, strict=True)]).T / scale
        return c, y - np.einsum("pm,pmn->mn", c, columns)
    (v,) = others  # the first column and y are freed of it, which keeps a slope exact where the two columns are alike
    length = np.maximum(_dot(v, v), 1e-300)
    along, share = _dot(u, v) / length, _dot(y, v) / length
    rest, left = u - along[:, None] * v, y - share[:, None] * v
    square = _dot(rest, rest)
    a = np.maximum(np.where(square > 1e-26 * size, _dot(rest, left) / np.maximum(square, 1e-300), 0), 0)
    c, residual = np.stack([a, share - a * along]), left - a[:, None] * rest
    if (below := c[1] < 0).any():
        c[:, below] = alone[below], np.zeros(below.sum())
        residual[below] = y[below] - alone[below, None] * u[below]
    return c, residual


def _least_squares(problem: Projection) -> tuple[Array, Array, float, float]:
    """Return (c, t, value) of the first fit, and the least value of those tried to certify it."""
    t = problem.minima()
    tried = [np.clip(t + step, problem.low, problem.high) for step in 1e-4 * np.vstack([np.eye(problem.q), -np.eye(problem.q)])]
    if problem.q in (1, 2):
        tried.append(_lattice([(axis[1:] + axis[:-1]) / 2 for axis in problem.axes]))
    tried = np.concatenate([t, *tried])
    values = problem(tried, np.zeros(len(tried), int))
    return problem.solve(t)[0][:, 0], t[0], float(values[0]), float(values.min())


def _huber(problem: Projection, start: Array | None = None) -> tuple[Array, Array, float, float]:
    """Return (c, t, value) of Huber's loss of log L, over all parameters at once, and the least value tried to certify it.

    On a coarse grid of theta the linear parameters come from least squares, weighted again and again by what Huber's loss
    makes of the residuals. Its valleys are where scipy's robust `least_squares` begins, and Nelder-Mead ends, for the kinks.
    A resample of a fitted law begins and ends near it: at `start`, (linear parameters, log theta), and without Nelder-Mead.
    """
    p, y, w = len(problem.free), problem.y[0], problem.root[0] ** 2

    def normalized(t: Array) -> tuple[Array, Array]:
        """Return the columns divided by their greatest values, so that linear parameters are in nats; and these values."""
        terms = problem.columns(t)
        top = terms.max(axis=2, keepdims=True)
        top = np.where(top == 0, 1, top)
        return terms / top, top[..., 0]

    def residuals(s: Array) -> Array:
        return np.log(np.maximum(s[:p] @ normalized(s[None, p:])[0][:, 0] + np.ravel(problem.offset(s[None, p:])), 1e-300) / y)

    def huber(z: Array) -> Array:  # of squared residuals in units of DELTA, with two derivatives
        inside = z <= 1
        z = np.maximum(z, 1e-150)
        return w * np.where(inside, [z, np.ones_like(z), np.zeros_like(z)], [2 * np.sqrt(z) - 1, z**-0.5, -0.5 * z**-1.5])

    def value(s: Array) -> float:
        return DELTA**2 / 2 * float(huber((residuals(np.clip(s, low, high)) / DELTA) ** 2)[0].sum())

    low, high = np.append(np.zeros(p), problem.low), np.append(np.full(p, np.inf), problem.high)
    def valleys() -> Array:
        axes = problem.axes if problem.q < 2 else [axis[::2] for axis in problem.axes]
        grid = _lattice(axes)
        (terms, _), above = normalized(grid), y - problem.offset(grid)
        root = np.broadcast_to(np.sqrt(w) / y, (len(grid), len(y)))
        for _ in range(20):
            c, left = _nonnegative(terms * root, above * root)
            law = np.maximum(y - left / root, 1e-3 * y)
            root = np.sqrt(w / np.maximum(np.abs(np.log(law / y)), DELTA)) / law
        laws = np.column_stack([c.T, grid])
        return laws[_valleys(np.array([value(s) for s in laws]), axes)]

    options = {"bounds": (low, high), "loss": huber, "f_scale": DELTA, "jac": "3-point", "x_scale": 1.0}
    if start is None:
        found = [least_squares(residuals, s, **options, ftol=1e-15, xtol=1e-15, gtol=1e-15) for s in valleys()]
        found = [minimize(value, each.x, method="Nelder-Mead", options={"xatol": 1e-12, "fatol": 1e-20}) for each in found]
        best = min(found, key=lambda result: result.fun)
    else:
        near = np.append(start[:p] * normalized(start[None, p:])[1][:, 0], start[p:])
        best = least_squares(residuals, np.clip(near, low, high), **options)
    # Exactly at a bound, where it is at one.
    s = np.clip(np.where(best.x < np.append(np.full(p, 1e-12), problem.low), low, best.x), low, high)
    beside = [value(s + step) for step in 1e-4 * np.vstack([np.eye(len(s)), -np.eye(len(s))])]
    return s[:p] / normalized(s[None, p:])[1][:, 0], s[p:], value(s), min(beside)


def _warnings(law: Form, condition: float, certified: bool, points: int) -> tuple[str, ...]:
    falls = any(getattr(law, name, 0) > 0 for name in "ab")
    flags, near = {"points_do_not_fall": not falls}, 1e-5  # as in db/views/1_power_law.sql
    for name, (low, high) in law.bounds.items():
        flags[f"{name}_at_lower_bound"] = falls and getattr(law, name) <= low * (1 + near)
        flags[f"{name}_at_upper_bound"] = falls and getattr(law, name) >= high * (1 - near)
    flags |= {
        "e_at_zero": "e" in law.linear and law.e <= 0,
        NO_FREEDOM: points == len(law.linear) + len(law.bounds),
        "undetermined": falls and condition > (np.finfo(float).max if any(flags.values()) else 1e10),
        "not_certified": not certified,
    }
    return tuple(name for name, holds in flags.items() if holds)


def _checked(form: type[Form], x: ArrayLike, y: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, Array]:
    x, y = _numbers("x", x), _numbers("y", y)
    w = np.ones(y.shape) if weights is None else _numbers("weights", weights)
    several, least = len(form.variables) > 1, len(form.linear) + len(form.bounds)
    if y.ndim != 1 or x.shape != ((len(form.variables), len(y)) if several else y.shape) or w.shape != y.shape:
        what = f"one row for each of {', '.join(form.variables)} in x" if several else "one list each"
        raise InputError(f"x has shape {x.shape} and y {y.shape}: a law needs {what}, of equal length, weights too")
    rows = np.atleast_2d(x).T
    rules = [
        (~(np.isfinite(rows).all(axis=1) & np.isfinite(y)), "x and y must be finite; leave these rows out"),
        (((rows < 1e-50) | (rows > 1e50)).any(axis=1), "x must be above 0 and between 1e-50 and 1e50; leave these rows out"),
        ((y < 0) | (y > 1e90), "y is a loss and cannot be negative, nor above 1e90; leave these rows out"),
        (~(np.isfinite(w) & (w > 0)), "weights must be finite and above 0; leave these rows out"),
    ]
    for broken, rule in rules:
        if broken.any():
            names = [f"row {i}: ({', '.join(f'{v:g}' for v in (*rows[i], y[i]))})" for i in np.flatnonzero(broken)]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise InputError(f"{', '.join(names[:5])}{more}: {rule}")
    values, counts = np.unique(rows, axis=0, return_counts=True)
    if (counts > 1).any():
        often = int(counts.argmax())
        which = " and ".join(f"{name} = {value:g}" for name, value in zip(form.variables, values[often], strict=True))
        raise InputError(f"{counts[often]} rows have {which}: x must differ; average rows of equal x")
    if len(y) < least:
        points = f"{len(y)} point{'s' * (len(y) != 1)}"
        raise InputError(f"{points}: a law with {least} parameters needs at least {least}; add sizes or budgets")
    return x, y, w


def _numbers(name: str, values: ArrayLike) -> Array:
    """Return an array of floats; a masked value is a NaN."""
    try:
        return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers, one a row: {error}") from None
