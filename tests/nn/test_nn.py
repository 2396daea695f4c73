"""Our layers against torch.nn's: outputs, gradients, masks, state dicts."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridnorm.nn as hnn
from hybridnorm.errors import HybridNormError
from hybridnorm.placements import strategies

D, HEADS, FF, BATCH, SEQ, MEMORY = 24, 4, 40, 3, 7, 5
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    """Gains and biases away from their trivial values."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def pair(name: str, norm_first: bool, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torch.nn's module and ours, with the same weights."""
    options = {"dim_feedforward": FF, "dropout": 0.0, "norm_first": norm_first, **options}
    theirs = shaken(getattr(nn, name)(D, HEADS, **options))
    del options["norm_first"]
    placement = "pre-norm" if norm_first else "post-norm"
    ours = getattr(hnn, name)(D, HEADS, placement=placement, norm="layer", **options)
    ours.load_state_dict(hnn.convert_state_dict(ours, theirs.state_dict()))
    return theirs, ours


def compare(theirs: nn.Module, ours: nn.Module, *inputs: Tensor, **masks: Any) -> None:
    """Outputs, gradients of inputs, and gradients of weights under torch.nn's names."""
    found = []
    for module in (theirs, ours):
        wanted = [x.clone().requires_grad_() for x in inputs]
        out = module(*wanted, **masks)
        out.backward(drawn(*out.shape, seed=2))
        weights = {name: p.grad for name, p in module.named_parameters()}
        if module is ours:
            weights = hnn.convert_state_dict(ours, weights)
        found.append((out.detach(), [x.grad for x in wanted], weights))
    (a, a_inputs, a_weights), (b, b_inputs, b_weights) = found
    torch.testing.assert_close(b, a, **CLOSE)
    torch.testing.assert_close(b_inputs, a_inputs, **CLOSE)
    torch.testing.assert_close(b_weights, a_weights, rtol=1e-5, atol=1e-5)


def masks_of(queries: int, keys: int, dtype: str) -> dict[str, Tensor]:
    """One of each shape that torch.nn takes; every query sees a key."""
    causal = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    per_head = drawn(BATCH * HEADS, queries, keys, seed=3) > 0.5
    per_head[..., 0] = False
    padding = torch.zeros(BATCH, keys, dtype=torch.bool)
    padding[0, -2:] = padding[1, -1:] = True
    found = {"causal": causal, "per head": per_head, "padding": padding}
    if dtype == "float":
        infinite = {k: torch.zeros(m.shape).masked_fill(m, -torch.inf) for k, m in found.items()}
        return infinite | {"bias": drawn(queries, keys, seed=4)}
    return found


def combinations(queries: int, keys: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for dtype in ("bool", "float"):
        masks = masks_of(queries, keys, dtype)
        padding = masks.pop("padding")
        for mask, pad in itertools.product((None, *masks.values()), (None, padding)):
            found.append({"mask": mask, "padding": pad, "is_causal": False})
            if mask is not None and mask is masks["causal"]:
                found.append({"mask": mask, "padding": pad, "is_causal": True})
    return found


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_encoder_layer(norm_first: bool, batch_first: bool, bias: bool) -> None:
    theirs, ours = pair("TransformerEncoderLayer", norm_first, batch_first=batch_first, bias=bias)
    shape = (BATCH, SEQ, D) if batch_first else (SEQ, BATCH, D)
    for masks in combinations(SEQ, SEQ):
        named = {"src_mask": masks["mask"], "src_key_padding_mask": masks["padding"]}
        compare(theirs, ours, drawn(*shape), is_causal=masks["is_causal"], **named)
    compare(theirs, ours, drawn(SEQ, D))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_decoder_layer(norm_first: bool, batch_first: bool) -> None:
    theirs, ours = pair("TransformerDecoderLayer", norm_first, batch_first=batch_first)
    own, cross = combinations(SEQ, SEQ), combinations(SEQ, MEMORY)
    shapes = [(SEQ, BATCH, D), (MEMORY, BATCH, D)]
    if batch_first:
        shapes = [(BATCH, SEQ, D), (BATCH, MEMORY, D)]
    inputs = [drawn(*shape, seed=i) for i, shape in enumerate(shapes)]
    for a, b in zip(own, cross, strict=True):
        names = {"tgt_mask": a["mask"], "tgt_key_padding_mask": a["padding"]}
        names |= {"memory_mask": b["mask"], "memory_key_padding_mask": b["padding"]}
        hints = {"tgt_is_causal": a["is_causal"], "memory_is_causal": b["is_causal"]}
        compare(theirs, ours, *inputs, **names, **hints)
    compare(theirs, ours, drawn(SEQ, D), drawn(MEMORY, D))


def test_a_causal_hint_needs_no_mask_beside_it() -> None:
    _, ours = pair("TransformerEncoderLayer", True, batch_first=True)
    x, mask = drawn(BATCH, SEQ, D), torch.ones(SEQ, SEQ, dtype=torch.bool).triu(1)
    padding = masks_of(SEQ, SEQ, "bool")["padding"]
    for extra in ({}, {"src_key_padding_mask": padding}):
        torch.testing.assert_close(ours(x, is_causal=True, **extra), ours(x, mask, **extra))


@pytest.mark.parametrize(
    "activation", ["relu", "gelu", torch.tanh, nn.PReLU(init=0.1), nn.functional.silu]
)
def test_activations(activation: Any) -> None:
    theirs, ours = pair("TransformerEncoderLayer", True, activation=activation)
    compare(theirs, ours, drawn(SEQ, BATCH, D))


def test_dropout_draws_what_torch_nn_draws() -> None:
    """In one sequence: of several, torch.nn draws in the order of its own transposed memory."""
    theirs, ours = pair("TransformerEncoderLayer", True, dropout=0.3)
    x = drawn(SEQ, D)
    outs = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        outs.append(module(x))
    torch.testing.assert_close(outs[1], outs[0], **CLOSE)


ATTENTION_OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "batch_first": True},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    {"kdim": 16, "vdim": 20},
]


