"""`hybridnorm import`: models from elsewhere, and training that goes on from them."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from authors import REFERENCES, load, part
from command_line import Cli
from exports import EXPERTS, IDS, exported, gap, model
from hybridnorm.interop.huggingface import import_model
from hybridnorm.train import load_trained
from runs import losses

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 259, "head_dim": 16, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
MOE = {"num_experts_per_tok": 2, "num_experts": 8, "num_local_experts": 8}


@pytest.fixture(scope="session")
def run(cli: Cli, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli("train", "demo", "--run-dir", folder, *tiny).returncode == 0
    return folder


@pytest.fixture(scope="session")
def imported(cli: Cli, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imports")
    assert cli("export", run, "--to", folder / "model").returncode == 0
    done = cli("import", folder / "model", "--to", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("name", ["hybridnorm-star-7b", "gemma", "subln", "rezero", "derf"])
def test_an_export_comes_back(name: str, experts: dict[str, Any], tmp_path: Path) -> None:
    ours = model(name, **experts)
    exported(ours, tmp_path / "run").save_pretrained(tmp_path / "model")
    import_model(tmp_path / "model", tmp_path / "again")
    back = load_trained(tmp_path / "again").model
    assert back.placement == ours.placement
    with torch.no_grad():
        assert torch.equal(back(IDS), ours(IDS))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2", "olmoe", "mixtral"])
def test_stock_models(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE, **(MOE if kind in ("olmoe", "mixtral") else {}))
    theirs = AutoModelForCausalLM.from_config(config).eval()
    for parameter in theirs.parameters():
        low, high = (0.5, 1.5) if parameter.ndim == 1 else (-0.2, 0.2)
        parameter.data.uniform_(low, high)
    theirs.save_pretrained(tmp_path / "model")
    import_model(tmp_path / "model", tmp_path / "run")
    with torch.no_grad():
        assert gap(load_trained(tmp_path / "run").model(IDS), theirs(IDS).logits) < 1e-6


def save_for_authors(path: Path, folder: Path, form: str) -> Path:
    """A reference in one of the forms in which their checkpoints are found."""
    config, tensors = load(path)
    weights = part(tensors, "weights.")
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    folder.mkdir()
    if form == "one file":
        torch.save({"model": weights, "config": config}, folder / "all.pt")
        return folder / "all.pt"
    if form == "yaml and pt":
        (folder / "config.yaml").write_text(json.dumps({"model": config}))  # JSON is YAML
        torch.save(weights, folder / "model.pt")
    else:
        (folder / "config.json").write_text(json.dumps({"model_type": "hf_olmo", **config}))
        save_file({f"model.{n}": t for n, t in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("form", ["one file", "yaml and pt", "hub"])
@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_checkpoints_of_the_authors(path: Path, form: str, tmp_path: Path) -> None:
    import_model(save_for_authors(path, tmp_path / "theirs", form), tmp_path / "run")
    _, tensors = load(path)
    with torch.no_grad():
        logits = load_trained(tmp_path / "run").model(tensors["input_ids"])
    assert gap(logits, tensors["logits"]) < 1e-5


def test_training_starts_from_it_as_from_the_run(
    cli: Cli, tiny: list[str], run: Path, imported: Path, tmp_path: Path
) -> None:
    """With the weights of the run, of its export, and by --resume: the same losses."""
    common = (*tiny, "--optimizer.lr", "1e-3", "--train.log-every", "1")
    for name, source in (("a", run), ("b", imported)):
        done = cli("train", "demo", "--run-dir", tmp_path / name, *common, "--train.start", source)
        assert done.returncode == 0, done.stderr
    shutil.copytree(imported, tmp_path / "c")
    recipe = tmp_path / "c" / "recipe.toml"
    skip = ("--data.tokenizer", "--model.d-model", "--model.n-layers", "--model.d-ff")
    pairs = zip(common[::2], common[1::2], strict=True)
    rest = [word for pair in pairs if pair[0] not in skip for word in pair]
    done = cli("train", recipe, "--run-dir", tmp_path / "c", "--resume", *rest)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "a") == losses(tmp_path / "b") == losses(tmp_path / "c")
    assert losses(tmp_path / "a")[0] < losses(run)[0]


def test_a_run_that_started_elsewhere_resumes(
    cli: Cli, tiny: list[str], run: Path, tmp_path: Path
) -> None:
    words = ("train", "demo", "--run-dir", tmp_path / "a", *tiny, "--train.start", run)
    assert cli(*words).returncode == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000020")
    assert cli(*words[:3], tmp_path / "b", *words[4:], "--resume").returncode == 0
    last = "checkpoints/step-00000020"
    for path in (tmp_path / "a" / last).glob("*.safetensors"):
        first, second = load_file(path), load_file(tmp_path / "b" / last / path.name)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_imported_run_generates(cli: Cli, imported: Path) -> None:
    done = cli("generate", imported, "--prompt", "the", "--max-new-tokens", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--model.d-ff", "72"), "another model (d_ff 64, now 72)"),
        (("--model.rope-theta", "100"), "another model (rope_theta"),
        (("--model.placement", "pre-norm"), "another placement"),
        (("--train.start", "nowhere"), "nowhere: not a run directory"),
    ],
    ids=str,
)
def test_another_model_does_not_start(
    cli: Cli, tiny: list[str], imported: Path, options: tuple[str, str], named: str, tmp_path: Path
) -> None:
    words = (*tiny, "--train.start", imported, *options)
    done = cli("train", "demo", "--run-dir", tmp_path / "run", *words)
    assert done.returncode != 0
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1


class Payload:
    def __reduce__(self) -> Any:
        return (Path("/tmp/unpickled").touch, ())


def llama(folder: Path, **changed: Any) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, **changed})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def edited(folder: Path, **fields: Any) -> Path:
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | fields))
    return folder


def damaged(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def without(folder: Path, name: str) -> Path:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def pickled(folder: Path) -> Path:
    folder.mkdir()
    torch.save({"model": Payload()}, folder / "model.pt")
    return folder


def bare_pickle(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.pt").write_bytes(pickle.dumps({"model": Payload()}))
    return folder


def flipped(folder: Path) -> Path:
    folder.mkdir()
    torch.save({"model": {"wte.weight": torch.ones(64, 64)}}, folder / "model.pt")
    content = bytearray((folder / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.pt").write_bytes(content)
    return folder


def with_tokenizer(folder: Path, corpus: Path) -> Path:
    from hybridnorm.data.tokenizer import train_bpe

    train_bpe([(corpus / "text.jsonl").read_text()], 300).save(folder)
    return folder


def odd(ours: Path) -> Path:
    table = json.loads((ours / "config.json").read_text())
    table["placement"]["kinds"][0]["attention"]["v_norm"] = None
    (ours / "config.json").write_text(json.dumps(table))
    return ours


BAD = {
    "there is no such file": lambda tmp, corpus: tmp / "none",
    "name an export": lambda tmp, corpus: corpus,
    "is not JSON": lambda tmp, corpus: _config(tmp / "m", "{"),
    "'bert' is none of": lambda tmp, corpus: edited(llama(tmp / "m"), model_type="bert"),
    "attention_bias=True": lambda tmp, corpus: llama(tmp / "m", attention_bias=True),
    "hidden_act='relu'": lambda tmp, corpus: llama(tmp / "m", hidden_act="relu"),
    "rope_type='linear'": lambda tmp, corpus: edited(
        llama(tmp / "m"),
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    ),
    "head_dim=32": lambda tmp, corpus: llama(tmp / "m", head_dim=32),
    "cannot load": lambda tmp, corpus: damaged(llama(tmp / "m")),
    "missing 'model.norm.weight'": lambda tmp, corpus: without(
        llama(tmp / "m"), "model.norm.weight"
    ),
    "could run code": lambda tmp, corpus: pickled(tmp / "m"),
    "model.pt: cannot load": lambda tmp, corpus: bare_pickle(tmp / "m"),
    "model.pt: cannot load: it is damaged": lambda tmp, corpus: flipped(tmp / "m"),
    "tokens, but the model has only 259": lambda tmp, corpus: with_tokenizer(
        llama(tmp / "m"), corpus
    ),
}


def _config(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize("named", BAD)
def test_what_cannot_be_imported_is_named(
    cli: Cli, named: str, corpus: Path, tmp_path: Path
) -> None:
    source = BAD[named](tmp_path, corpus)
    done = cli("import", source, "--to", tmp_path / "run")
    assert done.returncode != 0
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert not Path("/tmp/unpickled").exists()


def test_a_placement_that_contradicts_itself_is_refused(cli: Cli, tmp_path: Path) -> None:
    exported(model("hybridnorm"), tmp_path / "r").save_pretrained(tmp_path / "model")
    done = cli("import", odd(tmp_path / "model"), "--to", tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1


def test_a_run_that_exists_is_left_alone(cli: Cli, run: Path, imported: Path) -> None:
    before = sorted(imported.rglob("*"))
    done = cli("import", run, "--to", imported)
    assert done.returncode != 0
    assert "exists already" in done.stderr
    assert sorted(imported.rglob("*")) == before
