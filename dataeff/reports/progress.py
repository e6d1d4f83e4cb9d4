"""How a study stands: its cells by state, what is under way, what went wrong, what is left.

    database                        cells, runs, attempts that ended: written while a study runs
    run folders beside the file     attempts under way: the database learns of one when it has ended

A killed process leaves an attempt that says `running` for ever. On this machine its process is looked for; of another
machine's only the last sign is known, its start or its latest checkpoint. Nothing is written here, and no lock is taken.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataeff.records.queries import records, require_study
from dataeff.specs.ensemble import EnsembleSpec, SampleSpec
from dataeff.specs.result import Attempt, RunFolder, Store, load_fact
from dataeff.specs.run import RunSpec

if TYPE_CHECKING:
    import duckdb

SILENCE = timedelta(minutes=15)  # checkpoints are written every five minutes: three were missed

STANDING = """
SELECT count(*) AS cells, count_if(state = 'certified') AS certified, count_if(state = 'boundary') AS boundary,
    count_if(state = 'open' AND run_id IS NOT NULL) AS open, count_if(run_id IS NULL) AS nothing_yet,
    count(search_ended_at) AS searches_ended, recorded.*
FROM certificate JOIN cell USING (cell_id, study), (
    SELECT count(*) AS runs, count(*) FILTER (status = 'diverged') AS diverged
    FROM run WHERE run_id IN (SELECT run_id FROM trial JOIN cell USING (cell_id) WHERE study = $1)) AS recorded
WHERE study = $1 GROUP BY ALL
"""

# The best loss is what the search compares: with objective 'K' the limit of a point's members.
CELLS = """
SELECT cell_id, best.recipe, best.seed_tokens, best.size, if(best.run_id IS NULL, 'nothing yet', state) AS state, objective,
    point.val_loss AS best_loss, margin, lr, weight_decay, epochs, runs, diverged,
    concat_ws('; ', certificate.reason,
        if(contains(certificate.reason, search_stopped), NULL, 'the search stopped: ' || search_stopped),
        if(contains(certificate.reason, note), NULL, note)) AS reason,
    cell.members, best.run_id, certificate.edges, neighbours_missing, val_loss_mean, val_loss_sd, seeds, search_ended_at,
    list_transform(list_filter(range(1, len(shape) + 1), lambda i: shape[i] > 1), lambda i: json_keys(axes)[i]) AS tuned,
    if(origin <> cell_id, origin, NULL) AS follows
FROM best_run AS best JOIN certificate USING (cell_id) JOIN cell USING (cell_id) JOIN study ON study.name = cell.study
    JOIN cell_origin USING (cell_id) LEFT JOIN grid_point AS point ON point.cell_id = cell.cell_id AND is_best
WHERE cell.study = $1
ORDER BY list_position(json_keys(study.spec, '$.recipes'), cell.recipe), cell.seed_tokens, cell.parameters_total
"""

# Attempts at runs of the study, and at runs that no study has yet: a run joins its cells once it has ended. An attempt that
# says `running` although its run has ended, or was tried again, was killed. Runs that came without attempts are told too.
FAILURES = """
WITH mine AS (
    SELECT run_id, string_agg(DISTINCT recipe, ', ' ORDER BY recipe) AS recipes
    FROM trial JOIN cell USING (cell_id) WHERE study = $1 GROUP BY run_id
), ended AS (
    SELECT run_id, number, if(outcome = 'running', 'killed', outcome) AS outcome, host, device, started_at, ended_at,
        if(outcome = 'running', 'never heard of again; a later attempt took the run over', attempt.reason) AS reason
    FROM attempt
    WHERE outcome NOT IN ('running', 'finished') OR (outcome = 'running' AND (run_id IN (SELECT run_id FROM run)
        OR EXISTS (FROM attempt AS later WHERE later.run_id = attempt.run_id AND later.number > attempt.number)))
    UNION ALL BY NAME
    SELECT run_id, status AS outcome, reason, host, device, started_at, ended_at
    FROM run WHERE status = 'diverged' AND run_id NOT IN (SELECT run_id FROM attempt WHERE outcome = 'diverged')
)
SELECT outcome, ended.reason, recipes, run_id, number AS attempt, coalesce(run.status, 'no result yet') AS run_is,
    ended.host, ended.device, ended.started_at, ended.ended_at
