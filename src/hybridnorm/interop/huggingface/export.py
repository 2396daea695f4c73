"""`hybridnorm export`: a run as a folder that `transformers` loads without this package."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridnorm.foreign import quiet
from hybridnorm.interop.huggingface.card import write_card
from hybridnorm.interop.huggingface.modeling_hybridnorm import HybridNormForCausalLM
from hybridnorm.interop.huggingface.shape import to_config
from hybridnorm.interop.huggingface.stock import check_fit, stock
from hybridnorm.interop.huggingface.tokenizer import token_ids, write_tokenizer
from hybridnorm.interop.huggingface.weights import to_theirs
from hybridnorm.interop.target import check_absent, new_folder
from hybridnorm.train import Trained, load_trained

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS = "hybridnorm"
SHARD_SIZE = "4GB"


def export_run(
    run_dir: Path,
    target: Path,
    *,
    checkpoint: str = "last",
    dtype: str = "fp32",
    architecture: str = OURS,
) -> list[str]:
    """Write the model of a run into `target`; returns a line per damaged checkpoint passed over.

    The folder appears whole or not at all.

    Args:
        checkpoint: "last", "best" or a step.
        dtype: of the weights, "fp32" or "bf16".
        architecture: "hybridnorm", which brings its own code, or one of `transformers`.

    Raises:
        HybridNormError: not a run, no such checkpoint, a target that exists, or an architecture
            that the model is not.
    """
    check_absent(target)
    trained = load_trained(run_dir, checkpoint)
    if architecture != OURS:
        check_fit(architecture, trained.model.config, trained.model.placement)
    model = to_transformers(trained, architecture, DTYPES[dtype])
    with new_folder(target) as partial:
        with quiet():
            model.save_pretrained(partial, max_shard_size=SHARD_SIZE)
        write_tokenizer(run_dir, partial, trained.recipe.train.seq_len)
        write_card(trained, partial, remote_code=architecture == OURS)
    return trained.problems


def to_transformers(trained: Trained, architecture: str, dtype: torch.dtype) -> Any:
    """The model of a run as one of `transformers`, on the CPU."""
    import transformers

    model, recipe = trained.model, trained.recipe
    others: dict[str, Any] = {
        **token_ids(trained.run_dir),
        "max_position_embeddings": recipe.train.seq_len,
    }
    if architecture == OURS:
        others |= {
            "router_aux_loss_coef": recipe.train.load_balance_loss,
            "router_z_loss_coef": recipe.train.router_z_loss,
            "pretraining": {
                "steps": trained.step,
                "tokens": trained.tokens,
                "val_loss": trained.val_loss,
            },
        }
        config = to_config(model.config, model.placement, **others)
        return _loaded(HybridNormForCausalLM, config, to_theirs(model, {}), dtype)
    chosen = stock(architecture)
    cls = getattr(transformers, f"{chosen.prefix}ForCausalLM")
    weights = to_theirs(model, chosen.names)
    return _loaded(cls, chosen.config(model.config, **others), weights, dtype)


def _loaded(cls: Any, config: Any, weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    with quiet():
        model, report = cls.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
    unlike = {*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]}
    if unlike:
        raise AssertionError(f"{cls.__name__} takes other weights: {min(unlike)}")
    # What a text ends with is what generation stops at.
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    model.generation_config.bos_token_id = config.bos_token_id
    return model
