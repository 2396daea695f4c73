"""Fields of the command line in a study's grid."""

from pathlib import Path

import pytest
import tomli_w

from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import PRESETS
from hybridnorm.study import load_study
from hybridnorm.study.report import write_report
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
    assert "1.2B" in write_report(study, tmp_path, read_results(study, tmp_path)).read_text()
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
