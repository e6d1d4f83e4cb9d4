"""Renews table `fit`, which the views join: the law over members of each ensemble, then the chain of laws of each study.

`run`, `import`, `rebuild` and `refresh` call `renew_fits`; readers never do, and the view `fit_state` marks what is out of date.
An ensemble is an immutable fact, so its law is fitted once. Where nothing is stale nothing is written.
"""

import math
from typing import Any

import duckdb
import numpy as np
from scipy import special

from dataeff.errors import DatabaseError
from dataeff.laws.chain import ASYMPTOTE, DATA_LAW, Budget, Quantity, chain, fit_curves
from dataeff.laws.intervals import leave_largest_out
from dataeff.laws.noise import DrawEffect, Sample, estimates, excess
from dataeff.records.ingest import record_fits
from dataeff.records.queries import records
from dataeff.records.store import Database

RESAMPLES = 2000
MISFIT = 2.0  # residuals so many times their noise are told
SELECTED = "the runs that chose a point also estimate it, and how much that flatters is in no interval"
ONE_DRAW = "one draw of the data: which D tokens they are is in no interval"
METHOD = "jackknife and resampled chain, version 5"  # a new version makes every fit stale

# The mean losses of K members of each ensemble without a fit: over all subsets (place -1), and over those without each member.
CURVES = """
WITH item AS (
    SELECT ensemble_id || '/' || averaging AS fit_id, ensemble_id, members, len(subset) AS k, val_loss, subset,
        unnest(range(-1, len(members))) AS place
    FROM ensemble_loss JOIN ensemble USING (ensemble_id)
), mean AS (
    SELECT fit_id, ensemble_id, members, place, k, if(count(val_loss) = count(*), avg(val_loss), NULL) AS loss
    FROM item ANTI JOIN (FROM fit WHERE method = $1) AS done USING (fit_id) WHERE NOT list_contains(subset, place) GROUP BY ALL
)
SELECT fit_id, ensemble_id, members, place, coalesce(list(k ORDER BY k) FILTER (loss IS NOT NULL), []) AS ks,
    list(loss ORDER BY k) FILTER (loss IS NOT NULL) AS losses
FROM mean GROUP BY ALL ORDER BY fit_id, place
"""

STALE = """SELECT DISTINCT study, baseline FROM (
        SELECT study FROM evidence ANTI JOIN fit USING (study, recipe, evidence)
        UNION SELECT study FROM fit WHERE study IS NOT NULL AND method <> $2
    ) AS stale JOIN study ON study.name = stale.study WHERE $1 IS NULL OR study = $1 ORDER BY study"""

# The cells of a study, with the runs at their optima: replicates and members among them. The order decides who draws what.
# `estimates`: by draw of the data; `beside`: what the search saw one step from the optimum.
CELLS = """
WITH used AS (
    SELECT cell_id, list(DISTINCT run.run_id) AS run_ids
    FROM best_run JOIN trial USING (cell_id, coordinates) JOIN run ON run.run_id = trial.run_id
    WHERE study = $1 AND role <> 'claim' GROUP BY cell_id
), drawn AS (
    SELECT cell_id, list({reached_loss: reached_loss, limit_loss: limit_loss, runs: runs, variance: variance, freedom: freedom,
        reached_error: error, limit_error: limit_error} ORDER BY draw) AS estimates
    FROM estimate GROUP BY cell_id
), near AS (
    SELECT cell_id, list(objective_loss ORDER BY coordinates) AS beside
    FROM cell JOIN grid_point USING (cell_id)
    WHERE objective_loss IS NOT NULL AND list_distance(coordinates::DOUBLE[], best::DOUBLE[]) = 1 GROUP BY cell_id
)
SELECT cell_id, recipe, best.recipe_limit IN ('N', 'K then N') AS over_sizes, best.recipe_limit LIKE 'K%' AS in_k,
    cell.members > 1 OR in_k AS ensembled, objective, best.seed_tokens, best.size, best.parameters_total / 1e9 AS x, chosen_by,
    best_loss, selected, best.reason, coalesce(estimates, []) AS estimates, coalesce(beside, []) AS beside, evidence,
    coalesce(run_ids, []) AS run_ids
FROM cell_limit AS best JOIN evidence USING (study, recipe) JOIN cell USING (cell_id, study, recipe)
    LEFT JOIN drawn USING (cell_id) LEFT JOIN near USING (cell_id) LEFT JOIN used USING (cell_id)
WHERE study = $1 ORDER BY recipe, seed_tokens, best.parameters_total, best.size
"""

