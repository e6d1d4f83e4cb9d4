"""Data efficiency: limits against D, the data laws through them, and ratios to the baseline.

    data efficiency = tokens the baseline needs to reach the recipe's loss / tokens the recipe had      (`data_efficiency`)

Three ways: by the baseline's data law, which extrapolates; interpolated between its measured points; and by its law of the
best loss that was trained, which was reached. A ratio that does not exist has a reason. Losses in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from dataeff.laws.forms import PowerLaw
from dataeff.records.queries import records, require_study
from dataeff.reports.answer import ratio
from dataeff.reports.charts import law_figure, log_axis, recipe_colour, tooltips
from dataeff.reports.frames import Records, by_key, law_line, recipes

if TYPE_CHECKING:
    import duckdb



def budgets(rows: Records) -> str:
    return "; ".join(f"{row['seed_tokens']:,}" for row in rows)


def bracketed(value: float | None, low: float | None, high: float | None, form: str) -> str:
    ends = "" if low is None and high is None else f" [{low}, {high}]"
    return "-" if value is None else f"{value:{form}}{ends}"


METHODS = {"by law": "", "interpolated": "_interpolated", "best trained": "_trained"}  # what columns of the view end on
FARTHEST = 64  # times its largest budget, to which the baseline's law is drawn at most

NO_RATIO = {
    "": "reason",
    "_interpolated": "interpolation_reason",
    "_trained": """CASE WHEN best_trained IS NULL THEN 'no loss was reached'
        WHEN limit_loss IS NOT NULL AND tokens_needed IS NULL THEN reason
        ELSE 'the baseline has no data law, or its law never reaches this loss' END""",
}

# One row a recipe and D, with why a ratio, its interval or an end of it is missing.
RATIOS = f"""
SELECT view.*, {
    ", ".join(
        f'''CASE WHEN data_efficiency{end} IS NULL THEN {reason}
        WHEN fit{end}.low IS NULL AND fit{end}.high IS NULL AND fit{end}.resamples > 0
        THEN 'in ' || fit{end}.undefined || ' of ' || fit{end}.resamples || ' resamples there is no ratio'
        ELSE fit{end}.interval_reason END AS why{end}'''
        for end, reason in NO_RATIO.items()
    )
}
FROM (SELECT *, concat_ws('/', study, recipe, seed_tokens, 'data_efficiency') AS id FROM data_efficiency WHERE study = $1) AS view
    JOIN study ON study.name = view.study
    {" ".join(f"LEFT JOIN fit_state AS fit{end} ON fit{end}.fit_id = id || '{end}'" for end in NO_RATIO)}
ORDER BY list_position(json_keys(spec, '$.recipes'), view.recipe), view.recipe, view.seed_tokens
"""

DATA_LAWS = """
SELECT law.recipe, limit_loss, e_low, e_high, a, alpha, e, points, budgets, largest_budget, rmse, reason, interval_reason
FROM data_law AS law JOIN study ON study.name = law.study WHERE law.study = $1
ORDER BY list_position(json_keys(spec, '$.recipes'), law.recipe), law.recipe
"""


def study_efficiency(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return `ratios` (one a recipe and D), the `data_laws` and their `laws` on a grid, the `baseline` and all `recipes`."""
    require_study(connection, study)
    ratios, data_laws = (records(connection, text, [study]) for text in (RATIOS, DATA_LAWS))
    (baseline,) = connection.execute("SELECT baseline FROM study WHERE name = $1", [study]).fetchone()
    laws = [line for law in data_laws if law["alpha"] is not None for line in _law_on_a_grid(law, ratios, baseline)]
    return {"ratios": ratios, "data_laws": data_laws, "laws": laws, "baseline": baseline, "recipes": recipes(connection, study)}


def _law_on_a_grid(law: dict[str, Any], ratios: Records, baseline: str) -> Records:
    """A data law that falls, over its budgets; the baseline's also beyond them, where it is inverted."""
    own = [row["seed_tokens"] for row in ratios if row["recipe"] == law["recipe"] and row["limit_loss"] is not None]
    low, high = min(own), max(own)
    inverted = [row["tokens_needed"] for row in ratios if row["tokens_needed"] and law["recipe"] == baseline]
    ends = max(min([low, *inverted]), low / FARTHEST), min(max([high, *inverted]), high * FARTHEST)
    lines: Records = []
    for layer, begin, end in (("beyond", ends[0], low), ("law", low, high), ("beyond", high, ends[1])):
        if begin < end:
            line = {"layer": layer, "recipe": law["recipe"], "line": f"{law['recipe']} {begin}"}
            loss = PowerLaw(law["a"], law["alpha"], law["e"])
            lines += law_line(loss, begin / 1e6, end / 1e6, "seed_tokens", 1e6, "limit_loss", **line)
    return lines


def by_method(ratios: Records, method: str) -> Records:
    """Return recipe, seed_tokens, `ratio`, its 90% interval `low` and `high`, and the `reason` for what of these is missing, by
    one of `METHODS`.
    """
    name = f"data_efficiency{METHODS[method]}"
    columns = {"ratio": name, "low": f"{name}_low", "high": f"{name}_high", "reason": f"why{METHODS[method]}"}
    columns = {"recipe": "recipe", "seed_tokens": "seed_tokens", **columns}
    return [{to: row[of] for to, of in columns.items()} for row in ratios]


