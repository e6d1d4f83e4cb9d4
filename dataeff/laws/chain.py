"""The whole chain of limits at once, with its doubt: members -> sizes -> budgets -> data efficiency.

A cell's loss (of single models, of K members, or their limit in K) comes with a standard error of its own, and one that all
cells at its D share: which draw of the data they saw (`dataeff.laws.noise`). A resample draws every loss anew, and then does
everything that was done to the measured ones: the law over N or the chosen size, the law over D, the baseline's law inverted at
the recipe's limit. What comes out has the doubt of every step in it, that of the baseline's law included. Intervals are
percentiles of the resamples; benchmarks/coverage.py measures, on the whole pipeline, that they cover.

A value is by the power law. Some resamples take a rival form instead, L = a exp(-x / tau) + e, which saturates sooner: as many as
its Akaike weight, that of the likelihoods of both on the measured losses, whose noise is known (Buckland, Burnham and Augustin
1997, Biometrics 53, 603; Burnham and Anderson 2002, section 2.9). Three points fit both forms, and then it is one half.

Of a tuned optimum the limit is what its grid and sizes have at best: the points beside the chosen one may truly be lower, and a
resample takes off by how much they are. Points count by their inverse variance. Where a law's residuals are larger than the
noise, the noise is scaled up to them. What a resample does not do: let the draws of nested budgets resemble each other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from dataeff.laws.fit import NO_FREEDOM, WARNINGS, Array, Fit, fit, refit
from dataeff.laws.forms import ALPHA_BOUNDS, Exponential, PowerLaw

ASYMPTOTE, DATA_LAW = "asymptote", "data_law"
BY_LAW, TRAINED = "data_efficiency", "data_efficiency_trained"
Key = tuple[str, float | None, str]  # recipe, D in tokens (None: a law over D), quantity


@dataclass(frozen=True, eq=False)
class Budget:
    """A recipe's cells at one D, each array of shape (cells,)."""

    tokens: float
    sizes: Array  # 1e9 parameters
    losses: Array  # nats per token
    errors: Array  # their standard errors but for the draw of the data, NaN: not known
    freedom: Array  # degrees of freedom those were estimated with, infinite: normal
    over_sizes: bool  # whether the limit is that of a law over sizes, or else that of the chosen size
    trained: tuple[float, float, float] | None  # what the chosen size reached, its standard error and freedom
    chosen: int = 0  # the cell of the chosen size
    beside: Sequence[tuple[Array, Array]] = ()  # mean and sd of the true excess of points beside each optimum
    sizes_beside: tuple[Array, Array] | None = None  # the same of the other sizes over the chosen one
    draw: tuple[float, float] = (0.0, math.inf)  # standard error that all cells at this D share, and its freedom


@dataclass(frozen=True, eq=False)
class Quantity:
    """A value of the chain, None with a reason where there is none; for a law also its fit."""

    value: float | None = None
    reason: str | None = None
    draws: Array | None = None  # the value of each resample, (resamples,)
    undefined: int = 0  # resamples in which the law shows no limit, or the ratio does not exist and is infinite
    fitted: Fit | None = None
    laws: Mapping[str, Array] | None = None  # a, alpha, tau and e of each resample, alpha or tau being NaN
    rival_weight: float = 0.0  # share of the resamples whose law is exponential
    misfit: float = 1.0  # by how much the noise of the law's points was scaled up, 1 unless its residuals exceed it
    cells: Sequence["Quantity"] = ()  # the points of the law or of the choice, in the order of `Budget.sizes`
    measured: Array | None = None  # of a limit at one D: the loss of the chosen size in each resample, as it was trained
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
    effects: dict[float, Array] = {}  # of the draw of the data in each resample, by D: all recipes share it
    for recipe, budgets in recipes.items():
        for budget in budgets:
            if budget.tokens not in effects:
                sd, freedom = budget.draw
                effects[budget.tokens] = sd * _t(draw, freedom, resamples)
            effect, spread = effects[budget.tokens], _spread(budget.freedom, resamples, draw)
            results[recipe, budget.tokens, ASYMPTOTE] = _limit(budget, spread, effect, draw)
            trained[recipe, budget.tokens] = _trained(budget, results[recipe, budget.tokens, ASYMPTOTE], effect, draw)
        results[recipe, None, DATA_LAW] = _data_law(results, recipe, budgets)
    law = _baseline_law(results, recipes, baseline)
    for (recipe, tokens), loss in trained.items():
        results[recipe, tokens, BY_LAW] = _ratio(law, results[recipe, tokens, ASYMPTOTE], tokens)
        results[recipe, tokens, TRAINED] = _ratio(law, loss, tokens)
    return results


