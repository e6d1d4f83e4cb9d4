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
from dataeff.laws.intervals import Comparison, compare, interval, leave_largest_out, profile
from dataeff.records.queries import records, require_study
from dataeff.reports.charts import law_figure, log_axis, tooltips
from dataeff.reports.frames import Records, law_line, readable, with_bars
from dataeff.reports.theme import ALARM, GREY, INK, PALETTE

if TYPE_CHECKING:
    import duckdb

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
SELECT members || ' members' AS point, members AS x, mean_loss AS val_loss, least AS low, greatest AS high,
    subsets || ' subsets' AS state, if(mean_loss IS NULL, 'a loss is not finite', NULL) AS reason
FROM curve WHERE ensemble_id = (SELECT arg_max(ensemble_id, (members, ensemble_id)) FROM curve) ORDER BY x""",
    "D": """
SELECT 'D = ' || format('{:,}', seed_tokens) AS point, seed_tokens AS x, limit_loss AS val_loss, e_low AS low, e_high AS high,
    kind AS state, reason
FROM asymptote WHERE study = $1 AND recipe = $2 ORDER BY x""",
}

LIMITS = {
    "N": "FROM asymptote WHERE study = $1 AND recipe = $2 AND seed_tokens = $3",
    "K": """
SELECT limit_loss, e_low, e_high, interval_reason, law.reason,
    list_sort(list_distinct(list_transform(ensemble.members, lambda member: split_part(member, '@', 1)))) AS run_ids
