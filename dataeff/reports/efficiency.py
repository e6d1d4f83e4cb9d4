"""What a recipe is worth in data: its limits against D, the data laws through them, and the ratios read off the baseline.

    data efficiency = tokens the baseline needs to reach the recipe's loss / tokens the recipe had      (`data_efficiency`)

Three ways: by the baseline's data law, which extrapolates; interpolated between its measured points; and by its law of the
best loss that was trained, which was reached. A ratio that does not exist has a reason. Losses in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from dataeff.laws.forms import PowerLaw
from dataeff.records.queries import hold_views, records
from dataeff.reports.answer import bracketed
from dataeff.reports.charts import recipe_colour
from dataeff.reports.frames import recipes
from dataeff.reports.theme import chart_config

if TYPE_CHECKING:
    import duckdb

Records = list[dict[str, Any]]
METHODS = {"by law": "", "interpolated": "_interpolated", "best trained": "_trained"}  # what columns of the view end on
RATIO_NAMES = [f"data_efficiency{ending}" for ending in METHODS.values()]
FARTHEST = 64  # times its largest budget, to which the baseline's law is drawn at most
CLIP = 1.6  # times the greatest ratio, to which intervals are drawn

# One row a recipe and D. A ratio without an interval, or an end of it, has a reason too: that of its fit.
RATIOS = f"""
SELECT view.*, CASE
        WHEN best_trained IS NULL THEN 'no loss was reached'
        WHEN data_efficiency_trained IS NULL AND limit_loss IS NOT NULL AND tokens_needed IS NULL THEN reason
        WHEN data_efficiency_trained IS NULL THEN 'the baseline has no data law, or its law never reaches this loss' END
        AS reason_trained, reason AS "reason", interpolation_reason AS reason_interpolated, {
    ", ".join(
        f'''CASE WHEN fit{end}.low IS NULL AND fit{end}.high IS NULL AND fit{end}.resamples > 0
        THEN 'in ' || fit{end}.undefined || ' of ' || fit{end}.resamples || ' resamples there is no ratio'
        ELSE fitted_interval(data_efficiency{end}, fit{end}).reason END AS interval_reason{end or "_law"}'''
        for end in METHODS.values()
    )
}
FROM (SELECT *, concat_ws('/', study, recipe, seed_tokens, 'data_efficiency') AS id FROM data_efficiency WHERE study = $1) AS view
    JOIN study ON study.name = view.study
    {" ".join(f"LEFT JOIN fit_state AS fit{end} ON fit{end}.fit_id = id || '{end}'" for end in METHODS.values())}
ORDER BY list_position(json_keys(spec, '$.recipes'), view.recipe), view.recipe, view.seed_tokens
"""

DATA_LAWS = """
SELECT law.recipe, limit_loss, e_low, e_high, a, alpha, e, points, budgets, largest_budget, rmse, reason, interval_reason
FROM data_law AS law JOIN study ON study.name = law.study WHERE law.study = $1
ORDER BY list_position(json_keys(spec, '$.recipes'), law.recipe), law.recipe
"""


def study_efficiency(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return `ratios` (one a recipe and D), the `data_laws` and their `laws` on a grid, the `baseline` and all `recipes`."""
    hold_views(connection, study)
    (baseline,) = connection.execute("SELECT baseline FROM study WHERE name = $1", [study]).fetchone()
    ratios, data_laws = (records(connection, text, [study]) for text in (RATIOS, DATA_LAWS))
    laws = [line for law in data_laws if law["alpha"] is not None for line in _law_on_a_grid(law, ratios, baseline)]
    return {"ratios": ratios, "data_laws": data_laws, "laws": laws, "baseline": baseline, "recipes": recipes(connection, study)}


def _law_on_a_grid(law: dict[str, Any], ratios: Records, baseline: str) -> Records:
    """A data law that falls, `within` its budgets; the baseline's also `above` and `below` them, where it is inverted."""
    budgets = [row["seed_tokens"] for row in ratios if row["recipe"] == law["recipe"] and row["limit_loss"] is not None]
    low, high = min(budgets), max(budgets)
    inverted = [row["tokens_needed"] for row in ratios if row["tokens_needed"] and law["recipe"] == baseline]
    ends = min([low, *inverted]), max([high, *inverted])
    parts = {"below": (max(ends[0], low / FARTHEST), low), "within": (low, high), "above": (high, min(ends[1], FARTHEST * high))}
    loss = PowerLaw(law["a"], law["alpha"], law["e"])
    return [
        {"recipe": law["recipe"], "part": part, "seed_tokens": tokens, "val_loss": float(loss(tokens / 1e6))}
        for part, (begin, end) in parts.items()
        if begin < end
        for tokens in np.geomspace(begin, end, 41).tolist()
    ]


