"""What the page of claims says of a study, by runs whose losses are known."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from claims import rows

from hybridnorm.study import load_study
from hybridnorm.study.folder import claim as declare
from studies import fake_run

GRID = """
baseline = "pre-norm"
[grid]
model.placement = ["pre-norm", "post-norm", "hybridnorm", "qk-post"]
optimizer.lr = [1e-3, 4e-3]
seed = [0, 1, 2]
"""
LOSSES = {  # by placement and learning rate; the plateau is at 6
    "pre-norm": (5.0, 4.0),
    "post-norm": (4.1, 6.1),
    "hybridnorm": (3.9, 6.1),
    "qk-post": (6.1, 6.1),
}


def test_verdicts_follow_the_runs(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(GRID)
    study, folder = load_study(tmp_path / "s.toml"), tmp_path / "s"
    declare(study, folder, "typed")
    (folder / "results.csv").touch()
    for run in study.runs:
        recipe = run.recipe
        loss = LOSSES[recipe.model.placement][recipe.optimizer.lr > 2e-3] + 0.001 * recipe.seed
        fake_run(folder, run.name, [7.0, loss + 0.0001 * recipe.optimizer.lr], unigram=6.0)
    said = {"post-norm": 19.0, "hybridnorm": 19.0, "qk-post": "diverges"}
    found = list(rows({"study": "s", "source": "T", "baseline": 20.0, "arms": said}, folder))
    assert [row[-1] for row in found] == ["**contradicted**", "confirmed", "confirmed"]
    assert [row[1] for row in found] == [f"−{math.log(20 / 19):.4f}"] * 2 + ["diverges"]
    assert found[0][4] == "6, 3 at the plateau" and found[0][2].startswith("+0.1000 [")
    rates = {"post-norm": 1e-3, "hybridnorm": 9e-3, "keel": 1e-3}
    found = list(rows({"study": "s", "source": "T", "rate": 4e-3, "arms": rates}, folder))
    assert [row[-1] for row in found] == ["confirmed", "**contradicted**", "not run yet"]
    assert found[0][1:3] == ["0.001 against 0.004", "0.001 against ≥ 0.004"]