def ratio_text(shown: Records, method: str) -> list[str]:
    """Return what is missing of the ratios of `by_method`, in sentences; one that begins with two spaces is an item."""
    lines = []
    for missing, title in ((True, f"No ratio {method}:"), (False, "No interval, or no end of it:")):
        reasons = by_key([row for row in shown if row["reason"] and (row["ratio"] is None) == missing], "recipe", "reason")
        lines += [title] if reasons else []
        lines += [f"  {recipe} at D = {budgets(rows)}: {reason}" for (recipe, reason), rows in reasons.items()]
    return lines


def ratio_table(ratios: Records) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the ratios as a table to read: numbers beside their 90% intervals, losses in nats per token."""
    rows = [
        (
            row["recipe"],
            f"{row['seed_tokens']:,}",
            bracketed(row["limit_loss"], row["e_low"], row["e_high"], ".3f"),
            *(ratio(row, f"data_efficiency{end}") for end in METHODS.values()),
            bracketed(row["tokens_needed"], None, None, ",.0f") + (" (extrapolated)" if row["extrapolated"] else ""),
            bracketed(row["best_trained"], None, None, ".3f"),
            row["kind"],
            ", ".join(f"{row[state]} {state}" for state in ("certified", "boundary", "open") if row[state]),
        )
        for row in ratios
    ]
    return ["recipe", "D (tokens)", "limit", *METHODS, "tokens needed", "trained", "limit is", "optima"], rows


def law_table(data_laws: Records) -> tuple[list[str], list[list[Any]]]:
    """Return the data laws as a table; a is in nats per token where D = 1e6 tokens."""
    names = ["recipe", "limit_loss", "e_low", "e_high", "a", "alpha", "rmse", "points", "budgets"]
    rows = [[*(law[name] for name in names), law["reason"] or law["interval_reason"]] for law in data_laws]
    return [*names, "no limit or interval because"], rows


def data_laws_chart(ratios: Records, laws: Records, recipes: Sequence[str], baseline: str) -> alt.LayerChart:
    """Return limits against D (log) with 90% intervals, and the data laws dashed; the baseline's goes on, pale, to where it is
    inverted. `ratios` and `laws` are those of `study_efficiency`.
    """
    points = [{**row, "low": row["e_low"], "high": row["e_high"]} for row in ratios if row["limit_loss"] is not None]
    note = ["Bars: 90% intervals, side by side. Dashed: data laws over their budgets."]
    if any(row["layer"] == "beyond" for row in laws):
        note.append(f"Pale: the law of {baseline} where it is inverted beyond them.")
    return _against_data(points, laws, "limit_loss", "limit of the recipe (nats/token)", recipes, "Limits against data", note)


def ratios_chart(ratios: Records, method: str, recipes: Sequence[str], baseline: str) -> alt.LayerChart:
    """Return data efficiency (log) against D (log), `ratios` being those of `by_method`; that of the baseline itself is 1."""
    points = [row for row in ratios if row["ratio"] is not None]
    ends = [{"layer": "reference", "seed_tokens": end(row["seed_tokens"] for row in points), "ratio": 1} for end in (min, max)]
    note = [f"How many times the tokens {baseline} would need.", "Bars: 90% intervals. Recipes stand side by side at each D."]
    return _against_data(points, ends, "ratio", f"data efficiency, {method} (ratio)", recipes, "Data efficiency", note)


def _against_data(
    points: Records, others: Records, y: str, y_title: str, recipes: Sequence[str], title: str, note: list[str]
) -> alt.LayerChart:
    """Points of recipes side by side at each D, with their intervals; `others` are layers behind them."""
    is_ratio = y == "ratio"
    layers = ("curve", "point") if is_ratio else ("point",)
    order = list(dict.fromkeys(row["recipe"] for row in points))
    rows = [{**row, "beside": row["seed_tokens"]} for row in others]
    for row in points:
        beside = row["seed_tokens"] * 1.025 ** (order.index(row["recipe"]) - (len(order) - 1) / 2)
        rows += [{"layer": layer, "line": row["recipe"], **row, "beside": beside} for layer in layers]
    if any((row["low"] is None) != (row["high"] is None) for row in points):
        note = [*note, "Arrow: the interval has no end there."]
    ticks = sorted({row["seed_tokens"] for row in points})
    while ticks[-1] * 2 <= max(row["beside"] for row in rows):
        ticks.append(ticks[-1] * 2)
    tooltip = ["recipe:N", *tooltips(",", "seed_tokens"), *tooltips(".4f", y, "low", "high")]
    x = log_axis("beside", "seed tokens D", ticks, ",")
    figure = law_figure(rows, x, y, recipe_colour(recipes, points), tooltip, y_title, log_y=is_ratio, size=(440, 380))
    return figure.properties(title=alt.TitleParams(title, subtitle=note))