FROM ensemble_asymptote AS law JOIN best_run USING (cell_id, coordinates) JOIN ensemble USING (ensemble_id)
WHERE law.cell_id = concat_ws('/', $1, $2, $3, $4) AND averaging = $5
ORDER BY law.members DESC, ensemble_id DESC LIMIT 1""",
    "D": "FROM data_law WHERE study = $1 AND recipe = $2",
}
METHODS = {"N": "resampled chain", "K": "jackknife over members", "D": "resampled chain"}  # of the limit's interval


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
    require_study(connection, study)
    named = [study, recipe, seed_tokens, size, averaging][: {"N": 3, "K": 5, "D": 2}[over]]
    rows, (limit,) = with_bars(records(connection, POINTS[over], named)), records(connection, LIMITS[over], named)
    fit_id = "/".join(str(part) for part in (study, recipe, seed_tokens, "data_law" if over == "D" else "asymptote") if part)
    stored = next(iter(records(connection, "SELECT * FROM fit_state WHERE fit_id = $1", [fit_id])), None)
    points = [row for row in rows if row["val_loss"] is not None]
    law = {
        "over": over,
        "points": points,
        "left_out": [f"{row['point']}: {row['reason']}" for row in rows if row["val_loss"] is None],
        "limit": limit,
        "stored": stored,
        "run_ids": limit.pop("run_ids", None) or (stored["run_ids"] if stored else []),
    }
    try:
        fitted = fit(PowerLaw, [row["x"] / UNITS[over] for row in points], [row["val_loss"] for row in points])
    except InputError as error:
        return {**law, "fit": None, "why": str(error), "lines": [], "miss": None}
    for row, residual in zip(points, fitted.residuals.tolist(), strict=True):
        row |= {"residual": residual, "law": row["val_loss"] - residual}
    miss = leave_largest_out(fitted)
    fits = {form: fit(form, fitted.x, fitted.y) for form in RIVALS if over == "K" or form is not Exponential}
    lines = {RIVALS[form][0]: rival.law for form, rival in fits.items()} | ({HELD_OUT: miss.law} if miss.law else {})
    span = fitted.x.min() * (1 if over == "K" else 0.5), fitted.x.max() * 4
    return {
        **law,
        "fit": fitted,
        "lines": [row for form, line in lines.items() for row in law_line(line, *span, "x", UNITS[over], form=form)],
        "profile": _profile(over, fitted, points, limit),
        "miss": miss,
        "rivals": [_rival(row, fits[row.form]) for row in compare(list(fits), fitted.x, fitted.y)],
    }


def _rival(row: Comparison, fitted: Fit) -> dict[str, Any]:
    name, formula = RIVALS[row.form]
    return {
        "form": name,
        "L(x)": formula,
        "limit": None if row.form is PowerLawWithoutFloor else fitted.limit,  # 0 by its form, which says nothing
        "held-out error": row.held_out,
        "AICc": row.aicc,
        "rmse": fitted.rmse,
        "doubts": "; ".join([*(WARNINGS[name] for name in fitted.warnings), *([row.reason] if row.reason else [])]),
    }


def _profile(over: str, fitted: Fit, points: Records, limit: dict[str, Any]) -> dict[str, Any]:
    """The least sum of squares against E, and the 90% threshold where all points have the same, estimated noise."""
    sd, freedom, why = _noise(over, points)
    threshold, misfit, low, high = None, None, None, None
    if sd is not None:
        spare = fitted.points - fitted.parameters
        misfit = float(stats.f.sf(fitted.objective / spare / sd**2, spare, min(freedom, 1e12))) if spare else None
        threshold = fitted.objective + sd**2 * float(stats.f.ppf(0.9, 1, min(freedom, 1e12)))
        bounds = interval(fitted, sd=sd, freedom=freedom)
        low, high = bounds.low, bounds.high
    best, span = fitted.law.e, float(np.ptp(fitted.y))
    ends = [best + 1.3 * (end - best) for end in (limit["e_low"], limit["e_high"], low, high) if end is not None]
    ends = [best - span / 4, best + span / 4, *ends] if ends else [best - 2 * span, max(best, fitted.y.min()) + span / 4]
    values = np.unique(np.append(np.linspace(max(min(ends), 0.0), max(ends), 81), best))
    least = profile(PowerLaw, fitted.x, fitted.y, values)
    return {
        "points": [{"e": e, "objective": value} for e, value in zip(values.tolist(), least.tolist(), strict=True)],
        "threshold": threshold,
        "low": low,
        "high": high,
        "misfit": misfit,
        "why": why,
    }


def _noise(over: str, points: Records) -> tuple[float | None, float, str | None]:
    """Return the standard deviation of every point and its degrees of freedom, or None and why there is no one number."""
    errors = [row.get("error") for row in points]
    if over == "K":
        why = "the losses of 1 to K members share their noise; the interval is that of the jackknife over members"
    elif over == "D":
        why = "limits are not equally noisy; the interval is that of the resampled chain"
    elif None in errors:
        why = next(row["interval_reason"] for row in points if row["error"] is None) or "the noise has not been estimated"
    elif min(errors) <= 0 or max(errors) > 1.001 * min(errors):
        why = "the sizes are not equally noisy; the interval is that of the resampled chain"
    else:
        return errors[0], float(points[0]["freedom"] or math.inf), None
    return None, math.inf, why


def law_text(law: dict[str, Any]) -> list[str]:
    """Return a law and its caveats in sentences; one that begins with two spaces is an item."""
    limit, fitted, over = law["limit"], law["fit"], law["over"]
    left_out = ["Left out:", *(f"  {lack}" for lack in law["left_out"])] if law["left_out"] else []
    lines = [_limit_text(limit, METHODS[over])]
    if fitted is None:
        return [*lines, f"Nothing is fitted: {law['why']}.", *left_out]
    one = {"N": "N = 1e9", "K": "K = 1", "D": "D = 1e6"}[over]
    freedom = fitted.points - fitted.parameters
    lines.append(
        f"L = a / {over}^alpha + E with a = {fitted.law.a:.4g} nats/token (at {one}), alpha = {fitted.law.alpha:.4g}, "
        f"E = {fitted.law.e:.4f} nats/token; {fitted.points} points, {freedom} degree{'' if freedom == 1 else 's'} of freedom, "
        f"rmse {fitted.rmse:.2g} nats/token."
    )
    miss, profiled = law["miss"], law["profile"]
    if miss.predicted is None:
        lines.append(f"The largest point cannot be held out: {miss.reason}.")
    else:
        lines.append(
            f"Without its largest point, {over} = {miss.x * UNITS[over]:,.0f}, the law predicts {miss.predicted:.4f} nats/token "
            f"there; measured: {miss.measured:.4f}, a miss of {miss.measured - miss.predicted:+.4f}."
        )
    if profiled["why"]:
        lines.append(f"The profile has no threshold: {profiled['why']}.")
    else:
        ends = f"{profiled['low']:.4f} to {profiled['high']:.4f}"
        lines.append(f"By the profile, with the noise between seeds, the 90% interval is {ends} nats/token.")
    caveats = [WARNINGS[name] for name in fitted.warnings]
    if fitted.rising:
        caveats.append(f"losses rise at {over} = {', '.join(f'{x * UNITS[over]:,.0f}' for x in fitted.rising)}")
    if (misfit := profiled["misfit"]) is not None and misfit < MISFIT:
        caveats.append(
            f"residuals are larger than the noise between seeds explains (p = {misfit:.1g}): the form does not hold, or the "
            "optima are not equally good; the profile's interval is too narrow, that of the fit allows for it"
        )
    return [*lines, *(["Caveats:", *(f"  {text}" for text in caveats)] if caveats else ["This fit has no warnings."]), *left_out]


def _limit_text(limit: dict[str, Any], method: str) -> str:
    if limit["limit_loss"] is None:
        return f"No limit: {limit['reason']}."
    text = f"The limit is {limit['limit_loss']:.4f} nats/token"
    low, high = limit["e_low"], limit["e_high"]
    if low is None and high is None:
        return f"{text}, without an interval: {limit['interval_reason']}."
    ends = ["no lower end" if low is None else f"{low:.4f}", "no upper end" if high is None else f"{high:.4f}"]
    return f"{text}, 90% interval {ends[0]} to {ends[1]} ({method})."


def stored_table(stored: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return a row of `fit_state` as a table of names and values; its runs are counted."""
    hidden = ("study", "recipe", "seed_tokens", "evidence")
    texts = {name: readable(value) for name, value in stored.items() if name not in hidden}
    if stored["resamples"]:
        texts["undefined"] += f" ({stored['undefined'] / stored['resamples']:.1%})"
    texts["run_ids"] = f"{len(stored['run_ids'])} runs"
    return ["of fit_state", "value"], list(texts.items())


