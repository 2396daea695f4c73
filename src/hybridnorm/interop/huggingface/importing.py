"""`hybridnorm import`: models from elsewhere as the first checkpoint of a run."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from hybridnorm.data import load_tokenizer
from hybridnorm.errors import HybridNormError, in_a_line, naming
from hybridnorm.files import read_json, read_text
from hybridnorm.foreign import CONFIG, load_model, loading, read_config
from hybridnorm.interop.huggingface.configuration_hybridnorm import HybridNormConfig
from hybridnorm.interop.huggingface.shape import from_config, model_config
from hybridnorm.interop.huggingface.stock import STOCK, check_settings, stock
from hybridnorm.interop.huggingface.weights import StockNames, fill
from hybridnorm.interop.official import from_official
from hybridnorm.interop.target import check_absent, new_folder
from hybridnorm.model import ModelConfig, Transformer
from hybridnorm.placements import Placement
from hybridnorm.train import write_imported

_WEIGHTS = ("model.safetensors", "model.pt", "pytorch_model.bin")
_CONFIGS = ("config.yaml", CONFIG)
KNOWN = (HybridNormConfig.model_type, *STOCK)
"""Architectures of `transformers` that come in."""


def import_model(source: Path, run_dir: Path) -> Transformer:
    """Write the model at `source` as step 0 of a new run, with its tokenizer where it has one.

    Args:
        source: a folder that `transformers` loads, of ours or of a stock architecture; or a
            checkpoint of the authors, a folder or a file. No code in it is run, and nothing is
            unpickled but tensors.

    Raises:
        HybridNormError: nothing of the kind, a setting without a counterpart here, damaged or
            missing weights, a tokenizer that does not fit, or a run that exists; it is named.
    """
    check_absent(run_dir)
    if not source.exists():
        raise HybridNormError(f"{source}: there is no such file or folder")
    load = _from_transformers if _is_of_transformers(source) else _from_authors
    model, seq_len = load(source)
    tokenizer = _tokenizer(source, model)
    with new_folder(run_dir) as partial:
        write_imported(partial, run_dir, model, tokenizer, seq_len)
    return model


def _is_of_transformers(source: Path) -> bool:
    """Whether it is a folder of an architecture that we know; anything else is the authors'."""
    path = source / CONFIG
    table = read_config(source) if path.is_file() else {"d_model": None}
    kind = table.get("model_type")
    if kind in KNOWN:
        return True
    if "d_model" not in table and "model" not in table:
        raise HybridNormError(f"{path}: model_type: {kind!r} is none of {', '.join(KNOWN)}")
    return False


def _from_transformers(folder: Path) -> tuple[Transformer, int]:
    theirs = load_model(folder, trust_remote_code=None, dtype=torch.float32, exact=True)
    config = theirs.config
    with naming(folder / CONFIG):
        known = architecture(config)
    model = _empty(known.shape, known.placement)
    weights = theirs.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    fill(model, weights, known.names)
    return model, config.max_position_embeddings


class Architecture(NamedTuple):
    """What a configuration of `transformers` is here."""

    shape: ModelConfig
    placement: Placement
    names: StockNames


def architecture(config: Any) -> Architecture:
    """What a configuration, ours or a stock one, is here.

    Raises:
        HybridNormError: it is none of those, or has a setting without a counterpart here.
    """
    if isinstance(config, HybridNormConfig):
        return Architecture(*from_config(config), {})
    known = stock(config.model_type)
    check_settings(config)
    return Architecture(model_config(config), known.placement, known.names)


def _empty(shape: ModelConfig, placement: Placement) -> Transformer:
    with torch.device("meta"):
        model = Transformer(shape, placement)
    return model.to_empty(device="cpu")


def _from_authors(source: Path) -> tuple[Transformer, int]:
    """A checkpoint of the authors: config and state dict, in a folder or in one file."""
    path = source if source.is_file() else _first(source, _WEIGHTS)
    tensors, config = _read_weights(path)
    if config is None:
        config = _read_config(_first(path.parent, _CONFIGS))
    with loading(source):
        config = _table(config.get("model", config), "config")
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        model = from_official(config, weights)
        return model, config.get("max_sequence_length") or 2048


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file, and the configuration where it holds one as well."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if is_zipfile(path) and (part := ZipFile(path).testzip()):  # torch.load does not look
            raise BadZipFile(f"it is damaged (wrong checksum of {part})")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise HybridNormError(
            f"{path}: holds more than tensors, which could run code; save its state dict alone"
        ) from None
    except Exception as error:  # whatever reads a damaged file raises
        raise HybridNormError(f"{path}: cannot load: {in_a_line(error)}") from None
    with naming(path):
        whole = _table(loaded, "state dict")
        config = whole.get("config")
        tensors = _table(whole.get("model", whole), "model")
        return tensors, None if config is None else _table(config, "config")


def _table(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise HybridNormError(f"{name}: expected a table of names, got {type(value).__name__}")
    return value


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = (file.metadata() or {}).get("config")
    return tensors, _table(json.loads(config), "config") if config else None


def _read_config(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return read_json(path)
    import yaml

    try:
        table = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError):
        raise HybridNormError(f"{path}: is not YAML; it is damaged or was edited") from None
    with naming(path):
        return _table(table, "file")


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise HybridNormError(
            f"{folder}: has none of {', '.join(names)}; name an export, a Llama, Qwen 3, Olmo 2, "
            "OLMoE or Mixtral folder, or a checkpoint of the authors"
        )
    return found


def _tokenizer(source: Path, model: Transformer) -> Path | None:
    """The tokenizer.json of a folder, where it has one.

    Raises:
        HybridNormError: it has more tokens than the model has embeddings.
    """
    path = (source if source.is_dir() else source.parent) / "tokenizer.json"
    if not path.is_file():
        return None
    needed, has = load_tokenizer(path).vocab_size, model.config.vocab_size or 0
    if needed > has:
        raise HybridNormError(f"{path}: has {needed} tokens, but the model has only {has}")
    return path
