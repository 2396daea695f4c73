"""What a study's file may say, and what its runs are called."""

from dataclasses import fields
from pathlib import Path

import pytest
import tomli_w

from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import PRESETS, ModelConfig
from hybridnorm.study import load_study
from hybridnorm.study.report import write_results
from hybridnorm.study.results import read_results

PRESET_GRID = """
compare = "model.preset"
[set]
"model.n_layers" = 2
"model.n_kv_heads" = "None"
[grid]
"model.preset" = ["151M", "1.2B"]
seed = [0, 1]
"""


def test_a_preset_is_a_value_of_a_grid(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(PRESET_GRID)
    study = load_study(path)
    assert [run.name for run in study.runs] == [
        *("151M-seed0", "151M-seed1", "1.2B-seed0", "1.2B-seed1")
    ]
    widths = [PRESETS["151M"].d_model] * 2 + [PRESETS["1.2B"].d_model] * 2
    assert [run.recipe.model.d_model for run in study.runs] == widths
    assert {(r.recipe.model.n_layers, r.recipe.model.n_kv_heads) for r in study.runs} == {(2, None)}
    assert "1.2B" in write_results(study, tmp_path, read_results(study, tmp_path)).read_text()
    path.write_text(PRESET_GRID.replace("1.2B", "1.2C"))
    with pytest.raises(HybridNormError, match=r"model\.preset: .* did you mean '1\.2B'"):
        load_study(path)


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.n_layers": [2, 3], "train.threads": None},
        {"model.n_kv_heads": [None, 2]},
        {"optimizer.betas": (0.8, 0.9), "model.preset": ["demo", "demo-deep"], "seed": 4},
    ],
)
def test_a_study_of_overrides_is_written_and_read_again(
    overrides: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'compare = "seed"\n[set]\n"model.n_layers" = 5\n'
        '[grid]\nseed = [0, 1]\n"optimizer.betas" = [[0.9, 0.95]]\n'
    )
    study = load_study(path, overrides)
    for dotted, value in overrides.items():
        if isinstance(value, list):
            assert {run.values[dotted] for run in study.runs} == set(value)
    path.write_text(tomli_w.dumps(study.to_table()))
    again = load_study(path)
    assert [(run.name, run.recipe) for run in again.runs] == [
        (run.name, run.recipe) for run in study.runs
    ]


def study_file(folder: Path, text: str) -> Path:
    path = folder / "s.toml"
    path.write_text(text)
    return path


def test_dotted_fields_need_no_quotes(tmp_path: Path) -> None:
    table = "train.steps = 200\nmodel = { d_ff = 64 }\n[grid]\nmodel.placement = ['pre-norm']\n"
    bare = load_study(study_file(tmp_path, f"[set]\n{table}[grid.optimizer]\nlr = [1e-3, 1e-2]"))
    quoted = load_study(
        study_file(
            tmp_path,
            '[set]\n"train.steps" = 200\n"model.d_ff" = 64\n[grid]\n'
            '"model.placement" = ["pre-norm"]\n"optimizer.lr" = [1e-3, 1e-2]',
        )
    )
    assert bare.runs == quoted.runs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[grid]\n"model.placment" = ["pre-norm"]', "model.placment: .* did you mean 'placement'"),
        ('[grid]\nmodel.placment = ["pre-norm"]', "model.placment: .* did you mean 'placement'"),
        (
            '[grid]\nmodel.placement = "pre-norm"',
            "grid.model.placement: expected a non-empty array",
        ),
        ('[grid]\nmodel = ["pre-norm"]', "model: expected a table"),
        (
            '[grid]\nmodel.placement = ["pre-norm"]\n"model.placement" = ["pre-norm"]',
            "grid.model.placement: is there twice",
        ),
        (
            '[set]\nseed = 3\n[grid]\nmodel.placement = ["pre-norm"]\nseed = [0, 1]',
            "set.seed: is in the grid, too",
        ),
        ('[grid]\nmodel.placement = ["pre-norm", "Pre-Norm"]', "two runs would be called"),
        (
            '[grid]\nmodel.placement = ["pre-norm"]\noptimizer.lr = [1, 1.0]',
            "pre-norm-lr1 and pre-norm-lr1.0 are the same run",
        ),
        (
            '[grid]\nmodel.placement = ["pre-norm", "llama"]',
            "pre-norm and llama are the same run",
        ),
    ],
)
def test_a_broken_grid_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = study_file(tmp_path, text)
    with pytest.raises(HybridNormError, match=message) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_presets_whose_difference_is_set_for_all_are_no_comparison(tmp_path: Path) -> None:
    names = [f.name for f in fields(ModelConfig)]
    demo, deep = PRESETS["demo"], PRESETS["demo-deep"]
    differing = [name for name in names if getattr(demo, name) != getattr(deep, name)]
    text = "\n".join(f"model.{name} = {getattr(deep, name)}" for name in differing)
    path = study_file(
        tmp_path,
        f'compare = "model.preset"\n[set]\n{text}\n[grid]\nmodel.preset = ["demo", "demo-deep"]',
    )
    with pytest.raises(HybridNormError, match="demo and demo-deep are the same run"):
        load_study(path)


