"""The claims of a study, judged by pairs of recorded runs that share their seeds, one of each recipe, of which none tuned.

Each recipe stands at its best size at D, the one where its search ended lowest. A verdict is of the pairs recorded now, in
whatever order they came; while a search goes on there are none, as its optimum may still move.
"""

import json
import math
from typing import Any

import duckdb

from dataeff.errors import InputError
from dataeff.laws.judge import judge
from dataeff.records.queries import Table, records, require_study

# One row a pair: the losses of recipes $2 and $3 of study $1 at D = $4, under the same seeds; NULL where a run diverged.
PAIRS = """
WITH best AS (
    SELECT recipe, arg_min(cell_id, (best_loss, cell_id)) AS cell_id
    FROM cell WHERE study = $1 AND recipe IN ($2, $3) AND seed_tokens = $4
    GROUP BY recipe HAVING count(*) FILTER (state IN ('waiting', 'searching')) = 0
), tuned AS (
    SELECT run_id FROM trial JOIN cell USING (cell_id)
    WHERE study = $1 AND (role = 'search' OR role = 'member' AND objective = 'K')
), repeat AS (
    SELECT best.recipe, train_seed, data_seed, val_loss
    FROM best JOIN cell USING (cell_id) JOIN trial USING (cell_id) JOIN run USING (run_id)
    WHERE role = 'replicate' AND coordinates = cell.best AND run_id NOT IN (FROM tuned)
)
SELECT train_seed, better.val_loss AS better, other.val_loss AS than
FROM (FROM repeat WHERE recipe = $2) AS better JOIN (FROM repeat WHERE recipe = $3) AS other USING (train_seed, data_seed)
ORDER BY train_seed"""

COLUMNS = ("claim", "state", "better", "than", "seed_tokens", "by", "pairs", "difference", "low", "high", "e_for", "e_against")
COLUMNS += ("pairs_expected", "reason")
NO_CLAIMS = """study {} declares no claim; add a table to its file and run it again, such as
[claims.mine] with better = "regularized", than = "standard", at = 16384, by = 0.01"""


def judged_claims(connection: duckdb.DuckDBPyConnection, study: str) -> Table:
    """Return (columns, rows): one row a claim, in the order of declaration. `difference`: mean loss of `than` minus that of
    `better`, `low` to `high` its anytime-valid 90% interval (nats/token); `e_for` and `e_against`: e-values.

    Raises `NotFoundError` for a study that is not recorded, `InputError` for one without claims.
    """
    require_study(connection, study)
    (spec,) = connection.execute("SELECT spec FROM study WHERE name = $1", [study]).fetchone()
    claims = json.loads(spec).get("claims")
    if not claims:
        raise InputError(NO_CLAIMS.format(study))
    return list(COLUMNS), [_row(connection, study, name, claim) for name, claim in claims.items()]


def _row(connection: duckdb.DuckDBPyConnection, study: str, name: str, claim: dict[str, Any]) -> tuple[Any, ...]:
    better, than, at, by = (claim[key] for key in ("better", "than", "at", "by"))
    pairs = records(connection, PAIRS, [study, better, than, at])
    whole = [pair for pair in pairs if None not in (pair["better"], pair["than"])]
    verdict = judge([pair["than"] - pair["better"] - by for pair in whole])
    numbers = (None if value is None else value + by for value in (verdict.mean, verdict.low, verdict.high))
    e_values = (math.exp(min(value, 700)) for value in (verdict.log_e_for, verdict.log_e_against))
    left_out = f"{len(pairs) - len(whole)} pairs left out: a run diverged" if len(whole) < len(pairs) else None
    reason = "; ".join(filter(None, [verdict.reason, left_out])) or None
    declared = (name, verdict.state, better, than, at, by, verdict.pairs)
    return *declared, *numbers, *e_values, verdict.pairs_expected, reason


def claim_sentence(row: dict[str, Any]) -> str:
    """Return a row of `judged_claims` as a sentence."""
    text = f"{row['claim']}: {row['better']} better than {row['than']} by more than {row['by']:g} at D = {row['seed_tokens']:,}"
    text += f" is {row['state']} by {row['pairs']} pairs"
    if row["low"] is not None:
        text += f": {row['difference']:.4f} ({row['low']:.4f} to {row['high']:.4f})"
    more = row["pairs_expected"]
    return text + (f"; about {more} more expected" if more else "") + (f"; {row['reason']}" if row["reason"] else "") + "."