FROM ended LEFT JOIN mine USING (run_id) LEFT JOIN run USING (run_id)
WHERE recipes IS NOT NULL OR run_id NOT IN (SELECT run_id FROM trial)
ORDER BY coalesce(ended.ended_at, ended.started_at) DESC, run_id, number DESC
"""

# What searches that have not ended still cost: FLOPs per (seed token x parameter) of the recipe's ended searches, else of the
# study's, there for each member of an objective 'K', less what the cell has; one more run at least. A run that cells share
# counts where the search ended first.
LEFT = """
WITH spent AS (
    SELECT cell_id, training_flops FROM trial JOIN run USING (run_id) JOIN cell USING (cell_id) WHERE study = $1
    QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY search_ended_at NULLS LAST, cell_id) = 1
), done AS (
    SELECT cell_id, recipe, objective, members, parameters_total, seed_tokens * parameters_total::DOUBLE AS scale,
        search_ended_at IS NOT NULL AS ended, json_array_length(starts) = 0 AND note IS NOT NULL AS blocked,
        sum(training_flops) AS flops, count(training_flops) AS runs
    FROM cell LEFT JOIN spent USING (cell_id) WHERE study = $1 GROUP BY ALL
), typical AS (
    SELECT recipe, sum(flops) / sum(scale) AS each FROM done WHERE ended GROUP BY GROUPING SETS (recipe, ())
), remaining AS (
    SELECT parameters_total, greatest(flops / runs, 0,
        coalesce(own.each, study.each * if(objective = 'K', members, 1)) * scale - coalesce(flops, 0)) AS flops
    FROM done LEFT JOIN typical AS own USING (recipe) LEFT JOIN typical AS study ON study.recipe IS NULL
    WHERE NOT ended AND NOT blocked
), speed AS (
    SELECT parameters_total, median(training_flops / wall_seconds) AS speed FROM run
    WHERE status = 'finished' AND wall_seconds > 0 AND source IS NULL GROUP BY parameters_total
)
SELECT count(*) AS searches, sum(flops) AS flops,
    sum(flops / coalesce(speed.speed, (SELECT median(speed) FROM speed))) AS seconds
FROM remaining LEFT JOIN speed USING (parameters_total)
"""

NEVER_ENDED = """
SELECT run_id, number, started_at, host, process_id, device FROM attempt WHERE outcome = 'running'
    AND run_id NOT IN (SELECT run_id FROM run)
    AND NOT EXISTS (FROM attempt AS later WHERE later.run_id = attempt.run_id AND later.number > attempt.number)
"""


def standing(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return counts: cells by state, searches that have ended, runs recorded, runs of these that diverged."""
    require_study(connection, study)
    return records(connection, STANDING, [study])[0]


def study_cells(connection: duckdb.DuckDBPyConnection, study: str) -> list[dict[str, Any]]:
    """Return one record a cell, in the order of the study: its optimum, how sure it is, and why. Losses in nats/token."""
    return records(connection, CELLS, [study])


def failures(connection: duckdb.DuckDBPyConnection, study: str) -> list[dict[str, Any]]:
    """Return the attempts that ended otherwise than finished, the latest first; `run_is` what became of the run since."""
    return records(connection, FAILURES, [study])


def time_left(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, Any]:
    """Return what searches that have not ended are likely to cost: their number, FLOPs, seconds one run at a time; NULL
    for what cannot be said because no search has ended.

    It rests on what the ended searches took, scaled by D x N, and leaves out repeats of ended cells, evaluations and sampling.
    Replayed on the laptop study it says 0.4 to 1.6 times the seconds that were to come, from a tenth of the searches on.
    """
    return records(connection, LEFT, [study])[0]


