"""The laws of a study, and what tests one of them: its residuals, its largest point held out, and rival forms.

    over N   losses, or limits in K, of a recipe's sizes at one D    x in units of 1e9 parameters    `asymptote`
    over K   losses of K members of the ensemble at an optimum       x in members                    `ensemble_asymptote`
    over D   limits of a recipe                                      x in units of 1e6 tokens        `data_law`

Laws and intervals are those of the views; only what tests a law is fitted here. Losses in nats per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataeff.errors import InputError
from dataeff.laws.fit import NO_FREEDOM, WARNINGS, fit
from dataeff.laws.forms import Exponential, Form, PowerLaw, PowerLawWithoutFloor, Reciprocal
from dataeff.laws.intervals import compare, leave_largest_out
from dataeff.records.queries import records, require_study
from dataeff.reports.charts import Axis
from dataeff.reports.frames import Records, law_line, recipes, with_bars

if TYPE_CHECKING:
    import duckdb

UNITS = {"N": 1e9, "K": 1.0, "D": 1e6}  # of x, as fitted
TITLES = {"N": "parameters N (total)", "K": "members K", "D": "seed tokens D"}
KEY = ("recipe", "seed_tokens", "size", "averaging")  # what names a law, NULL where it is no part of the name
BEYOND, SIDE_BY_SIDE = 4, 1.025  # laws are drawn to so many times their largest x; points over D stand so far apart
RIVALS: dict[type[Form], str] = {
    PowerLaw: "a / x^alpha + E",
    Reciprocal: "a / x + E",
    PowerLawWithoutFloor: "a / x^alpha",
    Exponential: "a exp(-x / tau) + E",
}

LAWS = {
    "N": """
SELECT law.recipe, law.seed_tokens, NULL AS size, NULL AS averaging, law.*, warnings, run_ids
FROM asymptote AS law LEFT JOIN fit_state ON fit_id = concat_ws('/', law.study, law.recipe, law.seed_tokens, 'asymptote')
WHERE law.study = $1 AND kind IN ('asymptote', 'asymptote in K, then N')""",
    "K": """
SELECT recipe, seed_tokens, size, averaging, law.*, law.members AS points, NULL AS warnings,
    list_sort(list_distinct(list_transform(ensemble.members, lambda member: split_part(member, '@', 1)))) AS run_ids
FROM ensemble_asymptote AS law JOIN best_run USING (cell_id, coordinates) JOIN ensemble USING (ensemble_id) WHERE study = $1
QUALIFY row_number() OVER (PARTITION BY cell_id, averaging ORDER BY law.members DESC, ensemble_id DESC) = 1
ORDER BY parameters_total, size""",
    "D": """
SELECT law.recipe, NULL AS seed_tokens, NULL AS size, NULL AS averaging, law.*, warnings, run_ids
FROM data_law AS law LEFT JOIN fit_state ON fit_id = concat_ws('/', law.study, law.recipe, 'data_law') WHERE law.study = $1""",
}

# One row a point of a law; its bars are 90% intervals, over K the least and the greatest of the subsets.
POINTS = {
    "N": """
SELECT recipe, seed_tokens, NULL AS size, NULL AS averaging, size AS point, best.parameters_total AS x, limit_loss AS val_loss,
    standard_error AS error, freedom, state, state <> 'certified' AS hollow, best.reason, cell_id
FROM cell_limit AS best JOIN (SELECT cell_id, state FROM certificate) USING (cell_id)
WHERE study = $1 AND recipe_limit IN ('N', 'K then N') ORDER BY seed_tokens, x, point""",
    "K": """
SELECT recipe, seed_tokens, size, averaging, members || ' members' AS point, members AS x, members, mean_loss AS val_loss,
    least AS low, greatest AS high, subsets, if(mean_loss IS NULL, 'a loss is not finite', NULL) AS reason, cell_id
