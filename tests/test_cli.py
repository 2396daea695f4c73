import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hybridnorm.cli import main
from hybridnorm.model.config import PRESETS
from hybridnorm.recipe import RecipeFields, field_types

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["train", "--help"], ["study", "--help"], ["prepare", "--help"]),
        *(["show"], ["show", "--help"]),
    ],
)
def test_verbs_that_do_not_compute_never_import_torch(argv: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['hybridnorm', *{argv!r}]\n"
        "from hybridnorm.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) > 100


def test_a_device_that_is_full_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*argv: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("hybridnorm.cli._run", run)
    with pytest.raises(SystemExit) as stop:
        main()
    said = str(stop.value.code)
    assert said.startswith("hybridnorm: memory: CUDA out of memory. Tried to allocate 2.00 GiB.; ")
    assert "train.micro_batch_size" in said and "\n" not in said


def test_help_shows_every_field_with_meaning_and_default() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hybridnorm", "train", "demo", "--help"],
        capture_output=True,
        text=True,
    )
    for word in ("--model.placement", "--optimizer.lr", "0.002", "Peak learning rate"):
        assert word in result.stdout


@pytest.mark.parametrize("verb", ["train", "study"])
def test_help_shows_every_field_of_a_recipe(verb: str, cli: Cli) -> None:
    result = cli(verb, "--help")
    assert result.returncode == 0, result.stderr
    missing = [
        name
        for name in field_types(RecipeFields)
        if f"--{name.replace('_', '-')}" not in result.stdout
    ]
    assert not missing
    assert all(name in result.stdout for name in (*PRESETS, "(default: 0.002)"))


def test_a_flag_hides_no_recipe_and_presets_start_from_the_command_line(
    tmp_path: Path, tiny: list[str], cli: Cli
) -> None:
    mine, run_dir = tmp_path / "mine.toml", tmp_path / "run"
    mine.write_text("seed = 7\n[train]\nkeep_checkpoints = 3\n")
    words = ["--model.preset", "demo-deep", "--model.placement", "qkv-post"]
    shape = [*tiny, "--run-dir", str(run_dir), "--train.steps", "2"]
    result = cli("train", *shape, *words, "--train.mask-documents", mine)
    assert result.returncode == 0, result.stderr
    recorded = tomllib.loads((run_dir / "recipe.toml").read_text())
    assert (recorded["seed"], recorded["train"]["keep_checkpoints"]) == (7, 3)
    assert recorded["train"]["mask_documents"] is True
    model = recorded["model"]
    assert (model["placement"], model["d_model"], model["n_kv_heads"]) == ("qkv-post", 32, 2)
    assert "preset" not in model


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "demo", "demo-moe"], "recipe: expected one, got demo demo-moe"),
        (["train", "--train.steps", "5", "6"], "--train.steps: expected one value, got 5 6"),
        (["train", "--model.preset", "151m"], "model.preset: unknown name '151m'; did you"),
        (["study", "--model.preset", "151m"], "model.preset: unknown name '151m'; did you"),
        (["study", "demo", "moe"], "study: expected one, got demo moe"),
        (["study", "--model.placment", "x"], "did you mean '--model.placement'?"),
        (["study", "--train.steps", "many"], "--train.steps: expected a whole number, got 'many'"),
        (["study", "--jobs", "many"], "--jobs"),
        (["study", "--jobs", "0"], "jobs: must be from 1 to 1,024, got 0"),
        (["train", ""], "recipe: unknown name ''"),
        (["study", ""], "study: unknown name ''"),
        (["show", ""], "placement: the name is empty"),
        (["train", "--train.hooks"], "--train.hooks: expected values, got none"),
        (["study", "--jbos", "2"], "unknown argument '--jbos'; did you mean '--jobs'?"),
    ],
)
def test_bad_words_are_one_line(argv: list[str], message: str, cli: Cli) -> None:
    result = cli(*argv)
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_bad_values_are_named_on_any_terminal(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    result = subprocess.run(
        [sys.executable, "-m", "hybridnorm", "study", "--jobs", "x"], capture_output=True, text=True
    )
    assert "--jobs: invalid literal for int() with base 10: 'x'" in result.stderr