@pytest.mark.parametrize("options", ATTENTION_OPTIONS, ids=str)
def test_attention(options: dict[str, Any]) -> None:
    theirs = shaken(nn.MultiheadAttention(D, HEADS, **options))
    ours = hnn.MultiheadAttention(D, HEADS, **options)
    ours.load_state_dict(theirs.state_dict())
    q, k = drawn(SEQ, BATCH, D), drawn(MEMORY, BATCH, options.get("kdim", D), seed=5)
    v = drawn(MEMORY, BATCH, options.get("vdim", D), seed=6)
    if options.get("batch_first"):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    for masks in combinations(SEQ, MEMORY):
        named = {"attn_mask": masks["mask"], "key_padding_mask": masks["padding"]}
        for weights in ({}, {"average_attn_weights": False}, {"need_weights": False}):
            a, b = (module(q, k, v, **named, **weights) for module in (theirs, ours))
            torch.testing.assert_close(b, a, **CLOSE)
    a, b = (module(q[:, 0], k[:, 0], v[:, 0]) for module in (theirs, ours))
    torch.testing.assert_close(b, a, **CLOSE)


def stacks(norm_first: bool, **options: Any) -> tuple[nn.Module, nn.Module]:
    theirs, ours = pair("TransformerEncoderLayer", norm_first, batch_first=True, **options)
    final = nn.LayerNorm(D) if norm_first else None
    stack = shaken(nn.TransformerEncoder(theirs, 3, final, enable_nested_tensor=False))
    mine = hnn.TransformerEncoder(ours, 3)
    mine.load_state_dict(hnn.convert_state_dict(mine, stack.state_dict()))
    return stack, mine


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder(norm_first: bool) -> None:
    theirs, ours = stacks(norm_first)
    for masks in combinations(SEQ, SEQ):
        named = {"mask": masks["mask"], "src_key_padding_mask": masks["padding"]}
        for hint in (masks["is_causal"], None):
            compare(theirs, ours, drawn(BATCH, SEQ, D), is_causal=hint, **named)
    back = hnn.convert_state_dict(ours, ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(back)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("norm_first", [False, True])
def test_stacks_inside_torch_nn_transformer(norm_first: bool) -> None:
    theirs = shaken(
        nn.Transformer(D, HEADS, 2, 2, FF, 0.0, batch_first=True, norm_first=norm_first)
    )
    ours = nn.Transformer(
        D,
        HEADS,
        batch_first=True,
        custom_encoder=hnn.TransformerEncoder(
            hnn.TransformerEncoderLayer(D, HEADS, FF, 0.0, "relu", 1e-5, True, norm_first),
            2,
            nn.LayerNorm(D),
        ),
        custom_decoder=hnn.TransformerDecoder(
            hnn.TransformerDecoderLayer(D, HEADS, FF, 0.0, "relu", 1e-5, True, norm_first),
            2,
            nn.LayerNorm(D),
        ),
    )
    ours.load_state_dict(hnn.convert_state_dict(ours, theirs.state_dict()))
    causal = nn.Transformer.generate_square_subsequent_mask(SEQ)
    inputs = drawn(BATCH, MEMORY, D), drawn(BATCH, SEQ, D, seed=1)
    compare(theirs, ours, *inputs, tgt_mask=causal, tgt_is_causal=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_inputs(layout: torch.layout) -> None:
    """As torch.nn's fast path for inference, which takes nested tensors."""
    theirs, ours = (module.eval() for module in stacks(False))
    rows = [drawn(n, D, seed=n) for n in (2, 5, 3)]
    x = torch.nested.nested_tensor(rows, layout=layout)
    out = ours(x)
    assert out.layout == layout
    for row, alone in zip(out.unbind(), rows, strict=True):
        torch.testing.assert_close(row, theirs(alone[None])[0], **CLOSE)
    with pytest.raises(HybridNormError, match="leave the masks out"):
        ours(x, src_key_padding_mask=torch.zeros(3, 5, dtype=torch.bool))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_device_and_dtype(device: str) -> None:
    layer = hnn.TransformerDecoderLayer(
        D, HEADS, device=device, dtype=torch.bfloat16, placement="hybridnorm"
    )
    stack = hnn.TransformerDecoder(layer, 2)
    kinds = {(p.device.type, p.dtype) for p in stack.parameters()}
    assert kinds == {(device, torch.bfloat16)}


def test_the_depth_decides_and_the_final_norm_comes_along() -> None:
    layer = hnn.TransformerEncoderLayer(D, HEADS, FF, placement="hybridnorm-star")
    names = [*hnn.TransformerEncoder(layer, 3).state_dict()]
    with_input = [name for name in names if name.endswith("self_attention.input_norm.weight")]
    assert with_input == ["layers.0.self_attention.input_norm.weight"]
    assert "norm.weight" in names
    plain = hnn.TransformerEncoder(hnn.TransformerEncoderLayer(D, HEADS, norm_first=True), 3)
    assert not any(name.startswith("norm.") for name in plain.state_dict())
    alone = hnn.TransformerEncoderLayer(D, HEADS, placement="hybridnorm-star", layer=1, n_layers=3)
    assert isinstance(alone.self_attention.input_norm, nn.Identity)


@pytest.mark.parametrize("name", strategies())
def test_every_placement_in_an_encoder_and_a_decoder(name: str) -> None:
    for norm in (None, "layer"):
        options = {"batch_first": True, "placement": name, "norm": norm, "n_kv_heads": 2}
        encoder = hnn.TransformerEncoder(hnn.TransformerEncoderLayer(D, HEADS, FF, **options), 2)
        decoder = hnn.TransformerDecoder(hnn.TransformerDecoderLayer(D, HEADS, FF, **options), 2)
        out = decoder(drawn(BATCH, SEQ, D), encoder(drawn(BATCH, MEMORY, D)))
        out.square().mean().backward()
        for part in (encoder, decoder):
            assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())


def test_a_placement_from_a_file(tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('attention = { q_norm = "rms" }\nfeed_forward = { post_norm = "layer" }\n')
    layer = hnn.TransformerEncoderLayer(D, HEADS, placement=path)
    assert layer.self_attn.q_norm.kind == "rms"
    assert layer.feed_forward.post_norm.kind == "layer"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"placement": "hybridnrm"}, "did you mean 'hybridnorm'"),
    ({"placement": "pre-norm", "norm_first": True}, "norm_first: the placement says"),
    ({"norm": "rmsnorm"}, "norm: unknown value"),
    ({"nhead": 5}, "num_heads: 5 heads do not divide the width 24"),
    ({"nhead": 0}, "num_heads: 0 heads"),
    ({"n_kv_heads": 3}, "n_kv_heads: 3 key/value heads"),
    ({"activation": "gleu"}, "did you mean 'gelu'"),
    ({"layer": 2, "n_layers": 2, "placement": "pre-norm"}, "layer 2 is not one of 2 blocks"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HybridNormError, match=message):
        hnn.TransformerEncoderLayer(**{"d_model": D, "nhead": HEADS, **options})


def test_bad_masks_and_stacks() -> None:
    layer = hnn.TransformerEncoderLayer(D, HEADS, batch_first=True)
    x = drawn(BATCH, SEQ, D)
    with pytest.raises(HybridNormError, match="attn_mask: its shape"):
        layer(x, torch.zeros(SEQ, SEQ + 1, dtype=torch.bool))
    with pytest.raises(HybridNormError, match="key_padding_mask: its shape"):
        layer(x, src_key_padding_mask=torch.zeros(SEQ, dtype=torch.bool))
    with pytest.raises(HybridNormError, match="num_layers"):
        hnn.TransformerEncoder(layer, 0)
    with pytest.raises(HybridNormError, match="nothing to convert"):
        hnn.convert_state_dict(nn.Linear(2, 2), {})
