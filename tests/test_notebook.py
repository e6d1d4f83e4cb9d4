"""Results in a notebook: the numbers are those of the database."""

from __future__ import annotations

import pytest

import dataeff
from dataeff.errors import NotFoundError, QueryError


def test_two_lines_give_frames_and_charts_of_a_study(finished):
    results = dataeff.open(finished / "dataeff.duckdb")
    assert results.studies == ["tiny"]
    answer = results.answer()
    recorded = results.sql("SELECT recipe, seed_tokens, best_trained FROM asymptote ORDER BY ALL")
    trained = answer[["recipe", "seed_tokens", "best_trained"]].sort_values(["recipe", "seed_tokens"], ignore_index=True)
    assert trained.equals(recorded)
    assert results.sql("SELECT count(*) AS n FROM run WHERE status = $1", "finished").n[0] > 10
    assert "Run-to-run noise" in results.summary("tiny")
    assert repr(results) == f"tiny: {results.summary().splitlines()[0]}"
    chart = results.limits_chart()
    assert [panel["title"] for panel in chart["concat"]] == ["D = 1,024 tokens", "D = 2,048 tokens"]


def test_a_missing_file_study_or_column_is_reported(finished, tmp_path):
    with pytest.raises(NotFoundError, match="there is no database"):
        dataeff.open(tmp_path / "none.duckdb")
    results = dataeff.open(finished / "dataeff.duckdb")
    with pytest.raises(NotFoundError, match="no study 'tny'.*tiny"):
        results.limits_chart("tny")
    with pytest.raises(QueryError):
        results.sql("SELECT nothing FROM nowhere")
