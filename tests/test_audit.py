"""`dataeff audit`: anyone's table, from a file or a query, as text, JSON and a page."""

from __future__ import annotations

import json
import math
import re

import duckdb
import pytest

from tests.conftest import dataeff
from tests.laws.test_audit import simulate


def audit(*arguments, cwd):
    done = dataeff("audit", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """clean.csv, .parquet and .json: a clean table; beyond.csv: three budgets, and a recipe that needs many times the largest."""
    folder = tmp_path_factory.mktemp("tables")
    for name, rows in (("clean", simulate(sd=0.002)), ("beyond", simulate(8.0, (1, 2, 4), (4,), seeds=1))):
        (folder / f"{name}.json").write_text(json.dumps(rows, default=float))
        for suffix in ("csv", "parquet"):
            duckdb.sql(f"COPY (FROM '{folder}/{name}.json') TO '{folder}/{name}.{suffix}'")
    return folder


def test_csv_parquet_and_json_give_one_answer(folder):
    csv, parquet, nested = (strict(audit(f"clean.{s}", "--format=json", cwd=folder)) for s in ("csv", "parquet", "json"))
    assert csv == parquet == nested
    assert csv["verdict"] == "holds" and csv["findings"] == []


def test_infinite_ratios_and_unknown_worths_are_null_in_json(folder):
    audited = strict(audit("beyond.csv", "--format=json", cwd=folder))
    (ratio,) = audited["ratios"]
    assert ratio["high"] is None and ratio["low"] < 8 and ratio["verdict"] == "fragile"
    assert {"few_points", "extrapolated", "rules_disagree", "one_seed"} <= {flaw["name"] for flaw in audited["findings"]}


def test_the_text_says_verdict_ratios_flaws_and_rules(folder):
    text = audit("beyond.csv", cwd=folder)
    assert text.startswith("fragile: 0 of 1 ratios are supported")
    assert re.search(r"better +40,000 .*x to never .*fragile: extrapolated, few_points, rules_disagree", text)
    assert re.search(r"one_seed +no point has two seeds", text) and re.search(r"interpolated +outside the", text)
    assert "holds: 3 of 3" in audit("clean.csv", cwd=folder)


def test_a_page_has_what_the_text_has_and_its_names_are_no_markup(folder):
    rows = (folder / "beyond.csv").read_text().replace("better", "<b>*x*</b>")
    (folder / "markup.csv").write_text(rows)
    for suffix, name in (("html", "&lt;b&gt;*x*&lt;/b&gt;"), ("md", r"\<b\>\*x\*\</b\>")):
        assert audit("markup.csv", "-o", f"page.{suffix}", cwd=folder) == ""
        page = (folder / f"page.{suffix}").read_text()
        assert name in page and "<b>*x*" not in page
        assert "extrapolated" in page and "power law without floor" in page


def test_columns_are_found_by_usual_names_and_by_map(folder, tmp_path):
    header, rows = (folder / "clean.csv").read_text().split("\n", 1)
    assert header == "recipe,seed_tokens,parameters_total,lr,weight_decay,epochs,val_loss"
    (tmp_path / "usual.csv").write_text("Recipe,D,N,learning_rate,wd,epochs,loss\n" + rows)
    (tmp_path / "own.csv").write_text("method,tenths,size,lr,weight_decay,epochs,ce\n" + rows)
    maps = ("recipe=method", "seed_tokens=tenths * 10", "parameters_total=size", "val_loss=ce")
    expected = strict(audit("clean.csv", "--format=json", cwd=folder))
    assert strict(audit("usual.csv", "--format=json", cwd=tmp_path)) == expected
    mapped = strict(audit("own.csv", "--format=json", *(part for each in maps for part in ("--map", each)), cwd=tmp_path))
    assert [r["low"] for r in mapped["ratios"]] == pytest.approx([r["low"] for r in expected["ratios"]])
    assert mapped["ratios"][0]["seed_tokens"] == 10 * expected["ratios"][0]["seed_tokens"]


def test_the_table_of_the_paper_supports_its_ratios_by_the_stated_laws_alone(tmp_path):
    """Its own law over D is 3.74974 at 209.7M; with alpha .23 to .24 and E 1.89 to 1.96 its 2.29x and 5.17x are in the range."""
    audited = strict(audit("published", "--format=json", cwd=tmp_path))
    assert audited["verdict"] == "fragile" and [b["loss"] for b in audited["baseline"]] == [3.74974]
    claims = [ratio for ratio in audited["ratios"] if ratio["published"]]
    assert [(ratio["loss"], ratio["published"]) for ratio in claims] == [(3.43, 2.29), (3.17, 5.17)]
    for ratio in claims:
        corners = [((3.74974 - e) / (ratio["loss"] - e)) ** (1 / alpha) for alpha in (0.23, 0.24) for e in (1.89, 1.96)]
        assert (ratio["low"], ratio["high"]) == pytest.approx((min(corners), max(corners)))
        assert ratio["low"] < ratio["published"] < ratio["high"]
        halved = min((ratio["loss"] - e) * (2**alpha - 1) for alpha in (0.23, 0.24) for e in (1.89, 1.96))
        assert ratio["halved_by"] == pytest.approx(halved)
        assert {"few_points", "extrapolated", "one_seed"} <= set(ratio["findings"])
        assert all(rule["reason"] for rule in ratio["rules"] if not rule["rule"].startswith("stated"))


def test_a_query_on_the_database_is_audited(finished):
    runs = "select recipe, run.* from trial join cell using (cell_id) join run using (run_id)"
    audited = strict(audit(runs, "--format=json", cwd=finished))
    assert {ratio["recipe"] for ratio in audited["ratios"]} >= {"regularized"}
    assert all(math.isfinite(ratio["loss"]) for ratio in audited["ratios"]) and "few_points" in str(audited["findings"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.csv",),
        ("clean.csv", "--baseline", "none"),
        ("clean.csv", "--map", "losss=val_loss"),
        ("clean.csv", "--map", "val_loss=no_such"),
        ("clean.csv", "--map", "val_loss=recipe"),
        ("clean.csv", "-o", "page.pdf"),
        ("clean.csv", "-o", "page.md", "--format", "json"),
        ("markupless",),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(folder, arguments):
    done = dataeff("audit", *arguments, cwd=folder)
    assert done.returncode == 2 and done.stderr.startswith("dataeff: ") and done.stderr.count("\n") == 1
    assert not list(folder.glob("page.pdf"))


def test_a_table_without_a_column_that_is_needed_names_it_and_the_ones_there_are(tmp_path):
    (tmp_path / "t.csv").write_text("recipe,tokens,bpb\nstandard,1,2\n")
    error = dataeff("audit", "t.csv", cwd=tmp_path).stderr
    assert "no column val_loss" in error and "--map val_loss=COLUMN" in error and "bpb" in error
