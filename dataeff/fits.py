"""A study's fits, made again: rows of `cell_limit` through `dataeff.laws.chain` to table `fit`.

The views fit for themselves whenever they are asked; what they take from here are the intervals. Who adds runs calls
`renew_fits`; what was not renewed is marked by the view `fit_state`. Renewing what is up to date reads two views and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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

CELLS = """
SELECT recipe, recipe_limit IN ('N', 'K then N') AS over_sizes, seed_tokens, size, parameters_total / 1e9 AS x, val_loss,
    val_loss_error, limit_loss, standard_error, freedom, interval_reason, reason
FROM cell_limit WHERE study = $1 ORDER BY recipe, seed_tokens, parameters_total, size
"""

# The runs at the optima of a recipe's cells: replicates and members among them.
RUNS = """
SELECT recipe, best_run.seed_tokens, list(DISTINCT trial.run_id ORDER BY trial.run_id)
FROM best_run JOIN trial USING (cell_id, coordinates) JOIN run ON run.run_id = trial.run_id
WHERE study = $1 GROUP BY ALL
"""


@dataclass(frozen=True)
class Evidence:
    """What a study's fits are made from: rows of `CELLS`, the run ids of each (recipe, D), and the hash of each recipe's."""

    study: str
    baseline: str
    cells: list[dict[str, Any]]
    run_ids: dict[tuple[str, int], list[str]]
    hashes: dict[str, str]


def renew_fits(database: Database, study: str | None = None, timeout: float = 30.0) -> int:
    """Fit again what rests on other runs than when it was last fitted, of one study or of all; return how many fits were written.

    Raises as `Database.read` and `Database.write` do; nothing is changed then.
    """
    try:
        with database.read(timeout) as connection:
            found = stale_evidence(connection, study)
    except duckdb.Error as error:
        raise DatabaseError(f"what fits of {database.path} rest on could not be worked out: {error}") from error
    rows = [row for evidence in found for row in fit_rows(evidence)]
    if found:
        with database.write(timeout) as connection:
            record_fits(connection, [evidence.study for evidence in found], rows)
    return len(rows)


def stale_evidence(connection: duckdb.DuckDBPyConnection, study: str | None = None) -> list[Evidence]:
    """Return the evidence of each study, or of the one named, of which a recipe was never fitted or has other runs since."""
    found, stale = [], connection.execute(STALE, [study, METHOD]).fetchall()
    for name, baseline in stale:
        text = "SELECT recipe, evidence FROM evidence WHERE study = $1 ORDER BY recipe"  # their order decides who draws what
        hashes = dict(connection.execute(text, [name]).fetchall())
        runs = {(recipe, tokens): ids for recipe, tokens, ids in connection.execute(RUNS, [name]).fetchall()}
        found.append(Evidence(name, baseline, records(connection, CELLS, [name]), runs, hashes))
    return found


def fit_rows(given: Evidence) -> list[dict[str, Any]]:
    """Return the rows of table `fit` for a study."""
    at: dict[str, dict[int, list[dict[str, Any]]]] = {recipe: {} for recipe in given.hashes}
    for cell in given.cells:
        if cell["recipe"] in at:
            at[cell["recipe"]].setdefault(cell["seed_tokens"], []).append(cell)
    recipes = {recipe: [_budget(tokens, cells) for tokens, cells in budgets.items()] for recipe, budgets in at.items()}
    now, rows = datetime.now(UTC), []
    for (recipe, tokens, quantity), value in chain(recipes, given.baseline, RESAMPLES).items():
        is_limit, used = quantity in (ASYMPTOTE, DATA_LAW), [(recipe, d) for d in at[recipe] if tokens in (None, d)]
        cells = [cell for _, d in used for cell in at[recipe][d]]
        used += [] if is_limit else [(given.baseline, d) for d in at.get(given.baseline, ())]
        rows.append(
            {
                "fit_id": "/".join(str(part) for part in (given.study, recipe, tokens, quantity) if part is not None),
                "study": given.study,
                "recipe": recipe,
                "seed_tokens": tokens,
                "quantity": quantity,
                **_said(value, cells),
                "left_out": [f"{cell['size']}: {cell['reason']}" for cell in cells if cell["reason"] and is_limit],
                "run_ids": sorted({run_id for place in used for run_id in given.run_ids.get(place, ())}),
                "evidence": given.hashes[recipe],
                "fitted_at": now,
            }
        )
    return rows


def _budget(tokens: int, cells: Sequence[dict[str, Any]]) -> Budget:
    limited = [cell for cell in cells if cell["limit_loss"] is not None]
    trained = min((cell for cell in cells if cell["val_loss"] is not None), key=lambda cell: cell["val_loss"], default=None)
    reached = trained and (trained["val_loss"], *_error(trained, "val_loss_error"))
    errors = np.array([_error(cell, "standard_error") for cell in limited]).reshape(-1, 2)
    sizes, losses = (np.array([cell[name] for cell in limited], dtype=np.float64) for name in ("x", "limit_loss"))
    return Budget(tokens, sizes, losses, errors[:, 0], errors[:, 1], cells[0]["over_sizes"], reached)


def _error(cell: dict[str, Any], name: str) -> tuple[float, float]:
    """Return a standard error and its degrees of freedom; those of a jackknife are taken as known."""
    return (math.nan if cell[name] is None else cell[name]), float(cell["freedom"] or math.inf)


def _said(found: Quantity, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the row of a quantity says of its value, interval and law."""
    low, high = found.interval()
    fitted, method = found.fitted, METHOD
    if low is None and high is None and found.draws is None:
        lacking = [cell["interval_reason"] for cell in cells if cell["interval_reason"] and cell["limit_loss"] is not None]
        method = lacking[0] if lacking else "the baseline's losses have no standard error"
    law = {name: getattr(fitted.law, name) if fitted else None for name in ("a", "alpha", "e")}
    return {
        "value": found.value,
        "low": low,
        "high": high,
        "method": "there is nothing to bracket" if found.value is None else method,
        "resamples": 0 if found.draws is None else len(found.draws),
        "undefined": found.undefined,
        "points": fitted.points if fitted else 0,
        **law,
        "objective": fitted.objective if fitted else None,
        "condition": fitted.condition if fitted and math.isfinite(fitted.condition) else None,
        "certified": fitted.certified if fitted else None,
        "warnings": [*(fitted.warnings if fitted else ()), *(["misfit"] if found.misfit > 1 else [])],
    }