def under_way(connection: duckdb.DuckDBPyConnection, study: str) -> list[dict[str, Any]]:
    """Return the attempts that nobody saw end, whichever study they are for, the oldest first.

    `alive` is whether the process runs, NULL on another machine, and `live` whether to expect news of it. `size` is that of
    the study's cells, NULL where none is so large at that D. Raises `InputError` for a run folder that is damaged.
    """
    (path,) = connection.execute("SELECT path FROM duckdb_databases() WHERE database_name = current_database()").fetchone()
    store = Store.beside(Path(path))
    text = "SELECT DISTINCT seed_tokens, parameters_total, size FROM cell WHERE study = $1"
    sizes = {(d, n): size for d, n, size in connection.execute(text, [study]).fetchall()}
    found = [
        {**_sign(attempt, heard), **_described(spec, sizes)}
        for parent, of in ((store.runs, RunSpec), (store.path / "ensembles", EnsembleSpec), (store.path / "samples", SampleSpec))
        for spec, attempt, heard in _unfinished(parent, of)
    ]
    for row in records(connection, NEVER_ENDED):  # of a database that was copied away from its run folders
        if not store.run(row["run_id"]).path.exists():
            found.append({**_sign(Attempt(**row), row["started_at"]), **_described(None, sizes)})
    return sorted(found, key=lambda record: record["since"])


def _unfinished(parent: Path, of: type) -> list[tuple[Any, Attempt, datetime]]:
    """Return (spec, attempt, last sign) of each folder without a result whose last attempt says `running`."""
    found = []
    for folder in [RunFolder(path) for path in parent.iterdir()] if parent.is_dir() else []:
        attempts = [] if folder.result.exists() else sorted(folder.attempts.glob("*.json"))
        if attempts and (attempt := load_fact(Attempt, attempts[-1])).outcome == "running":
            heard = max(file.stat().st_mtime for file in (attempts[-1], folder.checkpoint) if file.exists())
            found.append((load_fact(of, folder.spec), attempt, datetime.fromtimestamp(heard, UTC)))
    return found


def _sign(attempt: Attempt, heard: datetime) -> dict[str, Any]:
    alive = _is_alive(attempt.process_id) if attempt.host == socket.gethostname() else None
    said = {True: "its process runs", False: "killed: its process is gone, and the next launch takes it up"}
    return {
        "since": attempt.started_at,
        "sign": said.get(alive, f"on another machine; last sign {heard.astimezone():%Y-%m-%d %H:%M}"),
        "host": attempt.host,
        "device": attempt.device,
        "process": attempt.process_id,
        "attempt": attempt.number,
        "id": attempt.run_id,
        "alive": alive,
        "live": datetime.now(UTC) - heard < SILENCE if alive is None else alive,
    }


def _is_alive(process: int) -> bool | None:
    if os.name != "posix":
        return None  # elsewhere signal 0 is no question
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _described(spec: RunSpec | EnsembleSpec | SampleSpec | None, sizes: dict[tuple[int, int], str]) -> dict[str, Any]:
    """What is being made, in words and numbers; of a run whose folder is elsewhere its id alone is known."""
    made = {"trains": "a run whose folder is elsewhere", "seed_tokens": None, "size": None}
    if isinstance(spec, RunSpec):
        trains = f"lr {spec.lr:g}, weight decay {spec.weight_decay:g}, {spec.epochs:g} epochs, seed {spec.train_seed}"
        size = sizes.get((spec.seed_tokens, spec.model.parameters_total))
        made = {"trains": trains, "seed_tokens": spec.seed_tokens, "size": size}
    elif spec is not None:
        what = "evaluates an ensemble" if isinstance(spec, EnsembleSpec) else f"samples {spec.sequences:,} sequences"
        made["trains"] = f"{what} of {len(spec.members)} members"
    return made
