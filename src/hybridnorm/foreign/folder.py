"""The configuration and the model of a folder."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hybridnorm.errors import HybridNormError, naming, nearest
from hybridnorm.files import read_json
from hybridnorm.foreign.fields import OURS, check_fields
from hybridnorm.foreign.shapes import check_shapes, saved_shapes
from hybridnorm.strict_toml import typed

CONFIG = "config.json"
_REMEDY = "put back the config.json that the weights came with"
_STRICT = re.compile(r".*alidation error for [^\n]*\n\s*(\w+Error: )?", re.DOTALL)
"""What `transformers` puts before the reason that a configuration is invalid for."""


def read_config(folder: Path) -> dict[str, Any]:
    """The table in a folder's config.json.

    Raises:
        HybridNormError: it cannot be read, or is no table.
    """
    try:
        return read_json(folder / CONFIG)
    except HybridNormError as error:
        raise HybridNormError(f"{error}; {_REMEDY}") from None


def load_config(folder: Path, *, trust_remote_code: bool | None) -> Any:
    """The configuration of a folder, which its weights fit.

    Args:
        trust_remote_code: run the code that the folder brings; False refuses such a folder; None
            takes it without the code, as an architecture that `transformers` knows.

    Raises:
        HybridNormError: `transformers` is not installed; code that is not trusted; a field that is
            missing, of a wrong type, nonsense, or does not fit the weights.
    """
    table = read_config(folder)
    if "auto_map" in table and trust_remote_code is False:
        raise HybridNormError(
            f"{folder} brings code of its own; read it, then run with --trust-remote-code"
        )
    try:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise HybridNormError(
            f"{folder}: needs transformers; run: pip install 'hybridnorm[hf]'"
        ) from None
    code = {"trust_remote_code": bool(trust_remote_code)}
    with _reading(folder, table):
        kind = str(typed(str, table.get("model_type"), "model_type"))
        if kind not in CONFIG_MAPPING and not (trust_remote_code and "auto_map" in table):
            hint = nearest(kind, CONFIG_MAPPING)
            raise HybridNormError(f"model_type: transformers has no {kind!r}; {hint}")
        check_fields(table)
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, **code)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, **code)
        if "quantization_config" not in table:  # packed weights have shapes of their own
            asked = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            check_shapes(config.to_dict(), asked, saved_shapes(folder))
    return config


def load_model(
    folder: Path,
    *,
    trust_remote_code: bool | None,
    dtype: torch.dtype | None = None,
    exact: bool = False,
) -> Any:
    """The causal language model in a folder, all of its weights from there; nothing is fetched.

    Args:
        trust_remote_code: as in `load_config`.
        dtype: of the weights; None: as they were saved.
        exact: whether a tensor that the model has no place for is an error, as it is in ours.

    Raises:
        HybridNormError: as `load_config`; or weights that are damaged or missing.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    from transformers import AutoModelForCausalLM

    with loading(folder), quiet():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=bool(trust_remote_code),
            output_loading_info=True,
        )
        if missing := report["missing_keys"]:
            raise HybridNormError(f"weights: missing {min(missing)!r}; copy the whole folder")
        exact = exact or config.model_type == OURS
        if exact and (unexpected := report["unexpected_keys"]):
            raise HybridNormError(f"weights: unexpected {min(unexpected)!r}; {_REMEDY}")
    return model


@contextmanager
def loading(what: Path) -> Iterator[None]:
    """In here, whatever a library or the folder's own code raises is one line about `what`."""
    try:
        with naming(what):
            yield
    except HybridNormError:
        raise
    except Exception as error:
        raise HybridNormError(f"{what}: cannot load the model: {_line(error)}") from None


@contextmanager
def _reading(folder: Path, table: Mapping[str, Any]) -> Iterator[None]:
    """Whatever is raised in here is about the configuration of a folder."""
    try:
        with loading(folder / CONFIG):
            try:
                yield
            except KeyError as error:
                raise HybridNormError(_unknown(error.args[0], table)) from None
    except HybridNormError as error:
        raise HybridNormError(f"{error}; {_REMEDY}") from None


def _unknown(key: object, table: Mapping[str, Any]) -> str:
    """What a look-up that failed says: of a value that a field has, or of a name that is not there.

    Some libraries have a sentence for a key.
    """
    pairs = [*table.items(), *(table.get("rope_parameters") or {}).items()]
    fields = [name for name, value in pairs if value == key]
    return f"{fields[0]}: unknown value {key!r}" if fields else f"missing {key}"


@contextmanager
def quiet() -> Iterator[None]:
    """In here `transformers` draws no bars, and reports of loading are ours to give."""
    from transformers.utils import logging

    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    """What an exception says, in a line."""
    return " ".join(_STRICT.sub("", str(error)).split())[:200].rstrip(".") or type(error).__name__
