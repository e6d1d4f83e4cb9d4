"""Attempts: one file a try at a run, written at its start and again at its end.

Whoever holds the run folder's lock owns its attempts. A file that still says `running` while nobody holds the lock
belongs to a process that was killed.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime

from dataeff.specs.result import Attempt, Outcome, RunFolder, load_fact, write_atomically


def recorded_attempts(folder: RunFolder) -> list[Attempt]:
    """Return the attempts of a run, in order."""
    return [load_fact(Attempt, path) for path in sorted(folder.attempts.glob("*.json"))]


def _write(folder: RunFolder, attempt: Attempt) -> None:
    write_atomically(folder.attempts / f"{attempt.number:04d}.json", attempt.model_dump_json(indent=1))


def start_attempt(folder: RunFolder, run_id: str, device: str) -> Attempt:
    """Record the start of a new attempt, and any earlier one that never ended as killed. Needs the folder's lock."""
    earlier = close_dead_attempts(folder)
    attempt = Attempt(
        run_id=run_id,
        number=len(earlier) + 1,
        started_at=datetime.now(UTC),
        host=socket.gethostname(),
        process_id=os.getpid(),
        device=device,
    )
    _write(folder, attempt)
    return attempt


def end_attempt(folder: RunFolder, attempt: Attempt, outcome: Outcome, reason: str | None = None) -> None:
    """Record how an attempt ended."""
    _write(folder, attempt.model_copy(update={"ended_at": datetime.now(UTC), "outcome": outcome, "reason": reason}))


def close_dead_attempts(folder: RunFolder) -> list[Attempt]:
    """Mark attempts that still say `running` as killed, their end unknown. Needs the folder's lock."""
    attempts = recorded_attempts(folder)
    for attempt in attempts:
        if attempt.outcome == "running":
            reason = f"process {attempt.process_id} on {attempt.host} ended without a word: killed, or the machine stopped"
            _write(folder, attempt.model_copy(update={"outcome": "killed", "reason": reason}))
    return attempts
