"""`hybridnorm export`: the folder it writes, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_line import Cli
from exports import EXPERTS, IDS, exported, gap, model
from hybridnorm.data import load_tokenizer
from hybridnorm.interop.huggingface import export as export_module
from hybridnorm.train import load_trained


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="session")
def run(cli: Cli, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = cli("train", "demo", "--run-dir", folder, *tiny)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def folder(cli: Cli, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exports") / "tiny"
    done = cli("export", run, "--to", target)
    assert done.returncode == 0, done.stderr
    return target


def test_the_model_and_its_tokenizer_are_those_of_the_run(run: Path, folder: Path) -> None:
    ours = load_trained(run)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        ids = IDS % 257
        assert gap(theirs(ids).logits, ours.model(ids)) < 1e-6
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Über Norms: 2 + 2\n"
    assert tokenizer("ends<|endoftext|>")["input_ids"] == [*b"ends", 256]
    assert tokenizer(text)["input_ids"] == load_tokenizer(run).encode(text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 256)
    assert theirs.generation_config.eos_token_id == 256
    assert theirs.config.max_position_embeddings == tokenizer.model_max_length == 32
    assert theirs.config.pretraining["tokens"] == 20 * 4 * 32


def test_trained_tokenizers_are_exported(
    cli: Cli, tiny: list[str], corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    bpe = ("--data.tokenizer", "bpe", "--data.tokenizer-vocab-size", "300", "--train.steps", "1")
    cli("train", "demo", "--run-dir", run, *tiny, *bpe, "--schedule.warmup-steps", "0")
    assert cli("export", run, "--to", tmp_path / "out").returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = load_tokenizer(run)
    raw = Tokenizer.from_file(str(run / "tokenizer.json"))
    raw.encode_special_tokens = True
    tokenizer.split_special_tokens = True
    for text in ("the norm of a block, naïve", "the norm<|endoftext|>of a block<|endoftext|>"):
        assert tokenizer(text)["input_ids"] == ours.encode(text) == raw.encode(text).ids
        assert tokenizer.decode(ours.encode(text)) == text
    assert tokenizer.eos_token_id == ours.end_of_document


def test_the_card_says_what_it_is(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("HybridNorm*", "N(", "20 steps", "2,560 tokens", "[train]", "# license:"):
        assert part in card
    assert str(folder.parents[1]) not in card  # no path of the machine
    drawing = card.split("](")[1].split(")")[0]
    assert (folder / drawing).is_file()


# In a process of its own, which has no hybridnorm.
ELSEWHERE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hybridnorm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("the norm", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=5)[0]))
assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)
model.save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_it_loads_and_saves_where_hybridnorm_is_not_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    again = tmp_path / "again"
    command = [sys.executable, "-c", ELSEWHERE, str(folder), str(again)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the norm")
    first, second = files(folder), files(again)
    del second["tokenizer_config.json"]  # transformers notes there that it has loaded it
    assert {n: first[n] for n in second} == second
    assert {*second, "tokenizer_config.json"} == {
        n for n in first if "hybridnorm-star." not in n
    } - {"README.md"}


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("name", ["gemma-v", "rezero", "derf"])
def test_saved_loaded_and_saved_is_the_same(
    name: str, experts: dict[str, Any], tmp_path: Path
) -> None:
    exported(model(name, **experts), tmp_path / "run").save_pretrained(tmp_path / "a")
    AutoModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_shards_have_an_index(
    cli: Cli, run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "SHARD_SIZE", "20KB")
    assert cli("export", run, "--to", tmp_path / "out").returncode == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = [load_file(path) for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(shards) == len(set(index["weight_map"].values())) > 1
    whole = load_file(folder / "model.safetensors")
    joined = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert whole.keys() == joined.keys()
    assert all(torch.equal(whole[name], joined[name]) for name in whole)


def test_bfloat16_agrees_within_bfloat16(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("export", run, "--to", tmp_path / "out", "--dtype", "bf16").returncode == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    ours = load_trained(run).model
    ours.dtype = torch.bfloat16
    with torch.no_grad():
        ids = IDS % 257
        assert gap(theirs(ids).logits, ours(ids)) < 0.02


@pytest.mark.parametrize("which", ["last", "best", "15"])
def test_the_checkpoint_is_the_one_named(cli: Cli, run: Path, tmp_path: Path, which: str) -> None:
    done = cli("export", run, "--to", tmp_path / "out", "--checkpoint", which)
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "out" / "model.safetensors")
    ours = load_trained(run, which).model
    assert torch.equal(weights["model.embed_tokens.weight"], ours.embedding.weight[:257])


STOCK = [
    ("pre-norm", "llama", {}),
    ("pre-norm-qk", "qwen3", {"tie_embeddings": False}),
    ("olmo2", "olmo2", {}),
    ("pre-norm", "mixtral", {"n_experts": 8, "d_expert": 24, "norm_topk_prob": True}),
    ("olmoe", "olmoe", {"n_experts": 8, "d_expert": 24}),
]
OLMOE = """
attention = { input_norm = "rms", q_norm = { axis = "full" }, k_norm = { axis = "full" } }
feed_forward = { input_norm = "rms" }
"""


@pytest.fixture
def olmoe(tmp_path: Path) -> Path:
    path = tmp_path / "olmoe.toml"
    path.write_text(OLMOE)
    return path


@pytest.mark.parametrize(("name", "architecture", "shape"), STOCK)
def test_stock_architectures(
    name: str, architecture: str, shape: dict[str, Any], olmoe: Path, tmp_path: Path
) -> None:
    ours = model(str(olmoe) if name == "olmoe" else name, **shape)
    exported(ours, tmp_path / "run", architecture).save_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__module__.startswith(f"transformers.models.{architecture}.")
    with torch.no_grad():
        assert gap(theirs(IDS).logits, ours(IDS)) < 1e-6


@pytest.mark.parametrize(
    ("options", "architecture", "named"),
    [
        (("model.placement", "hybridnorm"), "llama", "no place for the attention.q_norm (block 1)"),
        (("model.placement", "pre-norm-qk"), "llama", "no place for the attention.q_norm"),
        (("model.placement", "pre-norm"), "qwen3", "needs the attention.q_norm"),
        (("model.placement", "post-pre"), "llama", "another attention.skip"),
        (
            ("model.placement", "mix-ln", "model.n-layers", 4),
            "llama",
            "no place for the attention.post_norm (block 1)",
        ),
        (("model.placement", "lns"), "llama", "no place for the attention.input_scale (block 2)"),
        (("model.placement", "olmo2"), "qwen3", "no place for the attention.output_norm"),
        (("model.placement", "dyt"), "llama", "no place for the embed_scale"),
        (("model.placement", "derf"), "llama", "another attention.input_norm (block 1)"),
        (("model.placement", "no-norm"), "llama", "needs the attention.input_norm"),
        (("model.placement", "pre-norm"), "mixtral", "needs experts"),
        (("model.placement", "pre-norm"), "lama", "did you mean 'llama'"),
        (("model.placement", "pre-norm", "model.activation", "gelu"), "llama", "no gelu"),
    ],
    ids=str,
)
def test_other_placements_are_refused_before_a_byte(
    cli: Cli,
    tiny: list[str],
    options: tuple[object, ...],
    architecture: str,
    named: str,
    tmp_path: Path,
) -> None:
    words = [f"--{word}" if "." in str(word) else word for word in options]
    short = ("--train.steps", "1", "--schedule.warmup-steps", "0")
    made = cli("train", "demo", "--run-dir", tmp_path / "run", *tiny, *short, *words)
    assert made.returncode == 0, made.stderr
    done = cli("export", tmp_path / "run", "--to", tmp_path / "out", "--as", architecture)
    assert done.returncode != 0
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "modules"] == ["run"]


def test_what_is_missing_is_named(cli: Cli, run: Path, folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    for path in damaged.glob("checkpoints/*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    for words, named in (
        ((tmp_path / "none", "--to", tmp_path / "x"), "not a run directory"),
        ((folder, "--to", tmp_path / "x"), "not a run directory"),
        ((run, "--to", tmp_path / "x", "--checkpoint", "7"), "no checkpoint '7'"),
        ((run, "--to", folder), "exists already"),
        ((damaged, "--to", tmp_path / "x"), "is damaged"),
    ):
        done = cli("export", *words)
        assert done.returncode != 0
        assert named in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "x").exists()


def test_without_the_extra_the_command_is_named(run: Path, tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['transformers'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'transformers' else found(n, *a)\n"
        "from hybridnorm.cli import main; main()"
    )
    command = [sys.executable, "-c", hidden, "export", str(run), "--to", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert (
        done.stderr == "hybridnorm: transformers is not installed; pip install 'hybridnorm[hf]'\n"
    )


def test_a_full_disk_leaves_nothing(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "write_tokenizer", full)
    done = cli("export", run, "--to", tmp_path / "out")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] in ([], ["modules"])