Rows = list[dict[str, Any]]
EMPTY: dict[str, Any] = {  # the columns of table `fit`
    **dict.fromkeys(("fit_id", "study", "recipe", "seed_tokens", "quantity", "value", "low", "high", "reason")),
    **dict.fromkeys(("interval_reason", "standard_error", "tokens_needed", "largest_budget", "a", "alpha", "e", "rmse")),
    **{"method": METHOD, "evidence": None, "resamples": 0, "undefined": 0, "points": 0, "warnings": [], "run_ids": []},
    **dict.fromkeys(("held_out", "weights", "draw_sd", "seed_sd")),
}


def renew_fits(database: Database, study: str | None = None, timeout: float = 30.0) -> int:
    """Fit again what is stale, of one study or of all, and return how many fits were written.

    Raises as `Database.read` and `Database.write` do.
    """
    written = 0
    for stale, fitted in ((stale_ensembles, ensemble_rows), (stale_studies, study_rows)):
        try:
            with database.read(timeout) as connection:
                found = stale(connection, study)
        except duckdb.Error as error:
            raise DatabaseError(f"the stale fits of {database.path} could not be read: {error}") from error
        if found:
            rows = fitted(found)
            with database.write(timeout) as connection:
                record_fits(connection, [*found], rows)
            written += len(rows)
    return written


def stale_ensembles(connection: duckdb.DuckDBPyConnection, study: str | None = None) -> dict[str, Rows]:
    """Return the rows of `CURVES` by `fit_id`, of all studies: the ensemble's own curve first."""
    found: dict[str, Rows] = {}
    for curve in records(connection, CURVES, [METHOD]):
        found.setdefault(curve["fit_id"], []).append(curve)
    return found


def ensemble_rows(ensembles: dict[str, Rows]) -> Rows:
    """Return the rows of table `fit` of ensembles: L = a / K^alpha + e, and the standard error of e by the jackknife over members
    (Efron 1982, chapter 3): from the laws without each member in turn, sqrt((M - 1) / M sum (e_i - mean)^2).
    """
    alike: dict[tuple[int, ...], Rows] = {}
    for curve in (curve for curves in ensembles.values() for curve in curves):
        alike.setdefault(tuple(curve["ks"]), []).append(curve)
    for ks, curves in alike.items():
        for curve, law in zip(curves, fit_curves(ks, [curve["losses"] for curve in curves]), strict=True):
            curve["law"] = law
    rows = []
    for fit_id, (whole, *without) in ensembles.items():
        law, members = whole["law"], len(whole["members"])
        why = next((f"without one of the members: {reason}" for each in without if (reason := each["law"]["reason"])), None)
        if members < 4:
            why = f"leaving a member out needs 4 members; there are {members}"
        elif len(without) < members:
            why = "no subsets without the first member were evaluated"
        if members not in whole["ks"]:
            law["reason"] = "the loss of its members is not finite"
        run_ids = sorted({member.split("@")[0] for member in whole["members"]})
        row = {"fit_id": fit_id, "quantity": "members", "run_ids": run_ids, "evidence": whole["ensemble_id"], **law}
        if law["reason"] is None:
            row |= {"value": law["e"], "interval_reason": why}
        if law["reason"] is None and why is None:
            error = math.sqrt(members - 1) * float(np.std([each["law"]["e"] for each in without]))
            half = float(special.stdtrit(members - 1, 0.95)) * error
            row |= {"standard_error": error, "low": law["e"] - half, "high": law["e"] + half}
        rows.append(EMPTY | row)
    return rows


def stale_studies(connection: duckdb.DuckDBPyConnection, study: str | None = None) -> dict[str, tuple[str | None, Rows]]:
    """Return baseline and rows of `CELLS` of each study, or of the one named, that has a recipe whose fits are stale."""
    stale = connection.execute(STALE, [study, METHOD]).fetchall()
    return {name: (baseline, records(connection, CELLS, [name])) for name, baseline in stale}


def study_rows(studies: dict[str, tuple[str | None, Rows]]) -> Rows:
    """Return the rows of table `fit` of studies, from their rows of `CELLS`."""
    return [row for study, (baseline, cells) in studies.items() for row in _rows_of_study(study, baseline, cells)]


