"""The queries behind the first chart, and what all queries of a study share: a read-only connection in, records out."""

from collections.abc import Sequence
from typing import Any

import duckdb

from dataeff.records.queries import records, require_study
from dataeff.reports.text import cell_text

Records = list[dict[str, Any]]

# The layers of `limits_chart`: the limits, but the best over N, which are points; the law over N of each recipe and D (`law`
# within its sizes, `beyond` up to four times the largest); ensembles of 1, 2, ... members; the best of each cell. A law of limits
# in K stands above the ensembles whose limits it is fitted to.
LIMITS = """
WITH best AS MATERIALIZED (
    FROM cell_limit WHERE study = $1 AND reached_loss IS NOT NULL
), span AS (
    SELECT recipe, seed_tokens, max(members) AS members, min(parameters_total) AS low, max(parameters_total) AS high
    FROM best WHERE limit_loss IS NOT NULL GROUP BY ALL
), limits AS MATERIALIZED (
    FROM asymptote WHERE study = $1 AND limit_loss IS NOT NULL AND kind <> 'best over N'
), layer AS (
    SELECT 'limit' AS layer, recipe, seed_tokens, limit_loss AS val_loss, e_low AS low, e_high AS high, kind AS state FROM limits
    UNION ALL BY NAME
    SELECT part AS layer, recipe, seed_tokens, recipe AS line, members * n AS parameters_total,
        a * power(n / 1e9, -alpha) + e AS val_loss
    FROM limits JOIN span USING (recipe, seed_tokens), (VALUES ('law'), ('beyond')) AS parts(part), range(41) AS steps(i),
        LATERAL (SELECT if(part = 'law', low * power(high / low, i / 40), high * power(4, i / 40)) AS n)
    WHERE kind IN ('asymptote', 'asymptote in K, then N')
    UNION ALL BY NAME
    SELECT 'curve' AS layer, curve.recipe, curve.seed_tokens, curve.size, curve.recipe || curve.size AS line, curve.members,
        curve.members * curve.parameters_total AS parameters_total, mean_loss AS val_loss
    FROM ensemble_curve AS curve JOIN cell USING (cell_id, averaging)
    WHERE curve.study = $1 AND mean_loss IS NOT NULL
    UNION ALL BY NAME
    SELECT 'point' AS layer, best.recipe, best.seed_tokens, best.size, best.members,
        best.members * best.parameters_total AS parameters_total, reached_loss AS val_loss, state, state <> 'certified' AS hollow,
        reached_low AS low, reached_high AS high, cell_id, run_id, lr, weight_decay, epochs
    FROM best JOIN cell USING (cell_id) JOIN best_run USING (cell_id)
)
SELECT *, 'D = ' || format('{:,}', seed_tokens) || ' tokens' AS panel FROM layer
WHERE seed_tokens IN (SELECT seed_tokens FROM best)
ORDER BY seed_tokens, layer, recipe, line, parameters_total, members
"""


def recipes(connection: duckdb.DuckDBPyConnection, study: str) -> list[str]:
    """Return the study's recipes, in the order of its declaration."""
    return connection.execute("SELECT json_keys(spec, '$.recipes') FROM study WHERE name = $1", [study]).fetchone()[0]


def study_limits(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return the arguments of `limits_chart`. Raises `NotFoundError` for a study that is not recorded."""
    require_study(connection, study)
    (question,) = connection.execute("SELECT question FROM study WHERE name = $1", [study]).fetchone()
    return {"rows": records(connection, LIMITS, [study]), "recipes": recipes(connection, study), "title": question}


def by_key(rows: Sequence[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], Records]:
    """Return the rows by their values of `names`, both in order."""
    groups: dict[tuple[Any, ...], Records] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def readable(value: Any) -> str:
    """Return a value of a result as text, as `cell_text` does but '-' for NULL."""
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(readable, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else cell_text(value)
