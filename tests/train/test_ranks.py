"""One run on different numbers and layouts of ranks (gloo, CPU): the same weights and losses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from hybridnorm.train.report.metrics import read_metrics
from runs import losses

PLACEMENTS = ("hybridnorm-star", "post-norm", "olmo2")
LAYOUTS = {
    "one process": (1, ()),
    "twice the accumulation": (1, ("train.micro_batch_size=6",)),
    "2 ranks": (2, ()),
    "3 ranks": (3, ()),
    "4 ranks": (4, ("train.micro_batch_size=1", "train.async_checkpoints=true")),
    "2 x 2 HSDP": (4, ("parallel.replicate=2", "train.micro_batch_size=1")),
    "2 FSDP x 2 TP": (4, ("parallel.tensor=2", 'parallel.activation_checkpointing="selective"')),
}


EXPERTS = ("model.n_experts=4", "model.n_shared_experts=1")
# The load of a micro-batch is balanced over all ranks; every layout has one of 12 sequences.
LAYOUTS_WITH_EXPERTS = {
    "2 ranks": (2, ()),
    "3 ranks, recomputed": (3, ('parallel.activation_checkpointing="full"',)),
    "2 x 2 HSDP": (4, ("parallel.replicate=2",)),
}


def launch(
    ranks: int, out: Path, recipe: Path, *fields: str, placements: tuple[str, ...] = PLACEMENTS
) -> None:
    """Train the placements on `ranks` ranks; 1 is a plain process without torch.distributed."""
    script = [Path(__file__).with_name("ranks.py"), out, ",".join(placements), recipe, *fields]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(torchrun if ranks > 1 else []), *script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "UserWarning" not in result.stderr


def held_out(run_dir: Path) -> list[float]:
    return [row["val_loss"] for row in read_metrics(run_dir).evaluations]


def close_to(values: list[float]) -> object:
    return pytest.approx(values, abs=1e-6, rel=0)


@pytest.fixture(scope="module")
def recipe(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "ranks.toml"
    path.write_text(
        f"""
[model]
d_model = 32
n_layers = 2
n_heads = 4
n_kv_heads = 2
d_ff = 64
[data]
source = "{corpus}"
tokenizer = "byte"
cache = "{corpus / "prepared"}"
[train]
dtype = "fp32"
steps = 20
batch_size = 12
seq_len = 32
log_every = 1
eval_every = 10
eval_sequences = 10
checkpoint_every = 10
[optimizer]
lr = 3e-3
[schedule]
warmup_steps = 2
"""
    )
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished runs of a layout, trained once."""

    @cache
    def run(layout: str) -> Path:
        out = tmp_path_factory.mktemp("runs")
        ranks, fields = LAYOUTS[layout]
        launch(ranks, out, recipe, *fields)
        return out

    return run


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_any_layout_starts_and_trains_alike(layout: str, trained: Callable[[str], Path]) -> None:
    expected, found = trained("one process"), trained(layout)
    start = [json.loads((out / "weights.json").read_text()) for out in (expected, found)]
    assert start[0] == start[1], "the initial weights differ"
    for name in PLACEMENTS:
        assert len(losses(found / name)) == 20
        assert losses(found / name) == close_to(losses(expected / name)), name
        assert held_out(found / name) == close_to(held_out(expected / name)), name


@pytest.mark.slow
def test_compiled_bfloat16_on_two_ranks_stays_near_float32(
    trained: Callable[[str], Path], recipe: Path, tmp_path: Path
) -> None:
    fields = ('train.dtype="bf16"', 'train.compile="on"')
    launch(2, tmp_path, recipe, *fields)
    for name in PLACEMENTS:
        expected = losses(trained("one process") / name)
        assert losses(tmp_path / name) == pytest.approx(expected, abs=0.03, rel=0), name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one process", "2 FSDP x 2 TP"),
        ("2 FSDP x 2 TP", "one process"),
        ("4 ranks", "2 x 2 HSDP"),
        ("2 x 2 HSDP", "3 ranks"),
        ("2 ranks", "2 ranks"),
    ],
)
def test_a_run_resumes_in_another_layout(
    before: str, after: str, trained: Callable[[str], Path], recipe: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(trained(before), tmp_path / "resumed"))
    for newest in out.glob("*/checkpoints/step-00000020"):
        shutil.rmtree(newest)
    ranks, fields = LAYOUTS[after]
    launch(ranks, out, recipe, *fields)
    for name in PLACEMENTS:
        assert read_metrics(out / name).events[-2]["event"] == "resumed"
        assert read_metrics(out / name).events[-2]["step"] == 10
        expected = losses(trained(before) / name)
        if before == after:
            assert losses(out / name) == expected, f"{name}: not bitwise"
        assert losses(out / name) == close_to(expected), name


def test_experts_train_alike_and_resume_in_other_layouts(recipe: Path, tmp_path: Path) -> None:
    name = "hybridnorm-star"
    terms = ("loss", "load_balance_loss", "router_z_loss", "max_expert_load", "router_entropy")

    def numbers(out: Path) -> list[float]:
        rows = read_metrics(out / name).train
        assert len(rows) == 20 and not any(row["dropped_tokens"] for row in rows)
        return [row[term] for row in rows for term in terms]

    alone = tmp_path / "alone"
    launch(1, alone, recipe, *EXPERTS, placements=(name,))
    for layout, (ranks, fields) in LAYOUTS_WITH_EXPERTS.items():
        out = tmp_path / layout
        launch(ranks, out, recipe, *EXPERTS, *fields, placements=(name,))
        assert numbers(out) == close_to(numbers(alone)), layout
        assert held_out(out / name) == close_to(held_out(alone / name)), layout
    shutil.rmtree(out / name / "checkpoints" / "step-00000020")
    launch(1, out, recipe, *EXPERTS, placements=(name,))
    assert (
        read_metrics(out / name).events[-2] | {"event": "resumed", "step": 10}
        == (read_metrics(out / name).events[-2])
    )
    assert numbers(out) == close_to(numbers(alone))
