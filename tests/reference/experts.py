"""Numbers of the authors' own code for models with experts: writes moe-*.safetensors beside it.

    PYTHONPATH=HybridNorm/MoE_model:megablocks python tests/reference/experts.py

HybridNorm is github.com/BryceZhuo/HybridNorm, megablocks the branch `olmoe` of
github.com/Muennighoff/megablocks; omegaconf is needed, too. Their model, block, router and experts
run as they are, on a CPU. Only megablocks' kernels, which need a GPU, are the plain torch below,
and the `imort os` with which their `model.py` begins is read as `import os`.
"""

import json
import sys
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 3, "mlp_hidden_size": 48,
    "vocab_size": 96, "embedding_size": 128, "max_sequence_length": 64, "rope_theta": 10_000,
    "weight_tying": False, "rope": True, "alibi": False, "flash_attention": False,
    "include_bias": False, "bias_for_layer_norm": False, "block_type": "moe",
    "layer_norm_type": "rms", "activation_type": "swiglu", "residual_dropout": 0.0,
    "embedding_dropout": 0.0, "attention_dropout": 0.0, "init_device": "cpu", "init_std": 0.05,
    "moe_num_experts": 8, "moe_top_k": 3, "moe_mlp_impl": "grouped",
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "moe-hybridnorm-star": {
        **dict.fromkeys(("use_query_norm", "use_key_norm", "use_value_norm"), True),
        "attn_norm": False,
        "ffn_residual_after_norm": True,
        "norm_pos_special_config": "_{0:{'attn_norm':True,'ffn_residual':False}}_",
    },
    "moe-pre-norm-qk-shared": {"attention_layer_norm": True, "moe_shared_expert": True},
}


def gather(x_ND: Tensor, order_R: Tensor, _ids: Tensor, _ends: Tensor, top_k: int) -> Tensor:
    return x_ND[order_R.long() // top_k]


def scatter(
    x_RD: Tensor, order_R: Tensor, _ids: Tensor, weights_R: Tensor, _ends: Tensor, top_k: int
) -> Tensor:
    order_R = order_R.long()
    weighted_RD = x_RD * weights_R[order_R, None]
    return weighted_RD[order_R.argsort()].unflatten(0, (-1, top_k)).sum(1)


def gmm(x_RI: Tensor, weights: Tensor, sizes_E: Tensor, trans_b: bool = False) -> Tensor:
    pieces = zip(x_RI.split(sizes_E.tolist()), weights, strict=True)
    return torch.cat([x @ (weight.T if trans_b else weight) for x, weight in pieces])


def stub(name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def their_model() -> tuple[Any, Any]:
    """Their classes for a model and its configuration."""
    package = ModuleType("olmo")
    package.__path__ = find_spec("olmo").submodule_search_locations  # type: ignore
    sys.modules["olmo"] = package  # without its __init__, which wants much else
    stub("olmo.util", StrEnum=StrEnum)
    stub("stk", Matrix=Tensor)
    stub("grouped_gemm", ops=ModuleType("ops"), backend=None)
    sys.modules["grouped_gemm"].ops.gmm = gmm
    stub(
        "megablocks.ops",
        gather=gather,
        scatter=scatter,
        sort=lambda x, _bits: x.sort(stable=True),
        histogram=lambda x, n: x.bincount(minlength=n),
        inclusive_cumsum=lambda x, dim: x.cumsum(dim),
    )
    torch.cuda.current_device = lambda: "cpu"  # type: ignore
    source = Path(package.__path__[0]) / "model.py"
    model = ModuleType("olmo.model")
    model.__package__ = "olmo"
    sys.modules["olmo.model"] = model
    exec(source.read_text().replace("imort os", "import os"), model.__dict__)
    from olmo.config import ModelConfig

    return model.OLMo, ModelConfig


def main() -> None:
    model_class, config_class = their_model()
    for number, (name, switches) in enumerate(CASES.items()):
        torch.manual_seed(number + 1)  # no token is near a tie between experts
        config = CONFIG | switches
        model = model_class(config_class(**config)).eval()
        for weight in model.parameters():
            weight.data.normal_(weight.ndim == 1, 0.2)
        ids = torch.randint(config["vocab_size"], (2, 24))
        logits = model(ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        weights = dict(model.named_parameters())
        tensors = {"input_ids": ids, "logits": logits.detach(), "loss": loss.detach()}
        tensors |= {f"weights.{n}": weight.detach() for n, weight in weights.items()}
        tensors |= {f"grads.{n}": weight.grad for n, weight in weights.items()}
        path = Path(__file__).with_name(f"{name}.safetensors")
        save_file(tensors, path, {"config": json.dumps(config)})


if __name__ == "__main__":
    main()
