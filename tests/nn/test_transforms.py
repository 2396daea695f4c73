"""Norms on heads under every mask, in bf16, compiled, over several models at once, exported."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridnorm.nn as hnn

D, HEADS, FF, BATCH, SEQ = 32, 4, 48, 2, 9
QKVC = "pre-qkvc-post"  # a norm at every place inside attention, and a normed skip


def layer(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"batch_first": True, "dropout": 0.0, "n_kv_heads": 2, "placement": QKVC} | options
    return hnn.TransformerEncoderLayer(D, HEADS, FF, **options)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def every_mask() -> dict[str, dict[str, Any]]:
    causal = torch.ones(SEQ, SEQ, dtype=torch.bool).triu(1)
    padding = torch.zeros(BATCH, SEQ, dtype=torch.bool)
    padding[0, -3:] = True
    per_head = drawn(BATCH * HEADS, SEQ, SEQ)
    return {
        "none": {},
        "causal": {"is_causal": True},
        "causal mask": {"src_mask": causal, "is_causal": True},
        "padding": {"src_key_padding_mask": padding},
        "both": {"src_mask": causal, "src_key_padding_mask": padding},
        "causal, padding": {"src_key_padding_mask": padding, "is_causal": True},
        "numbers": {"src_mask": per_head},
        "numbers, padding": {"src_mask": per_head, "src_key_padding_mask": padding},
    }


MASKS = every_mask()


@pytest.mark.parametrize("name", MASKS)
def test_masked_keys_have_no_influence_and_gradients_are_finite(name: str) -> None:
    module, x = layer(), drawn(BATCH, SEQ, D).requires_grad_()
    out = module(x, **MASKS[name])
    padding = MASKS[name].get("src_key_padding_mask")
    seen = out if padding is None else out[~padding]
    (gradient,) = torch.autograd.grad(seen.square().sum(), x)
    assert gradient.isfinite().all()
    if padding is not None:
        assert gradient[padding].count_nonzero() == 0
        changed = x.detach().masked_fill(padding[..., None], 100.0)
        torch.testing.assert_close(module(changed, **MASKS[name])[~padding], seen)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(name: str, autocast: bool) -> None:
    module, x = layer(), drawn(BATCH, SEQ, D)
    exact = module(x, **MASKS[name])
    low = copy.deepcopy(module) if autocast else copy.deepcopy(module).bfloat16()
    x_low = (x if autocast else x.bfloat16()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = low(x_low, **MASKS[name])
    out.float().square().sum().backward()
    assert x_low.grad is not None and x_low.grad.isfinite().all()
    error = (out.float() - exact).norm() / exact.norm()
    assert error < 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler has warnings of its own
@pytest.mark.parametrize("placement", ["hybridnorm", QKVC, "olmo2"])
def test_compiles_as_one_graph(placement: str) -> None:
    torch.compiler.reset()
    module, x = layer(placement=placement), drawn(BATCH, SEQ, D)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True)
    for masks in (MASKS["causal"], MASKS["both"], MASKS["numbers, padding"]):
        a, b = (f(x, **masks) for f in (module, compiled))
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    (a.sum() + b.sum()).backward()
    for p, q in zip(module.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler has warnings of its own
def test_stacks_compile_as_one_graph() -> None:
    torch.compiler.reset()
    stack = hnn.TransformerEncoder(layer(placement="hybridnorm-star"), 2)
    x = drawn(BATCH, SEQ, D)
    masks = {"mask": MASKS["causal mask"]["src_mask"], **MASKS["padding"]}
    compiled = torch.compile(stack, fullgraph=True)
    torch.testing.assert_close(compiled(x, **masks), stack(x, **masks), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MASKS)
def test_vmap_over_models(name: str) -> None:
    """Also gradients per model: vmap of grad."""
    models, x = [layer(dtype=torch.float64) for _ in range(3)], drawn(BATCH, SEQ, D).double()
    for number, model in enumerate(models):
        for p in model.parameters():
            p.data += 0.1 * (number + 1)
    parameters, buffers = torch.func.stack_module_state(models)

    def loss(parameters: Any, buffers: Any) -> tuple[Tensor, Tensor]:
        out = torch.func.functional_call(models[0], (parameters, buffers), (x,), MASKS[name])
        return out.square().mean(), out

    gradients, outs = torch.vmap(torch.func.grad(loss, has_aux=True))(parameters, buffers)
    for number, model in enumerate(models):
        out = model(x, **MASKS[name])
        torch.testing.assert_close(outs[number], out)
        out.square().mean().backward()
        for key, p in model.named_parameters():
            torch.testing.assert_close(gradients[key][number], p.grad)


@pytest.mark.parametrize("name", MASKS)
def test_export(name: str) -> None:
    """With a batch of any size, where no mask fixes it."""
    module, x = layer().eval(), drawn(BATCH, SEQ, D)
    free = not any(isinstance(mask, Tensor) for mask in MASKS[name].values())
    shapes = {"src": {0: torch.export.Dim("batch")}, **dict.fromkeys(MASKS[name])}
    program = torch.export.export(
        module, (x,), MASKS[name], dynamic_shapes=shapes if free else None
    )
    torch.testing.assert_close(program.module()(x, **MASKS[name]), module(x, **MASKS[name]))
    if free:
        more = drawn(2 * BATCH + 1, SEQ, D)
        torch.testing.assert_close(
            program.module()(more, **MASKS[name]), module(more, **MASKS[name])
        )
