from pathlib import Path

import pytest
import torch

from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.train import checkpoint
from hybridnorm.train.combined import Optimizers
from hybridnorm.train.config import OptimizerConfig
from hybridnorm.train.optimizer import build_optimizer

CONFIG = ModelConfig(d_model=32, n_layers=2, d_ff=64, vocab_size=50)
IDS = torch.arange(40).view(2, 20)


def trained(seed: int) -> tuple[Transformer, Optimizers]:
    model = Transformer(CONFIG, seed=seed)
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-2))
    for _ in range(3):
        advance(model, optimizer)
    return model, optimizer


def advance(model: Transformer, optimizer: Optimizers) -> float:
    loss = model.loss(IDS, IDS)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def save(run_dir: Path, step: int, val_loss: float | None = None, seed: int = 0) -> Path:
    state = checkpoint.training_state(*trained(seed))
    return checkpoint.save_checkpoint(run_dir, step, state, {"val_loss": val_loss})


def test_no_pickle_in_a_checkpoint(tmp_path: Path) -> None:
    names = {path.suffix for path in save(tmp_path, 1).iterdir()}
    assert names == {".safetensors", ".json"}


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        save(tmp_path, step, loss)
        checkpoint.prune(tmp_path, keep=2)
    assert [path.name[-1] for path in checkpoint.list_checkpoints(tmp_path)] == ["2", "4", "5"]
    assert checkpoint.choose_checkpoint(tmp_path, "best")[1]["step"] == 2
    assert checkpoint.choose_checkpoint(tmp_path, "last")[1]["step"] == 5
    assert checkpoint.choose_checkpoint(tmp_path, "4")[1]["step"] == 4
    with pytest.raises(HybridNormError, match="no checkpoint '3'; it has: 2, 4, 5"):
        checkpoint.choose_checkpoint(tmp_path, "3")


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "meta"])
def test_a_damaged_newest_checkpoint_is_named_and_the_previous_one_used(
    damage: str, tmp_path: Path
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    victim = next(newest.glob("*.safetensors"))
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "delete":
        victim.unlink()
    else:
        victim = newest / checkpoint.META
        victim.write_text("{")
    path, meta, problems = checkpoint.latest_valid(tmp_path)
    assert meta["step"] == 1 and path.name.endswith("1")
    assert len(problems) == 1 and str(victim) in problems[0]


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(HybridNormError, match="No space left on device; earlier checkpoints"):
        save(tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert checkpoint.latest_valid(tmp_path)[1]["step"] == 1
