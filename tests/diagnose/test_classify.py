"""Blocks of other libraries, our own, and broken ones, named right."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import hybridnorm.nn as hnn
from command_line import Cli
from exports import exported
from exports import model as exported_model
from hybridnorm.diagnose.classifier import Report, classify
from hybridnorm.errors import HybridNormError
from hybridnorm.model import ModelConfig, Transformer
from hybridnorm.placements import placement

SIZE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
NARROW = {**GROUPED, "head_dim": 8}
GPT = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4}
GPT |= {"bos_token_id": 1, "eos_token_id": 2}
T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
VIT = {name: SIZE[name] for name in list(SIZE)[1:5]} | {"image_size": 8, "patch_size": 4}
IDS = torch.arange(14).view(2, 7)
PRE = {"attention.input", "feed-forward.input"}
DUAL = PRE | {"attention.output", "feed-forward.output"}

# Model, its configuration, topology, nearest, its norms, kind, gain, eps.
MODELS: dict[str, tuple[Any, ...]] = {
    "Llama": ("Llama", GROUPED, "pre-norm", PRE, "rms", "plain", 1e-6),
    "Qwen 3": ("Qwen3", NARROW, "pre-norm-qk", PRE, "rms", "plain", 1e-6),
    "OLMo 2": ("Olmo2", GROUPED, "olmo2", DUAL - PRE, "rms", "plain", 1e-5),
    "OLMoE": (
        "Olmoe",
        {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
        "pre-norm-qk",
        PRE,
        "rms",
        "plain",
        1e-5,
    ),
    "Gemma 2": ("Gemma2", NARROW, "gemma", DUAL, "rms", "zero-centred", 1e-6),
    "Gemma 3": ("Gemma3", NARROW, "gemma", DUAL, "rms", "zero-centred", 1e-6),
    "GPT-2": ("GPT2", GPT, "pre-norm", PRE, "layer", "plain", 1e-5),
}
PARALLEL = {
    "GPT-NeoX": ("GPTNeoX", SIZE, 2),
    "GPT-J": ("GPTJ", {**GPT, "rotary_dim": 4}, 1),
    "Phi": ("Phi", SIZE, 1),
    "Cohere": ("Cohere", {**SIZE, "use_qk_norm": True}, 1),
}


def build(name: str, config: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    found = getattr(hf, f"{name}TextConfig", None) or getattr(hf, f"{name}Config")
    return getattr(hf, f"{name}{head}")(found(**config))


def outer(report: Report, layer: int = 1) -> set[str]:
    """The places of norms outside of branches, such as `attention.input`."""
    return {
        f"{s.role}.{place}"
        for s in report.blocks[layer].sublayers
        for place in s.norms
        if place in ("input", "output", "post")
    }


def inner(report: Report, layer: int = 1) -> dict[str, str]:
    """Axis by place of the norms inside attention."""
    [attention] = [s for s in report.blocks[layer].sublayers if s.role == "attention"]
    return dict(attention.axes)


@pytest.mark.parametrize("model", MODELS)
def test_decoders_of_transformers(model: str) -> None:
    name, config, nearest, places, kind, gain, eps = MODELS[model]
    report = classify(build(name, config), {"input_ids": IDS})
    assert (report.topology, report.nearest.name) == ("sequential", nearest)
    assert outer(report) == places
    for sublayer in report.blocks[1].sublayers:
        assert sublayer.skip == "raw" and not sublayer.scales
        assert {n.kind for n in sublayer.norms.values()} == {kind}
        assert {n.gain for n in sublayer.norms.values()} == {gain}
        assert {n.eps for n in sublayer.norms.values()} == {eps}
    width = {"Qwen 3": "head", "Gemma 3": "head", "OLMo 2": "full", "OLMoE": "full"}.get(model)
    assert inner(report) == ({"q": width, "k": width} if width else {})
    assert report.final_norm is not None and report.final_norm.kind == kind
    assert "stream: it passes no norm" in str(report)


@pytest.mark.parametrize("model", PARALLEL)
def test_parallel_blocks_of_transformers(model: str) -> None:
    name, config, n_norms = PARALLEL[model]
    report = classify(build(name, config), {"input_ids": IDS})
    assert report.topology == "parallel"
    attention, network = report.blocks[1].sublayers
    assert network.parallel and (attention.role, network.role) == ("attention", "feed-forward")
    assert report.nearest.name == ("parallel" if n_norms == 2 else "parallel-shared")
    assert report.is_exact == (model != "Cohere")
    assert 'topology = "parallel"' in report.toml()
    assert set(inner(report)) == ({"q", "k"} if model == "Cohere" else set())


def test_gemma_4_has_a_norm_without_gain_on_v() -> None:
    config = {**NARROW, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8}
    report = classify(build("Gemma4", config), {"input_ids": IDS})
    attention = report.blocks[1].sublayers[0]
    assert {p: attention.norms[p].gain for p in "qkv"} == {"q": "plain", "k": "plain", "v": "none"}
    assert report.nearest.name == "gemma-v"


def test_encoders_of_transformers() -> None:
    torch.manual_seed(0)
    bert = classify(hf.BertModel(hf.BertConfig(**SIZE)), {"input_ids": IDS})
    assert bert.nearest.name == "post-norm" and bert.is_exact
    assert any("needs warm-up" in warning for warning in bert.warnings)
    assert bert.blocks[0].sublayers[0].norms["post"].eps == 1e-12
    assert "stream: it passes a norm" in str(bert)
    vit = classify(hf.ViTModel(hf.ViTConfig(**VIT)), {"pixel_values": torch.randn(2, 3, 8, 8)})
    assert vit.nearest.name == "pre-norm" and vit.is_exact
    t5 = classify(hf.T5EncoderModel(hf.T5Config(**T5)), {"input_ids": IDS})
    assert t5.nearest.name == "pre-norm" and t5.is_exact
    block = hf.T5Model(hf.T5Config(**T5)).decoder.block[0]
    memory = torch.randn(2, 5, 32)
    decoder = classify(
        block, {"hidden_states": torch.randn(2, 7, 32), "encoder_hidden_states": memory}
    )
    roles = [s.role for s in decoder.blocks[0].sublayers]
    assert roles == ["attention", "cross-attention", "feed-forward"]


@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_nn(norm_first: bool) -> None:
    options = {"norm_first": norm_first, "batch_first": True}
    name = "pre-norm" if norm_first else "post-norm"
    encoder = classify(nn.TransformerEncoderLayer(32, 4, 64, **options), torch.randn(2, 7, 32))
    assert encoder.nearest.name == name and encoder.is_exact
    guessed = classify(nn.TransformerEncoderLayer(32, 4, 64, **options))
    assert guessed.nearest.name == name
    inputs = torch.randn(2, 7, 32), torch.randn(2, 5, 32)
    decoder = classify(nn.TransformerDecoderLayer(32, 4, 64, **options), inputs)
    assert [s.role for s in decoder.blocks[0].sublayers][1] == "cross-attention"


@pytest.mark.parametrize(
    "name",
    [
        *("hybridnorm", "hybridnorm-star", "pre-norm", "olmo2", "keel", "spannorm", "b2t"),
        *("deepnorm", "mix-ln", "subln", "lns", "gemma-v", "layerscale"),
    ],
)
def test_our_own(name: str) -> None:
    """Round trip: the classified model's TOML says what its placement does in each block."""
    config = ModelConfig(placement=name, d_model=32, n_layers=4, n_heads=4, d_ff=48, vocab_size=60)
    report = classify(Transformer(config), IDS)
    assert report.nearest.name == name, report
    assert report.is_exact
    known = placement(name)
    for layer in report.blocks:
        for part in ("attention", "feed_forward"):
            here, there = (getattr(p.block(layer, 4), part) for p in (report.placement, known))
            assert here.skip == there.skip
            norms = [f for f in vars(here) if f.endswith("_norm")]
            assert [bool(getattr(here, f)) for f in norms] == [
                bool(getattr(there, f)) for f in norms
            ]


