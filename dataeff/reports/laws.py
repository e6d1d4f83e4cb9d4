"""One law of a study, and what tests it: its points, residuals, profile, largest point held out, and rival forms.

    over N   losses, or limits in K, of a recipe's sizes at one D    x in units of 1e9 parameters    `asymptote`
    over K   losses of K members of the ensemble at an optimum       x in members                    `ensemble_asymptote`
    over D   limits of a recipe                                      x in units of 1e6 tokens        `data_law`

Limits and intervals are those of the views; the rest is fitted here by `dataeff.laws`, to the same points. A law that cannot
be fitted has a reason. Losses in nats per token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
from scipy import stats

from dataeff.errors import InputError
from dataeff.laws.chain import MISFIT
from dataeff.laws.fit import WARNINGS, Fit, fit
from dataeff.laws.forms import Exponential, Form, PowerLaw, PowerLawWithoutFloor, Reciprocal
from dataeff.laws.intervals import compare, interval, leave_largest_out, profile
from dataeff.records.queries import hold_views, records
from dataeff.reports.frames import with_bars
from dataeff.reports.theme import PALETTE, chart_config, page_colour

if TYPE_CHECKING:
    import duckdb

Records = list[dict[str, Any]]
UNITS = {"N": 1e9, "K": 1.0, "D": 1e6}  # of x, as fitted
AXES = {"N": "parameters N (total)", "K": "members K", "D": "seed tokens D"}
HELD_OUT = "power law without the largest point"
RIVALS: dict[type[Form], tuple[str, str]] = {
    PowerLaw: ("power law", "a / x^alpha + E"),
    Reciprocal: ("reciprocal", "a / x + E"),
    PowerLawWithoutFloor: ("power law without a limit", "a / x^alpha"),
    Exponential: ("exponential", "a exp(-x / tau) + E"),
}

CHOICES = """
SELECT law.* FROM (
    SELECT 'N' AS over, recipe, seed_tokens, NULL AS size, NULL AS averaging, 0 AS n FROM cell
    WHERE study = $1 AND recipe_limit IN ('N', 'K then N') GROUP BY ALL
    UNION ALL
    SELECT 'K', recipe, seed_tokens, size, averaging, parameters_total FROM ensemble_curve WHERE study = $1 GROUP BY ALL
    UNION ALL
    SELECT 'D', recipe, NULL, NULL, NULL, 0 FROM cell WHERE study = $1 GROUP BY ALL
) AS law, study WHERE study.name = $1
ORDER BY over = 'D', over = 'K', list_position(json_keys(spec, '$.recipes'), recipe), recipe, seed_tokens DESC, n, size, averaging
"""

# One row a point of the law; its bars are 90% intervals, over K the least and the greatest of the subsets.
POINTS = {
    "N": """
SELECT size AS point, parameters_total AS x, limit_loss AS val_loss, standard_error AS error, freedom, state, best.reason,
    interval_reason
FROM cell_limit AS best JOIN (SELECT cell_id, state FROM certificate) USING (cell_id)
WHERE study = $1 AND recipe = $2 AND seed_tokens = $3 ORDER BY x, size""",
    "K": """
WITH curve AS (
    FROM ensemble_curve WHERE cell_id = concat_ws('/', $1, $2, $3, $4) AND averaging = $5
)
SELECT members || ' members' AS point, members AS x, val_loss, least AS low, greatest AS high, NULL AS error, NULL AS freedom,
    subsets || ' subsets' AS state, if(val_loss IS NULL, 'a loss is not finite', NULL) AS reason, NULL AS interval_reason
FROM curve WHERE ensemble_id = (SELECT arg_max(ensemble_id, (members, ensemble_id)) FROM curve) ORDER BY x""",
    "D": """
SELECT 'D = ' || format('{:,}', seed_tokens) AS point, seed_tokens AS x, limit_loss AS val_loss, e_low AS low, e_high AS high,
    NULL AS error, NULL AS freedom, kind AS state, reason, interval_reason
FROM asymptote WHERE study = $1 AND recipe = $2 ORDER BY x""",
}

LIMITS = {
    "N": """SELECT limit_loss, e_low, e_high, 'resampled chain' AS method, interval_reason, reason
FROM asymptote WHERE study = $1 AND recipe = $2 AND seed_tokens = $3""",
    "K": """
SELECT limit_loss, e_low, e_high, 'jackknife over members' AS method, interval_reason, law.reason,
    list_sort(list_distinct(list_transform(ensemble.members, lambda member: split_part(member, '@', 1)))) AS run_ids