def _rows_of_study(study: str, baseline: str | None, all_cells: Rows) -> Rows:
    cells: dict[str, dict[int, Rows]] = {}
    for cell in all_cells:
        cells.setdefault(cell["recipe"], {}).setdefault(cell["seed_tokens"], []).append(cell)
    effects = _estimate(all_cells)
    recipes = {}
    for recipe, budgets in cells.items():
        beside = _beside([cell for own in budgets.values() for cell in own])
        items = zip(budgets.items(), _sizes_beside(list(budgets.values())), strict=True)
        recipes[recipe] = [_budget(d, own, effects, beside, sizes) for (d, own), sizes in items]
    results, rows = chain(recipes, baseline, RESAMPLES), []
    measured = (tokens for tokens in cells.get(baseline, ()) if results[baseline, tokens, ASYMPTOTE].value is not None)
    largest = max(measured, default=None)
    for (recipe, tokens, quantity), result in results.items():
        own = [cell for d, budget in cells[recipe].items() if tokens in (None, d) for cell in budget]
        is_limit = quantity in (ASYMPTOTE, DATA_LAW)
        used = own if is_limit else [*own, *(cell for cell in all_cells if cell["recipe"] == baseline)]
        row = EMPTY | {
            "fit_id": "/".join(str(part) for part in (study, recipe, tokens, quantity) if part is not None),
            **{"study": study, "recipe": recipe, "seed_tokens": tokens, "quantity": quantity, "value": result.value},
            **dict(zip(("low", "high"), result.interval(), strict=True)),
            **{"reason": result.reason, "interval_reason": _no_end(result, own), "undefined": result.undefined},
            "resamples": 0 if result.draws is None else len(result.draws),
            "run_ids": sorted({run_id for cell in used for run_id in cell["run_ids"]}),
            "evidence": own[0]["evidence"],
        }
        if not is_limit:
            row |= {"tokens_needed": result.tokens, "largest_budget": largest}
        elif fitted := result.fitted:
            law, warnings = fitted.law, [*fitted.warnings, *(["misfit"] if result.misfit > MISFIT else [])]
            row |= {"a": law.a, "alpha": law.alpha if law.a else None, "e": law.e, "rmse": fitted.rmse}
            held_out = leave_largest_out(fitted)
            row |= {"points": fitted.points, "warnings": warnings, "weights": fitted.weights.tolist()}
            row |= {"held_out": None if held_out.predicted is None else held_out.measured - held_out.predicted}
        rows.append(row)
        if quantity == ASYMPTOTE:
            seed = [cell["reached"].sd for cell in own if cell["reached"] and not cell["ensembled"] and cell["reached"].sd >= 0]
            effect = effects.get(tokens, DrawEffect())
            row |= {"draw_sd": effect.sd, "seed_sd": float(np.mean(seed)) if seed else None}
            rows += _cell_rows(row, own, result, effect)
    return rows


def _cell_rows(row: dict[str, Any], cells: Rows, result: Quantity, effect: DrawEffect) -> Rows:
    """Return the rows of what cells reached, and of their tuned optima, with intervals that hold the effect of the draws."""
    optima = iter(result.cells)
    rows = []
    for cell, name in ((cell, name) for cell in cells for name in ("reached", "optimum")):
        if (estimate := cell[name]) is None:
            continue
        value = estimate.value if name == "reached" else next(optima).value
        error = math.hypot(estimate.error, effect.error)
        freedom = min(estimate.freedom, effect.freedom if effect.error else math.inf)
        half = float(special.stdtrit(freedom, 0.95)) * error
        own = {"fit_id": f"{cell['cell_id']}/{name}", "quantity": name, "value": value, "run_ids": sorted(cell["run_ids"])}
        if math.isfinite(error):
            own |= {"standard_error": error, "low": value - half, "high": value + half}
        else:
            own |= {"interval_reason": _no_error(cell)}
        rows.append(EMPTY | {key: row[key] for key in ("study", "recipe", "seed_tokens", "evidence")} | own)
    return rows


def _no_error(cell: dict[str, Any]) -> str:
    """Return why a cell's loss has no standard error."""
    if not cell["ensembled"]:
        return "no point was run with more than one seed"
    return f"leaving a member out needs {4 if cell['in_k'] else 3} members, and the loss of the others"


def _no_end(result: Quantity, cells: Rows) -> str | None:
    """Return why an end of an interval is missing, and what one that is there does not hold; None where there is no value."""
    if result.value is None:
        return None
    lines = []
    if result.draws is None:
        lacking = (_no_error(cell) for cell in cells if cell["optimum"] and not math.isfinite(cell["optimum"].error))
        lines.append(next(lacking, "the baseline's losses have no standard error"))
    else:
        low, high = result.interval()
        share = f"{result.undefined / len(result.draws):.0%} of the resamples"
        if low is None and result.fitted:
            lines.append(f"no lower end: {share} show no limit")
        elif high is None:
            lines.append(f"no upper end: in {share} the baseline never reaches this loss")
    if result.rival_weight >= 0.05:
        lines.append(f"{result.rival_weight:.0%} of the resamples are by an exponential law, which fits these points too")
    if any(cell["selected"] for cell in cells):
        lines.append(SELECTED)
    if all(len(cell["estimates"]) < 2 for cell in cells):
        lines.append(ONE_DRAW)
    return "; ".join(lines) or None


