"""Data efficiency: how many times more tokens the baseline needs to reach a loss that a recipe reaches with D tokens.

    data efficiency = D_baseline(loss) / D                                      (arXiv 2509.14786, section 2)

D_baseline comes either from the inverse of the baseline's data law, which extrapolates as far as it is asked to, or from
a straight line in log D between the baseline's measured points, which never leaves their range. Where they disagree, it
is the law that speaks. None, with a reason, where there is no such D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from dataeff.errors import InputError
from dataeff.laws.fit import Fit, checked
from dataeff.laws.forms import Falling, Reciprocal


@dataclass(frozen=True)
class Efficiency:
    """`ratio` = `tokens` / D, `tokens` what the baseline needs (the unit of its points); `measured`: the range of their D.

    `extrapolated`: `tokens` lies outside `measured`.
    """

    ratio: float | None
    tokens: float | None
    method: str
    measured: tuple[float, float]
    extrapolated: bool = False
    reason: str | None = None


def efficiency_by_law(baseline: Fit, loss: float, tokens: float) -> Efficiency:
    """Return the data efficiency of `loss` (nats per token) reached with `tokens`, by the law over D of the baseline recipe.

    None where the law has no limit to speak of, never falls to `loss`, or only beyond any number. Raises `InputError`
    for a law that is not over one variable, loss < 0 or tokens <= 0.
    """
    _check(loss, tokens)
    if not isinstance(baseline.law, Falling):
        raise InputError(f"{type(baseline.law).__name__} is a law of {', '.join(baseline.law.variables)}, not of tokens alone")
    measured = (float(baseline.x.min()), float(baseline.x.max()))
    needed = baseline.law.inverse(loss)
    if baseline.law.a <= 0:
        reason = "the baseline's losses do not fall with tokens"
    elif needed is None:
        reason = f"the baseline's law never falls to {loss:g}: its limit is {baseline.law.limit:g}"
    elif not 0 < needed < math.inf:
        reason = f"the baseline's law falls to {loss:g} only beyond any number of tokens"
    else:
        return Efficiency(needed / tokens, needed, "law", measured, not measured[0] <= needed <= measured[1])
    return Efficiency(None, None, "law", measured, reason=reason)


def efficiency_by_interpolation(x: ArrayLike, y: ArrayLike, loss: float, tokens: float) -> Efficiency:
    """Return the same by the baseline's points: x in tokens, y in nats per token, both (points,).

    Losses that rise with tokens are pooled first (isotonic regression by pool-adjacent-violators; Barlow et al. 1972), and
    of a stretch with equal losses the fewest tokens count. Raises `InputError` as `fit` does, and for fewer than two points.
    """
    _check(loss, tokens)
    x, y, _, _ = checked(Reciprocal, x, y, None, {})
    order = np.argsort(x)
    x, y = x[order], isotonic_regression(y[order], increasing=False).x
    measured = (float(x[0]), float(x[-1]))
    if not y[-1] <= loss <= y[0]:
        where = f"above {y[0]:g}, the baseline's at {x[0]:g}" if loss > y[0] else f"below {y[-1]:g}, its loss at {x[-1]:g}"
        return Efficiency(None, None, "interpolation", measured, reason=f"{loss:g} is outside the measured range: {where} tokens")
    after = int(np.argmax(y <= loss))
    share = (y[after - 1] - loss) / (y[after - 1] - y[after]) if after else 0.0
    needed = float(np.exp(np.log(x[max(after - 1, 0)]) * (1 - share) + np.log(x[after]) * share))
    return Efficiency(needed / tokens, needed, "interpolation", measured)


def _check(loss: float, tokens: float) -> None:
    if not (math.isfinite(loss) and loss >= 0 and math.isfinite(tokens) and tokens > 0):
        raise InputError(f"loss {loss!r} and tokens {tokens!r}: a loss is finite and not negative, tokens are above 0")
