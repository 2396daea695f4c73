"""Probes along runs, and `hybridnorm diagnose` on recipes, runs and studies."""

import itertools
import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from command_line import Cli
from hybridnorm.diagnose.catalogue import catalogue, quick_probes
from hybridnorm.diagnose.table import read_table
from hybridnorm.train.report.metrics import read_metrics
from runs import losses

TESTS = Path(__file__).parents[1]
SHORT = ("--train.steps", "6", "--train.log-every", "1", "--train.eval-every", "3")
PROBES = ("--diagnose.probes", *quick_probes(), "--diagnose.every", "3")


def run(cli: Cli, *args: object) -> str:
    result = cli(*args)
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


def refused(cli: Cli, *args: object) -> str:
    result = cli("diagnose", *args)
    assert result.returncode == 1, result.stdout
    assert result.stderr.count("\n") == 1
    return str(result.stderr).removeprefix("hybridnorm: ").strip()


@pytest.mark.parametrize("name", ["hybridnorm-star", "post-norm"])
@pytest.mark.parametrize(
    "kind",
    [
        (),
        ("--train.micro-batch-size", "2", "--parallel.activation-checkpointing", "full"),
        ("--model.n-experts", "4", "--model.d-expert", "16", "--train.mask-documents"),
    ],
)
def test_probes_change_no_number_of_a_run(
    name: str, kind: tuple[str, ...], cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    common = (*tiny, *SHORT, *kind, "--model.placement", name)
    assert_the_same_run(cli, common, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_probes_change_no_number_of_a_compiled_run(
    own_process: Cli, tiny: list[str], tmp_path: Path
) -> None:
    patient = partial(own_process, timeout=400)
    assert_the_same_run(patient, (*tiny, *SHORT, "--train.compile", "on"), tmp_path)


def assert_the_same_run(cli: Cli, common: tuple[str, ...], tmp_path: Path) -> None:
    """With probes and without, losses are equal bit by bit; every probe found finite numbers."""
    run(cli, "train", "demo", *common, "--run-dir", tmp_path / "without")
    run(cli, "train", "demo", *common, *PROBES, "--run-dir", tmp_path / "with")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    without, watched = (read_metrics(tmp_path / one).evaluations for one in ("without", "with"))
    assert [row["val_loss"] for row in watched] == [row["val_loss"] for row in without]
    for probe in quick_probes():
        table = read_table(tmp_path / "with" / "diagnose" / f"{probe}.csv")
        assert {row.step for row in table} == {1, 3, 6}
        assert all(math.isfinite(row.value) for row in table)


def test_a_checkpoint_and_the_initialization_have_the_numbers_of_the_run(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = (*tiny, *SHORT, "--train.checkpoint-every", "2", "--train.keep-checkpoints", "3")
    run(cli, "train", "demo", *common, *PROBES, "--diagnose.at", "1", "--run-dir", "run")
    recorded = {probe: read_table(Path(f"run/diagnose/{probe}.csv")) for probe in quick_probes()}
    stated = run(cli, "diagnose", "demo", *common)
    start = Path("diagnose/demo-hybridnorm-star-seed0")
    assert str(start / "diagnose.html") in stated
    run(cli, "diagnose", "run", "--checkpoint", "2", "--out", "third")
    for probe, table in recorded.items():
        for folder, step in ((start, 1), (Path("third"), 3)):
            found = [row for row in read_table(folder / f"{probe}.csv") if row.step == step]
            expected = [row for row in table if row.step == step]
            assert sorted(found) == sorted(expected), probe
    page = Path("third/diagnose.html").read_text()
    assert all(f'id="{probe}"' in page for probe in quick_probes())
    assert not re.search(r"(?:src|href)=\"(?!#|data:)|url\((?!#)", page), (
        "something is loaded from elsewhere"
    )


def test_an_export_has_the_numbers_of_its_run(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(cli, "train", "demo", *tiny, *SHORT, "--run-dir", "run")
    run(cli, "export", "run", "--to", "star")
    data = [tiny[i + j] for i in range(0, len(tiny), 2) if "data.s" in tiny[i] for j in (0, 1)]
    same = ("--train.seq-len", "32", "--train.dtype", "fp32", *data)
    run(cli, "diagnose", "run", "--probes", "attention-entropy", "outliers")
    assert "diagnose/star" in run(
        cli, "diagnose", "star", *same, "--probes", "attention-entropy", "outliers"
    )
    for probe in ("attention-entropy", "outliers"):
        of_run, of_export = (
            [row._replace(step=0) for row in read_table(Path(folder, f"{probe}.csv"))]
            for folder in ("run/diagnose", "diagnose/star")
        )
        assert of_run == of_export


def test_training_is_warned_of_an_edge_that_was_measured(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(cli, "diagnose", "demo", *tiny, "--probes", "lr-ramp")
    table = Path("diagnose/demo-hybridnorm-star-seed0/lr-ramp.csv")
    [edge] = [row.value for row in read_table(table) if row.name == "largest_stable_lr"]
    short = ("train", "demo", *tiny, "--train.steps", 2, "--optimizer.lr")
    for lr, warned in ((edge * 1.1, True), (edge * 0.9, False)):
        said = run(cli, *short, lr, "--run-dir", f"run{lr}").replace("\n", " ")
        assert ("a ramp of the rate" in said) == warned, said
    other = run(cli, *short, edge * 1.1, "--model.n-layers", "3", "--run-dir", "other")
    assert "a ramp of the rate" not in other


def test_a_resumed_run_goes_on_in_its_tables(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    probes = ("--diagnose.probes", "stream-rms", "gradients-ffn", "--diagnose.every", "2")
    common = (*tiny, "--train.log-every", "1", "--train.checkpoint-every", "3", *probes)
    run(cli, "train", "demo", *common, "--train.steps", "8", "--run-dir", tmp_path / "whole")
    broken = tmp_path / "broken"
    run(cli, "train", "demo", *common, "--train.steps", "8", "--run-dir", broken)
    for step in (6, 8):  # as a kill after step 7 leaves it
        (broken / "checkpoints" / f"step-{step:08d}").rename(tmp_path / f"lost-{step}")
    (tmp_path / "lost-6").rename(broken / "checkpoints" / "step-00000006")
    with (broken / "diagnose" / "stream-rms.csv").open("a") as file:
        file.write("8,1,,rm")
    run(cli, "train", "demo", *common, "--train.steps", "8", "--run-dir", broken, "--resume")
    for probe in ("stream-rms", "gradients-ffn"):
        expected, found = (
            (one / "diagnose" / f"{probe}.csv").read_bytes() for one in (tmp_path / "whole", broken)
        )
        assert found == expected


def test_a_page_of_the_runs_of_a_study(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pre-norm", "hybridnorm"):
        for seed in (0, 1):
            folder = f"studies/mine/runs/{name}-seed{seed}"
            fields = ("--model.placement", name, "--seed", seed, "--run-dir", folder)
            chosen = ("--diagnose.probes", "gradients-ffn", "token-similarity")
            run(cli, "train", "demo", *tiny, *SHORT, *fields, *chosen, "--diagnose.every", "3")
    run(cli, "diagnose", "studies/mine")
    page = Path("studies/mine/diagnose/diagnose.html").read_text()
    assert "pre-norm: run 2, step 6: largest over smallest layer" in page
    assert {path.stem for path in Path("studies/mine/diagnose").glob("*.svg")} == {
        "gradients-ffn",
        "token-similarity",
    }


@pytest.mark.slow
def test_the_report_of_a_study_shows_its_probes(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("probed.toml").write_text(
        """
recipe = "demo"
compare = "model.placement"
[set]
"diagnose.probes" = ["gradients-ffn"]
"diagnose.at" = [1, 4]
[grid]
"model.placement" = ["pre-norm", "post-norm"]
"""
    )
    run(cli, "study", "probed.toml", *tiny, "--train.steps", "5")
    report = Path("studies/probed/report.html").read_text()
    assert 'id="gradients-ffn"' in report
    assert "post-norm: step 4: largest over smallest layer" in report
    assert Path("studies/probed/figures/gradients-ffn.svg").exists()


def test_the_list_has_every_probe_with_its_definition(cli: Cli) -> None:
    listed = run(cli, "diagnose", "--list")
    for name, probe in catalogue().items():
        assert name in listed
        assert probe.__doc__ and probe.reading and probe.title


def test_layers_choose_rows(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    layers = ("--diagnose.layers", "2", "--probes", "update-ratio", "--out", tmp_path)
    run(cli, "diagnose", "demo", *tiny, *layers)
    assert {row.layer for row in read_table(tmp_path / "update-ratio.csv")} == {2}


def test_bad_input_is_one_line(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(cli, "demo", *tiny, "--probes", "atention-entropy") == (
        "diagnose.probes: unknown probe 'atention-entropy'; did you mean 'attention-entropy'?"
    )
    result = cli("train", "demo", *tiny, "--diagnose.probes", "ranks", "--run-dir", "run")
    assert "unknown probe 'ranks'; did you mean 'rank'?" in result.stderr
    assert not Path("run").exists()
    result = cli("train", "demo", *tiny, "--diagnose.probes", "lr-ramp", "--run-dir", "run")
    assert "lr-ramp needs trainings of its own" in result.stderr and not Path("run").exists()
    assert refused(cli, "demo", *tiny, "--diagnose.layers", "1", "3") == (
        "diagnose.layers: there is no block 3; the model has 2"
    )
    assert "diagnose.every: must be at least 1" in refused(cli, "demo", "--diagnose.every", "0")
    Path("empty").mkdir()
    assert refused(cli, "empty") == "empty: neither a run (no recipe.toml) nor a study (no runs/)"
    Path("study/runs").mkdir(parents=True)
    assert "its runs recorded no probes" in refused(cli, "study")
    run(cli, "train", "demo", *tiny, "--train.steps", "5", "--run-dir", "run")
    assert "it has: 5" in refused(cli, "run", "--checkpoint", "7")
    Path("run/checkpoints").rename("away")
    assert refused(cli, "run").startswith("run: no checkpoint to load")
    assert "unknown name 'nowhere'" in refused(cli, "nowhere")


def test_a_probe_that_does_not_fit_is_refused_before_it_starts(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridnorm.diagnose.memory.free_memory", lambda device: 1000)
    line = refused(cli, "demo", *tiny, "--probes", "rank", "--out", tmp_path / "out")
    assert line.startswith("diagnose.probes: rank needs about 0.") and "are free" in line
    assert not (tmp_path / "out").exists()


def test_what_is_not_finite_is_named_by_layer(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridnorm.diagnose import command

    built = command.build_model

    def ruined(*args: object) -> object:
        model = built(*args)  # type: ignore[arg-type]
        model.blocks[1].feed_forward.branch.down_proj.weight.data[0, 0] = math.inf
        return model

    monkeypatch.setattr(command, "build_model", ruined)
    line = refused(cli, "demo", *tiny, "--out", tmp_path / "out")
    place = "the weight block 2, feed_forward.branch.down_proj.weight"
    assert line.startswith(f"not everything is finite, first {place}")
    assert not (tmp_path / "out").exists()


def test_a_damaged_table_is_one_line(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probes = ("--diagnose.probes", "rank", "--train.steps", "5")
    run(cli, "train", "demo", *tiny, *probes, "--run-dir", "run")
    Path("run/diagnose/rank.csv").write_text("step,layer\n1,2\n")
    assert "is not a table of step,layer,sublayer,name,value" in refused(
        cli, "run", "--probes", "rank"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # blocks are compiled, beside other tests
def test_two_ranks_find_what_one_process_finds(corpus: Path, tmp_path: Path) -> None:
    """FSDP2 on gloo: the same tables up to rounding, and losses bitwise as without probes."""
    recipe = tmp_path / "two.toml"
    recipe.write_text(
        f"""
[model]
d_model = 32
n_layers = 2
d_ff = 64
[data]
source = "{corpus}"
tokenizer = "byte"
cache = "{corpus / "prepared"}"
[train]
dtype = "fp32"
steps = 3
batch_size = 8
seq_len = 32
log_every = 1
[schedule]
warmup_steps = 1
"""
    )
    probes = {"diagnose.probes": quick_probes(), "diagnose.every": 3}
    star = "hybridnorm-star"
    kinds: dict[str, tuple[str, dict[str, object]]] = {
        "plain": (star, {}),
        "probed": (star, probes),
        "full-width norms": ("olmo2", probes),
        "experts": (star, {**probes, "model.n_experts": 4, "model.d_expert": 16}),
        "accumulated": (star, {**probes, "train.micro_batch_size": 2}),
        "compiled": (star, {**probes, "train.compile": "on"}),
    }
    for ranks in ("1", "2"):
        jobs = [
            {
                "out": str(tmp_path / ranks / kind),
                "placements": [name],
                "recipe": str(recipe),
                "fields": fields,
            }
            for kind, (name, fields) in kinds.items()
        ]
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [str(TESTS / "train" / "ranks.py"), str(tmp_path / "jobs.json")]
        done = subprocess.run(
            [sys.executable, *torchrun, *command], capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, done.stderr[-3000:]
    plain, probed = (tmp_path / "2" / kind / "hybridnorm-star" for kind in ("plain", "probed"))
    assert losses(plain) == losses(probed)
    for kind, probe in itertools.product(list(kinds)[1:], quick_probes()):
        one, two = (numbers(tmp_path / ranks / kind / kinds[kind][0], probe) for ranks in "12")
        assert one.keys() == two.keys()
        # A scale per tensor depends on what a rank has in a batch.
        close = 5e-3 if probe == "quantization" else 1e-4
        for key, value in one.items():
            assert two[key] == pytest.approx(value, rel=2e-3, abs=close), (kind, probe, key)


def numbers(run_dir: Path, probe: str) -> dict[tuple[object, ...], float]:
    """What a probe found, by step, layer, sublayer and name."""
    return {row[:4]: row.value for row in read_table(run_dir / "diagnose" / f"{probe}.csv")}
