"""One run on different numbers and layouts of ranks (gloo, CPU): the same weights and losses."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from hybridnorm.train.report.metrics import Metrics, read_metrics
from runs import losses

PLACEMENTS = ("hybridnorm-star", "post-norm", "olmo2")
STEPS = 10
Fields = dict[str, object]
LAYOUTS: dict[str, tuple[int, Fields]] = {
    "one process": (1, {}),
    "twice the accumulation": (1, {"train.micro_batch_size": 6}),
    "2 ranks": (2, {}),
    "3 ranks": (3, {}),
    "4 ranks": (4, {"train.micro_batch_size": 1, "train.async_checkpoints": True}),
    "2 x 2 HSDP": (4, {"parallel.replicate": 2, "train.micro_batch_size": 1}),
    "2 FSDP x 2 TP": (
        4,
        {"parallel.tensor": 2, "parallel.activation_checkpointing": "selective"},
    ),
}
# The load of a micro-batch is balanced over all ranks; every layout has one of 12 sequences.
LAYOUTS_WITH_EXPERTS: dict[str, tuple[int, Fields]] = {
    "experts, one process": (1, {}),
    "experts, 2 ranks": (2, {}),
    "experts, 3 ranks, recomputed": (3, {"parallel.activation_checkpointing": "full"}),
    "experts, 2 x 2 HSDP": (4, {"parallel.replicate": 2}),
}
EXPERTS: Fields = {"model.n_experts": 4, "model.n_shared_experts": 1}
RESUMED = [
    ("one process", "2 FSDP x 2 TP"),
    ("2 FSDP x 2 TP", "one process"),
    ("4 ranks", "2 x 2 HSDP"),
    ("2 x 2 HSDP", "3 ranks"),
    ("2 ranks", "2 ranks"),
    ("experts, 2 x 2 HSDP", "experts, one process"),
]


class Training(NamedTuple):
    """Runs of a layout from step 0, or from the middle of the runs of another layout."""

    layout: str
    resumes: str = ""

    @property
    def ranks(self) -> int:
        return {**LAYOUTS, **LAYOUTS_WITH_EXPERTS}[self.layout][0]

    @property
    def placements(self) -> tuple[str, ...]:
        return PLACEMENTS[:1] if self.layout in LAYOUTS_WITH_EXPERTS else PLACEMENTS

    @property
    def fields(self) -> Fields:
        if self.layout in LAYOUTS_WITH_EXPERTS:
            return {**EXPERTS, **LAYOUTS_WITH_EXPERTS[self.layout][1]}
        return LAYOUTS[self.layout][1]


def launch(ranks: int, jobs: list[dict[str, object]], folder: Path) -> None:
    """Do the jobs on `ranks` ranks; 1 is a plain process without torch.distributed."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = [str(Path(__file__).with_name("ranks.py")), str(path)]
    command = [sys.executable, *(torchrun if ranks > 1 else []), *script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "UserWarning" not in result.stderr


class Runs:
    """All the trainings, each done once, as many as possible in one launch of some ranks."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self._launched = cache(self._launch)

    def of(self, layout: str, resumes: str = "") -> Path:
        """The folder of a training."""
        training = Training(layout, resumes)
        return self._launched(training.ranks, late(training)) / folder_of(training)

    def _launch(self, ranks: int, is_late: bool) -> Path:
        folder = self.folder / f"{ranks}{' late' if is_late else ''}"
        trainings = [
            *(Training(layout) for layout in (*LAYOUTS, *LAYOUTS_WITH_EXPERTS)),
            *(Training(after, before) for before, after in RESUMED),
        ]
        jobs = []
        for training in trainings:
            if (training.ranks, late(training)) == (ranks, is_late):
                job = self.job(folder / folder_of(training), training.placements, training.fields)
                if training.resumes:
                    before = Training(training.resumes)
                    here = (before.ranks, late(before)) == (ranks, is_late)  # done just before
                    parent = folder if here else self._launched(before.ranks, late(before))
                    job["resumes"] = str(parent / folder_of(before))
                jobs.append(job)
        folder.mkdir()
        launch(ranks, jobs, folder)
        return folder

    def job(self, out: Path, placements: tuple[str, ...], fields: Fields) -> dict[str, object]:
        """A job for ranks.py."""
        return {
            "out": str(out),
            "placements": placements,
            "recipe": str(self.recipe),
            "fields": fields,
        }


def late(training: Training) -> bool:
    """Whether it waits for other ranks, which wait for trainings of this one."""
    return training.ranks == 1 and training.resumes != ""


def folder_of(training: Training) -> str:
    return f"{training.layout} after {training.resumes}" if training.resumes else training.layout


def held_out(run_dir: Path) -> list[float]:
    return [row["val_loss"] for row in read_metrics(run_dir).evaluations]


def close_to(values: list[float]) -> object:
    return pytest.approx(values, abs=1e-6, rel=0)


def assert_resumed_in_the_middle(metrics: Metrics) -> None:
    assert (metrics.events[-2]["event"], metrics.events[-2]["step"]) == ("resumed", STEPS // 2)


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
steps = {STEPS}
batch_size = 12
seq_len = 32
log_every = 1
eval_every = {STEPS // 2}
eval_sequences = 10
checkpoint_every = {STEPS // 2}
[optimizer]
lr = 3e-3
[schedule]
warmup_steps = 2
"""
    )
    return path


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(recipe, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_any_layout_starts_and_trains_alike(layout: str, runs: Runs) -> None:
    expected, found = runs.of("one process"), runs.of(layout)
    start = [json.loads((out / "weights.json").read_text()) for out in (expected, found)]
    assert start[0] == start[1], "the initial weights differ"
    for name in PLACEMENTS:
        assert len(losses(found / name)) == STEPS
        assert losses(found / name) == close_to(losses(expected / name)), name
        assert held_out(found / name) == close_to(held_out(expected / name)), name


@pytest.mark.slow
@pytest.mark.timeout(900)  # three placements are compiled, beside other tests
def test_compiled_bfloat16_on_two_ranks_stays_near_float32(runs: Runs, tmp_path: Path) -> None:
    fields: Fields = {"train.dtype": "bf16", "train.compile": "on"}
    launch(2, [runs.job(tmp_path, PLACEMENTS, fields)], tmp_path)
    for name in PLACEMENTS:
        expected = losses(runs.of("one process") / name)
        assert losses(tmp_path / name) == pytest.approx(expected, abs=0.03, rel=0), name


@pytest.mark.parametrize(("before", "after"), RESUMED[:-1])
def test_a_run_resumes_in_another_layout(before: str, after: str, runs: Runs) -> None:
    out = runs.of(after, resumes=before)
    for name in PLACEMENTS:
        assert_resumed_in_the_middle(read_metrics(out / name))
        expected = losses(runs.of(before) / name)
        if before == after:
            assert losses(out / name) == expected, f"{name}: not bitwise"
        assert losses(out / name) == close_to(expected), name


def numbers_of_experts(run_dir: Path) -> list[float]:
    terms = ("loss", "load_balance_loss", "router_z_loss", "max_expert_load", "router_entropy")
    rows = read_metrics(run_dir).train
    assert len(rows) == STEPS
    return [row[term] for row in rows for term in terms]


@pytest.mark.parametrize("layout", list(LAYOUTS_WITH_EXPERTS)[1:])
def test_experts_train_alike_in_any_layout(layout: str, runs: Runs) -> None:
    alone = runs.of("experts, one process") / PLACEMENTS[0]
    found = runs.of(layout) / PLACEMENTS[0]
    assert numbers_of_experts(found) == close_to(numbers_of_experts(alone))
    assert held_out(found) == close_to(held_out(alone))


def test_experts_resume_in_another_layout(runs: Runs) -> None:
    before, after = RESUMED[-1]
    run_dir = runs.of(after, resumes=before) / PLACEMENTS[0]
    assert_resumed_in_the_middle(read_metrics(run_dir))
    alone = runs.of("experts, one process") / PLACEMENTS[0]
    assert numbers_of_experts(run_dir) == close_to(numbers_of_experts(alone))
