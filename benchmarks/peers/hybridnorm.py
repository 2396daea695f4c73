"""hybridnorm through its own code path; `setup.variant` is the placement."""

from types import SimpleNamespace

import torch
from torch import Tensor

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.parallel import parallelize
from hybridnorm.model.sampling import generate
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import placement
from hybridnorm.recipe.config import OptimizerConfig, Recipe, TrainConfig
from hybridnorm.train.auto import resolve_auto
from hybridnorm.train.optim.build import build_optimizer
from hybridnorm.train.process_setup import set_up_process

OWN_PRECISION = True
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def setting(setup: SimpleNamespace) -> tuple[str, bool]:
    """Dtype and whether to compile; `default` is what a long run picks here by itself."""
    if setup.dtype != "default":
        return setup.dtype, setup.compiled
    shape = setup.shape
    long = TrainConfig(batch_size=shape.batch, seq_len=shape.seq, steps=10_000)
    set_up_process(long)  # before torch takes memory
    recipe = Recipe(model=model_config(setup), train=long)
    settled, _ = resolve_auto(recipe, placement(setup.variant), torch.device(setup.device))
    return settled.train.dtype, settled.train.compile == "on"


def model_config(setup: SimpleNamespace) -> ModelConfig:
    shape = setup.shape
    return ModelConfig(
        placement=setup.variant,
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        d_ff=shape.d_ff,
        vocab_size=shape.vocab_size,
        tie_embeddings=False,
    )


def model(setup: SimpleNamespace) -> Transformer:
    return Transformer(model_config(setup)).to(setup.device)


def build(setup: SimpleNamespace):
    dtype, compiled = setting(setup)
    ours = model(setup)
    ours.dtype = DTYPES[dtype]
    parallelize(ours, None, compile_blocks=compiled)

    def objective(ids: Tensor, targets: Tensor) -> Tensor:
        return ours.loss(ids, targets)

    return ours, objective


def optimizer(ours: Transformer, lr: float):
    return build_optimizer(ours, OptimizerConfig(lr=lr))


def generator(setup: SimpleNamespace):
    ours = model(setup)
    ours.dtype = DTYPES[setup.dtype]

    def new_tokens(prompt: Tensor) -> Tensor:
        return generate(ours, prompt, setup.new, temperature=0)[:, prompt.shape[1] :]

    return ours, new_tokens
