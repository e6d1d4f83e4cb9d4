"""How a study stands: its cells by state, what is under way, what went wrong, what is left.

    database                      cells as the launch resolved them, runs, attempts that ended
    job folders beside the file   attempts under way: the database learns of one when it has ended

A killed process leaves an attempt that says `running` for ever. On this machine its process is looked for; of another
machine's only the last sign is known, its start or its latest checkpoint. Nothing is written here, and no lock is taken.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataeff.facts.job import Attempt
from dataeff.facts.store import FOLDERS, JobFolder, Store, recorded_attempts
from dataeff.records.queries import recorded_ids, records, require_study
from dataeff.specs.run import RunSpec

if TYPE_CHECKING:
    import duckdb

SILENCE = timedelta(minutes=15)  # checkpoints are written every five minutes: three were missed

STANDING = """
SELECT count(*) AS cells, count_if(state = 'certified') AS certified, count_if(state = 'boundary') AS boundary,
    count_if(state = 'open') AS open, count_if(state = 'searching') AS searching, count_if(state = 'waiting') AS waiting,
    count_if(state = 'blocked') AS blocked, count(search_ended_at) AS searches_ended, any_value(recorded.runs) AS runs,
    any_value(recorded.diverged) AS diverged
FROM cell, (
    SELECT count(*) AS runs, count(*) FILTER (status = 'diverged') AS diverged
    FROM run WHERE run_id IN (SELECT run_id FROM trial JOIN cell USING (cell_id) WHERE study = $1)) AS recorded
WHERE study = $1
"""

# The best loss is what the search compares: with objective 'K' the limit of a point's members.
CELLS = """
SELECT cell_id, best.recipe, best.seed_tokens, best.size, cell.state, objective, best_loss, cell.margin, lr, weight_decay, epochs,
    runs, diverged,
    concat_ws('; ', certificate.reason,
        if(contains(cell.reason, search_stopped), NULL, 'the search stopped: ' || search_stopped),
        if(contains(cell.reason, note), NULL, note)) AS reason,
    cell.members, best.run_id, cell.edges, len(cell.neighbours_missing) AS neighbours_missing, val_loss_mean, val_loss_sd, seeds,
    search_ended_at,
    list_transform(list_filter(range(1, len(shape) + 1), lambda i: shape[i] > 1), lambda i: json_keys(axes)[i]) AS tuned,
    if(origin <> cell_id, origin, NULL) AS follows
FROM best_run AS best JOIN cell USING (cell_id) JOIN certificate USING (cell_id) JOIN study ON study.name = cell.study
WHERE cell.study = $1
ORDER BY list_position(json_keys(study.spec, '$.recipes'), cell.recipe), cell.seed_tokens, cell.parameters_total
"""

# Attempts at runs of the study, and at jobs that no cell has used yet. An attempt that says `running` although its run has
# ended, or was tried again, was killed. Runs that came without attempts are shown too.
FAILURES = """
WITH mine AS (
    SELECT run_id AS job_id, string_agg(DISTINCT recipe, ', ' ORDER BY recipe) AS recipes
    FROM trial JOIN cell USING (cell_id) WHERE study = $1 GROUP BY run_id
), ended AS (
    SELECT kind, job_id, number, if(outcome = 'running', 'killed', outcome) AS outcome, host, device, started_at, ended_at,
        if(outcome = 'running', 'disappeared; a later attempt took the run over', attempt.reason) AS reason
    FROM attempt
    WHERE outcome NOT IN ('running', 'finished') OR (outcome = 'running' AND (job_id IN (SELECT run_id FROM run)
        OR EXISTS (FROM attempt AS later WHERE later.job_id = attempt.job_id AND later.number > attempt.number)))
    UNION ALL BY NAME
    SELECT 'train' AS kind, run_id AS job_id, status AS outcome, reason, host, device, started_at, ended_at
    FROM run WHERE status = 'diverged' AND run_id NOT IN (SELECT job_id FROM attempt WHERE outcome = 'diverged')
)
SELECT outcome, ended.reason, recipes, kind, job_id, number AS attempt, coalesce(run.status, 'no result yet') AS run_is,
    ended.host, ended.device, ended.started_at, ended.ended_at
FROM ended LEFT JOIN mine USING (job_id) LEFT JOIN run ON run.run_id = job_id
WHERE recipes IS NOT NULL OR job_id NOT IN (SELECT run_id FROM trial)
ORDER BY coalesce(ended.ended_at, ended.started_at) DESC, job_id, number DESC
"""

LEFT = """
WITH speed AS (
    SELECT parameters_total, median(training_flops / wall_seconds) AS speed FROM run
    WHERE status = 'finished' AND wall_seconds > 0 AND source IS NULL GROUP BY parameters_total
)
SELECT count(*) FILTER (flops_left > 0) AS cells, count(*) FILTER (flops_left IS NULL) AS unknown,
    sum(runs_left)::BIGINT AS runs, sum(flops_left) AS flops,
    sum(flops_left / coalesce(speed.speed, (SELECT median(speed) FROM speed))) AS seconds