def law_chart(law: dict[str, Any]) -> alt.VConcatChart:
    """Return points and forms against x (log), with the limit dotted and its interval shaded, above the residuals of the law."""
    over, points, limit, miss = law["over"], law["points"], law["limit"], law["miss"]
    power = RIVALS[PowerLaw][0]
    rows = [{"layer": "point", "form": "measured", **row} for row in points]
    rows += [{"layer": "law" if row["form"] == power else "rival", "line": row["form"], **row} for row in law["lines"]]
    if limit["limit_loss"] is not None:
        rows.append({"layer": "limit", "form": power, "val_loss": limit["limit_loss"]})
        rows.append({"layer": "span", "form": power, "low": limit["e_low"], "high": limit["e_high"]})
    if miss and miss.predicted is not None:
        rows.append({"layer": "predicted", "form": HELD_OUT, "x": miss.x * UNITS[over], "val_loss": miss.predicted})
    forms = ["measured", *dict.fromkeys(row["form"] for row in rows if row["form"] != "measured")]
    scale = alt.Scale(domain=forms, range=[INK, INK, *PALETTE[: len(forms) - 2]][: len(forms)])
    colour = alt.Color("form:N", title=None, scale=scale, legend=alt.Legend(columns=2, labelLimit=300, symbolOpacity=1))
    largest = max(row["x"] for row in points) * 4
    ticks = [2**i for i in range(20) if 2**i <= largest] if over == "K" else sorted({row["x"] for row in points})
    x = log_axis("x", None if law["fit"] else AXES[over], ticks, ".3~s" if over == "N" else ",")
    tooltip = ["point:N", *tooltips(",", "x"), "state:N", *tooltips(".4f", "val_loss", "law", "low", "high")]
    note = ["Bars: least to greatest over subsets." if over == "K" else "Bars: 90% intervals."]
    if law["lines"]:
        note[0] += " Dashed: the law. Dotted: its limit, shaded its 90% interval."
    note += ["Diamond: the largest point as predicted without it."] if rows[-1]["layer"] == "predicted" else []
    panels, title = [law_figure(rows, x, "val_loss", colour, tooltip)], f"The points over {over}"
    if law["fit"]:
        panels, title = [*panels, _residuals(points, x.title(AXES[over]))], f"The law over {over}, and its residuals"
    return alt.vconcat(*panels, spacing=8).resolve_scale(x="shared").properties(title=alt.TitleParams(title, subtitle=note))


