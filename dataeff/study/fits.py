"""Renews table `fit`: rows of `cell_limit` go through `dataeff.laws.chain`, which adds intervals to what the views fit.

Call `renew_fits` after adding runs; until then the view `fit_state` marks the fits as stale. Where nothing is stale it reads
two views and writes nothing.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np

from dataeff.errors import DatabaseError
from dataeff.laws.chain import ASYMPTOTE, DATA_LAW, Budget, Quantity, chain
from dataeff.records.ingest import record_fits
from dataeff.records.queries import records
from dataeff.records.store import Database

RESAMPLES = 2000
METHOD = "resampled chain, version 2"  # a new version makes every fit stale

STALE = """SELECT DISTINCT study, baseline FROM (
        SELECT study FROM evidence ANTI JOIN fit USING (study, recipe, evidence)
        UNION SELECT study FROM fit WHERE resamples > 0 AND low IS NOT NULL AND method <> $2
    ) AS stale JOIN study ON study.name = stale.study WHERE $1 IS NULL OR study = $1 ORDER BY study"""

# The cells of a study, with the runs at their optima: replicates and members among them. The order decides who draws what.
CELLS = """
WITH used AS (
    SELECT cell_id, list(DISTINCT run.run_id) AS run_ids
    FROM best_run JOIN trial USING (cell_id, coordinates) JOIN run ON run.run_id = trial.run_id WHERE study = $1 GROUP BY cell_id
)
SELECT recipe, recipe_limit IN ('N', 'K then N') AS over_sizes, seed_tokens, size, parameters_total / 1e9 AS x,
    reached_loss, reached_error, limit_loss, standard_error, freedom, interval_reason, reason, evidence,
    coalesce(run_ids, []) AS run_ids
FROM cell_limit JOIN evidence USING (study, recipe) LEFT JOIN used USING (cell_id)
WHERE study = $1 ORDER BY recipe, seed_tokens, parameters_total, size
"""

Cells = list[dict[str, Any]]


def renew_fits(database: Database, study: str | None = None, timeout: float = 30.0) -> int:
    """Fit again what is stale, of one study or of all, and return how many fits were written.

    Raises as `Database.read` and `Database.write` do; nothing is changed then.
    """
    try:
        with database.read(timeout) as connection:
            stale = stale_evidence(connection, study)
    except duckdb.Error as error:
        raise DatabaseError(f"the stale fits of {database.path} could not be read: {error}") from error
    rows = [row for evidence in stale for row in fit_rows(*evidence)]
    if stale:
        with database.write(timeout) as connection:
            record_fits(connection, [name for name, *_ in stale], rows)
    return len(rows)


def stale_evidence(connection: duckdb.DuckDBPyConnection, study: str | None = None) -> list[tuple[str, str, Cells]]:
    """Return name, baseline and rows of `CELLS` of each study, or of the one named, that has a recipe whose fits are stale."""
    stale = connection.execute(STALE, [study, METHOD]).fetchall()
    return [(name, baseline, records(connection, CELLS, [name])) for name, baseline in stale]


def fit_rows(study: str, baseline: str, all_cells: Cells) -> list[dict[str, Any]]:
    """Return the rows of table `fit` for a study, from its rows of `CELLS`."""
    cells: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for cell in all_cells:
        cells.setdefault(cell["recipe"], {}).setdefault(cell["seed_tokens"], []).append(cell)
    recipes = {recipe: [_budget(tokens, own) for tokens, own in budgets.items()] for recipe, budgets in cells.items()}
    now, rows = datetime.now(UTC), []
    for (recipe, tokens, quantity), result in chain(recipes, baseline, RESAMPLES).items():
        is_limit = quantity in (ASYMPTOTE, DATA_LAW)
        own = [cell for d, budget in cells[recipe].items() if tokens in (None, d) for cell in budget]
        used = [cell for cell in all_cells if not is_limit and cell["recipe"] == baseline] + own
        rows.append(
            {
                "fit_id": "/".join(str(part) for part in (study, recipe, tokens, quantity) if part is not None),
                "study": study,
                "recipe": recipe,
                "seed_tokens": tokens,
                "quantity": quantity,
                **_result_columns(result, own),
                "left_out": [f"{cell['size']}: {cell['reason']}" for cell in own if cell["reason"] and is_limit],
                "run_ids": sorted({run_id for cell in used for run_id in cell["run_ids"]}),
                "evidence": own[0]["evidence"],
                "fitted_at": now,
            }
        )
    return rows


def _budget(tokens: int, cells: Cells) -> Budget:
    limited = [cell for cell in cells if cell["limit_loss"] is not None]
    reached = [cell for cell in cells if cell["reached_loss"] is not None]
    trained = min(reached, key=lambda cell: cell["reached_loss"], default=None)
    best = trained and (trained["reached_loss"], *_error(trained, "reached_error"))
    errors = np.array([_error(cell, "standard_error") for cell in limited]).reshape(-1, 2)
    sizes, losses = (np.array([cell[name] for cell in limited], dtype=np.float64) for name in ("x", "limit_loss"))
    return Budget(tokens, sizes, losses, errors[:, 0], errors[:, 1], cells[0]["over_sizes"], best)


def _error(cell: dict[str, Any], name: str) -> tuple[float, float]:
    """Return a standard error and its degrees of freedom; those of a jackknife are taken as infinite."""
    return (math.nan if cell[name] is None else cell[name]), float(cell["freedom"] or math.inf)


def _result_columns(result: Quantity, cells: Cells) -> dict[str, Any]:
    """Return the columns of table `fit` that hold a quantity's value, interval and law."""
    low, high = result.interval()
    fit, method = result.fitted, METHOD
    if result.value is None:
        method = "no estimate, so no interval"
    elif result.draws is None:
        reasons = (cell["interval_reason"] for cell in cells if cell["interval_reason"] and cell["limit_loss"] is not None)
        method = next(reasons, "the baseline's losses have no standard error")
    return {
        "value": result.value,
        "low": low,
        "high": high,
        "method": method,
        "resamples": 0 if result.draws is None else len(result.draws),
        "undefined": result.undefined,
        "points": fit.points if fit else 0,
        **{name: getattr(fit.law, name) if fit else None for name in ("a", "alpha", "e")},
        "objective": fit.objective if fit else None,
        "condition": fit.condition if fit and math.isfinite(fit.condition) else None,
        "certified": fit.certified if fit else None,
        "warnings": [*(fit.warnings if fit else ()), *(["misfit"] if result.misfit > 1 else [])],
    }