FROM ensemble_asymptote AS law JOIN best_run USING (cell_id, coordinates) JOIN ensemble USING (ensemble_id)
WHERE law.cell_id = concat_ws('/', $1, $2, $3, $4) AND averaging = $5
ORDER BY law.members DESC, ensemble_id DESC LIMIT 1""",
    "D": """SELECT limit_loss, e_low, e_high, 'resampled chain' AS method, interval_reason, reason
FROM data_law WHERE study = $1 AND recipe = $2""",
}


def law_choices(connection: duckdb.DuckDBPyConnection, study: str) -> Records:
    """Return every law of a study (over, recipe, seed_tokens, size, averaging), NULL where that is no part of its name."""
    return records(connection, CHOICES, [study])


def study_law(
    connection: duckdb.DuckDBPyConnection,
    study: str,
    over: str,
    recipe: str,
    seed_tokens: int | None = None,
    size: str | None = None,
    averaging: str | None = None,
) -> dict[str, Any]:
    """Return one law of `law_choices`: its `points` with residuals, `left_out`, `limit` (of its view), `stored` (of `fit_state`),
    `run_ids`, and where it can be fitted `fit`, `lines`, `profile`, `miss`, `rivals`, else `why` not. x in parameters, members,
    tokens.
    """
    hold_views(connection, study)
    named = [study, recipe, seed_tokens, size, averaging][: {"N": 3, "K": 5, "D": 2}[over]]
    rows, (limit,) = records(connection, POINTS[over], named), records(connection, LIMITS[over], named)
    rows = with_bars(rows) if over == "N" else rows
    fit_id = "/".join(str(part) for part in (study, recipe, seed_tokens, "data_law" if over == "D" else "asymptote") if part)
    stored = records(connection, "SELECT * FROM fit_state WHERE fit_id = $1", [fit_id])
    points = [row for row in rows if row["val_loss"] is not None]
    law = {
        "over": over,
        "points": points,
        "left_out": [f"{row['point']}: {row['reason']}" for row in rows if row["val_loss"] is None],
        "limit": limit,
        "stored": stored[0] if stored else None,
        "run_ids": limit.pop("run_ids", None) or (stored[0]["run_ids"] if stored else []),
    }
    try:
        fitted = fit(PowerLaw, [row["x"] / UNITS[over] for row in points], [row["val_loss"] for row in points])
    except InputError as error:
        return {**law, "fit": None, "why": str(error)}
    for row, residual in zip(points, fitted.residuals.tolist(), strict=True):
        row |= {"residual": residual, "law": row["val_loss"] - residual}
    return {**law, "why": None, **_tested(over, fitted, points, limit)}


def _tested(over: str, fitted: Fit, points: Records, limit: dict[str, Any]) -> dict[str, Any]:
    """What tests a law, in plain values."""
    unit, x, y = UNITS[over], fitted.x, fitted.y
    across = np.geomspace(x.min() * (1 if over == "K" else 0.5), x.max() * 4, 81)
    miss = leave_largest_out(fitted)
    others = {form: fit(form, x, y) for form in RIVALS if over == "K" or form is not Exponential}
    lines = {RIVALS[form][0]: other.law for form, other in others.items()} | ({HELD_OUT: miss.law} if miss.law else {})
    rivals = [
        {
            "form": RIVALS[row.form][0],
            "formula": RIVALS[row.form][1],
            "limit": None if row.form is PowerLawWithoutFloor else others[row.form].limit,  # 0 by its form, which says nothing
            "held_out": row.held_out,
            "aicc": row.aicc,
            "rmse": others[row.form].rmse,
            "doubts": "; ".join([*(WARNINGS[name] for name in others[row.form].warnings), *([row.reason] if row.reason else [])]),
        }
        for row in compare(list(others), x, y)
    ]
    return {
        "fit": {
            **{name: getattr(fitted.law, name) for name in ("a", "alpha", "e")},
            "rmse": fitted.rmse,
            "freedom": fitted.points - fitted.parameters,
            "warnings": [WARNINGS[name] for name in fitted.warnings],
            "rising": [value * unit for value in fitted.rising],
        },
        "lines": [
            {"form": name, "x": float(at * unit), "val_loss": loss}
            for name, line in lines.items()
            for at, loss in zip(across, line(across).tolist(), strict=True)
        ],
        "profile": _profiled(over, fitted, points, limit),
        "miss": {"x": miss.x * unit, "measured": miss.measured, "predicted": miss.predicted, "reason": miss.reason},
        "rivals": rivals,
    }


def _profiled(over: str, fitted: Fit, points: Records, limit: dict[str, Any]) -> dict[str, Any]:
    """The least sum of squares against E, and where all points are equally and knowingly noisy the 90% threshold."""
    sd, freedom, why = _noise(over, points)
    threshold, misfit, ends = None, None, [limit["e_low"], limit["e_high"]]
    spare = fitted.points - fitted.parameters
    if sd is not None and spare > 0:
        misfit = float(stats.f.sf(fitted.objective / spare / sd**2, spare, min(freedom, 1e12)))
    if sd is not None:
        threshold = fitted.objective + sd**2 * float(stats.f.ppf(0.9, 1, min(freedom, 1e12)))
        of_profile = interval(fitted, sd=sd, freedom=freedom)
        ends += [of_profile.low, of_profile.high]
    known, best, span = [end for end in ends if end is not None], fitted.law.e, float(np.ptp(fitted.y))
    if known:
        low = min([best - span / 4, *(best + 1.3 * (end - best) for end in known if end < best)])
        high = max([best + span / 4, *(best + 1.3 * (end - best) for end in known if end > best)])
    else:
        low, high = best - 2 * span, max(best, float(fitted.y.min())) + span / 4
    low = max(low, 0.0)
    values = np.unique(np.append(np.linspace(low, high, 81), best))
    least = profile(PowerLaw, fitted.x, fitted.y, "limit", values)
    return {
        "points": [{"e": e, "objective": value} for e, value in zip(values.tolist(), least.tolist(), strict=True)],
        "best": best,
        "objective": fitted.objective,
        "threshold": threshold,
        "low": ends[2] if sd is not None else None,
        "high": ends[3] if sd is not None else None,
        "misfit": misfit,
        "why": why,
    }


def _noise(over: str, points: Records) -> tuple[float | None, float, str | None]:
    """Return the standard deviation of every point and its degrees of freedom, or None and why there is no one number."""
    if over == "K":
        return (
            None,
            math.inf,
            "the losses of 1 to K members share their noise; the interval is that of the jackknife over members",
        )
    if over == "D":
        return None, math.inf, "limits are not equally noisy; the interval is that of the resampled chain"
    errors = [row["error"] for row in points]
    if None in errors:
        return None, math.inf, next(row["interval_reason"] for row in points if row["error"] is None) or "its noise is not known"
    if min(errors) <= 0 or max(errors) > 1.001 * min(errors):
        return None, math.inf, "the sizes are not equally noisy; the interval is that of the resampled chain"
    return errors[0], float(points[0]["freedom"] or math.inf), None


def law_text(law: dict[str, Any]) -> list[str]:
    """Return what a law says and what is doubtful about it, in sentences; one that begins with two spaces is an item."""
    limit, fitted, over = law["limit"], law["fit"], law["over"]
    known = (
        f"The limit is {limit['limit_loss']:.4f} nats/token"
        if limit["limit_loss"] is not None
        else f"No limit: {limit['reason']}"
    )
    if limit["e_low"] is not None or limit["e_high"] is not None:
        ends = ["no lower end" if limit["e_low"] is None else f"{limit['e_low']:.4f}"]
        ends += ["no upper end" if limit["e_high"] is None else f"{limit['e_high']:.4f}"]
        known += f", 90% interval {ends[0]} to {ends[1]} ({limit['method']})"
    elif limit["limit_loss"] is not None:
        known += f", without an interval: {limit['interval_reason']}"
    said = [known + "."]
    if fitted is None:
        return [*said, f"Nothing is fitted: {law['why']}.", *_left_out(law)]
    one = {"N": "N = 1e9", "K": "K = 1", "D": "D = 1e6"}[over]
    freedom = f"{fitted['freedom']} degree{'' if fitted['freedom'] == 1 else 's'} of freedom"
    said.append(
        f"L = a / {over}^alpha + E with a = {fitted['a']:.4g} nats/token (at {one}), alpha = {fitted['alpha']:.4g}, "
        f"E = {fitted['e']:.4f} nats/token; {len(law['points'])} points, {freedom}, rmse {fitted['rmse']:.2g} nats/token."
    )
    miss = law["miss"]
    if miss["predicted"] is None:
        said.append(f"The largest point cannot be held out: {miss['reason']}.")
    else:
        said.append(
            f"Without its largest point, {over} = {miss['x']:,.0f}, the law foretells {miss['predicted']:.4f} nats/token there; "
            f"measured: {miss['measured']:.4f}, a miss of {miss['measured'] - miss['predicted']:+.4f}."
        )
    if law["profile"]["why"]:
        said.append(f"The profile has no threshold: {law['profile']['why']}.")
    else:
        low, high = (law["profile"][end] for end in ("low", "high"))
        said.append(f"By the profile, with the noise between seeds, the 90% interval is {low:.4f} to {high:.4f} nats/token.")
    doubts = list(fitted["warnings"])
    if fitted["rising"]:
        doubts.append(f"losses rise at {over} = {', '.join(f'{x:,.0f}' for x in fitted['rising'])}")
    if (misfit := law["profile"]["misfit"]) is not None and misfit < MISFIT:
        doubts.append(
            f"residuals are larger than the noise between seeds explains (p = {misfit:.1g}): the form does not hold, or the "
            "optima are not equally good; the profile's interval is too narrow, that of the fit takes it in"
        )
    said += ["What is doubtful:", *(f"  {doubt}" for doubt in doubts)] if doubts else ["Nothing warns of this fit."]
    return [*said, *_left_out(law)]


def _left_out(law: dict[str, Any]) -> list[str]:
    return ["Left out:", *(f"  {lack}" for lack in law["left_out"])] if law["left_out"] else []


def stored_table(stored: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return a row of `fit_state` as a table of names and values; its runs are counted."""
    said = {
        **{
            name: value
            for name, value in stored.items()
            if name not in ("study", "recipe", "seed_tokens", "evidence", "resamples")
        },
        "undefined": f"{stored['undefined']} of {stored['resamples']} resamples have no value",
        "warnings": "; ".join(stored["warnings"]),
        "left_out": "; ".join(stored["left_out"]),
        "run_ids": f"{len(stored['run_ids'])} runs",
        "fitted_at": f"{stored['fitted_at']:%Y-%m-%d %H:%M:%S %Z}",
    }
    if stored["resamples"]:
        said["undefined"] += f" ({stored['undefined'] / stored['resamples']:.1%})"
    shown = {True: "yes", False: "no", None: "-", "": "-"}
    rows = [(name, f"{value:.6g}" if isinstance(value, float) else shown.get(value, str(value))) for name, value in said.items()]
    return ["of fit_state", "value"], rows


