from dataclasses import replace
from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import Placement, placement
from hybridnorm.recipe.config import Recipe
from hybridnorm.train.run_dir import check_identity, identity


def test_a_run_resumes_though_its_placement_is_described_otherwise() -> None:
    def described(chosen: Placement) -> dict[str, object]:
        model = Transformer(ModelConfig(vocab_size=50, n_layers=1), chosen)
        return identity(Recipe(), model, "data")

    chosen = placement("hybridnorm")
    saved = described(chosen)
    check_identity(saved, described(replace(chosen, name="mine", note="better worded")), Path("c"))
    other = replace(chosen, feed_forward=replace(chosen.feed_forward, skip="raw"))
    with pytest.raises(HybridNormError, match=r"another placement \(feed_forward {") as caught:
        check_identity(saved, described(other), Path("c"))
    assert "note" not in str(caught.value)
