"""The claims of a study as rows and as sentences. A verdict is of the pairs recorded now, in whatever order they came."""

import math
from typing import Any

import duckdb

from dataeff.errors import InputError
from dataeff.laws.judge import judge
from dataeff.records.claims import Claim, read_claims
from dataeff.records.queries import Table, require_study

COLUMNS = ["claim", "statement", "state", "pairs", "difference", "low", "high", "e_for", "e_against", "pairs_expected", "reason"]
NO_CLAIM = "study {} declares no claim; add one to its file and run it again: a table [claims.mine] with better, than, at and by"
NO_PAIR = "no pair yet: the searches of both recipes must have ended, and their optima be repeated under one other seed"


def judged_claims(connection: duckdb.DuckDBPyConnection, study: str) -> Table:
    """Return (columns, rows): one row a claim, in the order of declaration. `difference`: mean loss of `than` minus that of
    `better`, `low` to `high` its anytime-valid 90% interval (nats/token); `e_for` and `e_against`: e-values.

    Raises `NotFoundError` for a study that is not recorded, `InputError` for one without claims.
    """
    require_study(connection, study)
    claims = read_claims(connection, study)
    if not claims:
        raise InputError(NO_CLAIM.format(study))
    return COLUMNS, [_row(claim) for claim in claims]


def _row(claim: Claim) -> tuple[Any, ...]:
    verdict = judge(claim.differences)
    margin = f" by more than {claim.by:g}" if claim.by else ""
    statement = f"{claim.better} is better than {claim.than}{margin} at D = {claim.at:,}"
    numbers = (None if value is None else value + claim.by for value in (verdict.mean, verdict.low, verdict.high))
    e_values = (math.exp(min(value, 700)) for value in (verdict.log_e_for, verdict.log_e_against))
    reasons = [
        verdict.reason if claim.draws else NO_PAIR,
        f"{claim.diverged} left out: a run diverged" if claim.diverged else None,
        f"{claim.early} left out: trained before the claim was declared" if claim.early else None,
    ]
    reason = "; ".join(filter(None, reasons)) or None
    return claim.name, statement, verdict.state, verdict.pairs, *numbers, *e_values, verdict.pairs_expected, reason


def claim_sentences(connection: duckdb.DuckDBPyConnection, study: str) -> list[str]:
    """Return each claim of a study and its verdict as a sentence; nothing for one without claims."""
    return [claim_sentence(dict(zip(COLUMNS, _row(claim), strict=True))) for claim in read_claims(connection, study)]


def claim_sentence(row: dict[str, Any]) -> str:
    """Return a row of `judged_claims` as a sentence."""
    text = f"Claim {row['claim']}, {row['statement']}: {row['state']} after {row['pairs']} pairs"
    text += "" if row["low"] is None else f", by {row['difference']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    more = f"about {row['pairs_expected']} more pairs expected" if row["pairs_expected"] else None
    return "; ".join(filter(None, [text, more, row["reason"]])) + "."
