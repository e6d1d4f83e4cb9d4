"""The queries behind the charts: a read-only connection in, the arguments of charts out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from dataeff.records.queries import hold_views, records
from dataeff.reports.answer import answer_rows, answer_text

if TYPE_CHECKING:
    import duckdb

POINTS = """
SELECT recipe, best.seed_tokens, best.size, members, members * best.parameters_total AS parameters_total, val_loss, state,
    val_loss_error AS error, freedom
FROM cell_limit AS best JOIN certificate USING (cell_id, study, recipe)
WHERE study = $1 AND val_loss IS NOT NULL
ORDER BY ALL
"""

CURVES = """
SELECT curve.recipe, curve.seed_tokens, curve.size, curve.members, curve.members * curve.parameters_total AS parameters_total,
    curve.val_loss
FROM ensemble_curve AS curve JOIN cell USING (cell_id, averaging)
WHERE curve.study = $1 AND curve.val_loss IS NOT NULL
ORDER BY ALL
"""

# The law of each recipe and D, drawn from half its smallest size to four times its largest.
LAWS = """
WITH span AS (
    SELECT study, recipe, seed_tokens, min(parameters_total) / 2 AS low, max(parameters_total) * 4 AS high
    FROM best_run WHERE study = $1 GROUP BY ALL
)
SELECT recipe, seed_tokens, low * power(high / low, i / 60) AS parameters_total,
    a * power(low * power(high / low, i / 60) / 1e9, -alpha) + e AS val_loss
FROM asymptote JOIN span USING (study, recipe, seed_tokens), range(61) AS steps(i)
WHERE kind = 'asymptote' AND limit_loss IS NOT NULL
ORDER BY ALL
"""

LIMITS = """
SELECT recipe, seed_tokens, limit_loss, e_low AS limit_low, e_high AS limit_high, kind
FROM asymptote WHERE study = $1 AND limit_loss IS NOT NULL ORDER BY ALL
"""

# What losses are worth at each D, by the baseline's data law: an axis.
WORTH = """
SELECT seed_tokens, (CASE WHEN ratio < 1 THEN '1/' || (1 / ratio)::INT ELSE (ratio::INT)::VARCHAR END) || 'x' AS ratio,
    a * power(ratio * seed_tokens / 1e6, -alpha) + e AS val_loss
FROM data_law JOIN study ON study.name = data_law.study AND data_law.recipe = baseline,
    (SELECT DISTINCT seed_tokens FROM cell WHERE study = $1), (SELECT unnest([1/8, 1/4, 1/2, 1, 2, 4, 8, 16]) AS ratio)
WHERE study = $1 AND a > 0 ORDER BY ALL
"""


def recipes(connection: duckdb.DuckDBPyConnection, study: str) -> list[str]:
    """Return the study's recipes, in the order of its declaration."""
    return connection.execute("SELECT json_keys(spec, '$.recipes') FROM study WHERE name = $1", [study]).fetchone()[0]


def study_answer(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return all that a study's answer is shown with: `table`, the columns and rows of `answer_rows`; `text`, what `answer_text`
    says; `limits`, the arguments of `limits_chart`. Raises `NotFoundError` for a study that is not recorded.
    """
    table = answer_rows(connection, study)
    return {"table": table, "text": answer_text(connection, study, *table), "limits": study_limits(connection, study)}


def with_bars(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return points (val_loss, error, freedom) with the ends `low` and `high` of their 90% intervals, by Student's t; None where
    no error is known, normal where no freedom is stated.
    """
    errors, freedom = (np.array([point[name] for point in points], dtype=float) for name in ("error", "freedom"))
    half = errors * stats.t.ppf(0.95, np.where(np.isnan(freedom), np.inf, freedom))
    known = [point["val_loss"] is not None and h == h for point, h in zip(points, half.tolist(), strict=True)]
    ends = [
        {"low": point["val_loss"] - h, "high": point["val_loss"] + h} if there else {"low": None, "high": None}
        for point, h, there in zip(points, half.tolist(), known, strict=True)
    ]
    return [{**point, **end} for point, end in zip(points, ends, strict=True)]


def study_limits(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return the arguments of `limits_chart` for a recorded study."""
    hold_views(connection, study)
    (question,) = connection.execute("SELECT question FROM study WHERE name = $1", [study]).fetchone()
    found = {"points": POINTS, "laws": LAWS, "curves": CURVES, "limits": LIMITS, "worth": WORTH}
    drawn = {name: records(connection, query, [study]) for name, query in found.items()}
    drawn["points"] = with_bars(drawn["points"])
    return {**drawn, "recipes": recipes(connection, study), "title": question}
