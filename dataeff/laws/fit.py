"""Exact least squares for the power law, by variable projection.

For a fixed alpha the law L = a / x^alpha + e is linear in a and e, so both have a closed form (Golub and Pereyra 1973,
SIAM J. Numer. Anal. 10), and the fit is a search over alpha alone: a grid that cannot miss the valley, then a bounded
polish. There is no starting point to choose. It weighs all points alike, gives no intervals, and never raises
because a law fits badly: what is doubtful about a fit is in `warnings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from dataeff.errors import InputError
from dataeff.laws.forms import ALPHA_BOUNDS, PowerLaw

WARNINGS = {
    "points_do_not_fall": "the best fit has a = 0: alpha means nothing and e is the mean",
    "alpha_at_lower_bound": f"alpha is at its lower bound {ALPHA_BOUNDS[0]}: the points show no limit",
    "alpha_at_upper_bound": f"alpha is at its upper bound {ALPHA_BOUNDS[1]}: no power law falls so abruptly",
    "e_at_zero": "e is at its bound 0: the points show no limit",
    "no_freedom": "three points, three parameters: the law passes through them, and nothing tests its form",
}


@dataclass(frozen=True)
class PowerLawFit:
    """A fitted law. `objective` is the sum of squared residuals (nats per token squared), `rmse` the root of its mean."""

    law: PowerLaw
    objective: float
    points: int
    warnings: tuple[str, ...] = field(default=())  # keys of WARNINGS

    @property
    def rmse(self) -> float:
        return (self.objective / self.points) ** 0.5


def fit_power_law(x: ArrayLike, y: ArrayLike) -> PowerLawFit:
    """Return the law of least squares over points (x, y), x > 0 and y a loss, both of shape (points,).

    Raises `InputError`, which names the rows, for unequal lengths, fewer than three points, values that are not finite,
    x <= 0, y < 0 and equal x.
    """
    x, y = _checked(x, y)
    scale = float(np.exp(np.mean(np.log(x))))  # powers of x / scale stay near 1, whatever the unit of x
    grid = np.geomspace(*ALPHA_BOUNDS, 256)
    losses = [_project(x / scale, y, alpha)[2] for alpha in grid]
    best = int(np.argmin(losses))
    low, high = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, len(grid) - 1)])
    polished = minimize_scalar(
        lambda log_alpha: _project(x / scale, y, np.exp(log_alpha))[2],
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-10},
    )
    alpha = min((float(grid[best]), float(np.exp(polished.x))), key=lambda alpha: _project(x / scale, y, alpha)[2])
    a, e, objective = _project(x / scale, y, alpha)
    law = PowerLaw(a * scale**alpha, alpha, e)
    return PowerLawFit(law, objective, len(x), _warnings(law, len(x)))


def _project(x: NDArray[np.float64], y: NDArray[np.float64], alpha: float) -> tuple[float, float, float]:
    """Return (a, e, sum of squares) of the best a >= 0, e >= 0 for this alpha."""
    u = x**-alpha
    centred = u - u.mean()
    spread = centred @ centred
    a = float(centred @ (y - y.mean()) / spread) if spread > 0 else 0.0
    e = float(y.mean() - a * u.mean())
    if a <= 0:
        a, e = 0.0, float(y.mean())
    elif e < 0:
        a, e = float(u @ y / (u @ u)), 0.0
    residual = y - (a * u + e)
    return a, e, float(residual @ residual)


def _warnings(law: PowerLaw, points: int) -> tuple[str, ...]:
    low, high = ALPHA_BOUNDS
    falls = law.a > 0
    found = {
        "points_do_not_fall": not falls,
        "alpha_at_lower_bound": falls and law.alpha <= low * (1 + 1e-5),
        "alpha_at_upper_bound": falls and law.alpha >= high * (1 - 1e-5),
        "e_at_zero": law.e <= 0,
        "no_freedom": points == 3,
    }
    return tuple(name for name, holds in found.items() if holds)


def _checked(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"x has shape {x.shape} and y {y.shape}: a law needs one list each, of equal length")
    rules = [
        (~(np.isfinite(x) & np.isfinite(y)), "x and y must be finite; leave these rows out"),
        (x <= 0, "x must be above 0; leave these rows out"),
        (y < 0, "y is a loss and cannot be negative; leave these rows out"),
        (np.array([np.count_nonzero(x == value) > 1 for value in x], dtype=bool), "x must differ; average rows of equal x"),
    ]
    for broken, rule in rules:
        if broken.any():
            rows = ", ".join(f"row {i}: ({x[i]:g}, {y[i]:g})" for i in np.flatnonzero(broken))
            raise InputError(f"{rows}: {rule}")
    if len(x) < 3:
        raise InputError(f"{len(x)} points: a law with three parameters needs at least 3; add sizes or budgets")
    return x, y