def by_method(ratios: Records, method: str) -> Records:
    """Return recipe, seed_tokens, `ratio`, its 90% interval `low` and `high`, and the `reason` for what of these is missing, by
    one of `METHODS`.
    """
    end = METHODS[method]
    return [
        {
            "recipe": row["recipe"],
            "seed_tokens": row["seed_tokens"],
            "ratio": row[f"data_efficiency{end}"],
            "low": row[f"data_efficiency{end}_low"],
            "high": row[f"data_efficiency{end}_high"],
            "reason": row[f"reason{end}"] if row[f"data_efficiency{end}"] is None else row[f"interval_reason{end or '_law'}"],
        }
        for row in ratios
    ]


def ratio_text(shown: Records, method: str) -> list[str]:
    """Return what is missing of the ratios of `by_method`, in sentences; one that begins with two spaces is an item."""
    said = []
    for missing, title in ((True, f"No ratio {method}:"), (False, "No interval, or no end of it:")):
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in shown:
            if row["reason"] and (row["ratio"] is None) == missing:
                reasons.setdefault((row["recipe"], row["reason"]), []).append(f"{row['seed_tokens']:,}")
        said += [title] if reasons else []
        said += [f"  {recipe} at D = {'; '.join(at)}: {reason}" for (recipe, reason), at in reasons.items()]
    return said


def ratio_table(ratios: Records) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the ratios as a table to read: numbers beside their 90% intervals, losses in nats per token."""
    rows = [
        (
            *(row["recipe"], f"{row['seed_tokens']:,}", bracketed(row["limit_loss"], row["e_low"], row["e_high"], ".3f")),
            *(bracketed(row[name], row[f"{name}_low"], row[f"{name}_high"], ".2f") for name in RATIO_NAMES),
            "-" if row["tokens_needed"] is None else f"{row['tokens_needed']:,.0f}{' (beyond)' if row['extrapolated'] else ''}",
            "-" if row["best_trained"] is None else f"{row['best_trained']:.3f}",
            row["kind"],
            ", ".join(f"{row[state]} {state}" for state in ("certified", "boundary", "open") if row[state]),
        )
        for row in ratios
    ]
    return ["recipe", "D (tokens)", "limit", *METHODS, "tokens needed", "trained", "limit is", "optima"], rows


def law_table(data_laws: Records) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the data laws as a table to read; a is in nats per token where D = 1e6 tokens."""
    rows = [
        (
            law["recipe"],
            bracketed(law["limit_loss"], law["e_low"], law["e_high"], ".3f"),
            *("-" if law[name] is None else f"{law[name]:.4g}" for name in ("a", "alpha", "rmse")),
            f"{law['points']} of {law['budgets']}",
            law["reason"] or law["interval_reason"] or "",
        )
        for law in data_laws
    ]
    return ["recipe", "limit", "a at 1e6 tokens", "exponent", "rmse", "budgets", "no limit or interval because"], rows


def data_laws_chart(ratios: Records, laws: Records, recipes: Sequence[str], baseline: str, dark: bool = False) -> alt.LayerChart:
    """Return limits against D (log) with 90% intervals, and the data laws dashed; the baseline's goes on, pale, to where it is
    inverted. `ratios` and `laws` are those of `study_efficiency`.
    """
    there = [row for row in ratios if row["limit_loss"] is not None]
    losses = [row["limit_loss"] for row in there] + [row["val_loss"] for row in laws]
    least, most = min(losses), max(losses)
    drawn, low, high = _clipped(there, "limit_loss", "e_low", "e_high", least - (most - least) / 4, most + (most - least) / 4)
    scale = alt.Scale(zero=False, nice=False, padding=8, domain=[min(least, low), max(most, high)])
    colour = recipe_colour(recipes, there)
    shown = [*(row["beside"] for row in drawn), *(row["seed_tokens"] for row in laws)]
    across = _across([row["seed_tokens"] for row in there], shown)
    y = alt.Y("val_loss:Q", scale=scale, title="limit of the recipe (nats/token)")
    inside, outside = ([row for row in laws if (row["part"] == "within") == within] for within in (True, False))
    tooltip = ["recipe:N", alt.Tooltip("seed_tokens:Q", format=","), "kind:N"]
    tooltip += [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("limit_loss", "e_low", "e_high")]
    note = ["Bars: 90% intervals, side by side. Dashed: data laws over their budgets."]
    note += [f"Pale: the law of {baseline} where it is inverted beyond them."] if outside else []
    note += (
        ["Arrow: the interval goes on beyond the chart."] if any(row.get("above") or row.get("below") for row in drawn) else []
    )
    lines = [
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeDash=[6, 4], strokeWidth=1.5, opacity=opacity)
        .encode(across, y, colour, detail="part:N")
        for rows, opacity in ((outside, 0.45), (inside, 1))
    ]
    return (
        alt.layer(*lines, *_bars(drawn, across, "limit_loss", y, colour, tooltip))
        .properties(width=440, height=380, title=alt.TitleParams("Limits against data", subtitle=note))
        .configure(**chart_config(dark))
    )


