"""The whole chain of limits at once, with its doubt: members -> sizes -> budgets -> data efficiency.

A cell's loss (of single models, of K members, or their limit in K) comes with a standard error: from seeds, or from the
jackknife over members. A resample draws every such loss anew, loss + error * t(freedom), and then does everything that
was done to the measured ones: the law over N or the best cell, the law over D, the baseline's law inverted at the
recipe's limit. What comes out has the doubt of every step in it, that of the baseline's law included. Intervals are
percentiles of the resamples; benchmarks/laws.py measures that they cover.

Where a law's residuals are too large for the noise, the form is wrong by as much, and the noise is scaled up to them.
What a resample does not do: choose another optimum, another best size, or another form of the law. Recipes are drawn apart,
also where they share runs; the baseline's draws are the same in its law and, but for that scale, in its own ratio.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from dataeff.laws.fit import NO_FREEDOM, WARNINGS, Array, Fit, fit, refit
from dataeff.laws.forms import ALPHA_BOUNDS, PowerLaw

MISFIT = 0.01  # residuals that noise alone would exceed more seldom than this are the form's; the noise is then scaled up to them
ASYMPTOTE, DATA_LAW = "asymptote", "data_law"
BY_LAW, TRAINED = "data_efficiency", "data_efficiency_trained"
Key = tuple[str, float | None, str]  # recipe, D in tokens (None: a law over D), quantity


@dataclass(frozen=True, eq=False)
class Budget:
    """A recipe's cells at one D, each array of shape (cells,)."""

    tokens: float
    sizes: Array  # 1e9 parameters
    losses: Array  # nats per token
    errors: Array  # their standard errors, NaN: not known
    freedom: Array  # degrees of freedom those were estimated with, infinite: normal
    over_sizes: bool  # whether the limit is that of a law over sizes, or else the least loss
    trained: tuple[float, float, float] | None  # the least loss that was reached, its standard error and freedom


@dataclass(frozen=True, eq=False)
class Quantity:
    """A value of the chain, None with a reason where there is none; for a law also its fit."""

    value: float | None = None
    reason: str | None = None
    draws: Array | None = None  # the value of each resample, (resamples,)
    undefined: int = 0  # resamples in which the law shows no limit, or the ratio does not exist and is infinite
    fitted: Fit | None = None
    laws: Mapping[str, Array] | None = None  # a, alpha and e of each resample
    misfit: float = 1.0  # by how much the noise of the law's points was scaled up: 1 unless its residuals are too large for it
    tokens: float | None = None  # what the baseline of a ratio needs

    def interval(self) -> tuple[float | None, float | None]:
        """Return the ends of the 90% interval, None on a side where there is none."""
        if self.value is None or self.draws is None:
            return None, None
        low, high = np.quantile(self.draws, [0.05, 0.95], method="closest_observation")
        low, high = min(float(low), self.value), max(float(high), self.value)
        return (low if np.isfinite(low) else None), (high if np.isfinite(high) else None)


def chain(
    recipes: Mapping[str, Sequence[Budget]], baseline: str | None, resamples: int = 2000, seed: int = 0
) -> dict[Key, Quantity]:
    """Return every quantity of a study: the asymptote at each D, the law over D, and the data efficiency of what
    was trained and of the limit: the tokens by the baseline's law over D (arXiv 2509.14786, section 2).

    Budgets rise in D; one may have no cell with a loss. Laws over D take D in 1e6 tokens.
    """
    draw, results, trained = np.random.default_rng(seed), {}, {}
    for recipe, budgets in recipes.items():
        spread = _spread(budgets, resamples, draw)
        for budget in budgets:
            results[recipe, budget.tokens, ASYMPTOTE] = _limit(budget, spread, draw)
            best = [np.array([number]) for number in budget.trained or ()]
            trained[recipe, budget.tokens] = _least(*best, spread, draw) if best else Quantity(reason="no run has finished")
        results[recipe, None, DATA_LAW] = _law(*_limits(results, recipe, budgets))
    law = _baseline_law(results, recipes, baseline)
    for (recipe, tokens), loss in trained.items():
        results[recipe, tokens, BY_LAW] = _ratio(law, results[recipe, tokens, ASYMPTOTE], tokens)
        results[recipe, tokens, TRAINED] = _ratio(law, loss, tokens)
    return results


def tokens_by_law(a: Array, alpha: Array, e: Array, losses: Array) -> Array:
    """Return D where L = a / D^alpha + e falls to the loss, in the law's unit of D; all of shape (resamples,).

    Infinite where the law never does (loss <= e), 0 where it lies below it everywhere (a = 0).
    """
    gap = losses - e
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        needed = np.exp(np.log(a / gap) / alpha)
    return np.where(gap > 0, np.where(a > 0, needed, 0.0), np.inf)


