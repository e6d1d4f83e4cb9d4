"""Results in a notebook: the numbers are those of the database."""

from __future__ import annotations

import pytest

import dataeff
from dataeff.errors import NotFoundError, QueryError


def test_two_lines_give_frames_and_charts_of_a_study(finished):
    results = dataeff.open(finished / "dataeff.duckdb")
    assert results.studies == ["tiny"]
    answer = results.answer()
    wanted = results.sql("SELECT recipe, seed_tokens, best_trained FROM asymptote ORDER BY ALL")
    found = answer[["recipe", "seed_tokens", "best_trained"]].sort_values(["recipe", "seed_tokens"], ignore_index=True)
    assert found.equals(wanted)
    assert results.sql("SELECT count(*) AS n FROM run WHERE status = $1", "finished").n[0] > 10
    assert "standard reaches" in results.said("tiny")
    assert len(results.limits_chart().to_dict()["hconcat"]) == 2


def test_what_is_not_there_is_told(finished, tmp_path):
    with pytest.raises(NotFoundError, match="there is no database"):
        dataeff.open(tmp_path / "none.duckdb")
    results = dataeff.open(finished / "dataeff.duckdb")
    with pytest.raises(NotFoundError, match="no study 'tny'.*tiny"):
        results.limits_chart("tny")
    with pytest.raises(QueryError):
        results.sql("SELECT nothing FROM nowhere")
