"""The command line as a stranger types it: real processes on a real database, and every mistake told with a remedy."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import duckdb
import pytest

from dataeff.specs.study import Study
from tests.conftest import TINY, dataeff, write_tiny_study


def ok(*arguments, cwd: Path) -> str:
    done = dataeff(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_answer_begins_with_a_sentence_and_ends_with_caveats(finished):
    out = ok("answer", "tiny", cwd=finished)
    assert out.index("tokens") < out.index("Trained") < out.index("Limits, extrapolated") < out.index("Run-to-run noise")


def test_answer_as_json_has_a_row_for_each_recipe_and_budget(finished):
    rows = json.loads(ok("answer", "tiny", "--format", "json", cwd=finished))
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
    rows = json.loads(ok("plan", "tiny.toml", "--format", "json", cwd=tmp_path))
    assert len(rows) == 20 and all(row["expected"] > 0 and row["hours"] > 0 for row in rows)


def test_status_shows_studies_and_cells(finished):
    (study,) = json.loads(ok("status", "--format", "json", cwd=finished))
    assert (study["study"], study["cells"]) == ("tiny", 20)
    assert study["certified"] + study["boundary"] == 20
    assert len(json.loads(ok("status", "tiny", "--format", "json", cwd=finished))) == 20


def test_runs_are_filtered_sorted_and_cut(finished):
    printed = ok("runs", "--where", "epochs >= 2", "--sort=-val_loss", "-n", "4", "--format", "csv", cwd=finished)
    rows = list(csv.DictReader(io.StringIO(printed)))
    losses = [float(row["val_loss"]) for row in rows]
    assert len(rows) == 4 and losses == sorted(losses, reverse=True)
    assert all(int(row["epochs"]) >= 2 for row in rows)
    every = json.loads(ok("runs", "-n", "0", "--columns", "all", "--format", "json", cwd=finished))
    with duckdb.connect(finished / "dataeff.duckdb", read_only=True) as connection:
        assert len(every) == connection.execute("SELECT count(*) FROM run").fetchone()[0]


def test_show_takes_the_beginning_of_a_run_id(finished):
    (first,) = json.loads(ok("runs", "-n", "1", "--columns", "run_id,val_loss", "--format", "json", cwd=finished))
    shown = json.loads(ok("show", first["run_id"][:8], "--format", "json", cwd=finished))
    assert shown["row"]["val_loss"] == first["val_loss"]
    assert shown["evaluations"][-1]["val_loss"] == first["val_loss"]
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["finished"]
    assert shown["cells"]
    assert first["run_id"] in ok("show", first["run_id"][:8], cwd=finished)


def test_sql_answers_in_every_form(finished, tmp_path):
    query = "select recipe, min(val_loss) as val_loss from best_run group by all order by all"
    rows = json.loads(ok("sql", query, "--format", "json", cwd=finished))
    assert [row["recipe"] for row in rows] == ["distilled", "ensemble", "regularized", "standard"]
    assert ok("sql", query, "--format", "csv", cwd=finished).splitlines()[0] == "recipe,val_loss"
    for suffix in ("csv", "json", "parquet"):
        ok("sql", query, "-o", tmp_path / f"rows.{suffix}", cwd=finished)
        assert [tuple(row.values()) for row in rows] == duckdb.sql(f"from '{tmp_path}/rows.{suffix}'").fetchall(), suffix


def test_json_is_strict_and_no_type_ends_in_a_traceback(finished, tmp_path):
    query = """select sum(epochs) as huge, interval 3 month as months, map {1: 'a'} as map, 'nan'::double as nan,
        'infinity'::double as inf, 1 as nan, union_value(a := 1) as either from run"""
    (row,) = json.loads(ok("sql", query, "--format", "json", cwd=finished), parse_constant=pytest.fail)
    assert row["nan"] is row["inf"] is None and row["nan_5"] == 1 and row["map"] == {"1": "a"}
    ok("sql", query, "-o", tmp_path / "x.parquet", cwd=finished)
    huge, months, named = duckdb.sql(f"select huge, months::varchar, map from '{tmp_path}/x.parquet'").fetchone()
    assert int(huge) == row["huge"] and months == "3 months" and named == {1: "a"}


def test_every_command_that_prints_rows_writes_them_in_each_form(finished, tmp_path):
    fit = ("fit", "from best_run where recipe = 'standard'", "--x", "parameters_total", "--y", "val_loss", "-g", "seed_tokens")
    commands = (("runs",), ("status",), ("status", "tiny"), ("answer", "tiny"), ("plan", "tiny"), ("doctor",), fit)
    for number, command in enumerate(commands):
        for suffix in ("csv", "json", "parquet"):
            file = tmp_path / f"{number}.{suffix}"
            assert ok(*command, "-o", file, cwd=finished) == ""
            assert duckdb.sql(f"select count(*) from '{file}'").fetchone()[0] > 0, file


def test_a_study_is_given_by_its_name_or_its_file(finished):
    for command in (("status",), ("answer",), ("plan",)):
        assert ok(*command, "tiny", cwd=finished) == ok(*command, "tiny.toml", cwd=finished)


@pytest.mark.parametrize(
    "query",
    ["delete from run", "copy (select 1) to 'tiny.toml'", "explain analyze copy (select 1) to 'tiny.toml'", "attach 'x.duckdb'"]
    + ["", "create temp table t as select 1", "set threads = 1", "from read_text('tiny.toml')", "from run; from run"],
)
def test_sql_reads_the_database_and_nothing_else(finished, query):
    before = (finished / "tiny.toml").read_bytes()
    done = dataeff("sql", query, cwd=finished)
    assert done.returncode == 2 and re.search("read-only|file system|disabled", done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1 and len(done.stderr) < 320
    assert (finished / "tiny.toml").read_bytes() == before


@pytest.mark.parametrize("query", ["select count(*) from range(10000000) a, range(10000000) b", "select len(range(1000000000))"])
def test_ctrl_c_stops_a_query(finished, query):
    asked = subprocess.Popen([sys.executable, "-m", "dataeff", "sql", query], cwd=finished, start_new_session=True)
    time.sleep(3)
    os.killpg(asked.pid, signal.SIGINT)
    assert asked.wait(timeout=3) != 0
    assert "tiny" in ok("status", cwd=finished)


def test_the_prompt_goes_on_after_mistakes_and_ctrl_c(finished):
    """At a terminal of its own, as it is for someone who types."""
    leader, follower = pty.openpty()
    take_terminal = partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), follower)
    prompt = subprocess.Popen(
        [sys.executable, "-m", "dataeff", "sql"], cwd=finished, start_new_session=True, preexec_fn=take_terminal, **streams
    )
    os.close(follower)

    def shown_until(mark: bytes) -> bytes:
        shown, deadline = b"", time.monotonic() + 30
        while mark not in shown and time.monotonic() < deadline:
            if select.select([leader], [], [], 0.1)[0]:
                shown += os.read(leader, 4096)
        return shown

    def answer(line: bytes, mark: bytes = b"dataeff> ") -> bytes:
        os.write(leader, line + b"\n")
        return shown_until(mark)

    shown_until(b"dataeff> ")
    assert b"syntax error" in answer(b"selct 1;")
    answer(b"select 40 + 2", mark=b"...> ")
    assert b"found\r\n   42" in answer(b"as found;")
    os.write(leader, b"select len(range(1000000000));\n")
    time.sleep(2)
    os.write(leader, b"\x03")
    assert b"dataeff> " in shown_until(b"dataeff> ")
    assert b"tiny" in answer(b"select name from study;", mark=b"tiny\r\ndataeff> ")
    os.write(leader, b"\x04")
    assert prompt.wait(timeout=10) == 0


def test_a_value_of_several_lines_keeps_its_column(finished):
    first, *lines = ok("sql", "explain select 1", cwd=finished).splitlines()
    assert first.split() == ["explain_key", "physical_plan"]
    assert len({re.search("[┌│└]", line).start() for line in lines if line.strip()}) == 1


def test_doctor_looks_around(finished):
    out = ok("doctor", cwd=finished)
    assert "1 study(s)" in out and "weights" in out and "tiny: " in out and "bad" not in out


def test_init_writes_a_study_that_is_valid_and_overwrites_nothing(tmp_path):
    assert "dataeff run mine.toml" in ok("init", cwd=tmp_path)
    text = (tmp_path / "mine.toml").read_text()
    assert Study.load(tmp_path / "mine.toml").spec.cells and text.count("#") > 20
    (tmp_path / "mine.toml").write_text("mine")
    for name, reason in (("mine.toml", "exists"), ("no spaces.toml", "named after its file"), ("mine", "named after its file")):
        done = dataeff("init", name, cwd=tmp_path)
        assert done.returncode == 2 and reason in done.stderr
    assert (tmp_path / "mine.toml").read_text() == "mine"


def tables(database: Path) -> dict[str, list]:
    """The rows of every table but the version."""
    with duckdb.connect(database, read_only=True) as connection:
        names = connection.execute("select table_name from duckdb_tables() where table_name <> 'schema'").fetchall()
        return {name: connection.execute(f"from {name} order by all").fetchall() for (name,) in names}


def test_a_deleted_study_is_gone_for_good_and_its_runs_stay(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "second.toml").write_text(TINY)
    ok("run", "second.toml", cwd=tmp_path)
    before = tables(tmp_path / "dataeff.duckdb")
    refused = subprocess.run(
        [sys.executable, "-m", "dataeff", "delete", "tiny"], cwd=tmp_path, input="n\n", capture_output=True, text=True
    )
    assert refused.returncode == 1 and "nothing was changed" in refused.stderr and tables(tmp_path / "dataeff.duckdb") == before
    assert "20 cells" in ok("delete", "tiny.toml", "--yes", cwd=tmp_path)
    after = tables(tmp_path / "dataeff.duckdb")
    assert after["run"] == before["run"] and after["ensemble"] == before["ensemble"]
    assert [name for (name, *_) in after["study"]] == ["second"] and len(after["cell"]) == 20
    ok("rebuild", cwd=tmp_path)
    rebuilt = tables(tmp_path / "dataeff.duckdb")
    assert {row[0] for row in rebuilt.pop("fit")} == {row[0] for row in after.pop("fit")} and rebuilt == after
    ok("delete", "second", "--yes", cwd=tmp_path)
    assert "second" in dataeff("answer", "second", cwd=tmp_path).stderr
    done = dataeff("run", "tiny.toml", cwd=tmp_path)
    assert done.returncode == 0 and " 0 trained" in done.stderr


def test_runs_of_a_deleted_import_go_unless_another_study_uses_them(finished, tmp_path):
    ok("export", "tiny", tmp_path / "out", cwd=finished)
    ok("import", "out", cwd=tmp_path)
    assert "imported with it" in ok("delete", "tiny", "--yes", cwd=tmp_path)
    after = tables(tmp_path / "dataeff.duckdb")
    assert not any(after.values())
    ok("import", "out", cwd=tmp_path)
    shutil.copytree(finished / "text", tmp_path / "text")
    (tmp_path / "second.toml").write_text(TINY)
    assert " 0 trained" in dataeff("run", "second.toml", cwd=tmp_path).stderr
    done = dataeff("delete", "tiny", "--yes", cwd=tmp_path)
    assert done.returncode == 2 and "delete second first" in done.stderr


def test_refresh_renews_what_is_stale(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with duckdb.connect(tmp_path / "dataeff.duckdb") as connection:
        connection.execute("DELETE FROM fit")
    assert not ok("refresh", cwd=tmp_path).startswith("0 ")
    assert ok("refresh", "tiny.toml", cwd=tmp_path).startswith("0 ")


@pytest.mark.parametrize("command", [("answer", "tiny"), ("status",), ("status", "tiny"), ("report", "tiny", "-o", "../r.md")])
def test_readers_do_not_write(finished, tmp_path, command):
    shutil.copytree(finished, tmp_path / "copy")
    with duckdb.connect(tmp_path / "copy" / "dataeff.duckdb") as connection:
        connection.execute("DELETE FROM fit")
    before = (tmp_path / "copy" / "dataeff.duckdb").read_bytes()
    ok(*command, cwd=tmp_path / "copy")
    assert (tmp_path / "copy" / "dataeff.duckdb").read_bytes() == before


def test_plan_warns_of_what_cannot_be_answered(tmp_path):
    write_tiny_study(tmp_path)
    assert "needs 3 budgets" in dataeff("plan", "tiny.toml", cwd=tmp_path).stderr
    enough = TINY.replace("[1024, 2048]", "[1024, 1536, 2048]")
    (tmp_path / "tiny.toml").write_text(enough)
    (warning,) = dataeff("plan", "tiny.toml", cwd=tmp_path).stderr.strip().splitlines()
    assert "seed_tokens 1,024 begins 1 documents or passages" in warning and "set corpus.passage_bytes to 256 for 30" in warning
    text = enough.replace('sizes = ["a"]', 'sizes = ["a", "b"]')
    text = text.replace('limit = "best"\n\n[resources]', '\n[resources]').replace("members = 4", "members = 3")
    (tmp_path / "tiny.toml").write_text(text)
    warned = dataeff("plan", "tiny.toml", cwd=tmp_path).stderr
    assert 'recipes.distilled: limit = "N" needs 3 sizes' in warned and "recipes.ensemble: no interval" in warned


def test_the_database_may_be_named_by_option_or_environment(finished, tmp_path):
    by_option = ok("status", "--database", finished / "dataeff.duckdb", "--format", "json", cwd=tmp_path)
    assert by_option == ok("-d", finished / "dataeff.duckdb", "status", "--format", "json", cwd=tmp_path)
    by_environment = dataeff("status", "--format", "json", cwd=tmp_path, DATAEFF_DATABASE=str(finished / "dataeff.duckdb"))
    assert by_option == by_environment.stdout


MISTAKES = {
    "no such study": (["run", "nowhere.toml"], "no study file"),
    "no such study recorded": (["answer", "nothing"], "valid: tiny"),
    "no such command": (["rum"], "No such command"),
    "no such option": (["runs", "--sorted", "lr"], "No such option"),
    "no such executor": (["run", "tiny.toml", "--executor", "loacl"], "not one of 'local', 'inline'"),
    "workers of no use": (["run", "tiny.toml", "--executor", "inline", "--workers", "4"], "leave one of them out"),
    "no such form": (["runs", "--format", "xml"], "not one of 'table', 'json', 'csv'"),
    "a file of no known form": (["runs", "-o", "runs.xlsx"], ".csv, .json, .parquet"),
    "a file and a form": (["runs", "-o", "runs.csv", "--format", "json"], "leave --format out"),
    "a report of no known form": (["report", "tiny", "-o", "tiny.docx"], "md"),
    "no such port": (["app", "--port", "99999"], "65535"),
    "no such host": (["app", "--host", "no such host"], "choose another port or host"),
    "no such folder": (["run", "tiny.toml", "--database", "none/x.duckdb"], "there is no folder none"),
    "a folder for a database": (["status", "--database", "."], "this is a folder"),
    "nothing to delete": (["delete", "nothing"], "valid: tiny"),
    "nothing to refresh": (["refresh", "nothing"], "valid: tiny"),
    "a missing argument": (["plan"], "dataeff plan --help"),
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
    assert len(done.stderr.splitlines()) == 1 and len(done.stderr) < 320
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
        assert "rebuilds it from the files" in done.stdout + done.stderr and "Traceback" not in done.stderr
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
    line = f"{sys.executable} -m dataeff runs -n 0 --columns all --format csv | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=finished, capture_output=True, text=True)
    assert done.stdout.startswith("run_id,") and not done.stderr
