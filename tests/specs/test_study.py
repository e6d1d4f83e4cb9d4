"""Study files: what is said is what runs, and every mistake is told with its line and a remedy."""

from __future__ import annotations

import pytest

from dataeff.errors import OffGridError, StudyError
from dataeff.share import shared_folder
from dataeff.specs.grid import Grid
from dataeff.specs.study import Study, StudySpec, carried_studies
from dataeff.study.demand import Demand

TEXT = (shared_folder("studies") / "quickstart.toml").read_text()


def load(tmp_path, old="", new=""):
    assert old in TEXT
    file = tmp_path / "mine.toml"
    file.write_text(TEXT.replace(old, new, 1) if old else TEXT)
    return Study.load(file)


@pytest.mark.parametrize("name", carried_studies())
def test_every_carried_study_is_valid(name):
    assert Study.load(name).spec.cells


def test_the_text_and_its_hash_are_kept(tmp_path):
    study = load(tmp_path)
    assert study.source == TEXT
    assert study.spec.name == "mine"


def test_a_study_built_in_python_equals_the_one_in_the_file(tmp_path):
    spec = load(tmp_path).spec
    assert StudySpec(**spec.model_dump()) == spec


MISTAKES = {
    "an unknown key": ("batch_size", "batchsize", "did you mean 'batch_size'"),
    "an unknown key of a recipe": ('limit = "N"', 'limti = "N"', "did you mean 'limit'"),
    "an unknown table": ("[resources]", "[resource]", "did you mean 'resources'"),
    "an unknown size": ('"width16"', '"width17"', "did you mean 'width16'"),
    "a wrong type": ("passage_bytes = 288", 'passage_bytes = "288"', "valid integer"),
    "a wrong choice": ('precision = "float32"', 'precision = "fp8"', "'float32' or 'bfloat16'"),
    "an unsorted axis": ("lr = [", "lr = [9.9, ", "must rise"),
    "an empty axis": ("epochs = [", "epochs = []\ndropout = [0.0]\n#", "empty"),
    "an unknown axis": ("epochs = [", "epoch = [", "did you mean 'epochs'"),
    "a fraction of an epoch": ("epochs = [", "epochs = [0.5, ", "whole number"),
    "an unsorted budget": ("seed_tokens = [", "seed_tokens = [999999999, ", "rise"),
    "a budget that is not whole steps": ("seed_tokens = [", "seed_tokens = [1000, ", "nearest valid: 512 or 1024"),
    "a size that does not divide into heads": (
        '"width16"',
        '{ name = "odd", hidden = 30, layers = 2, heads = 4, kv_heads = 4, feed_forward = 10 }',
        "multiple of 8",
    ),
    "an unknown baseline": ('baseline = "standard"', 'baseline = "standrad"', "did you mean 'standard'"),
    "an unknown base": ('base = "standard"', 'base = "standrad"', "'standard'"),
    "a recipe built on itself": ('base = "standard"', 'base = "regularized"', "standard"),
    "a limit over K of one member": ('limit = "N"', 'limit = "K then N"', "set members to 3 or more"),
    "a change of nothing": ('base = "standard"', 'change = { lr = "x 2" }', "name one"),
    "a change that is no factor": ('base = "standard"', 'base = "standard"\nchange = { lr = "twice" }', 'such as "x 2"'),
    "an axis that nothing decides": ('base = "standard"', 'tune = ["lr"]', "no base to follow"),
    "a tuned axis off the grid": ('base = "standard"', 'tune = ["learning_rate"]', "not on the grid"),
    "an unknown size of a recipe": ('base = "standard"', 'sizes = ["width63"]', "did you mean 'width64'"),
    "an unknown key of a recipe's training": ('base = "standard"', 'training = { dropuot = 0.1 }', "did you mean 'dropout'"),
    "a context that only one recipe has": ('base = "standard"', 'training = { context_length = 32 }', "set it in [training]"),
    "a change below nothing": ('base = "standard"', 'base = "standard"\nchange = { lr = "x -2" }', 'such as "x 2"'),
    "a change beyond what an axis may be": (
        "epochs = [2, 4, 8, 16, 32, 64]",
        'epochs = [2, 4, 8, 16, 32, 64]\ndropout = [0.0, 0.4]\n[recipes.wet]\nchange = { dropout = "x 3" }\nbase = "standard"',
        "less than 1",
    ),
    "two averages of the weights": ('base = "standard"', 'fixed = { ema = 0.9 }\ntraining = { swa_fraction = 0.2 }', "one way"),
    "an axis that changes nothing": ('base = "standard"', "fixed = { decay_fraction = 0.5 }", 'training.schedule = "wsd"'),
    "a training key that is an axis": (
        'base = "standard"',
        "training = { batch_size = 4 }\nfixed = { batch_size = 8 }",
        "is an axis already",
    ),
    "more cycles than steps": ('base = "standard"', 'training = { cycles = 9999 }', "more than the 16 steps"),
    "a key of the other kind of teacher": (
        'base = "standard"',
        'teacher = { recipe = "standard", kind = "logits", share = 0.9 }',
        "means nothing to a teacher of kind 'logits'",
    ),
    "an unknown key of a teacher": ('base = "standard"', 'teacher = { recipe = "standard", shar = 0.9 }', "did you mean 'share'"),
    "no size at all": ('base = "standard"', "sizes = []", "at least 1"),
    "an unknown teacher": ('base = "standard"', 'teacher = { recipe = "standart" }', "did you mean 'standard'"),
    "snapshots of one cycle": ('base = "standard"', 'members = 3\nvary = "snapshot"', "set both to one number"),
    "a negative weight decay": ("weight_decay = 0.1 }", "weight_decay = -0.1 }", "greater than or equal to 0"),
    "a start off the grid": ("start = { lr = 3e-2", "start = { lr = 0.5", "not on the grid"),
    "an unknown corpus": ('"state-of-the-union"', '"sotu"', "state-of-the-union"),
    "a tokenizer that lacks its size": ("vocabulary = 512", "", "needs vocabulary"),
    "broken TOML": ("[grid]", "[grid", "line"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_file_line_and_remedy(tmp_path, mistake):
    old, new, remedy = MISTAKES[mistake]
    with pytest.raises(StudyError) as error:
        load(tmp_path, old, new)
    assert remedy in str(error.value)
    line = TEXT[: TEXT.index(old)].count("\n") + 1
    lines = range(max(1, line - 3), line + 4)  # a rule about a table may point at its header
    assert any(f"mine.toml:{n}:" in str(error.value) or f"at line {n}," in str(error.value) for n in lines)


def test_a_missing_file_is_told_with_the_studies_there_are(tmp_path):
    with pytest.raises(StudyError, match="quickstart"):
        Study.load(tmp_path / "none.toml")


def test_a_cell_comes_after_the_cells_it_starts_from():
    spec = Study.load("quickstart").spec
    seen: set[str] = set()
    for cell in spec.cells:
        assert {cell.neighbour, cell.base, cell.teacher} - {None} <= seen
        seen.add(cell.id)
    assert len(seen) == len(spec.cells) == len(spec.recipes) * len(spec.seed_tokens) * len(spec.sizes)


def test_the_fixed_axis_of_a_recipe_has_one_value_and_the_others_are_tuned():
    spec = Study.load("quickstart").spec
    assert spec.grid_of("standard").axes["weight_decay"] == (0.1,)
    assert len(spec.grid_of("regularized").axes["weight_decay"]) > 1


def test_two_recipes_that_want_the_same_point_want_one_run():
    spec = Study.load("quickstart").spec
    cells = {cell.recipe: cell for cell in spec.cells if cell.size.name == "width16" and cell.seed_tokens == spec.seed_tokens[0]}
    del cells["ensemble"]  # follows another
    values = {"lr": 1e-2, "weight_decay": 0.1, "epochs": 4.0}
    demand = Demand(spec, "abc", 1024, 0)
    ids = {demand.run(cell, cell.grid.point(values), 0, 0).run_id for cell in cells.values()}
    assert len(ids) == 1


def test_edges_are_told_unless_nothing_can_lie_beyond():
    grid = Grid({"lr": (1e-3, 1e-2), "weight_decay": (0.0, 0.1), "epochs": (1, 2), "beta1": (0.9,)})
    assert grid.edges((0, 0, 0, 0)) == [("lr", "lower")]
    assert grid.edges((1, 1, 1, 0)) == [("lr", "upper"), ("weight_decay", "upper"), ("epochs", "upper")]


def test_a_point_off_the_grid_is_told_with_what_is_on_it():
    grid = Grid({"lr": (1e-3, 1e-2)})
    with pytest.raises(OffGridError, match=r"0\.001, 0\.01"):
        grid.point({"lr": 5e-3})
    assert grid.values(grid.nearest({"lr": 5e-3})) == {"lr": 1e-3}
