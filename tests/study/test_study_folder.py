"""A study's folder: written whole, continued from anywhere, copied."""

import shutil
from pathlib import Path

import pytest

from full_disk import full_disk
from hybridnorm.errors import HybridNormError
from hybridnorm.recipe import load_recipe
from hybridnorm.study import load_study
from hybridnorm.study.folder import claim
from hybridnorm.study.report import write_results
from hybridnorm.study.results import read_results
from studies import fake_run

STUDY = """
recipe = "r.toml"
[set]
train.steps = 200
[grid]
model.placement = ["pre-norm", "mine.toml"]
seed = [0, 1]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study with a recipe and a placement beside it."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "r.toml").write_text('seed = 3\n[model]\nplacement = "mine.toml"\nd_ff = 96\n')
    (home / "mine.toml").write_text('title = "Of my own"\n[attention]\ninput_norm = "rms"\n')
    (home / "s.toml").write_text(STUDY)
    return home / "s.toml"


def content(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_full_disk_leaves_nothing_half_written_and_the_next_start_is_a_new_one(
    path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with full_disk(), pytest.raises(HybridNormError, match=r"cannot write: .*; make room"):
        claim(load_study(path), folder, "typed")
    assert content(folder) == {}
    changed = load_study(path, {"optimizer.lr": 0.01})
    claim(load_study(path), folder, "typed")
    claim(changed, folder, "typed again")
    assert load_recipe(folder / "recipes" / "mine-seed0.toml").optimizer.lr == 0.01


def test_a_full_disk_leaves_the_last_report(path: Path, tmp_path: Path) -> None:
    study, folder = load_study(path), tmp_path / "out"
    write_results(study, folder, read_results(study, folder))
    before = content(folder)
    with full_disk(), pytest.raises(HybridNormError, match=r"csv: cannot write: .*; make room"):
        write_results(study, folder, read_results(study, folder))
    assert content(folder) == before


def test_a_run_that_has_started_keeps_its_recipe_and_placement(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    claim(load_study(path), folder, "typed")
    fake_run(folder, "mine-seed1", [5.0])
    before = content(folder)
    with pytest.raises(HybridNormError, match=r"mine-seed1.toml: .* another recipe; name another"):
        claim(load_study(path, {"optimizer.lr": 0.01}), folder, "typed")
    path.with_name("mine.toml").write_text('[attention]\ninput_norm = "layer"\n')
    with pytest.raises(HybridNormError, match=r"mine.toml: .* another placement; name another"):
        claim(load_study(path), folder, "typed")
    assert content(folder) == before


def test_a_study_is_the_same_from_every_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    claim(load_study(path), folder, "typed")
    before = content(folder)
    for cwd, name in ((path.parent, "s.toml"), (tmp_path, "home/s.toml")):
        monkeypatch.chdir(cwd)
        claim(load_study(name), folder, "typed")
        assert content(folder) == before


@pytest.mark.parametrize("placed", ["in the grid", "in the recipe"])
def test_a_copied_folder_is_a_study(placed: str, path: Path, tmp_path: Path) -> None:
    if placed == "in the recipe":
        path.write_text('compare = "seed"\nrecipe = "r.toml"\n[grid]\nseed = [0, 1]')
    study, folder, copy = load_study(path), tmp_path / "out", tmp_path / "copies" / "one"
    claim(study, folder, "typed")
    for run in study.runs:
        fake_run(folder, run.name, [5.0])
    shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    shutil.rmtree(path.parent)
    again = load_study(copy / "study.toml")
    assert [run.name for run in again.runs] == [run.name for run in study.runs]
    assert [run.placement for run in again.runs] == [run.placement for run in study.runs]
    assert {run.recipe.model.d_ff for run in again.runs} == {96}
    claim(again, copy, "typed")  # it finds the runs' recipes as they were
    assert all(result.status == "finished" for result in read_results(again, copy))