def attend(x: Tensor, width: int = 8) -> Tensor:
    heads = x.unflatten(-1, (-1, width)).transpose(1, 2)
    out = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    return out.transpose(1, 2).flatten(2)


class Broken(nn.Module):
    """Post-Norm as it is often miswritten, x + N(F(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 32), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.post_norm1, self.post_norm2 = nn.LayerNorm(32), nn.LayerNorm(32)

    def attention(self, x: Tensor) -> Tensor:
        return self.out(attend(self.qkv(x)))

    def network(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.post_norm1(self.attention(x))
        return x + self.post_norm2(self.network(x))


class IdleNorm(Broken):
    """A norm that is computed and thrown away, and one that is never called."""

    pre_norm = True

    def __init__(self) -> None:
        super().__init__()
        self.norm_first = True
        self.idle = nn.RMSNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)
        x = x + self.attention(x)
        return x + self.network(x)


class NormedSkip(Broken):
    """Pre-Norm whose x was overwritten before the sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        x = self.post_norm1(x)
        return x + self.network(x)


class Formula(Broken):
    """Norms without modules, on heads and on the stream."""

    def forward(self, x: Tensor) -> Tensor:
        n = nn.functional.rms_norm(x, (32,))
        heads = self.qkv(n).unflatten(-1, (-1, 8))
        heads = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + 1e-6)
        x = x + self.out(attend(heads.flatten(2)))
        n = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x + 0.5 * self.network(n)