@pytest.mark.parametrize("name", [".toml", "a b.toml", "...hidden.toml", "x" * 240 + ".toml"])
def test_a_run_stays_in_its_folder_whatever_its_placement_is_called(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text('[attention]\ninput_norm = "rms"')
    study = load_study(study_file(tmp_path, f'[grid]\nmodel.placement = ["{name}"]'))
    (run,) = study.runs
    assert run.name.strip(".-_") == run.name.strip("-_") and not run.name.startswith(".")
    assert len(run.name) <= 200
    (tmp_path / "runs" / run.name).mkdir(parents=True)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "...toml"
    path.write_text('[grid]\nmodel.placement = ["pre-norm"]')
    with pytest.raises(HybridNormError, match="no name before"):
        load_study(path)


def test_long_names_differ_where_their_values_do(tmp_path: Path) -> None:
    fields = "\n".join(f"train.{name} = [1, 2]" for name in ("log_every", "threads", "eval_every"))
    text = f'compare = "data.cache"\n[grid]\n{fields}\ndata.cache = ["{"ü" * 300}", "{"ü" * 301}"]'
    names = [run.name for run in load_study(study_file(tmp_path, text)).runs]
    assert len(set(names)) == 16 and all(len(name.encode()) <= 200 for name in names)


def test_a_study_compares_whether_a_field_is_set(tmp_path: Path) -> None:
    text = 'compare = "model.n_kv_heads"\n[grid]\nmodel.n_kv_heads = [2]'
    study = load_study(study_file(tmp_path, text), {"model.n_kv_heads": [None, 2]})
    again = load_study(study_file(tmp_path, tomli_w.dumps(study.to_table())))
    assert [run.recipe for run in again.runs] == [run.recipe for run in study.runs]


def test_a_recipe_and_placements_lie_beside_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where, norm in (("here", "rms"), ("elsewhere", "layer")):
        (tmp_path / where).mkdir()
        (tmp_path / where / "mine.toml").write_text(f'[attention]\ninput_norm = "{norm}"')
        (tmp_path / where / "r.toml").write_text(f"[model]\nd_ff = {len(where) * 8}")
    path = study_file(
        tmp_path / "here", 'recipe = "r.toml"\n[grid]\nmodel.placement = ["mine.toml"]'
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in (path, Path("../here/s.toml")):
        (run,) = load_study(name).runs
        assert run.recipe.model.d_ff == 32 and run.placement.attention.input_norm.kind == "rms"
    with pytest.raises(HybridNormError, match="is here and beside"):
        load_study(path, {"model.placement": ["mine.toml"]})