def ratios_chart(ratios: Records, method: str, recipes: Sequence[str], baseline: str, dark: bool = False) -> alt.LayerChart:
    """Return data efficiency (log) against D (log), `ratios` being those of `by_method`; 1 is the baseline's own worth.

    Recipes of one D stand side by side. An interval that has no upper end, or a far one, ends in an arrow.
    """
    there = [row for row in ratios if row["ratio"] is not None]
    colour, ratios = recipe_colour(recipes, there), [row["ratio"] for row in there]
    drawn, low, high = _clipped(there, "ratio", "low", "high", min(ratios) / CLIP, max(ratios) * CLIP)
    scale = alt.Scale(type="log", nice=False, domain=[min(low, 1) / 1.1, max(high, 1) * 1.1])
    across = _across([row["seed_tokens"] for row in drawn], [row["beside"] for row in drawn])
    y = alt.Y("ratio:Q", scale=scale, title=f"data efficiency, {method} (ratio)").axis(tickCount=6, format="~g")
    tooltip = ["recipe:N", alt.Tooltip("seed_tokens:Q", format=",")]
    tooltip += [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("ratio", "low", "high")]
    note = [f"How many times the tokens {baseline} would need.", "Bars: 90% intervals. Recipes stand side by side at each D."]
    note += (
        ["Arrow: the interval has no end there, or one beyond the chart."]
        if any(row.get("above") or row.get("below") for row in drawn)
        else []
    )
    one = alt.Chart(alt.Data(values=[{"ratio": 1}])).mark_rule(color="#8C8C8C").encode(y)
    joined = alt.Chart(alt.Data(values=drawn)).mark_line(strokeWidth=1, opacity=0.4).encode(_of(across, "beside"), y, colour)
    return (
        alt.layer(one, joined, *_bars(drawn, across, "ratio", y, colour, tooltip))
        .properties(width=440, height=380, title=alt.TitleParams("Data efficiency", subtitle=note))
        .configure(**chart_config(dark))
    )


def _clipped(rows: Records, value: str, low: str, high: str, floor: float, ceiling: float) -> tuple[Records, float, float]:
    """Return rows with their intervals as drawn, `from` and `to`, and `below` or `above` where they go on, without end or beyond
    what is shown; the places `beside` each other of recipes at one D; and what all span.
    """
    drawn, order = [], list(dict.fromkeys(row["recipe"] for row in rows))
    for row in rows:
        here = {"beside": row["seed_tokens"] * 1.025 ** (order.index(row["recipe"]) - (len(order) - 1) / 2)}
        if row[low] is not None or row[high] is not None:
            least, most = -math.inf if row[low] is None else row[low], math.inf if row[high] is None else row[high]
            here |= {"from": max(least, floor), "to": min(most, ceiling), "below": least < floor, "above": most > ceiling}
        drawn.append({**row, **here})
    shown = [row[name] for row in drawn for name in (value, "from", "to") if row.get(name) is not None]
    return drawn, min(shown), max(shown)


def _bars(drawn: Records, across: alt.X, value: str, y: alt.Y, colour: alt.Color, tooltip: list[Any]) -> list[alt.Chart]:
    """Intervals, the arrows where they go on, and points."""

    def of(rows: Records) -> alt.Chart:
        return alt.Chart(alt.Data(values=rows)).encode(_of(across, "beside"), color=colour, tooltip=tooltip)

    arrows = [
        of([row for row in drawn if row.get(where)]).mark_point(shape=shape, filled=True, size=70, opacity=1).encode(_of(y, end))
        for where, end, shape in (("above", "to", "triangle-up"), ("below", "from", "triangle-down"))
    ]
    bars = of([row for row in drawn if "to" in row]).mark_rule(strokeWidth=2).encode(_of(y, "from"), alt.Y2("to:Q"))
    return [bars, *arrows, of(drawn).mark_point(size=45, filled=True, opacity=1).encode(_of(y, value))]


def _of(axis: Any, name: str) -> Any:
    """The same axis, of another column."""
    axis = axis.copy()
    axis.shorthand = f"{name}:Q"
    return axis


def _across(budgets: Sequence[float], shown: Sequence[float]) -> alt.X:
    """D on a log axis, marked at the budgets and at doublings of the largest."""
    low, high = (min(shown), max(shown)) if shown else (1, 10)
    ticks = sorted(set(budgets))
    while ticks and ticks[-1] * 2 <= high:
        ticks.append(ticks[-1] * 2)
    scale = alt.Scale(type="log", domain=[low / 1.1, high * 1.1], nice=False)
    return alt.X("seed_tokens:Q", scale=scale, title="seed tokens D").axis(format=".3~s", values=ticks, grid=False)
