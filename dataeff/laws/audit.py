"""What a data-efficiency ratio rests on: a table of (recipe, D, N, loss) in, named flaws and a verdict out.

The ratio of a recipe at D is the tokens the baseline needs for the recipe's best loss, over D (arXiv 2509.14786, section 2). How
many depends on the rule that reads the baseline's best losses over D; every rule is tried, and the ratio is their range, which
is no interval. A flaw has a worth: the nats it may hide in the baseline, infinite if not known. A ratio is fragile when flaws and
noise (two standard deviations of a loss) may hide what halves it or brings it to 1, when rules differ by a factor of 2, and when
it lies outside the baseline's budgets and the laws there are untested or disagree.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from dataeff.errors import InputError, nearest
from dataeff.laws.fit import WARNINGS, fit
from dataeff.laws.forms import Exponential, PowerLaw, PowerLawWithoutFloor

AXES = ("lr", "weight_decay", "epochs")
POINT = ("recipe", "seed_tokens", "parameters_total", "members", *AXES)  # rows that agree in these are seeds of one point
NATURAL_EDGES = {"weight_decay": 0.0, "epochs": 1.0}  # no smaller value could have been tried
LAWS = {"power law": (PowerLaw, 0), "power law without floor": (PowerLawWithoutFloor, 0), "exponential": (Exponential, 0)}
LAWS |= {"power law without the smallest D": (PowerLaw, 1)}  # form, budgets left out
FREEDOM = 2  # degrees of freedom below which the form of a law is untested
DISAGREE, REJECTED = 1.25, 0.05  # highest rule over lowest; p below which a rival law is rejected
OF_RATIOS = {
    "untuned_baseline": ("{points} points, not {baseline_points}", "the baseline was tried at fewer than half as many points"),
    "axis_fixed": ("{axes}", "the baseline holds this axis fixed elsewhere; leaving its value gained as much"),
    "extrapolated": ("loss {loss:.4f}", "outside what the baseline reached within its budgets, so only laws give a ratio"),
    "rules_disagree": ("from {low:.2f}x", f"the highest rule gives over {DISAGREE} times the lowest"),
    "fragile": ("{lost_by:.3f} nats halve it or make it 1", "the flaws and noise found may hide as much"),
}
Recipes = Mapping[str, Mapping[float, Sequence[Mapping[str, Any]]]]  # points by recipe and D
Rule = tuple[Callable[[Any], Any], float, float] | str  # loss over D / the smallest D, from and to; or why there is none


class Finding(NamedTuple):
    name: str
    text: str
    worth: float = 0.0  # nats it may hide, infinite if not known, NaN if it hides none or its ratios say how many


def audit(rows: Sequence[Mapping[str, Any]], baseline: str) -> dict[str, Any]:
    """Return verdict, findings, ratios, the baseline's best losses and law, the points tried and the noise.

    A row has `recipe`, `seed_tokens` and `val_loss` (missing: diverged), and may have others of `POINT`, `standard_error`,
    `published_ratio`, and `law_alpha` with `law_e`: a law over D known from elsewhere, which is put through the baseline's loss
    at its largest D. Raises `InputError` for what is no such table.
    """
    recipes, sd = _points(rows, baseline)
    cells = {(name, d): points for name, by_d in recipes.items() for d, points in by_d.items()}
    best = {key: min(map(_loss, points)) for key, points in cells.items()}
    base = {d: loss for (name, d), loss in best.items() if name == baseline}
    tried = {key: len({tuple(point[name] for name in ("parameters_total", *AXES)) for point in cells[key]}) for key in cells}
    if not base or len(base) == len(best):
        raise InputError(f"--baseline {baseline}: it and another recipe need losses in the table; {nearest(baseline, recipes)}")
    stated = {(row["law_alpha"], row["law_e"]) for row in rows if row.get("law_alpha") and row.get("law_e") is not None}
    rules, law = _rules(base, sorted(stated))
    findings = list(_edges(recipes[baseline]))
    if (freedom := max(len(base) - 3, 0)) < FREEDOM:
        text = f"budgets of the baseline: {len(base)}; degrees of freedom left to a law of 3 parameters: {freedom}"
        findings.append(Finding("few_points", text))
    if sd is None:
        findings.append(Finding("one_seed", "no point has two seeds or a standard error: the noise of a loss is not known"))
    published = {(row["recipe"], row["seed_tokens"]): row["published_ratio"] for row in rows if row.get("published_ratio")}
    ratios, most = [], max(points for (name, _), points in tried.items() if name == baseline)
    for name, d in [key for key in best if key[0] != baseline]:
        points, its = tried[name, d], tried.get((baseline, d), most)
        gains = _untried(cells[name, d], sum(recipes[baseline].values(), []))
        own = [*findings, *[Finding("untuned_baseline", "", math.inf)] * (points > 2 * its)]
        own += [Finding("axis_fixed", "", gain) for gain in gains.values()]
        ratio = {"recipe": name, "seed_tokens": d, "loss": best[name, d], "published": published.get((name, d))}
        ratio |= {"points": points, "baseline_points": its, "untried": gains}
        ratios.append(ratio | _ratio(best[name, d], d / min(base), rules, own, 2 * (sd or 0.0)))
    holding = sum(ratio["verdict"] == "holds" for ratio in ratios)
    return {
        "verdict": "holds" if holding == len(ratios) else "fragile",
        "reason": f"{holding} of {len(ratios)} ratios are supported by this table",
        "findings": [finding._asdict() for finding in [*findings, *_of_ratios(ratios)]],
        "ratios": ratios,
        "baseline": [{"seed_tokens": d, "loss": loss, "points": tried[baseline, d]} for d, loss in base.items()],
        "law": law,
        "noise_sd": sd,
    }


def _of_ratios(ratios: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield the flaws of single ratios, each with the first three that have it."""
    for name, (numbers, sentence) in OF_RATIOS.items():
        place = "{recipe} at D = {seed_tokens:,.10g} (" + numbers + ")"
        hit = [ratio for ratio in ratios if name in ratio["findings"]]
        axes = [", ".join(f"{a} {g:.3f} nats".replace("inf nats", "not shown") for a, g in r["untried"].items()) for r in hit]
        places = [place.format(**ratio, axes=text) for ratio, text in zip(hit, axes, strict=True)]
        places[3:] = [f"{len(places) - 3} more"] * (len(places) > 3)
        if places:
            yield Finding(name, f"{'; '.join(places)}: {sentence}", math.nan)