FROM cell LEFT JOIN speed USING (parameters_total) WHERE study = $1
"""


def study_names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM study ORDER BY name").fetchall()]


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
    """Return what is likely to be left, as the launch resolved it: cells, runs, FLOPs, and seconds of one worker at the speed of
    the recorded runs, NULL where no run is recorded; `unknown` counts imported cells of which it is not known.
    """
    return records(connection, LEFT, [study])[0]


def under_way(connection: duckdb.DuckDBPyConnection, study: str) -> list[dict[str, Any]]:
    """Return the attempts whose end is not recorded, whichever study they are for, the oldest first.

    `alive` is whether the process runs, NULL on another machine, and `live` whether to expect news of it. `size` is that of
    the study's cells, NULL where none is so large at that D. Raises `InputError` for a job folder that is damaged.
    """
    (path,) = connection.execute("SELECT path FROM duckdb_databases() WHERE database_name = current_database()").fetchone()
    text = "SELECT DISTINCT seed_tokens, parameters_total, size FROM cell WHERE study = $1"
    sizes = {(d, n): size for d, n, size in connection.execute(text, [study]).fetchall()}
    recorded = recorded_ids(connection)
    attempts = [
        {**_sign(attempt, heard), **_description(kind, spec, sizes)}
        for kind, spec, attempt, heard in _unfinished(Store.beside(Path(path)), recorded)
    ]
    folders = {attempt["id"] for attempt in attempts}
    for row in records(connection, NEVER_ENDED):
        if row["job_id"] not in folders and row["job_id"] not in recorded:
            kind = row.pop("kind")
            attempts.append({**_sign(Attempt(**row), row["started_at"]), **_description(kind, None, sizes)})
    return sorted(attempts, key=lambda attempt: attempt["since"])


NEVER_ENDED = """
SELECT kind, job_id, number, started_at, host, process_id, device FROM attempt WHERE outcome = 'running'
    AND NOT EXISTS (FROM attempt AS later WHERE later.job_id = attempt.job_id AND later.number > attempt.number)
"""


def _unfinished(store: Store, recorded: set[str]) -> list[tuple[str, dict[str, Any], Attempt, datetime]]:
    """Return (kind, spec, attempt, last sign) of each folder without a result whose last attempt says `running`."""
    names = {folder: kind for kind, folder in FOLDERS.items()}
    unfinished = []
    for parent in store.path.iterdir() if store.path.is_dir() else []:
        for folder in [JobFolder(path) for path in parent.glob("*/") if path.name not in recorded]:
            attempts = [] if folder.result.exists() or not folder.spec.exists() else recorded_attempts(folder)
            if attempts and attempts[-1].outcome == "running":
                last = folder.attempts / f"{attempts[-1].number:04d}.json"
                heard = max(file.stat().st_mtime for file in (last, folder.checkpoint) if file.exists())
                spec = json.loads(folder.spec.read_bytes())
                kind = names.get(parent.name, parent.name)
                unfinished.append((kind, spec, attempts[-1], datetime.fromtimestamp(heard, UTC)))
    return unfinished


def _sign(attempt: Attempt, heard: datetime) -> dict[str, Any]:
    alive = _is_alive(attempt.process_id) if attempt.host == socket.gethostname() else None
    signs = {True: "its process runs", False: "killed: its process is gone, and the next launch takes it up"}
    return {
        "since": attempt.started_at,
        "sign": signs.get(alive, f"on another machine; last sign {heard.astimezone():%Y-%m-%d %H:%M}"),
        "host": attempt.host,
        "device": attempt.device,
        "process": attempt.process_id,
        "attempt": attempt.number,
        "id": attempt.job_id,
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


def _description(kind: str, spec: dict[str, Any] | None, sizes: dict[tuple[int, int], str]) -> dict[str, Any]:
    """Return what is being made, in words and numbers; of a job whose folder is elsewhere only its kind is known."""
    described = {"job": kind, "seed_tokens": None, "size": None}
    if spec is None:
        return {**described, "job": f"{kind}, in a folder elsewhere"}
    if kind != "train":
        return {**described, "job": f"{kind} of {len(spec['members'])} members" if "members" in spec else kind}
    run = RunSpec.model_validate(spec)
    words = f"train: lr {run.lr:g}, weight decay {run.weight_decay:g}, {run.epochs:g} epochs, seed {run.train_seed}"
    size = sizes.get((run.seed_tokens, run.model.parameters_total))
    return {"job": words, "seed_tokens": run.seed_tokens, "size": size}