def tokens_by_law(a: Array, alpha: Array, e: Array, losses: Array, tau: Array | float = np.nan) -> Array:
    """Return D where L = a / D^alpha + e, or where alpha is NaN a exp(-D / tau) + e, falls to the loss, in the law's unit of D;
    all of shape (resamples,).

    Infinite where the law never does (loss <= e), 0 where it lies below it everywhere (a = 0).
    """
    gap = losses - e
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        needed = np.where(np.isnan(alpha), np.maximum(tau * np.log(a / gap), 0.0), np.exp(np.log(a / gap) / alpha))
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


def _t(draw: np.random.Generator, freedom: float, resamples: int) -> Array:
    return draw.standard_t(freedom, resamples) if math.isfinite(freedom) else draw.standard_normal(resamples)


def _spread(freedom: Array, resamples: int, draw: np.random.Generator) -> Array:
    """Return what the estimated noise of each cell is multiplied by in each resample, (resamples, cells): one factor for all
    cells of the same freedom, so that each one's draws are Student's t and they share the error of the noise.
    """
    factors = {f: np.sqrt(f / draw.chisquare(f, resamples)) if math.isfinite(f) else np.ones(resamples) for f in set(freedom)}
    return np.stack([factors[f] for f in freedom], axis=1) if len(freedom) else np.ones((resamples, 0))


def _limit(budget: Budget, spread: Array, effect: Array, draw: np.random.Generator) -> Quantity:
    """Return the limit at one D: of the law over sizes, or of the chosen size and what may be better beside it."""
    if not len(budget.losses):
        return Quantity(reason="no size has a loss")
    known, losses = np.isfinite(budget.errors).all(), budget.losses
    noise = draw.standard_normal(spread.shape) * spread * np.nan_to_num(budget.errors)
    measured = losses[budget.chosen] + noise[:, budget.chosen] + effect if known else None
    for place, beside in enumerate(budget.beside):
        taken = _regret(*beside, len(spread), draw)
        losses = losses - taken.mean() * (np.arange(len(losses)) == place)
        noise[:, place] -= taken - taken.mean()
    cells = [Quantity(float(loss), draws=loss + noise[:, i] + effect if known else None) for i, loss in enumerate(losses)]
    if budget.over_sizes:
        law = _law(budget.sizes, losses, noise if known else None, effect, budget.errors)
        return replace(law, cells=cells, measured=measured)
    best = cells[budget.chosen]
    if budget.sizes_beside is not None and best.draws is not None:
        taken = _regret(*budget.sizes_beside, len(spread), draw)
        best = Quantity(best.value - float(taken.mean()), draws=best.draws - taken)
    return replace(best, cells=cells, measured=measured)


def _regret(mean: Array, sd: Array, resamples: int, draw: np.random.Generator) -> Array:
    """Return by how much the best of the points beside a chosen one lies below it in each resample; 0 where none does."""
    if not len(mean):
        return np.zeros(resamples)
    return np.maximum(-(mean + sd * draw.standard_normal((resamples, len(mean)))).min(axis=1), 0.0)


def _trained(budget: Budget, limit: Quantity, effect: Array, draw: np.random.Generator) -> Quantity:
    """Return what the chosen size reached. Where its loss is that of the law's point, so is the noise."""
    if budget.trained is None:
        return Quantity(reason="no run has finished")
    loss, error, freedom = budget.trained
    if not np.isfinite(error):
        return Quantity(loss)
    if limit.measured is not None and loss == budget.losses[budget.chosen]:
        return Quantity(loss, draws=limit.measured)
    return Quantity(loss, draws=np.maximum(loss + error * _t(draw, freedom, len(effect)) + effect, 0.0))


