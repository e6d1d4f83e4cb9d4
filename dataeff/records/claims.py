"""The claims of a study, and the pairs of recorded runs or ensembles, one of each recipe, that decide them.

A draw of the data is one pair, of the means over its seeds: runs on one draw are not independent. On the draw that tunes a pair
shares its seed. Each recipe stands at its best size at D, the one whose tuning runs ended lowest. There are no pairs while a
search goes on, as its optimum may still move, and none of runs that chose something or that ended before the claim was declared.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb

# The best cells of recipes $2 and $3 of study $1 at D = $4, once their searches have ended; one row a pair, NULL where a run
# diverged. `early`: a run of the pair ended before $5.
PAIRS = """
WITH chosen AS (
    SELECT cell.recipe, arg_min(cell_id, (chosen_by IS NULL, chosen_by, cell_id)) AS cell_id
    FROM cell JOIN (SELECT cell_id, chosen_by FROM cell_limit) USING (cell_id)
    WHERE study = $1 AND recipe IN ($2, $3) AND seed_tokens = $4
    GROUP BY cell.recipe HAVING count_if(state IN ('waiting', 'searching')) = 0
), tuned AS (
    SELECT run_id FROM trial JOIN cell USING (cell_id)
    WHERE study = $1 AND (role = 'search' OR role = 'member' AND objective = 'K')
), ensemble_end AS (
    SELECT ensemble_id, min(ended_at) AS ended_at
    FROM (SELECT ensemble_id, split_part(unnest(members), '@', 1) AS run_id FROM ensemble) JOIN run USING (run_id) GROUP BY ALL
), repeat AS (
    SELECT cell.recipe, coalesce(draw, 0) AS draw, train_seed, val_loss, ended_at
    FROM chosen JOIN cell USING (cell_id) JOIN trial USING (cell_id) JOIN run USING (run_id)
    WHERE cell.members = 1 AND role IN ('replicate', 'claim') AND coordinates = best AND run_id NOT IN (FROM tuned)
    UNION ALL
    SELECT cell.recipe, draw, NULL, mean_loss, ended_at
    FROM chosen JOIN cell USING (cell_id) JOIN cell_ensemble USING (cell_id) JOIN ensemble_end USING (ensemble_id)
        JOIN ensemble_size AS law ON law.ensemble_id = cell_ensemble.ensemble_id AND law.averaging = cell.averaging
            AND law.members = cell.members
    WHERE role IN ('replicate', 'claim') AND coordinates = best
), drawn AS (
    SELECT recipe, draw, if(draw > 0, NULL, train_seed) AS seed, if(count(val_loss) = count(*), avg(val_loss), NULL) AS val_loss,
        coalesce(min(ended_at) < $5, false) AS early
    FROM repeat GROUP BY ALL
)
SELECT (SELECT cell_id FROM chosen WHERE recipe = $2), (SELECT cell_id FROM chosen WHERE recipe = $3), pair.*
FROM (SELECT 1) LEFT JOIN (
    SELECT better.draw, better.val_loss, other.val_loss, better.early OR other.early
    FROM (FROM drawn WHERE recipe = $2) AS better JOIN (FROM drawn WHERE recipe = $3) AS other
        ON better.draw = other.draw AND (better.draw > 0 OR better.seed = other.seed)
    ORDER BY better.draw, better.seed
) AS pair ON true"""


@dataclass(frozen=True)
class Claim:
    """A claim as declared, and its pairs so far."""

    name: str
    better: str
    than: str
    at: int  # D, in tokens
    by: float  # nats/token
    cells: tuple[str, ...]  # ids of the two cells that are compared; fewer while a search goes on
    differences: tuple[float, ...]  # loss of `than` - loss of `better` - `by`, one a pair (nats/token)
    draws: tuple[int, ...]  # of the data, of all pairs, those that are left out among them
    diverged: int  # pairs left out because a run diverged
    early: int  # pairs left out because a run ended before the claim was declared


def read_claims(connection: duckdb.DuckDBPyConnection, study: str) -> list[Claim]:
    """Return the claims of a recorded study in the order of their declaration; none where it declares none."""
    row = connection.execute("SELECT spec->'claims', claims_since FROM study WHERE name = $1", [study]).fetchone()
    claims, since = (json.loads(each or "{}") or {} for each in row or (None, None))
    return [_claim(connection, study, name, claim, since.get(name)) for name, claim in claims.items()]


def _claim(connection: duckdb.DuckDBPyConnection, study: str, name: str, claim: dict[str, Any], since: str | None) -> Claim:
    declared = {key: claim[key] for key in ("better", "than", "at", "by")}
    after = None if since is None else datetime.fromisoformat(since)
    rows = connection.execute(PAIRS, [study, claim["better"], claim["than"], claim["at"], after]).fetchall()
    pairs = [row[2:] for row in rows if row[2] is not None]
    whole = [(own, other) for _, own, other, early in pairs if not early and None not in (own, other)]
    early = sum(pair[3] for pair in pairs)
    return Claim(
        name,
        **declared,
        cells=tuple(cell_id for cell_id in rows[0][:2] if cell_id),
        differences=tuple(other - own - claim["by"] for own, other in whole),
        draws=tuple(pair[0] for pair in pairs),
        diverged=len(pairs) - len(whole) - early,
        early=early,
    )