def test_post_norm_as_x_plus_norm_of_branch() -> None:
    report = classify(Broken(), torch.randn(2, 7, 32))
    assert outer(report, 0) == DUAL - PRE
    assert any("Post-Norm is N(x + F(x))" in warning for warning in report.warnings)


def test_norms_that_act_on_nothing_and_a_flag_that_changes_nothing() -> None:
    warnings = "\n".join(classify(IdleNorm(), torch.randn(2, 7, 32)).warnings)
    assert "idle: this norm acts on nothing" in warnings
    assert "post_norm1: this norm is never called" in warnings
    assert "norm_first = True changes nothing" in warnings


def test_a_skip_that_is_normed_by_accident() -> None:
    report = classify(NormedSkip(), torch.randn(2, 7, 32))
    assert any("for Pre-Norm add y, not N(y)" in warning for warning in report.warnings)


def test_norms_that_are_formulas() -> None:
    report = classify(Formula(), torch.randn(2, 7, 32))
    attention, network = report.blocks[0].sublayers
    assert {p: n.kind for p, n in attention.norms.items()} == dict.fromkeys(
        ("input", "q", "k", "v"), "rms"
    )
    assert attention.axes["q"] == "head" and attention.norms["q"].eps == 1e-6
    assert network.norms["input"].kind == "layer" and network.norms["input"].gain == "none"
    assert network.scales["branch"].value == 0.5


def test_hybridnorm_without_its_initialization() -> None:
    layer = hnn.TransformerEncoderLayer(
        32, 4, 128, placement="hybridnorm", batch_first=True, layer=1, n_layers=3
    )
    report = classify(layer, torch.randn(2, 7, 32))
    assert report.nearest.name == "hybridnorm"
    assert any("megatron initialization" in warning for warning in report.warnings)


def test_what_is_no_block() -> None:
    with pytest.raises(HybridNormError, match="no residual block"):
        classify(nn.Linear(8, 8), torch.randn(2, 3, 8))
    with pytest.raises(HybridNormError, match="does not run on them"):
        classify(Broken(), torch.randn(2, 3, 7))


def test_the_verb(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    build("Llama", GROUPED).save_pretrained(folder)
    result = cli("classify", str(folder), "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert "sequential; pre-norm" in result.stdout and "block 3 of 3: as block 1" in result.stdout
    assert placement(out / "found.toml").attention.input_norm is not None
    assert (out / "found.svg").exists()
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef block():\n    return nn.TransformerEncoderLayer(32, 4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "post-norm" in cli("classify", "mine.block").stdout
    for target, message in {
        "mine.nothing": "no folder, and no module: cannot import mine.nothing",
        "nowhere": "no folder, and no module: 'nowhere' is no import path",
        str(out): "config.json: cannot read",
    }.items():
        result = cli("classify", target)
        assert result.returncode == 1 and message in result.stderr


@pytest.mark.parametrize("name", ["hybridnorm", "hybridnorm-star", "pre-norm", "keel"])
def test_our_exports(name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their code runs where it is trusted, and is not asked for where it is not."""
    monkeypatch.setattr(hf.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    exported(exported_model(name), tmp_path / "run").save_pretrained(tmp_path / "out")
    shown = cli("classify", str(tmp_path / "out"), "--trust-remote-code")
    assert f"sequential; {name}\n" in shown.stdout, shown.stderr
    if "auto_map" in (tmp_path / "out" / "config.json").read_text():
        refused = cli("classify", str(tmp_path / "out"))
        assert refused.returncode == 1 and "brings code of its own" in refused.stderr