def _data_law(results: Mapping[Key, Quantity], recipe: str, budgets: Sequence[Budget]) -> Quantity:
    """Return the law over D of those budgets of a recipe that have a limit."""
    limits = {b.tokens / 1e6: limit for b in budgets if (limit := results[recipe, b.tokens, ASYMPTOTE]).value is not None}
    values, draws = np.array([limit.value for limit in limits.values()]), [limit.draws for limit in limits.values()]
    known = bool(draws) and all(d is not None for d in draws)
    noise = np.stack(draws, axis=1) - values if known else None
    law = _law(np.array(list(limits)), values, noise, 0.0)
    if law.reason and len(limits) < len(budgets):
        law = replace(law, reason=f"{law.reason}; {len(budgets) - len(limits)} of {len(budgets)} budgets have no limit")
    return law


def _law(x: Array, losses: Array, noise: Array | None, effect: Array | float, sd: Array | None = None) -> Quantity:
    """Return a law of losses, whose noise is theirs alone, (resamples, points), and whose common effect moves its limit. Points
    count by 1 / sd^2; that is of their noise unless given.
    """
    x, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    if len(x) < 3:
        return Quantity(reason=_too_few(x))
    mean = np.eye(len(x))[place] / counts  # sizes of equal N count as their mean, once each
    losses = losses @ mean
    if noise is None:
        fitted = fit(PowerLaw, x, losses, weights=counts)
        return Quantity(fitted.limit, _why_not(fitted), fitted=fitted)
    lost = ~np.isfinite(noise)  # a limit that a resample of the law before does not show
    sd = _half_range(np.where(lost, np.nan, noise)) if sd is None else np.sqrt(sd**2 @ mean**2)
    noise, lost = np.where(lost, 0.0, noise) @ mean, lost @ (mean > 0)
    weights = (np.median(sd) / np.maximum(sd, 0.01 * np.median(sd))) ** 2 if (sd > 0).all() else counts
    fitted, rival = fit(PowerLaw, x, losses, weights=weights), fit(Exponential, x / x[0], losses, weights=weights)
    misfit, of_rival = birge_scale(fitted, sd), birge_scale(rival, sd)
    weight = _rival_weight(fitted, rival, min(misfit, of_rival) * sd) if (sd > 0).all() else 0.0
    taken = round(weight * len(noise))  # the first: resamples are in no order
    scale = np.where(np.arange(len(noise)) < taken, of_rival, misfit)[:, None]
    given = np.maximum(losses + scale * noise + np.reshape(effect, (-1, 1)), 0.0)
    rows = np.where(lost, 0, weights)
    rows[(rows > 0).sum(axis=1) < 3] = weights
    laws = {name: np.full(len(given), np.nan) for name in ("a", "alpha", "tau", "e")}
    for form, unit, part in ((Exponential, x[0], np.s_[:taken]), (PowerLaw, 1.0, np.s_[taken:])):
        if len(given[part]):
            for name, values in refit(form, x / unit, given[part], weights=rows[part]).parameters.items():
                laws[name][part] = values
    laws["tau"] *= x[0]
    none = _no_limit(laws["a"], laws["alpha"], laws["e"])
    limits = np.where(np.isin(none, ["", "alpha_at_upper_bound"]) & ((~lost).sum(axis=1) >= 3), laws["e"], -np.inf)
    return Quantity(fitted.limit, _why_not(fitted), limits, int(np.sum(none != "")), fitted, laws, taken / len(given), misfit)


def _rival_weight(fitted: Fit, rival: Fit, sd: Array) -> float:
    """Return the Akaike weight of a rival with as many parameters: the ratio of the likelihoods, given the noise."""
    best, other = (float(np.sum((each.residuals / sd) ** 2)) for each in (fitted, rival))
    return 1 / (1 + math.exp(min((other - best) / 2, 700)))


def _why_not(fitted: Fit) -> str | None:
    return next((WARNINGS[name] for name in fitted.warnings if name != NO_FREEDOM), None)


def _half_range(noise: Array) -> Array:
    """Return half the range of the middle 68% of the resamples: the standard deviation of Student's t may be infinite."""
    low, high = np.nanquantile(noise, special.ndtr([-1, 1]), axis=0)
    return (high - low) / 2


def birge_scale(fitted: Fit, sd: Array) -> float:
    """Return sqrt(chi-square / freedom) of the residuals where it is above 1, else 1: the scale factor of Birge 1932 (Phys.
    Rev. 40) and the Particle Data Group (Review of Particle Physics, introduction, section 5.2.2).
    """
    spare = fitted.points - fitted.parameters
    if spare < 1 or not (sd > 0).all():
        return 1.0
    return max(1.0, float(np.sqrt(np.sum((fitted.residuals / sd) ** 2) / spare)))


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
