"""The claims of a study, judged by pairs of recorded runs or ensembles, one of each recipe, that chose nothing.

A draw of the data is one pair, of the means over its seeds: runs on one draw are not independent. On the draw that tunes a pair
shares its seed. Each recipe stands at its best size at D, the one whose tuning runs ended lowest. A verdict is of the pairs
recorded now, in whatever order they came; there are none while a search goes on, as its optimum may still move.
"""

import json
import math
from typing import Any

import duckdb

from dataeff.errors import InputError
from dataeff.laws.judge import judge
from dataeff.records.queries import Table, require_study

# One row a pair: the losses of recipes $2 and $3 of study $1 at D = $4; NULL where a run diverged.
PAIRS = """
WITH chosen AS (
    SELECT cell.recipe, arg_min(cell_id, (chosen_by IS NULL, chosen_by, cell_id)) AS cell_id
    FROM cell JOIN (SELECT cell_id, chosen_by FROM cell_limit) USING (cell_id)
    WHERE study = $1 AND recipe IN ($2, $3) AND seed_tokens = $4
    GROUP BY cell.recipe HAVING count_if(state IN ('waiting', 'searching')) = 0
), tuned AS (
    SELECT run_id FROM trial JOIN cell USING (cell_id)
    WHERE study = $1 AND (role = 'search' OR role = 'member' AND objective = 'K')
), repeat AS (
    SELECT cell.recipe, coalesce(draw, 0) AS draw, train_seed, val_loss
    FROM chosen JOIN cell USING (cell_id) JOIN trial USING (cell_id) JOIN run USING (run_id)
    WHERE cell.members = 1 AND role = 'replicate' AND coordinates = best AND run_id NOT IN (FROM tuned)
    UNION ALL
    SELECT cell.recipe, draw, NULL, mean_loss
    FROM chosen JOIN cell USING (cell_id) JOIN cell_ensemble USING (cell_id)
        JOIN ensemble_size AS law ON law.ensemble_id = cell_ensemble.ensemble_id AND law.averaging = cell.averaging
            AND law.members = cell.members
    WHERE role = 'replicate' AND coordinates = best
), drawn AS (
    SELECT recipe, draw, if(draw > 0, NULL, train_seed) AS seed, if(count(val_loss) = count(*), avg(val_loss), NULL) AS val_loss
    FROM repeat GROUP BY ALL
)
SELECT better.val_loss, other.val_loss
FROM (FROM drawn WHERE recipe = $2) AS better JOIN (FROM drawn WHERE recipe = $3) AS other
    ON better.draw = other.draw AND (better.draw > 0 OR better.seed = other.seed)
ORDER BY better.draw, better.seed"""

COLUMNS = ["claim", "statement", "state", "pairs", "difference", "low", "high", "e_for", "e_against", "pairs_expected", "reason"]
NO_CLAIM = "study {} declares no claim; add one to its file and run it again: a table [claims.mine] with better, than, at and by"
NO_PAIR = "no pair yet: the searches of both recipes must have ended, and their optima be repeated under one other seed"


def judged_claims(connection: duckdb.DuckDBPyConnection, study: str) -> Table:
    """Return (columns, rows): one row a claim, in the order of declaration. `difference`: mean loss of `than` minus that of
    `better`, `low` to `high` its anytime-valid 90% interval (nats/token); `e_for` and `e_against`: e-values.

    Raises `NotFoundError` for a study that is not recorded, `InputError` for one without claims.
    """
    require_study(connection, study)
    (spec,) = connection.execute("SELECT spec FROM study WHERE name = $1", [study]).fetchone()
    claims = json.loads(spec).get("claims")
    if not claims:
        raise InputError(NO_CLAIM.format(study))
    return COLUMNS, [_row(connection, study, name, claim) for name, claim in claims.items()]


def _row(connection: duckdb.DuckDBPyConnection, study: str, name: str, claim: dict[str, Any]) -> tuple[Any, ...]:
    better, than, at, by = (claim[key] for key in ("better", "than", "at", "by"))
    pairs = connection.execute(PAIRS, [study, better, than, at]).fetchall()
    whole = [pair for pair in pairs if None not in pair]
    verdict = judge([other - own - by for own, other in whole])
    margin = f" by more than {by:g}" if by else ""
    declared = (name, f"{better} is better than {than}{margin} at D = {at:,}", verdict.state, verdict.pairs)
    numbers = (None if value is None else value + by for value in (verdict.mean, verdict.low, verdict.high))
    e_values = (math.exp(min(value, 700)) for value in (verdict.log_e_for, verdict.log_e_against))
    left_out = f"{len(pairs) - len(whole)} left out: a run diverged" if len(whole) < len(pairs) else None
    reason = "; ".join(filter(None, [verdict.reason if whole else NO_PAIR, left_out])) or None
    return *declared, *numbers, *e_values, verdict.pairs_expected, reason


def claim_sentences(connection: duckdb.DuckDBPyConnection, study: str) -> list[str]:
    """Return each claim of a study and its verdict as a sentence; nothing for one without claims."""
    claims = connection.execute("SELECT spec->'claims' FROM study WHERE name = $1", [study]).fetchone()
    if claims is None or claims[0] in (None, "{}", "null"):
        return []
    columns, rows = judged_claims(connection, study)
    return [claim_sentence(dict(zip(columns, row, strict=True))) for row in rows]


def claim_sentence(row: dict[str, Any]) -> str:
    """Return a row of `judged_claims` as a sentence."""
    text = f"Claim {row['claim']}, {row['statement']}: {row['state']} after {row['pairs']} pairs"
    text += "" if row["low"] is None else f", by {row['difference']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    more = f"about {row['pairs_expected']} more pairs expected" if row["pairs_expected"] else None
    return "; ".join(filter(None, [text, more, row["reason"]])) + "."
