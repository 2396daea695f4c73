import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file

from hybridnorm.data.manifest import checksum
from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.recipe.config import OptimizerConfig
from hybridnorm.train.checkpoint import retention
from hybridnorm.train.checkpoint import storage as checkpoint
from hybridnorm.train.optim.build import build_optimizer
from hybridnorm.train.optim.optimizers import Optimizers
from hybridnorm.train.optim.state import materialize
from hybridnorm.train.world import World

CONFIG = ModelConfig(d_model=32, n_layers=2, d_ff=64, vocab_size=50)
ALONE = World(torch.device("cpu"))
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
    return checkpoint.save_checkpoint(run_dir, step, state, {"val_loss": val_loss}, ALONE)


def full(path: Path) -> None:
    raise OSError(28, "No space left on device")


def choose(run_dir: Path, which: str) -> tuple[Path, dict[str, Any]]:
    return retention.choose_checkpoint(run_dir, which, checkpoint.read_meta)


def test_no_pickle_in_a_checkpoint(tmp_path: Path) -> None:
    names = {path.suffix for path in save(tmp_path, 1).iterdir()}
    assert names == {".safetensors", ".json", ".sha256"}


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        save(tmp_path, step, loss)
        retention.prune(tmp_path, keep=2)
    assert [path.name[-1] for path in retention.list_checkpoints(tmp_path)] == ["2", "4", "5"]
    assert choose(tmp_path, "best")[1]["step"] == 2
    assert choose(tmp_path, "last")[1]["step"] == 5
    assert choose(tmp_path, "4")[1]["step"] == 4
    with pytest.raises(HybridNormError, match="no checkpoint '3'; it has: 2, 4, 5"):
        choose(tmp_path, "3")


def test_every_nth_is_kept_besides(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
        retention.prune(tmp_path, keep=1, keep_every=3)
    assert [path.name[-1] for path in retention.list_checkpoints(tmp_path)] == ["3", "6", "7"]


def test_a_background_write_holds_what_was_true_when_it_began(tmp_path: Path) -> None:
    writer = checkpoint.CheckpointWriter(tmp_path, ALONE, keep=1, keep_every=None, background=True)
    model, optimizer = trained(0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    writer.write(1, checkpoint.training_state(model, optimizer), {})
    advance(model, optimizer)
    writer.finish()
    other = Transformer(CONFIG, seed=5)
    path = retention.list_checkpoints(tmp_path)[0]
    checkpoint.load_checkpoint(path, checkpoint.training_state(other, None))
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())


def test_a_background_failure_is_raised_by_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = checkpoint.CheckpointWriter(tmp_path, ALONE, keep=1, keep_every=None, background=True)
    monkeypatch.setattr(checkpoint, "_flush", full)
    writer.write(1, checkpoint.training_state(*trained(0)), {})
    with pytest.raises(HybridNormError, match="No space left on device"):
        writer.finish()


def test_tensors_of_another_optimizer_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    model = Transformer(CONFIG)
    optimizer = build_optimizer(
        model, OptimizerConfig(name="torch.optim.SGD", options=("momentum=0.9",))
    )
    materialize(optimizer)
    with pytest.raises(HybridNormError, match=r"the tensor 'optimizer\..*of another model or opt"):
        checkpoint.load_checkpoint(path, checkpoint.training_state(model, optimizer))


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
        victim = newest / retention.META
        victim.write_text("{")
    path, meta, problems = retention.latest_valid(tmp_path, checkpoint.read_meta)
    assert meta["step"] == 1 and path.name.endswith("1")
    assert len(problems) == 1 and str(victim) in problems[0]


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(HybridNormError, match="No space left on device; earlier checkpoints"):
        save(tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert retention.latest_valid(tmp_path, checkpoint.read_meta)[1]["step"] == 1


def test_only_exact_names_and_finite_losses_count(tmp_path: Path) -> None:
    save(tmp_path, 1, 2.0)
    save(tmp_path, 2, float("nan"))
    for name in ("step-00000004.bak", "step-4", "damaged-step-00000009", "step-0000000x"):
        shutil.copytree(tmp_path / "checkpoints/step-00000001", tmp_path / "checkpoints" / name)
    (tmp_path / "checkpoints" / "step-00000008").touch()
    assert [path.name[-1] for path in retention.list_checkpoints(tmp_path)] == ["1", "2"]
    assert choose(tmp_path, "best")[1]["step"] == 1
    before = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    retention.prune(tmp_path, keep=1)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == before


def test_a_file_that_is_not_listed_is_not_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    model, other = Transformer(CONFIG), Transformer(CONFIG, seed=7)
    checkpoint.load_checkpoint(path, checkpoint.training_state(model, None))
    planted = {
        name: tensor.clone() for name, tensor in checkpoint.training_state(other, None).items()
    }
    save_file(planted, path / "a.safetensors")
    save_file(planted, path / "z.safetensors")
    assert checkpoint.read_meta(path)["step"] == 1
    again = Transformer(CONFIG)
    checkpoint.load_checkpoint(path, checkpoint.training_state(again, None))
    for expected, found in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_no_flipped_bit_of_the_record_passes(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in (path / retention.META, path / "checkpoint.sha256"):
        content = file.read_bytes()
        for position in range(len(content)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            file.write_bytes(flipped)
            with pytest.raises(HybridNormError, match=r"damaged|is not"):
                checkpoint.read_meta(path)
        file.write_bytes(content)


@pytest.mark.parametrize(
    "record",
    [
        "null", "[]", "{}", "3", "[" * 99_999, '{"step": 1}', '{"step": 1, "files": []}',
        '{"step": 3, "files": {}}', '{"step": 1, "files": {"../a.safetensors": "0"}}',
        '{"step": 1, "files": {"/dev/zero": "0"}}', '{"step": 1, "files": {"a.safetensors": 0}}',
    ],
)  # fmt: skip
def test_a_record_that_is_none_is_one_line_that_names_it(record: str, tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "checkpoint.sha256").unlink()  # as in older checkpoints
    (path / retention.META).write_text(record)
    with pytest.raises(HybridNormError, match=str(path)):
        checkpoint.read_meta(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        save_bytes({"model.x": torch.zeros(1)}, {"DCP_SHARDING_INFO": "null"}),
        save_bytes({"model.x": torch.zeros(1)}, {"DCP_SHARDING_INFO": "{}"}),
        save_bytes({"model.embedding.weight": torch.zeros(1)}),
    ],
    ids=["empty", "pickle", "header too long", "header is a list", "null", "no offsets", "others"],
)
def test_absurd_tensors_are_one_line(content: bytes, tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for old in path.iterdir():
        old.unlink()
    (path / "a.safetensors").write_bytes(content)
    files = {"a.safetensors": checksum(path / "a.safetensors")}
    (path / retention.META).write_text(json.dumps({"step": 1, "files": files}))
    with pytest.raises(HybridNormError, match=str(path)):
        checkpoint.load_checkpoint(path, checkpoint.training_state(Transformer(CONFIG), None))