def _estimate(cells: Rows) -> dict[float, DrawEffect]:
    """Set the estimates of what each cell `reached`, and of its `optimum`, None without; return the effects of the draws by D."""
    effects: dict[float, DrawEffect] = {}
    for name, loss, error in (("optimum", "limit_loss", "limit_error"), ("reached", "reached_loss", "reached_error")):
        samples = []
        for cell in cells:
            drawn, cell[name] = cell["estimates"], None
            values, first = [each[loss] for each in drawn], drawn[0] if drawn else {}
            if not values or None in values:
                continue
            own = np.array(values), math.nan, 0.0
            if cell["ensembled"]:
                errors = [each[error] for each in drawn]
                if None not in errors:
                    square = float(np.mean(np.square(errors)))
                    own = np.array(values), square, first["runs"] - 1.0, math.sqrt(square) or 1.0
            else:
                runs = min(each["runs"] for each in drawn)
                variance = first["variance"] / runs if first["variance"] is not None else math.nan
                own = np.array(values), variance, float(first["freedom"]), 1 / math.sqrt(runs)
            cell[name] = len(samples)
            samples.append(Sample(cell["seed_tokens"], cell["recipe"], cell["ensembled"], *own))
        found, effects = estimates(samples)
        for cell in cells:
            cell[name] = None if cell[name] is None else found[cell[name]]
    return effects


def _beside(cells: Rows) -> dict[str, tuple[Any, Any]]:
    """Return mean and sd of the true excess of the points beside each cell's optimum, by cell of one recipe.

    What the search saw of an optimum is the least of several noisy losses. Against it the points beside would seem too high, so
    the repeats stand for it: on one draw those of the cell; on several, which shift all losses, what they add on average.
    """
    known = [cell for cell in cells if cell["beside"] and cell["reached"] is not None and cell["best_loss"] is not None]
    known = [cell for cell in known if not cell["in_k"] and math.isfinite(cell["reached"].error)]
    added = {cell["cell_id"]: cell["reached"].value - cell["best_loss"] for cell in known}
    mean, differences, variances = float(np.mean(list(added.values()) or [0.0])), [], []
    for cell in known:
        reached, one_draw = cell["reached"], len(cell["estimates"]) == 1
        seen = reached.sd**2 if cell["objective"] == "single" else reached.error**2 * len(cell["estimates"])
        differences.append(np.array(cell["beside"]) - cell["best_loss"] - (added[cell["cell_id"]] if one_draw else mean))
        variances.append(seen + (reached.error**2 if one_draw else seen))
    return {cell["cell_id"]: pair for cell, pair in zip(known, excess(differences, variances), strict=True)}


def _sizes_beside(budgets: list[Rows]) -> list[tuple[Any, Any] | None]:
    """Return mean and sd of the true excess of the other sizes over the chosen one, by D; None where it is not known."""
    groups = [[cell for cell in own if cell["optimum"] is not None] for own in budgets]
    known = [own for own in groups if len(own) > 1 and all(math.isfinite(cell["optimum"].error) for cell in own)]
    differences, variances = [], []
    for own in known:
        best = own[_chosen(own)]
        differences.append(np.array([cell["optimum"].value - best["optimum"].value for cell in own if cell is not best]))
        variances.append(2 * float(np.mean([cell["optimum"].error ** 2 for cell in own])))
    found = iter(excess(differences, variances))
    return [next(found) if any(own is each for each in known) else None for own in groups]


def _chosen(cells: Rows) -> int:
    """Return the place of the size that the search chose: by what it saw, never by what estimates or extrapolates."""
    return min(range(len(cells)), key=lambda i: math.inf if cells[i]["chosen_by"] is None else cells[i]["chosen_by"], default=0)


def _budget(
    tokens: int, cells: Rows, effects: dict[float, DrawEffect], beside: dict[str, tuple[Any, Any]], sizes: tuple[Any, Any] | None
) -> Budget:
    limited = [cell for cell in cells if cell["optimum"] is not None]
    done = [cell for cell in cells if cell["reached"] is not None]
    reached, effect = done[_chosen(done)]["reached"] if done else None, effects.get(tokens, DrawEffect())
    arrays = (np.array([getattr(cell["optimum"], name) for cell in limited]) for name in ("value", "error", "freedom"))
    nothing = np.empty(0), np.empty(0)
    return Budget(
        tokens,
        np.array([cell["x"] for cell in limited]),
        *arrays,
        over_sizes=cells[0]["over_sizes"],
        trained=(reached.value, reached.error, reached.freedom) if reached else None,
        chosen=_chosen(limited),
        beside=[beside.get(cell["cell_id"], nothing) for cell in limited],
        sizes_beside=sizes,
        draw=(effect.error, effect.freedom),
    )