def law_chart(law: dict[str, Any], dark: bool = False) -> alt.VConcatChart:
    """Return points and forms against x (log), with the limit dotted and its interval shaded, above the residuals of the law."""
    over, points, lines, limit = law["over"], law["points"], law.get("lines", []), law["limit"]
    ink, xs = "#e8e8e8" if dark else "#1a1a1a", [row["x"] for row in law["points"]]
    domain = [min(xs) * (0.9 if over == "K" else 0.5), max(xs) * 4]
    ticks = [2**i for i in range(20) if 2**i <= domain[1]] if over == "K" else xs
    x = alt.X("x:Q", scale=alt.Scale(type="log", domain=domain, nice=False)).axis(format=".3~s", grid=False, values=ticks)
    left = [row for row in points if "residual" in row]
    x = x.title(None if left else AXES[over])
    losses = [row["val_loss"] for row in points] + ([] if limit["limit_loss"] is None else [limit["limit_loss"]])
    span = (max(losses) - min(losses)) or 0.1
    edge = [min(losses) - span / 2, max(losses) + span / 3]
    scale = alt.Scale(domain=edge, zero=False, nice=False)
    y = alt.Y("val_loss:Q", scale=scale, title="validation loss (nats/token)")
    names = list(dict.fromkeys(row["form"] for row in lines))
    colours = {name: colour for name, colour in zip(names, [ink, *PALETTE[:4]], strict=False)}
    colours |= {HELD_OUT: PALETTE[4]} if HELD_OUT in names else {}
    colour = alt.Color("form:N", title=None, scale=alt.Scale(domain=names, range=[colours[name] for name in names]))
    colour = colour.legend(columns=2, symbolType="stroke", labelLimit=300)
    dash = alt.StrokeDash("form:N", scale=alt.Scale(domain=names, range=[[6, 4], *[[2, 2]] * 4][: len(names)]), legend=None)
    band = [{"low": max(limit["e_low"] or edge[0], edge[0]), "high": min(limit["e_high"] or edge[1], edge[1])}]
    band = band if limit["limit_loss"] is not None and (limit["e_low"] or limit["e_high"]) else []
    at_limit = [{"val_loss": limit["limit_loss"]}] if limit["limit_loss"] is not None else []
    tooltip = ["point:N", alt.Tooltip("x:Q", format=","), "state:N"]
    tooltip += [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("val_loss", "law", "low", "high")]
    miss = law.get("miss") or {}
    foretold = [{"x": miss["x"], "val_loss": miss["predicted"]}] if miss.get("predicted") is not None else []

    def of(rows: Records) -> alt.Chart:
        return alt.Chart(alt.Data(values=rows))

    bars = "least to greatest over subsets" if over == "K" else "90% intervals"
    note = [f"Bars: {bars}." + (" Dashed: the law. Dotted: its limit, shaded its 90% interval." if lines else "")]
    note += ["Diamond: the largest point as foretold without it."] if foretold else []
    main = alt.layer(
        of(band).mark_rect(color=ink, opacity=0.1).encode(alt.Y("low:Q", scale=scale), alt.Y2("high:Q")),
        of(at_limit).mark_rule(strokeDash=[2, 3], color=ink, strokeWidth=1.5).encode(y),
        of(lines).mark_line(strokeWidth=1.5, clip=True).encode(x, y, colour, dash),
        of([row for row in points if row["low"] is not None and row["high"] is not None])
        .mark_rule(color=ink, strokeWidth=2, clip=True)
        .encode(x, alt.Y("low:Q", scale=scale), alt.Y2("high:Q")),
        of(points).mark_point(color=ink, size=45, filled=True, opacity=1).encode(x, y, tooltip=tooltip),
        of(foretold)
        .mark_point(shape="diamond", color=PALETTE[4], size=80, strokeWidth=2, fill=page_colour(dark), opacity=1, clip=True)
        .encode(x, y),
    ).properties(width=440, height=300)
    size = max((abs(row["residual"]) for row in left), default=0) * 1.2 or 1e-6
    residual = alt.Y("residual:Q", scale=alt.Scale(domain=[-size, size], nice=False), title="residual (nats/token)")
    residual = residual.axis(format="~g", tickCount=4)
    named = x.title(AXES[over])
    below = alt.layer(
        of([{"residual": 0}]).mark_rule(color="#8C8C8C").encode(residual),
        of(left).mark_rule(color=ink).encode(named, residual, y2=alt.datum(0)),
        of(left)
        .mark_point(color=ink, size=45, filled=True, opacity=1)
        .encode(named, residual, tooltip=["point:N", alt.Tooltip("residual:Q", format="+.5f")]),
    ).properties(width=440, height=110)
    title = alt.TitleParams(f"The law over {over}, and its residuals" if left else f"The points over {over}", subtitle=note)
    return alt.vconcat(*([main, below] if left else [main]), spacing=8).properties(title=title).configure(**chart_config(dark))


