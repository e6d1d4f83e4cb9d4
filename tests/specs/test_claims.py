"""Claims in study files: what is refused, and that they change no run."""

from __future__ import annotations

import pytest

from dataeff.errors import StudyError
from dataeff.share import shared_folder
from dataeff.specs.study import Study
from dataeff.study.demand import Demand

TEXT = (shared_folder("studies") / "quickstart.toml").read_text()
GOOD = {"better": '"regularized"', "than": '"standard"', "at": "16384", "by": "0.01"}


def load(folder, claim: dict[str, str] | None = None) -> Study:
    lines = ["", "[claims.decay]", *(f"{key} = {value}" for key, value in claim.items())] if claim else []
    (folder / "mine.toml").write_text(TEXT + "\n".join(lines))
    return Study.load(folder / "mine.toml")


def test_a_claim_is_read_and_its_margin_is_zero_unless_given(tmp_path):
    claim = load(tmp_path, GOOD).spec.claims["decay"]
    assert (claim.better, claim.than, claim.at, claim.by) == ("regularized", "standard", 16384, 0.01)
    assert load(tmp_path, {key: GOOD[key] for key in ("better", "than", "at")}).spec.claims["decay"].by == 0
    assert load(tmp_path).spec.claims == {}


@pytest.mark.parametrize(
    "key, value, remedy",
    [
        ("better", '"regularised"', "did you mean 'regularized'"),
        ("than", '"standrad"', "did you mean 'standard'"),
        ("than", '"regularized"', "not another recipe"),
        ("at", "16385", "did you mean '16384'"),
        ("by", "-0.1", "greater than or equal to 0"),
        ("by", '"much"', "valid number"),
        ("size", '"width64"', "unknown key; valid: better, than, at, by"),
    ],
)
def test_a_mistake_in_a_claim_is_told_with_file_line_and_remedy(tmp_path, key, value, remedy):
    claim = GOOD | {key: value}
    with pytest.raises(StudyError) as error:
        load(tmp_path, claim)
    line = TEXT.count("\n") + 3 + list(claim).index(key)
    assert f"mine.toml:{line}: " in str(error.value) and remedy in str(error.value)


def test_a_missing_key_is_told(tmp_path):
    with pytest.raises(StudyError, match=r"claims\.decay\.at: this key is missing"):
        load(tmp_path, {"better": '"regularized"', "than": '"standard"'})


def test_a_claim_changes_no_cell_and_no_run(tmp_path):
    without, with_claim = load(tmp_path).spec, load(tmp_path, GOOD).spec
    assert without.cells == with_claim.cells
    before, after = Demand(without, "abc", 1024, 0), Demand(with_claim, "abc", 1024, 0)
    for cell in without.cells:
        runs = [demand.members(cell, cell.grid.middle, 3) for demand in (before, after)]
        assert [run.id for run in runs[0]] == [run.id for run in runs[1]]
        if ensemble := before.ensemble(cell, cell.grid.middle):
            assert ensemble.id == after.ensemble(cell, cell.grid.middle).id
