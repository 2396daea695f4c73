"""The equations of a placement, written from its data. Nobody writes a strategy's by hand."""

from itertools import groupby

from hybridnorm.placement.spec import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    Norm,
    Placement,
    Scale,
    Sublayer,
)

_KIND = {"rms": "RMSNorm", "layer": "LayerNorm", "l2": "L2Norm", "dyt": "DyT", "derf": "Derf"}


def distinct_blocks(placement: Placement, n_layers: int) -> list[tuple[list[int], BlockSpec]]:
    """Equal blocks together: their indices (from 0) and their spec, in order of appearance."""
    groups: dict[BlockSpec, list[int]] = {}
    for layer in range(n_layers):
        groups.setdefault(placement.block(layer, n_layers), []).append(layer)
    return [(layers, spec) for spec, layers in groups.items()]


def block_title(layers: list[int]) -> str:
    """ "block 1", "blocks 2–12", "blocks 1, 3": counted from 1."""
    runs = []
    for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        found = [layer + 1 for _, layer in run]
        runs.append(f"{found[0]}–{found[-1]}" if len(found) > 1 else str(found[0]))
    return ("block " if len(layers) == 1 else "blocks ") + ", ".join(runs)


def block_equations(spec: BlockSpec) -> list[str]:
    """The equations of one block: from x, the stream at its entry, to x′."""
    return [
        *_inner_attention(spec.attention),
        *_residual(spec.attention, "MHA", "x", "y", "a"),
        *_inner_feed_forward(spec.feed_forward),
        *_residual(spec.feed_forward, "FFN", "y", "x′", "f"),
    ]


def model_equations(placement: Placement, n_layers: int) -> list[str]:
    """What happens before the first block and after the last."""
    entry = _times(placement.embed_scale, "E[token]")
    if placement.embed_norm:
        entry = f"N_e({entry})"
    final = placement.final(n_layers)
    return [f"x = {entry}", f"logits = {'N_final(x)' if final else 'x'} · W_head"]


def norm_label(norm: Norm) -> str:
    """A norm in words: "RMSNorm, no gain, gain starts at 1/√(2L)"."""
    words = [_KIND[norm.kind]]
    if norm.axis == "full":
        words.append("full width")
    if not norm.affine:
        words.append("no gain")
    if norm.zero_centered:
        words.append("gain 1+γ")
    if not norm.gain_init.is_one:
        words.append(f"gain starts at {scale_text(norm.gain_init)}")
    if norm.eps is not None:
        words.append(f"ε {norm.eps:g}")
    return ", ".join(words)


def scale_text(scale: Scale) -> str:
    """A scale as a formula in l (block, from 1), L and d: "1/√l", "(2L)^¼", "0.283/√L"."""
    for name, power in (("L", scale.depth_power), ("l", scale.layer_power)):
        others = {scale.depth_power, scale.layer_power, scale.width_power} - {power}
        if power and others <= {0.0}:
            folded = scale.value ** (1 / power)
            inside = round(folded, 6)
            if inside == round(inside) and 1 <= inside <= 64 and abs(folded - inside) < 1e-9:
                base = name if inside == 1 else f"{round(inside)}{name}"
                return _power(base, power)
    factors = [
        _power(name, power)
        for name, power in (
            ("l", scale.layer_power),
            ("L", scale.depth_power),
            ("d", scale.width_power),
        )
        if power
    ]
    if scale.value != 1.0 or not factors:
        text = f"{scale.value:g}"
        if len(factors) == 1 and factors[0].startswith("1/"):
            text, factors = text + factors[0][1:], []
        factors.insert(0, text)
    return "·".join(factors)


def _power(base: str, power: float) -> str:
    roots = {0.5: "√", 0.25: "∜"}
    bare = base if len(base) == 1 else f"({base})"
    if abs(power) in roots:
        text = f"{roots[abs(power)]}{bare}"
    else:
        text = base if abs(power) == 1 else f"{bare}^{abs(power):g}"
    return text if power > 0 else f"1/{text}"


def _times(scale: Scale, value: str) -> str:
    if scale.learned != "none":
        start = "" if scale.is_one else f" (starts at {scale_text(scale)})"
        symbol = "λ ⊙" if scale.learned == "channel" else "λ ·"
        return f"{symbol} {value}{start}"
    return value if scale.is_one else f"{scale_text(scale)} · {value}"


def _inner_attention(spec: AttentionSpec) -> list[str]:
    """q, k, v and the context, where a norm sits on one of them; u is what the branch reads."""
    letters = {"q": spec.q_norm, "k": spec.k_norm, "v": spec.v_norm}
    if not any(letters.values()) and not spec.context_norm:
        return []
    left = ", ".join(letters)
    right = ", ".join(f"N_{c}(u W_{c})" if norm else f"u W_{c}" for c, norm in letters.items())
    context = "softmax(rope(q) rope(k)ᵀ / √d_k) v"
    if spec.context_norm:
        context = f"N_c({context})"
    return [f"MHA(u): {left} = {right};  {context} W_o"]


def _inner_feed_forward(spec: FeedForwardSpec) -> list[str]:
    return ["FFN(u): N_m(act(u W_in)) W_out"] if spec.mid_norm else []


def _residual(spec: Sublayer, branch: str, stream: str, result: str, index: str) -> list[str]:
    lines = []
    normed = stream
    if spec.input_norm:
        normed = f"N_{index}({stream})"
        if spec.skip == "normed":
            lines.append(f"z = {normed}")
            normed = "z"
    value = f"{branch}({_times(spec.input_scale, normed)})"
    if spec.output_norm:
        value = f"N_out({value})"
    skip = {
        "raw": stream,
        "normed": normed,
        "block_input": "x",
        "raw+block_input": f"({stream} + x)" if not spec.skip_scale.is_one else f"{stream} + x",
    }[spec.skip]
    total = f"{_times(spec.skip_scale, skip)} + {_times(spec.branch_scale, value)}"
    lines.append(f"{result} = N_post({total})" if spec.post_norm else f"{result} = {total}")
    return lines
