"""The laws of a study, and what tests one of them: its residuals, its largest point held out, and rival forms.

    over N   losses, or limits in K, of a recipe's sizes at one D    x in units of 1e9 parameters    `asymptote`
    over K   losses of K members of the ensemble at an optimum       x in members                    `ensemble_asymptote`
    over D   limits of a recipe                                      x in units of 1e6 tokens        `data_law`

Laws and intervals are those of the views; only what tests a law is fitted here. Losses in nats per token.
"""

from typing import Any

import duckdb
import numpy as np

from dataeff.errors import InputError
from dataeff.laws.fit import NO_FREEDOM, WARNINGS, fit
from dataeff.laws.forms import Exponential, Form, PowerLaw, PowerLawWithoutFloor, Reciprocal
from dataeff.laws.intervals import compare, leave_largest_out
from dataeff.records.queries import records, require_study
from dataeff.reports.charts import Axis
from dataeff.reports.frames import Records, recipes

UNITS = {"N": 1e9, "K": 1.0, "D": 1e6}  # of x, as fitted
TITLES = {"N": "parameters N (total)", "K": "members K", "D": "seed tokens D"}  # of the axis
BEYOND, SIDE_BY_SIDE = 4, 1.025  # laws are drawn to so many times their largest x; points over D stand so far apart
RIVALS: dict[type[Form], str] = {
    PowerLaw: "a / x^alpha + E",
    Reciprocal: "a / x + E",
    PowerLawWithoutFloor: "a / x^alpha",
    Exponential: "a exp(-x / tau) + E",
}

LAWS = {
    "N": """
SELECT law.recipe, law.seed_tokens, NULL AS size, NULL AS averaging, law.*, warnings, weights, run_ids
FROM asymptote AS law LEFT JOIN fit_state ON fit_id = concat_ws('/', law.study, law.recipe, law.seed_tokens, 'asymptote')
WHERE law.study = $1 AND kind IN ('asymptote', 'asymptote in K, then N')""",
    "K": """
SELECT recipe, seed_tokens, size, averaging, law.*, law.members AS points, NULL AS warnings, NULL AS weights,
    list_sort(list_distinct(list_transform(ensemble.members, lambda member: split_part(member, '@', 1)))) AS run_ids
FROM ensemble_asymptote AS law JOIN best_run USING (cell_id, coordinates) JOIN ensemble USING (ensemble_id) WHERE study = $1
QUALIFY row_number() OVER (PARTITION BY cell_id, averaging ORDER BY law.members DESC, ensemble_id DESC) = 1
ORDER BY parameters_total, size""",
    "D": """
SELECT law.recipe, NULL AS seed_tokens, NULL AS size, NULL AS averaging, law.*, warnings, weights, run_ids
FROM data_law AS law LEFT JOIN fit_state ON fit_id = concat_ws('/', law.study, law.recipe, 'data_law') WHERE law.study = $1""",
}

# One row a point of a law; its bars are 90% intervals, over K the least and the greatest of the subsets.
POINTS = {
    "N": """
SELECT recipe, seed_tokens, NULL AS size, NULL AS averaging, size AS point, best.parameters_total AS x, limit_loss AS val_loss,
    low, high, state, state <> 'certified' AS hollow, best.reason, cell_id
FROM cell_limit AS best JOIN (SELECT cell_id, state FROM certificate) USING (cell_id)
WHERE study = $1 AND recipe_limit IN ('N', 'K then N') ORDER BY seed_tokens, x, point""",
    "K": """
SELECT recipe, seed_tokens, size, averaging, 'K = ' || members AS point, members AS x, members, mean_loss AS val_loss,
    least AS low, greatest AS high, subsets, if(mean_loss IS NULL, 'a loss is not finite', NULL) AS reason, cell_id
FROM ensemble_curve WHERE study = $1
QUALIFY ensemble_id = arg_max(ensemble_id, (members, ensemble_id)) OVER (PARTITION BY cell_id, averaging)
ORDER BY parameters_total, size, x""",
    "D": """
SELECT recipe, NULL AS seed_tokens, NULL AS size, NULL AS averaging, format('D = {:,}', seed_tokens) AS point, seed_tokens AS x,
    limit_loss AS val_loss, e_low AS low, e_high AS high, kind AS state, reason
FROM asymptote WHERE study = $1 ORDER BY x""",
}

# Rows of `ratio_figure`: data efficiency of what was trained, and of limits; hollow: extrapolated.
RATIOS = """
FROM (SELECT recipe, seed_tokens, unnest([
    {panel: 'What was trained', ratio: data_efficiency_trained, low: data_efficiency_trained_low,
        high: data_efficiency_trained_high, hollow: trained_extrapolated, val_loss: best_trained, cell_id: best_cell},
    {panel: 'Limits', ratio: data_efficiency, low: data_efficiency_low, high: data_efficiency_high, hollow: extrapolated,
        val_loss: limit_loss, cell_id: NULL}], max_depth := 2)
FROM data_efficiency WHERE study = $1)
WHERE ratio IS NOT NULL ORDER BY panel DESC, seed_tokens
"""


