"""The command line as a stranger types it: real processes on a real database, and every mistake told with a remedy."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import duckdb
import pytest

from tests.conftest import TINY, dataeff, write_tiny_study


def ok(*arguments, cwd: Path) -> str:
    done = dataeff(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_run_prints_the_answer_with_its_doubt(finished):
    out = ok("answer", "tiny", cwd=finished)
    assert "nats/token" in out and "Run-to-run noise" in out and "Optima:" in out


def test_answer_as_json_has_a_row_for_each_recipe_and_budget(finished):
    rows = json.loads(ok("answer", "tiny", "--json", cwd=finished))
    assert {(row["recipe"], row["seed_tokens"]) for row in rows} == {
        (recipe, seed_tokens) for recipe in ("standard", "regularized", "ensemble", "distilled") for seed_tokens in (1024, 2048)
    }
    assert all(row["limit_loss"] is not None or row["reason"] for row in rows)


def test_the_regularized_recipe_is_never_worse_than_the_standard_one_it_starts_from(finished):
    with duckdb.connect(finished / "dataeff.duckdb", read_only=True) as connection:
        pairs = connection.execute(
            """SELECT a.val_loss, b.val_loss FROM best_run a JOIN best_run b USING (study, seed_tokens, size)
               WHERE a.recipe = 'regularized' AND b.recipe = 'standard'"""
        ).fetchall()
    assert len(pairs) == 6 and all(regularized <= standard for regularized, standard in pairs)


def test_the_chart_is_drawn_in_each_format(finished, tmp_path):
    for suffix, begin in ((".svg", b"<svg"), (".png", b"\x89PNG"), (".html", b"<!DOCTYPE html>")):
        ok("answer", "tiny", "--plot", tmp_path / f"chart{suffix}", cwd=finished)
        assert (tmp_path / f"chart{suffix}").read_bytes().lstrip().startswith(begin)


def test_plan_says_what_is_left_and_trains_nothing(finished, tmp_path):
    assert "nothing to train" in ok("plan", "tiny.toml", cwd=finished)
    write_tiny_study(tmp_path)
    out = ok("plan", "tiny.toml", cwd=tmp_path)
    assert "no run is recorded yet" in out
    assert not (tmp_path / "dataeff.duckdb").exists()
    rows = json.loads(ok("plan", "tiny.toml", "--json", cwd=tmp_path))
    assert len(rows) == 20 and all(row["expected"] > 0 and row["hours"] > 0 for row in rows)


def test_status_shows_studies_and_cells(finished):
    (study,) = json.loads(ok("status", "--json", cwd=finished))
    assert (study["study"], study["cells"]) == ("tiny", 20)
    assert study["certified"] + study["boundary"] == 20
    assert len(json.loads(ok("status", "tiny", "--json", cwd=finished))) == 20


def test_runs_are_filtered_sorted_and_cut(finished):
    rows = list(
        csv.DictReader(io.StringIO(ok("runs", "--where", "epochs >= 2", "--sort=-val_loss", "-n", "4", "--csv", cwd=finished)))
    )
    losses = [float(row["val_loss"]) for row in rows]
    assert len(rows) == 4 and losses == sorted(losses, reverse=True)
    assert all(int(row["epochs"]) >= 2 for row in rows)
    every = json.loads(ok("runs", "-n", "0", "--columns", "all", "--json", cwd=finished))
    with duckdb.connect(finished / "dataeff.duckdb", read_only=True) as connection:
        assert len(every) == connection.execute("SELECT count(*) FROM run").fetchone()[0]


def test_show_takes_the_beginning_of_a_run_id(finished):
    (first,) = json.loads(ok("runs", "-n", "1", "--columns", "run_id,val_loss", "--json", cwd=finished))
    shown = json.loads(ok("show", first["run_id"][:8], "--json", cwd=finished))
    assert shown["row"]["val_loss"] == first["val_loss"]
    assert shown["evaluations"][-1]["val_loss"] == first["val_loss"]
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["finished"]
    assert shown["cells"]
    assert first["run_id"] in ok("show", first["run_id"][:8], cwd=finished)


def test_sql_answers_in_every_form(finished, tmp_path):
    query = "select recipe, min(val_loss) as val_loss from best_run group by all order by all"
    rows = json.loads(ok("sql", query, "--json", cwd=finished))
    assert [row["recipe"] for row in rows] == ["distilled", "ensemble", "regularized", "standard"]
    assert ok("sql", query, "--csv", cwd=finished).splitlines()[0] == "recipe,val_loss"
    ok("sql", query, "--parquet", tmp_path / "rows.parquet", cwd=finished)
    assert [tuple(row.values()) for row in rows] == duckdb.sql(f"from '{tmp_path}/rows.parquet'").fetchall()


def test_sql_cannot_write(finished):
    done = dataeff("sql", "delete from run", cwd=finished)
    assert done.returncode == 2 and "read-only" in done.stderr


def test_corpora_and_doctor_look_around(finished):
    tokens, *samples = json.loads(ok("corpora", "--json", cwd=finished))
    assert {row["train_tokens"] for row in samples} == {1024, 2048}
    assert all(row["tokens_per_second"] > 0 for row in samples)
    assert tokens["name"] == "tiny" and tokens["train_tokens"] > 2048
    out = ok("doctor", cwd=finished)
    assert "1 study(s)" in out and "weights" in out and "bad" not in out


def test_the_database_may_be_named_by_option_or_environment(finished, tmp_path):
    by_option = ok("status", "--database", finished / "dataeff.duckdb", "--json", cwd=tmp_path)
    by_environment = dataeff("status", "--json", cwd=tmp_path, DATAEFF_DATABASE=str(finished / "dataeff.duckdb"))
    assert by_option == by_environment.stdout


MISTAKES = {
    "no such study": (["run", "nowhere.toml"], "no study file"),
    "no such study recorded": (["answer", "nothing"], "valid: tiny"),
    "no such command": (["rum"], "No such command"),
    "no such option": (["runs", "--sorted", "lr"], "No such option"),
    "no such executor": (["run", "tiny.toml", "--executor", "loacl"], "did you mean 'local'"),
    "no such column": (["runs", "--sort", "vall_loss"], "did you mean 'val_loss'"),
    "a broken condition": (["runs", "--where", "lr <"], "query failed"),
    "a broken query": (["sql", "selct 1"], "query failed"),
    "no such run": (["show", "zzzz"], "no run id begins"),
    "a chart of no known kind": (["answer", "tiny", "--plot", "chart.bmp"], ".svg, .png, .html"),
    "no database": (["status", "--database", "none.duckdb"], "there is no database"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_exit_code_2_one_message_and_no_traceback(finished, tmp_path, mistake):
    shutil.copy(finished / "tiny.toml", tmp_path)
    arguments, remedy = MISTAKES[mistake]
    environment = {} if "--database" in arguments else {"DATAEFF_DATABASE": str(finished / "dataeff.duckdb")}
    before = sorted(tmp_path.rglob("*"))
    done = dataeff(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert remedy in done.stderr and "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(tmp_path):
    done = dataeff("status", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_a_budget_larger_than_the_corpus_is_refused_before_anything_is_trained(tmp_path):
    write_tiny_study(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY.replace("[1024, 2048]", "[1024, 1048576]"))
    done = dataeff("run", "tiny.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"tiny\.toml:3: seed_tokens.* 1048576 .*training tokens", done.stderr), done.stderr
    assert not (tmp_path / "dataeff.duckdb").exists()


def test_a_missing_text_is_told_with_its_path(tmp_path):
    write_tiny_study(tmp_path)
    shutil.rmtree(tmp_path / "text")
    done = dataeff("run", "tiny.toml", cwd=tmp_path)
    assert done.returncode == 2 and "text" in done.stderr
    assert not (tmp_path / "dataeff.duckdb").exists()


def test_a_corrupt_database_is_left_as_it_is(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    damaged = b"not a database " * 1000
    (tmp_path / "dataeff.duckdb").write_bytes(damaged)
    for command in (["run", "tiny.toml"], ["status"], ["doctor"]):
        done = dataeff(*command, cwd=tmp_path)
        assert done.returncode == 1, command
        assert "makes it anew from the files" in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "dataeff.duckdb").read_bytes() == damaged


def test_a_database_of_another_schema_is_refused_and_unchanged(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with duckdb.connect(tmp_path / "dataeff.duckdb") as connection:
        connection.execute("UPDATE schema SET version = 'later'")
    before = (tmp_path / "dataeff.duckdb").read_bytes()
    for command in (["status"], ["sql", "from run"], ["answer", "tiny"]):
        done = dataeff(*command, cwd=tmp_path)
        assert done.returncode == 1 and "another version of dataeff" in done.stderr and "dataeff rebuild" in done.stderr
    assert (tmp_path / "dataeff.duckdb").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told(finished, tmp_path):
    (tmp_path / "file").write_text("")  # a file where a folder should be: not even root can write below it
    done = dataeff("run", finished / "tiny.toml", "--database", tmp_path / "file" / "runs.duckdb", cwd=tmp_path)
    assert done.returncode in (1, 2) and "file" in done.stderr and "Traceback" not in done.stderr


def test_output_into_a_closed_pipe_is_no_error(finished):
    import subprocess
    import sys

    line = f"{sys.executable} -m dataeff runs -n 0 --columns all --csv | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=finished, capture_output=True, text=True)
    assert done.stdout.startswith("run_id,") and not done.stderr