def _residuals(points: Records, x: alt.X) -> alt.LayerChart:
    size = max(abs(row["residual"]) for row in points) * 1.2 or 1e-6
    y = alt.Y("residual:Q", scale=alt.Scale(domain=[-size, size], nice=False), title="residual (nats/token)")
    base = alt.Chart(alt.Data(values=points)).encode(x, y.axis(format="~g", tickCount=4))
    return alt.layer(
        alt.Chart(alt.Data(values=[{"residual": 0}])).mark_rule(color=GREY).encode(y),
        base.mark_rule(color=INK).encode(y2=alt.datum(0)),
        base.mark_point(color=INK, size=45, filled=True, opacity=1).encode(tooltip=["point:N", *tooltips("+.5f", "residual")]),
    ).properties(width=440, height=110)


def profile_chart(law: dict[str, Any]) -> alt.LayerChart:
    """Return the least sum of squares of a law whose limit is E, against E, with the 90% threshold where there is one."""
    profiled, limit, fitted = law["profile"], law["limit"], law["fit"]
    least, threshold, es = fitted.objective, profiled["threshold"], [row["e"] for row in profiled["points"]]
    domain = [0.0, max(row["objective"] for row in profiled["points"]) or 1e-12]
    note = ["Line: of the best law with this limit. Dot: the fit."]
    if threshold is not None:
        domain = [max(0.0, least - (threshold - least)), threshold + 3 * (threshold - least)]
    note += ["No threshold: see below." if threshold is None else "Dotted: 90% threshold, of the noise between seeds."]
    x = alt.X("e:Q", scale=alt.Scale(domain=[min(es), max(es)], nice=False), title="limit E (nats/token)")
    x = x.axis(grid=False, tickCount=6)
    y = alt.Y("objective:Q", scale=alt.Scale(domain=domain, zero=False, nice=False)).axis(format=".1~e", tickCount=5)
    y = y.title("sum of squares (nats\u00b2/token\u00b2)")
    base, one = alt.Chart().encode(x, y), alt.Data(values=[{}])
    parts = [
        base.mark_line(color=INK, clip=True, strokeWidth=1.5),
        base.transform_filter(alt.datum.e == fitted.law.e).mark_point(color=INK, filled=True, size=60, opacity=1),
    ]
    if threshold is not None:
        parts.append(alt.Chart(one).mark_rule(strokeDash=[2, 3], color=ALARM).encode(y=alt.YDatum(threshold)))
    if None not in (limit["e_low"], limit["e_high"]):
        note += [f"Shaded: the 90% interval ({METHODS[law['over']]})."]
        ends = {"x": alt.XDatum(limit["e_low"]), "x2": alt.X2Datum(limit["e_high"])}
        parts.insert(0, alt.Chart(one).mark_rect(color=INK, opacity=0.1, clip=True).encode(**ends))
    return alt.layer(*parts, data=alt.Data(values=profiled["points"])).properties(
        width=380, height=300, title=alt.TitleParams("Profile of the limit", subtitle=note)
    )