def study_laws(connection: duckdb.DuckDBPyConnection, study: str, over: str) -> dict[str, Any]:
    """Return the `laws` of a study over "N", "K" or "D", the `points` of each `name`, and all `recipes`, which order the laws."""
    require_study(connection, study)
    laws, points, order = *(records(connection, of[over], [study]) for of in (LAWS, POINTS)), recipes(connection, study)
    for row in [*laws, *points]:
        parts = (row["recipe"], row["seed_tokens"] and f"D = {row['seed_tokens']:,}", row["size"], row["averaging"])
        row["name"] = ", ".join(filter(None, parts))
    for law in laws:
        doubts = {WARNINGS.get(name, "residuals are larger than the noise"): name for name in law["warnings"] or ()}
        told = [text for text, name in doubts.items() if not law["reason"] or name in (NO_FREEDOM, "misfit")]
        law["caveats"] = "; ".join(filter(None, [law["reason"] or law["interval_reason"], *told]))
    laws.sort(key=lambda law: (order.index(law["recipe"]), law["seed_tokens"] or 0))
    return {"laws": laws, "points": points, "recipes": order}


def axis(points: Records, over: str) -> Axis:
    """Return the axis of laws over a variable; its labels are the budgets, or the numbers of members."""
    ticks = () if over == "N" else sorted({point["x"] for point in points})
    return Axis("x", TITLES[over], ticks, "~s" if over == "N" else ",")


def law_rows(laws: Records, points: Records, over: str) -> Records:
    """Return points, laws and limits as `law_figure` takes them; the `panel` is D over N, the size over K."""
    rows = []
    for place, law in enumerate(laws, -(len(laws) // 2)):
        own = [point for point in points if point["name"] == law["name"] and point["val_loss"] is not None]
        row = {"line": law["name"], **{name: law[name] for name in ("recipe", "size", "seed_tokens")}}
        row["panel"] = f"D = {law['seed_tokens']:,} tokens" if over == "N" else law["size"]
        beside = SIDE_BY_SIDE**place if over == "D" else 1
        rows += [{**point, **row, "layer": "point", "x": point["x"] * beside} for point in own]
        if own and (law["limit_loss"] is not None or (over == "D" and law["a"])):  # data laws are inverted also without a limit
            form, least, most = PowerLaw(law["a"], law["alpha"], law["e"]), own[0]["x"], own[-1]["x"]
            for layer, low, high in (("law", least, most), ("beyond", most, BEYOND * most)):
                xs = np.geomspace(low, high, 81)
                losses = form(xs / UNITS[over]).tolist()
                rows += [{**row, "layer": layer, "x": x, "val_loss": y} for x, y in zip(xs.tolist(), losses, strict=True)]
            rows.append({**row, "layer": "limit", "val_loss": law["limit_loss"], "low": law["e_low"], "high": law["e_high"]})
    return rows


def law_table(laws: Records) -> tuple[list[str], list[list[Any]]]:
    """Return one row a law; losses in nats per token."""
    columns = {name: name for name in ("recipe", "seed_tokens", "size", "averaging") if laws[0][name] is not None}
    columns |= {"limit_loss": "limit", "e_low": "90% from", "e_high": "to", "alpha": "exponent"}
    columns |= {"points": "points", "rmse": "rmse", "caveats": "caveats"}
    rows = [[law[name] for name in columns] for law in laws]
    return ["D" if name == "seed_tokens" else name for name in columns.values()], rows


def law_tests(law: dict[str, Any], points: Records, over: str) -> dict[str, Any]:
    """Return what tests a law: `sentence` (of the largest point), figure `rows`, and the tables `points` and `rivals`."""
    own = [point for point in points if point["name"] == law["name"] and point["val_loss"] is not None]
    rows = law_rows([law], own, over)
    losses: dict[float, list[float]] = {}  # sizes of equal N count as their mean, as in the chain of laws
    for point in own:
        losses.setdefault(point["x"] / UNITS[over], []).append(point["val_loss"])
    try:
        fitted = fit(PowerLaw, [*losses], [float(np.mean(each)) for each in losses.values()], weights=law["weights"])
    except InputError as error:
        return {"rows": rows, "points": ([], []), "rivals": ([], []), "sentence": f"Nothing is fitted: {error}."}
    miss, sentence = leave_largest_out(fitted), "The largest point cannot be held out: "
    if miss.predicted is None:
        sentence += f"{miss.reason}."
    else:
        at = {"x": miss.x * UNITS[over], "val_loss": miss.predicted}
        rows.append({"layer": "predicted", "recipe": law["recipe"], "point": "predicted", "panel": rows[0]["panel"], **at})
        sentence = (f"Without its largest point, {over} = {at['x']:,.0f}, the law predicts {miss.predicted:.4f} nats/token; "
                    f"measured: {miss.measured:.4f}, a miss of {miss.measured - miss.predicted:+.4f}.")  # fmt: skip
    law_losses = fitted.law([point["x"] / UNITS[over] for point in own]).tolist()
    spare = fitted.points > fitted.parameters
    residuals = [p["val_loss"] - loss if spare else None for p, loss in zip(own, law_losses, strict=True)]
    rivals = []
    for row in compare([form for form in RIVALS if over == "K" or form is not Exponential], fitted.x, fitted.y, fitted.weights):
        rival, form = fit(row.form, fitted.x, fitted.y, weights=fitted.weights), RIVALS[row.form]
        caveats = "; ".join([*(WARNINGS[name] for name in rival.warnings), *filter(None, [row.reason])])
        limit = None if row.form is PowerLawWithoutFloor else rival.limit  # 0 by its form, which says nothing
        rivals.append([form, limit, row.held_out, row.aicc, rival.rmse, caveats])
    measured = [[p["point"], p["val_loss"], residual, p["low"], p["high"]] for p, residual in zip(own, residuals, strict=True)]
    return {
        "rows": rows,
        "sentence": sentence,
        "points": (["point", "loss", "residual", "90% from", "to"], measured),
        "rivals": (["form", "limit", "held-out error", "AICc", "rmse", "caveats"], rivals),
    }