FROM ensemble_curve WHERE study = $1
QUALIFY ensemble_id = arg_max(ensemble_id, (members, ensemble_id)) OVER (PARTITION BY cell_id, averaging)
ORDER BY parameters_total, size, x""",
    "D": """
SELECT recipe, NULL AS seed_tokens, NULL AS size, NULL AS averaging, format('D = {:,}', seed_tokens) AS point, seed_tokens AS x,
    limit_loss AS val_loss, e_low AS low, e_high AS high, kind AS state, reason
FROM asymptote WHERE study = $1 ORDER BY x""",
}

# Data efficiency of what was trained, and of limits; hollow: extrapolated.
PANELS = ("What was trained", "Limits, by law")
RATIOS = """
SELECT recipe, seed_tokens, unnest([
    {panel: 'What was trained', ratio: data_efficiency_trained, low: data_efficiency_trained_low,
        high: data_efficiency_trained_high, hollow: trained_extrapolated, val_loss: best_trained, cell_id: best_cell},
    {panel: 'Limits, by law', ratio: data_efficiency, low: data_efficiency_low, high: data_efficiency_high, hollow: extrapolated,
        val_loss: limit_loss, cell_id: NULL}], max_depth := 2)
FROM data_efficiency WHERE study = $1 ORDER BY seed_tokens
"""


def study_laws(connection: duckdb.DuckDBPyConnection, study: str, over: str) -> dict[str, Any]:
    """Return the `laws` of a study over "N", "K" or "D", their `points`, and all `recipes`, in whose order the laws come."""
    require_study(connection, study)
    laws, points, order = *(records(connection, of[over], [study]) for of in (LAWS, POINTS)), recipes(connection, study)
    laws = [{**law, "reasons": _reasons(law)} for law in laws]
    laws.sort(key=lambda law: (order.index(law["recipe"]), law["seed_tokens"] or 0))
    return {"laws": laws, "points": with_bars(points) if over == "N" else points, "recipes": order}


def study_ratios(connection: duckdb.DuckDBPyConnection, study: str) -> Records:
    """Return the ratios that there are, as `ratio_figure` takes them, by `panel`."""
    require_study(connection, study)
    rows = [row for row in records(connection, RATIOS, [study]) if row["ratio"] is not None]
    return sorted(rows, key=lambda row: PANELS.index(row["panel"]))


def _reasons(law: dict[str, Any]) -> str:
    """Why a law has no limit or no interval, and what is doubtful about it."""
    doubts = {WARNINGS.get(name, "residuals are larger than the noise"): name for name in law["warnings"] or ()}
    told = [text for text, name in doubts.items() if not law["reason"] or name in (NO_FREEDOM, "misfit")]
    return "; ".join([text for text in (law["reason"] or law["interval_reason"],) if text] + told)


def law_name(law: dict[str, Any]) -> str:
    """Return the name of a law among those over one variable."""
    tokens = [f"D = {law['seed_tokens']:,}"] if law["seed_tokens"] else []
    return ", ".join([law["recipe"], *tokens, *(law[name] for name in ("size", "averaging") if law[name])])


def of_law(law: dict[str, Any], points: Records) -> Records:
    """Return the points of a law."""
    return [point for point in points if all(point[name] == law[name] for name in KEY)]


def axis(points: Records, over: str) -> Axis:
    """Return the axis of laws over a variable; its labels are the budgets, or the numbers of members."""
    ticks = () if over == "N" else sorted({point["x"] for point in points})
    return Axis("x", TITLES[over], ticks, "~s" if over == "N" else ",")


def law_rows(laws: Records, points: Records, over: str) -> Records:
    """Return points, laws and limits as `law_figure` takes them; the `panel` is D over N, the size over K."""
    rows = []
    for law in laws:
        own = [point for point in of_law(law, points) if point["val_loss"] is not None]
        row = {"recipe": law["recipe"], "line": law_name(law), "size": law["size"], "seed_tokens": law["seed_tokens"]}
        row["panel"] = {"N": f"D = {law['seed_tokens'] or 0:,} tokens", "K": law["size"], "D": None}[over]
        beside = SIDE_BY_SIDE ** (laws.index(law) - (len(laws) - 1) / 2) if over == "D" else 1
        rows += [{**point, **row, "layer": "point", "x": point["x"] * beside} for point in own]
        if own and (law["limit_loss"] is not None or (over == "D" and law["a"])):  # data laws are inverted also without a limit
            form, least, most = PowerLaw(law["a"], law["alpha"], law["e"]), own[0]["x"], own[-1]["x"]
            for layer, low, high in (("law", least, most), ("beyond", most, BEYOND * most)):
                rows += law_line(form, low / UNITS[over], high / UNITS[over], "x", UNITS[over], **row, layer=layer)
            rows.append({**row, "layer": "limit", "val_loss": law["limit_loss"], "low": law["e_low"], "high": law["e_high"]})
    return rows


def law_table(laws: Records) -> tuple[list[str], list[list[Any]]]:
    """Return one row a law; losses in nats per token."""
    names = [name for name in KEY if any(law[name] is not None for law in laws)]
    columns = {"limit_loss": "limit", "e_low": "90% from", "e_high": "to", "alpha": "exponent"} | {n: n for n in ("points", "rmse")}
    rows = [[*(law[name] for name in (*names, *columns)), law["reasons"]] for law in laws]
    return ["D" if name == "seed_tokens" else name for name in names] + [*columns.values(), "caveats"], rows


def law_tests(law: dict[str, Any], points: Records, over: str) -> dict[str, Any]:
    """Return what tests a law: `sentence` (of the largest point), figure `rows`, and the tables `points` and `rivals`."""
    own = [point for point in of_law(law, points) if point["val_loss"] is not None]
    rows = law_rows([law], points, over)
    tests = {"rows": rows, "points": ([], []), "rivals": ([], [])}
    try:
        fitted = fit(PowerLaw, [point["x"] / UNITS[over] for point in own], [point["val_loss"] for point in own])
    except InputError as error:
        return {**tests, "sentence": f"Nothing is fitted: {error}."}
    miss, spare = leave_largest_out(fitted), fitted.points > fitted.parameters
    fits = {form: fit(form, fitted.x, fitted.y) for form in RIVALS if over == "K" or form is not Exponential}
    low, high = fitted.x.min(), fitted.x.max() * BEYOND
    for form, rival in fits.items():
        if form is not PowerLaw:
            more = {"layer": "rival", "recipe": law["recipe"], "line": RIVALS[form], "form": RIVALS[form]}
            rows += law_line(rival.law, low, high, "x", UNITS[over], **more)
    sentence = f"The largest point cannot be held out: {miss.reason}."
    if miss.predicted is not None:
        at = {"x": miss.x * UNITS[over], "val_loss": miss.predicted}
        rows.append({"layer": "predicted", "recipe": law["recipe"], "point": "predicted", **at})
        sentence = (f"Without its largest point, {over} = {at['x']:,.0f}, the law predicts {miss.predicted:.4f} nats/token; "
                    f"measured: {miss.measured:.4f}, a miss of {miss.measured - miss.predicted:+.4f}.")  # fmt: skip
    residuals = [[p["point"], p["val_loss"], r if spare else None, p["low"], p["high"]]
                 for p, r in zip(own, fitted.residuals.tolist(), strict=True)]  # fmt: skip
    rivals = [[RIVALS[row.form], None if row.form is PowerLawWithoutFloor else fits[row.form].limit, row.held_out, row.aicc,
               fits[row.form].rmse, "; ".join([WARNINGS[name] for name in fits[row.form].warnings] + [row.reason or ""])]
              for row in compare(list(fits), fitted.x, fitted.y)]  # fmt: skip
    return {
        "rows": rows,
        "sentence": sentence,
        "points": (["point", "loss", "residual", "90% from", "to"], residuals),
        "rivals": (["form", "limit", "held-out error", "AICc", "rmse", "caveats"], rivals),
    }
