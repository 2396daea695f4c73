"""The loss of every held-out window."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from hybridnorm.data import Mixture, open_data
from hybridnorm.errors import HybridNormError
from hybridnorm.recipe import load_recipe
from hybridnorm.train import load_trained
from hybridnorm.train.report import read_metrics, read_windows


def test_windows_are_kept_and_their_means_are_what_the_run_reports(trained: Path) -> None:
    recipe = load_recipe(trained / "recipe.toml")
    model = load_trained(trained, "last").model
    held_out = Mixture(open_data(recipe.data, console=Console(quiet=True)), "validation")
    ids, targets = map(torch.from_numpy, held_out.windows(recipe.train.seq_len, 8))
    with torch.no_grad():
        each = cross_entropy(model(ids).transpose(1, 2), targets, reduction="none").mean(1)
    assert read_windows(trained) == pytest.approx(each.tolist(), abs=1e-5)
    last = read_metrics(trained).evaluations[-1]
    for name, part in (("val_loss", each), ("val_loss_choosing", each[::2])):
        assert last[name] == pytest.approx(part.mean().item(), abs=1e-5)
    assert last["val_loss_comparing"] == pytest.approx(each[1::2].mean().item(), abs=1e-5)


def test_damaged_windows_are_named(tmp_path: Path) -> None:
    assert read_windows(tmp_path) == []
    (tmp_path / "held_out.json").write_text('{"losses": [1.0, "2"]}')
    with pytest.raises(HybridNormError, match=r"held_out\.json: has no losses of windows"):
        read_windows(tmp_path)