def _loss(point: Mapping[str, Any]) -> float:
    return point["val_loss"]


def _points(rows: Sequence[Mapping[str, Any]], baseline: str) -> tuple[Recipes, float | None]:
    """Return the points of each D that has a finite loss (infinite: diverged), and the standard deviation of one loss, pooled
    over the repeated points of the baseline, or else of all recipes, or else the root mean square of the standard errors.
    """
    seeds, recipes = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows, 1):
        recipe, tokens, loss = row["recipe"], row["seed_tokens"] or 0, math.inf if row["val_loss"] is None else row["val_loss"]
        if not recipe or not 0 < tokens < math.inf or loss < 0:
            text = f"row {number} has recipe {recipe}, D = {tokens}, loss = {loss}"
            raise InputError(f"{text}: each needs a recipe, D above 0 and a loss not below 0; correct it")
        seeds[tuple(row.get(name) for name in POINT)].append(math.inf if math.isnan(loss) else loss)
    for key, losses in sorted(seeds.items(), key=lambda item: item[0][1]):
        recipes[key[0]][key[1]].append(dict(zip(POINT, key, strict=True)) | {"val_loss": float(np.mean(losses))})
    finite = {n: {d: p for d, p in cells.items() if math.isfinite(min(map(_loss, p)))} for n, cells in recipes.items()}
    repeated = {key: losses for key, losses in seeds.items() if len(losses) > 1 and math.isfinite(sum(losses))}
    if pooled := [losses for key, losses in repeated.items() if key[0] == baseline] or list(repeated.values()):
        return finite, math.sqrt(sum(np.var(losses) * len(losses) for losses in pooled) / sum(len(each) - 1 for each in pooled))
    errors = [row["standard_error"] for row in rows if row.get("standard_error")]
    return finite, math.hypot(*errors) / math.sqrt(len(errors)) if errors else None


def _rules(base: Mapping[float, float], stated: Sequence[tuple[float, float]]) -> tuple[dict[str, Rule], dict[str, Any]]:
    """Return all rules, and the baseline's power law.

    A rival is dropped if its extra sum of squares is significant: the F-test of nested models (Draper and Smith 1998, Applied
    Regression Analysis, section 6.1), exact for the power law without floor.
    """
    x, y = np.array(list(base)) / min(base), np.array(list(base.values()))
    falls = y < np.minimum.accumulate(np.append(np.inf, y[:-1]))
    own, spare, power = (x[falls], y[falls]), len(x) - 3, None
    rules: dict[str, Rule] = {"interpolated": (lambda d: np.interp(d, *own), 1.0, own[0][-1])}
    rules["interpolated in log D"] = lambda d: np.interp(np.log(d), np.log(own[0]), own[1]), 1.0, own[0][-1]
    for name, (form, start) in LAWS.items():
        try:
            fitted = fit(form, x[start:], y[start:])
        except InputError as error:
            rules[name] = str(error)
            continue
        power = power or fitted
        extra = (fitted.objective - power.objective) / max(power.objective / spare, 1e-12) if spare > 0 and not start else 0.0
        if fitted.law.a <= 0:
            rules[name] = WARNINGS["points_do_not_fall"]
        elif extra > special.fdtri(1, max(spare, 1), 1 - REJECTED):
            rules[name] = f"fits worse than the power law (F-test, p < {REJECTED}): rmse {fitted.rmse:.4f}, not {power.rmse:.4f}"
        else:
            rules[name] = fitted.law, 1e-6, 1e15
    for alpha, e in stated:
        rules[f"stated law, alpha {alpha:g}, E {e:g}"] = PowerLaw((y[-1] - e) * x[-1] ** alpha, alpha, e), 1e-6, 1e15
    known = {"form": "L = a (D / smallest D)^-alpha + e", "points": len(x), "degrees_of_freedom": max(spare, 0)}
    return rules, known | (vars(power.law) | {"rmse": power.rmse} if spare >= 0 else {})


