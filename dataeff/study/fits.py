"""Renews table `fit`, which the views join: the law over members of each ensemble, then the chain of laws of each study.

`run`, `import`, `rebuild` and `refresh` call `renew_fits`; readers never do, and the view `fit_state` marks what is out of date.
An ensemble is an immutable fact, so its law is fitted once. Where nothing is stale nothing is written.
"""

import math
from typing import Any

import duckdb
import numpy as np

from dataeff.errors import DatabaseError
from dataeff.laws.chain import ASYMPTOTE, DATA_LAW, Budget, Quantity, chain, fit_curves
from dataeff.records.ingest import record_fits
from dataeff.records.queries import records
from dataeff.records.store import Database

RESAMPLES = 2000
METHOD = "jackknife and resampled chain, version 3"  # a new version makes every fit stale

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

# The cells of a study, with the runs at their optima: replicates and members among them. The order decides who draws what. The
# degrees of freedom of a jackknife are taken as infinite.
CELLS = """
WITH used AS (
    SELECT cell_id, list(DISTINCT run.run_id) AS run_ids
    FROM best_run JOIN trial USING (cell_id, coordinates) JOIN run ON run.run_id = trial.run_id WHERE study = $1 GROUP BY cell_id
)
SELECT recipe, recipe_limit IN ('N', 'K then N') AS over_sizes, seed_tokens, size, parameters_total / 1e9 AS x,
    reached_loss, coalesce(reached_error, 'nan') AS reached_error, limit_loss, coalesce(standard_error, 'nan') AS standard_error,
    coalesce(nullif(freedom, 0)::DOUBLE, 'inf') AS freedom, interval_reason, evidence, coalesce(run_ids, []) AS run_ids
FROM cell_limit JOIN evidence USING (study, recipe) LEFT JOIN used USING (cell_id)
WHERE study = $1 ORDER BY recipe, seed_tokens, parameters_total, size
"""

Rows = list[dict[str, Any]]
EMPTY: dict[str, Any] = {  # the columns of table `fit`
    **dict.fromkeys(("fit_id", "study", "recipe", "seed_tokens", "quantity", "value", "low", "high", "reason")),
    **dict.fromkeys(("interval_reason", "standard_error", "tokens_needed", "largest_budget", "a", "alpha", "e", "rmse")),
    **{"method": METHOD, "evidence": None, "resamples": 0, "undefined": 0, "points": 0, "warnings": [], "run_ids": []},
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
            row |= {"standard_error": error, "low": law["e"] - 1.645 * error, "high": law["e"] + 1.645 * error}
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
    recipes = {recipe: [_budget(tokens, own) for tokens, own in budgets.items()] for recipe, budgets in cells.items()}
    results, rows = chain(recipes, baseline, RESAMPLES), []
    measured = (tokens for tokens in cells.get(baseline, ()) if results[baseline, tokens, ASYMPTOTE].value is not None)
    largest = max(measured, default=None)
    for (recipe, tokens, quantity), result in results.items():
        own = [cell for d, budget in cells[recipe].items() if tokens in (None, d) for cell in budget]
        is_limit = quantity in (ASYMPTOTE, DATA_LAW)
        used = own if is_limit else [*own, *(cell for cell in all_cells if cell["recipe"] == baseline)]
        row = {
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
            law, warnings = fitted.law, [*fitted.warnings, *(["misfit"] if result.misfit > 1 else [])]
            row |= {"a": law.a, "alpha": law.alpha if law.a else None, "e": law.e, "rmse": fitted.rmse}
            row |= {"points": fitted.points, "warnings": warnings}
        rows.append(EMPTY | row)
    return rows


def _no_end(result: Quantity, cells: Rows) -> str | None:
    """Return why an end of an interval is missing; None where none is, or there is no value."""
    if result.value is None:
        return None
    if result.draws is None:
        reasons = (cell["interval_reason"] for cell in cells if cell["interval_reason"] and cell["limit_loss"] is not None)
        return next(reasons, "the baseline's losses have no standard error")
    share = f"{result.undefined / len(result.draws):.0%} of the resamples"
    return f"no upper end: in {share} the baseline never reaches this loss" if None in result.interval() else None


def _budget(tokens: int, cells: Rows) -> Budget:
    limited = [cell for cell in cells if cell["limit_loss"] is not None]
    reached = [(c["reached_loss"], c["reached_error"], c["freedom"]) for c in cells if c["reached_loss"] is not None]
    names = ("x", "limit_loss", "standard_error", "freedom")
    arrays = (np.array([cell[name] for cell in limited], dtype=np.float64) for name in names)
    return Budget(tokens, *arrays, cells[0]["over_sizes"], min(reached, key=lambda best: best[0], default=None))