def fit_curves(x: Sequence[float], ys: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Return the law of each of many curves over the same x: `a`, `alpha` (None where a is 0), `e`, `rmse`, `points`, and the
    `reason` why e is no limit.
    """
    if len(x) < 3:
        return [{"points": len(x), "reason": _too_few(x)} for _ in ys]
    fits = refit(PowerLaw, x, ys)
    rmse = np.sqrt(np.maximum(fits.objective, 0) / len(x)).tolist()
    rows = zip(fits.laws(), rmse, _no_limit(**fits.parameters), strict=True)
    return [
        vars(law) | {"alpha": law.alpha if law.a else None, "rmse": error, "points": len(x), "reason": WARNINGS.get(why)}
        for law, error, why in rows
    ]


def _no_limit(a: Array, alpha: Array, e: Array) -> Array:
    """Return for each law why its e is no limit, a key of `WARNINGS`; '' where it is one."""
    at_bounds = [a <= 0, alpha <= ALPHA_BOUNDS[0] * 1.00001, alpha >= ALPHA_BOUNDS[1] * 0.99999, e <= 0]
    return np.select(at_bounds, ["points_do_not_fall", "alpha_at_lower_bound", "alpha_at_upper_bound", "e_at_zero"], "")


def _too_few(x: Sequence[float] | Array) -> str:
    return f"a law with three parameters needs 3 points; there {'is 1' if len(x) == 1 else f'are {len(x)}'}"


def _spread(budgets: Sequence[Budget], resamples: int, draw: np.random.Generator) -> Array:
    """Return what a recipe's estimated noise is multiplied by in each resample, (resamples, 1): one factor for all its cells,
    so that each cell's draws are Student's t and their errors of the noise are shared.
    """
    estimated = [freedom for budget in budgets for freedom in budget.freedom if np.isfinite(freedom)]
    if not estimated:
        return np.ones((resamples, 1))
    return np.sqrt(estimated[0] / draw.chisquare(estimated[0], (resamples, 1)))


def _resampled(losses: Array, errors: Array, freedom: Array, spread: Array, draw: np.random.Generator) -> Array | None:
    """Return draws of the losses, (resamples, cells), none below 0; None where an error is not known."""
    if not np.isfinite(errors).all():
        return None
    noise = draw.standard_normal((len(spread), len(losses))) * np.where(np.isinf(freedom), 1.0, spread)
    return np.maximum(losses + errors * noise, 0.0)


def _limit(budget: Budget, spread: Array, draw: np.random.Generator) -> Quantity:
    given = budget.losses, budget.errors, budget.freedom, spread, draw
    if not len(budget.losses):
        return Quantity(reason="no size has a loss")
    return _law(budget.sizes, budget.losses, _resampled(*given)) if budget.over_sizes else _least(*given)


def _least(losses: Array, *noise: Any) -> Quantity:
    draws, best = _resampled(losses, *noise), int(np.argmin(losses))
    return Quantity(float(losses[best]), draws=None if draws is None else draws[:, best])


def _limits(results: Mapping[Key, Quantity], recipe: str, budgets: Sequence[Budget]) -> tuple[Array, Array, Array | None]:
    """Return D in 1e6 tokens, limits and draws of those budgets of a recipe that have a limit."""
    limits = {b.tokens / 1e6: limit for b in budgets if (limit := results[recipe, b.tokens, ASYMPTOTE]).value is not None}
    draws, values = [limit.draws for limit in limits.values()], np.array([limit.value for limit in limits.values()])
    return np.array(list(limits)), values, np.stack(draws, axis=1) if draws and all(d is not None for d in draws) else None


def _law(x: Array, losses: Array, draws: Array | None) -> Quantity:
    x, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    if len(x) < 3:
        return Quantity(reason=_too_few(x))
    mean = np.eye(len(x))[place] / counts  # sizes of equal N count as their mean, once each
    losses, draws = losses @ mean, None if draws is None else draws @ mean
    fitted = fit(PowerLaw, x, losses, weights=counts)
    reason = next((WARNINGS[name] for name in fitted.warnings if name != NO_FREEDOM), None)
    if draws is None:
        return Quantity(fitted.limit, reason, fitted=fitted)
    misfit = _misfit(fitted, draws)
    laws = refit(PowerLaw, x, np.maximum(losses + misfit * (draws - losses), 0.0), weights=counts).parameters
    return Quantity(fitted.limit, reason, laws["e"], int(np.sum(_no_limit(**laws) != "")), fitted, laws, misfit)


def _misfit(fitted: Fit, draws: Array) -> float:
    """Return sqrt(chi-square / freedom) of the residuals where it is too large to be noise, else 1: the scale factor of the
    Particle Data Group (Review of Particle Physics, introduction, section 5.2.2).
    """
    spare, (low, high) = fitted.points - fitted.parameters, np.quantile(draws, stats.norm.cdf([-1, 1]), axis=0)
    sd = (high - low) / 2  # for few degrees of freedom their standard deviation is infinite
    if spare < 1 or not (sd > 0).all():
        return 1.0
    square = float(np.sum((fitted.residuals / sd) ** 2))
    return float(np.sqrt(square / spare)) if stats.chi2.sf(square, spare) < MISFIT else 1.0


def _baseline_law(results: Mapping[Key, Quantity], recipes: Mapping[str, Any], baseline: str | None) -> Quantity:
    """Return the law that ratios invert, also one without a limit of its own; or the reason why there is none."""
    if baseline not in recipes:
        missing = f"the baseline {baseline} has no runs in this study" if baseline else "the study names no baseline"
        return Quantity(reason=missing)
    law = results[baseline, None, DATA_LAW]
    falls = law.fitted is not None and law.fitted.law.a > 0
    return law if falls else Quantity(reason=f"the baseline has no data law: {law.reason}")


def _ratio(law: Quantity, loss: Quantity, tokens: float) -> Quantity:
    """Return the ratio to D, in tokens, of what the baseline's law over D, in 1e6 tokens, needs for a loss."""
    if loss.value is None or law.fitted is None:
        return Quantity(reason=loss.reason or law.reason)
    best, draws, undefined = law.fitted.law, None, 0
    needed = float(tokens_by_law(best.a, best.alpha, best.e, np.float64(loss.value))) * 1e6
    if law.laws is not None and loss.draws is not None:
        draws = tokens_by_law(**law.laws, losses=loss.draws) * 1e6 / tokens
        undefined = int((~np.isfinite(draws)).sum())
    if not np.isfinite(needed):
        reason = f"the baseline's law never reaches this loss: its limit is {best.e:.4f}"
        return Quantity(None, reason, draws, undefined)
    return Quantity(needed / tokens, None, draws, undefined, tokens=needed)