def _edges(cells: Mapping[float, Sequence[Mapping[str, Any]]]) -> Iterator[Finding]:
    """Yield where the baseline's best size, or its best value of an axis at that size, is the last that was tried."""
    edges, searched = defaultdict(dict), False
    for tokens, points in sorted(cells.items()):
        best = min(points, key=_loss)
        of_size = [p for p in points if p["parameters_total"] == best["parameters_total"]]
        for name, own in {"parameters_total": points, **dict.fromkeys(AXES, of_size)}.items():
            least = {p[name]: _loss(p) for p in sorted(own, key=_loss, reverse=True) if p[name] is not None}
            values = sorted(least)
            searched |= name in AXES and len(values) > 1
            if len(values) > 1 and best[name] in (values[0], values[-1]) and best[name] != NATURAL_EDGES.get(name):
                side, beside = ("smallest", values[1]) if best[name] == values[0] else ("largest", values[-2])
                edges[name, side][tokens] = least[beside] - _loss(best)
            elif len(values) < 2 and name not in AXES:
                edges[name, "only"][tokens] = math.inf
    for (name, side), gains in edges.items():
        text = f"the baseline's best {name} is the {side} one tried at D = {', '.join(f'{d:,.10g}' for d in gains)}"
        text += "" if side == "only" else f"; the last step gained {max(gains.values()):.4f} nats"
        yield Finding("grid_edge" if name in AXES else "size_edge", text, max(gains.values()))
    if not searched:
        yield Finding("tuning_unknown", f"no search of {', '.join(AXES)} is shown at the baseline's best sizes", math.inf)


def _untried(points: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return axes that the baseline holds fixed elsewhere than at a recipe's best, and what leaving its value gained, in nats."""
    best, fixed = min(points, key=_loss), {axis: {point[axis] for point in base} for axis in AXES}
    away = [axis for axis, own in fixed.items() if len(own) == 1 and best[axis] is not None and best[axis] not in own]
    return {a: min((_loss(p) for p in points if p[a] in fixed[a]), default=math.inf) - _loss(best) for a in away}


def _ratio(loss: float, x: float, rules: Mapping[str, Rule], findings: Sequence[Finding], noise: float) -> dict[str, Any]:
    read = [{"rule": name, **_read(rule, loss, x)} for name, rule in rules.items()]
    values = [each["ratio"] for each in read if each["ratio"] is not None]
    low, high = min(values, default=None), max(values, default=None)
    halved_by, lost_by = (
        min((each[name] for each in read if each[name] is not None), default=math.inf) for name in ("halved_by", "lost_by")
    )
    hidden, outside = noise + sum(finding.worth for finding in findings), all(each["ratio"] is None for each in read[:2])
    own = {"extrapolated": outside, "rules_disagree": bool(values) and high > DISAGREE * low, "fragile": hidden >= lost_by}
    names = list(dict.fromkeys([finding.name for finding in findings] + [name for name in own if own[name]]))
    weak = {"few_points", "rules_disagree"} & {*names} and (outside or high >= 2 * low)
    doubts = ["no rule gives it"] * (not values)
    doubts += [name for name in ("extrapolated", "few_points", "rules_disagree") if weak and name in names]
    doubts += [finding.name for finding in findings if own["fragile"] and finding.worth] + ["noise"] * (noise >= lost_by)
    reason = (
        ", ".join(dict.fromkeys(doubts)) or f"{lost_by:.3f} nats halve it or make it 1, flaws and noise hide up to {hidden:.3f}"
    )
    if values and high <= 1:
        doubts, reason = [], "no gain by any rule; a better baseline would only lower it"
    verdict = {"verdict": "fragile" if doubts else "holds", "reason": reason}
    return {"low": low, "high": high, "halved_by": halved_by, "lost_by": lost_by, **verdict, "findings": names, "rules": read}


def _read(rule: Rule, loss: float, x: float) -> dict[str, Any]:
    """Return the ratio for a loss at x, and by how many nats the whole curve must fall to halve it, or to halve it or reach 1."""
    read = {"ratio": None, "halved_by": None, "lost_by": None, "reason": rule if isinstance(rule, str) else None}
    if read["reason"]:
        return read
    curve, *ends = rule
    (most, least), limit = map(curve, ends), getattr(curve, "limit", None)
    if least <= loss <= most:
        needed = math.exp(optimize.brentq(lambda t: curve(math.exp(t)) - loss, *np.log(ends)))
        places = {"halved_by": needed / 2, "lost_by": max(needed / 2, x)}
        return read | {"ratio": needed / x} | {k: float(curve(at)) - loss for k, at in places.items() if at >= ends[0]}
    if limit is None:
        return read | {"reason": f"outside the baseline's losses, {most:.4f} to {least:.4f}"}
    return read | {"ratio": math.inf if loss < least else 0.0, "reason": f"never this loss: its limit is {limit:.4f}"}