def profile_chart(law: dict[str, Any], dark: bool = False) -> alt.LayerChart:
    """Return the least sum of squares of a law whose limit is E, against E, with the 90% threshold where there is one."""
    found, limit, ink = law["profile"], law["limit"], "#e8e8e8" if dark else "#1a1a1a"
    least, threshold = found["objective"], found["threshold"]
    if threshold is None:
        edge = [0.0, max(row["objective"] for row in found["points"]) or 1e-12]
    else:
        edge = [max(0.0, least - (threshold - least)), threshold + 3 * (threshold - least)]
    scale = alt.Scale(domain=edge, zero=False, nice=False)
    es = [row["e"] for row in found["points"]]
    across = alt.Scale(domain=[min(es), max(es)], nice=False)
    x = alt.X("e:Q", scale=across, title="limit E (nats/token)").axis(grid=False, tickCount=6)
    y = alt.Y("objective:Q", scale=scale, title="sum of squares (nats\u00b2/token\u00b2)").axis(format=".1~e", tickCount=5)
    interval_ = [{"low": max(limit["e_low"], min(es)), "high": min(limit["e_high"], max(es))}] if None not in (
        limit["e_low"], limit["e_high"]) else []  # fmt: skip
    note = ["Line: of the best law with this limit. Dot: the fit."]
    note += ["Dotted: 90% threshold, of the noise between seeds."] if threshold is not None else ["No threshold: see below."]
    note += [f"Shaded: the 90% interval ({limit['method']})."] if interval_ else []

    def of(rows: Records) -> alt.Chart:
        return alt.Chart(alt.Data(values=rows))

    return (
        alt.layer(
            of(interval_).mark_rect(color=ink, opacity=0.1).encode(alt.X("low:Q", scale=across), alt.X2("high:Q")),
            of([] if threshold is None else [{"objective": threshold}]).mark_rule(strokeDash=[2, 3], color=PALETTE[1]).encode(y),
            of(found["points"]).mark_line(color=ink, clip=True, strokeWidth=1.5).encode(x, y),
            of([{"e": found["best"], "objective": least}]).mark_point(color=ink, filled=True, size=60, opacity=1).encode(x, y),
        )
        .properties(width=380, height=300, title=alt.TitleParams("Profile of the limit", subtitle=note))
        .configure(**chart_config(dark))
    )
