"""How a study stands: its cells by state, what is under way, what went wrong, what is left.

The database learns of an attempt when it has ended; attempts under way are looked for in the job folders next to the file. A
killed process leaves one that says `running` for ever: on this machine its process is looked for; of another machine's only
the last sign is known, its start or its latest checkpoint. Nothing is written here, and no lock is taken.
"""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

from dataeff.facts.job import Attempt
from dataeff.facts.store import JobFolder, Store, recorded_attempts
from dataeff.records.queries import SPEEDS

SILENCE = timedelta(minutes=15)  # checkpoints are written every five minutes: three were missed

# Counts of cells by state, of searches that have ended, of runs; and what is likely to be left: runs, FLOPs, and seconds of one
# worker at the recorded runs' speed, NULL where none is. `unknown` counts imported cells of which it is not known.
STANDING = f"""
WITH speed AS ({SPEEDS})
SELECT count(*) AS cells, count_if(state = 'certified') AS certified, count_if(state = 'boundary') AS boundary,
    count_if(state NOT IN ('certified', 'boundary')) AS open, count(search_ended_at) AS searches_ended,
    any_value(recorded.runs) AS runs, any_value(recorded.diverged) AS diverged,
    count_if(flops_left IS NULL) AS unknown, sum(runs_left)::BIGINT AS runs_left, sum(flops_left) AS flops_left,
    sum(flops_left / coalesce(speed.speed, (SELECT median(speed) FROM speed))) AS seconds_left
FROM cell LEFT JOIN speed USING (parameters_total), (
    SELECT count(*) AS runs, count_if(status = 'diverged') AS diverged
    FROM run SEMI JOIN (FROM trial JOIN cell USING (cell_id) WHERE study = $1) AS mine USING (run_id)) AS recorded
WHERE study = $1
"""

# One row a cell, in the order of the study. The best loss is what the search compares: with objective 'K' the limit of a point's
# members.
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

# Attempts that ended otherwise than finished, the latest first: at runs of the study, and at jobs that no cell has used yet. One
# that says `running` although its run has ended, or was tried again, was killed. `run_is` what became of the run since.
FAILURES = """
SELECT if(outcome = 'running', 'killed', outcome) AS outcome, coalesce(attempt.reason, 'disappeared') AS reason,
    (SELECT string_agg(DISTINCT recipe, ', ' ORDER BY recipe) FROM trial JOIN cell USING (cell_id)
     WHERE study = $1 AND trial.run_id = job_id) AS recipes,
    kind, job_id AS run_id, number AS attempt, coalesce(run.status, 'no result yet') AS run_is, attempt.host, attempt.device,
    attempt.started_at, attempt.ended_at
FROM attempt LEFT JOIN run ON run.run_id = job_id
WHERE outcome <> 'finished' AND (recipes IS NOT NULL OR job_id NOT IN (SELECT run_id FROM trial))
    AND (outcome <> 'running' OR run.run_id IS NOT NULL
        OR EXISTS (FROM attempt AS later WHERE later.job_id = attempt.job_id AND later.number > attempt.number))
ORDER BY coalesce(attempt.ended_at, attempt.started_at) DESC, job_id, number DESC
"""


def under_way(store: Store, recorded: set[str]) -> list[dict[str, Any]]:
    """Return the attempts of jobs without a result, whichever study they are for, the oldest first. `recorded`: ids of results.

    `alive` is whether the process runs, NULL on another machine, and `live` whether to expect news of it. Raises `InputError`
    for a job folder that is damaged.
    """
    attempts = []
    for folder in (JobFolder(path) for path in store.path.glob("*/*/") if path.name not in recorded):
        tries = recorded_attempts(folder) if folder.spec.exists() and not folder.result.exists() else []
        if tries and tries[-1].outcome == "running":
            signs = (folder.attempts / f"{tries[-1].number:04d}.json", folder.checkpoint)
            heard = datetime.fromtimestamp(max(file.stat().st_mtime for file in signs if file.exists()), UTC)
            spec = json.loads(folder.spec.read_bytes())
            shown = [f"{name} {spec[name]:g}" for name in ("lr", "weight_decay", "epochs", "train_seed") if name in spec]
            shown += [f"{len(spec['members'])} members"] if "members" in spec else []
            job = ", ".join([folder.path.parent.name.removesuffix("s"), *shown])
            attempts.append(_row(job, spec.get("seed_tokens"), tries[-1], heard))
    return sorted(attempts, key=lambda attempt: attempt["since"])


def _row(job: str, seed_tokens: int | None, attempt: Attempt, heard: datetime) -> dict[str, Any]:
    alive = None
    if attempt.host == socket.gethostname() and os.name == "posix":  # elsewhere signal 0 is no question
        try:
            alive = os.kill(attempt.process_id, 0) is None
        except OSError as error:
            alive = isinstance(error, PermissionError)  # another user's
    signs = {True: "its process runs", False: "killed: its process is gone, and the next launch takes it up"}
    sign = signs.get(alive, f"on another machine; last sign {heard.astimezone():%Y-%m-%d %H:%M}")
    return {"job": job, "seed_tokens": seed_tokens, "since": attempt.started_at, "sign": sign, "host": attempt.host,
            "device": attempt.device, "process": attempt.process_id, "attempt": attempt.number, "run_id": attempt.job_id,
            "alive": alive, "live": datetime.now(UTC) - heard < SILENCE if alive is None else alive}  # fmt: skip
