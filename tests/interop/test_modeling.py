"""The modelling file that is shipped, loaded from a folder, beside the model that was trained."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from exports import EXPERTS, IDS, PLACEMENTS, exported, gap, model
from hybridnorm.interop.huggingface import modeling_hybridnorm, norms_hybridnorm
from hybridnorm.interop.huggingface.shape import from_config, to_config
from hybridnorm.placements import placement

FEW = ["hybridnorm-star"]
MANY = [
    pytest.param(name, marks=[] if name in FEW else pytest.mark.slow, id=name)
    for name in PLACEMENTS
]
KINDS = pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])


def shipped(theirs: Any, folder: Path) -> Any:
    """The model, saved and loaded by the code that lies in its folder."""
    theirs.save_pretrained(folder)
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    cls = get_class_from_dynamic_module(auto_map["AutoModelForCausalLM"], folder)
    assert cls.__module__.startswith("transformers_modules.")
    return cls.from_pretrained(folder).eval()


@KINDS
@pytest.mark.parametrize("name", PLACEMENTS)
def test_logits_are_those_of_training(name: str, experts: dict[str, Any], tmp_path: Path) -> None:
    ours = model(name, **experts)
    theirs = shipped(exported(ours, tmp_path / "run"), tmp_path / "model")
    with torch.no_grad():
        assert gap(theirs(IDS).logits, ours(IDS)) < 1e-6


@pytest.mark.parametrize(
    "shape",
    [
        {"n_layers": 1},
        {"n_heads": 1, "n_kv_heads": 1},
        {"d_model": 40, "n_heads": 4, "n_kv_heads": 4, "d_ff": 33},
        {"activation": "gelu", "tie_embeddings": False},
        {"rope_theta": 100.0, "norm_eps": 1e-2},
        {**EXPERTS, "moe_every": 1, "n_shared_experts": 0, "norm_topk_prob": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["hybridnorm-star", "olmo2", "dyt"])
def test_other_shapes(name: str, shape: dict[str, Any], tmp_path: Path) -> None:
    ours = model(name, **shape)
    theirs = exported(ours, tmp_path)
    with torch.no_grad():
        assert gap(theirs(IDS).logits, ours(IDS)) < 1e-6


def test_a_placement_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'embed_norm = "layer"\n'
        'attention = { q_norm = "l2", post_norm = "derf", skip_scale = { learned = "channel" } }\n'
        'feed_forward = { input_norm = { eps = 1e-3 }, skip = "normed" }\n'
        'overrides = [{ layers = "last", feed_forward = { mid_norm = "dyt" } }]\n'
    )
    ours = model(str(path))
    theirs = shipped(exported(ours, tmp_path / "run"), tmp_path / "model")
    with torch.no_grad():
        assert gap(theirs(IDS).logits, ours(IDS)) < 1e-6


@KINDS
@pytest.mark.parametrize("name", MANY)
def test_cached_generation_takes_the_likeliest_tokens(
    name: str, experts: dict[str, Any], tmp_path: Path
) -> None:
    """200 tokens with the cache are the ones that a forward pass without it finds likeliest."""
    theirs = exported(model(name, **experts), tmp_path)
    options = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": None}
    texts = theirs.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
    with torch.no_grad():
        logits = theirs(texts, use_cache=False).logits
    assert torch.equal(logits[:, IDS.shape[1] - 1 : -1].argmax(-1), texts[:, IDS.shape[1] :])


@KINDS
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MANY)
def test_a_padded_batch_is_its_sequences(
    name: str, side: str, experts: dict[str, Any], tmp_path: Path
) -> None:
    theirs = exported(model(name, **experts), tmp_path)
    texts = [IDS[0, :15], IDS[1, :6]]
    whole, mask = torch.full((2, 15), 256), torch.zeros(2, 15, dtype=torch.long)
    places = [slice(15 - len(t), None) if side == "left" else slice(len(t)) for t in texts]
    for row, (text, place) in enumerate(zip(texts, places, strict=True)):
        whole[row, place], mask[row, place] = text, 1
    with torch.no_grad():
        together = theirs(whole, attention_mask=mask).logits
        for row, (text, place) in enumerate(zip(texts, places, strict=True)):
            assert gap(together[row, place], theirs(text[None]).logits[0]) < 1e-5


def test_padded_generation_continues_each_text_as_alone(tmp_path: Path) -> None:
    theirs = exported(model(), tmp_path)
    short = torch.cat((torch.full((1, 9), 256), IDS[1:, 9:]), dim=1)
    mask = torch.ones_like(IDS)
    mask[1, :9] = 0
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    together = theirs.generate(torch.cat((IDS[:1], short)), attention_mask=mask, **options)
    alone = theirs.generate(IDS[1:, 9:], attention_mask=torch.ones(1, 12).long(), **options)
    assert torch.equal(together[1, 9:], alone[0])


@KINDS
@pytest.mark.parametrize("name", MANY)
def test_sdpa_and_eager_attention_agree(name: str, experts: dict[str, Any], tmp_path: Path) -> None:
    theirs = exported(model(name, **experts), tmp_path)
    assert theirs.config._attn_implementation == "sdpa"
    with torch.no_grad():
        fused = theirs(IDS).logits
        theirs.set_attn_implementation("eager")
        plain = theirs(IDS, output_attentions=True)
    assert gap(fused, plain.logits) < 1e-6
    assert len(plain.attentions) == 3


@pytest.mark.parametrize("name", ["pre-norm", "subln"])
def test_experts_one_by_one_and_grouped_agree(name: str, tmp_path: Path) -> None:
    theirs = exported(model(name, **EXPERTS), tmp_path)
    outputs = []
    for way in ("eager", "grouped_mm", "batched_mm"):
        theirs.set_experts_implementation(way)
        with torch.no_grad():
            outputs.append(theirs(IDS).logits)
    assert all(gap(other, outputs[0]) < 1e-6 for other in outputs[1:])


def test_logits_to_keep_and_embeddings(tmp_path: Path) -> None:
    theirs = exported(model("peri-ln"), tmp_path)
    with torch.no_grad():
        logits = theirs(IDS).logits
        assert gap(theirs(IDS, logits_to_keep=3).logits, logits[:, -3:]) < 1e-6
        kept = torch.tensor([0, 5])
        assert gap(theirs(IDS, logits_to_keep=kept).logits, logits[:, kept]) < 1e-6
        embedded = theirs.get_input_embeddings()(IDS)
        assert gap(theirs(inputs_embeds=embedded).logits, logits) < 1e-6
        base = theirs.model(IDS, output_hidden_states=True)
    assert len(base.hidden_states) == 4
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        theirs(IDS, inputs_embeds=embedded)


def losses_and_gradients(theirs: Any, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    theirs.zero_grad()
    loss = theirs(IDS, labels=IDS, **inputs).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in theirs.named_parameters()}


@KINDS
def test_losses_and_gradients_are_those_of_training(
    experts: dict[str, Any], tmp_path: Path
) -> None:
    from hybridnorm.interop.huggingface.weights import sources

    ours = model(**experts)
    theirs = exported(ours, tmp_path).train()
    loss, gradients = losses_and_gradients(theirs)
    expected = ours.loss(IDS[:, :-1], IDS[:, 1:])
    expected.backward()
    assert abs(loss - expected) < 1e-6
    for name, (source, half) in sources(ours, {}).items():
        found = gradients[source] if half is None else gradients[source].chunk(2, 1)[half]
        wanted = ours.get_parameter(name).grad
        assert gap(found, wanted[: len(found)]) < 1e-5, name


def test_losses_of_routers_are_those_of_training(tmp_path: Path) -> None:
    from hybridnorm.model import load_balance

    ours = model(**EXPERTS)
    theirs = exported(ours, tmp_path)
    losses = ours.losses(IDS, IDS)
    out = theirs(IDS, labels=IDS, output_router_logits=True)
    expected = 0.01 * load_balance(losses.routing) + 0.001 * losses.routing.z.mean()
    assert gap(out.aux_loss, expected) < 1e-6
    assert gap(out.loss - theirs(IDS, labels=IDS).loss, expected) < 1e-3
    padded = torch.cat((IDS, torch.zeros_like(IDS)), dim=1)
    mask = torch.cat((torch.ones_like(IDS), torch.zeros_like(IDS)), dim=1)
    masked = theirs(padded, attention_mask=mask, output_router_logits=True)
    assert gap(masked.aux_loss, expected) < 1e-5


@KINDS
def test_gradient_checkpointing_changes_nothing(experts: dict[str, Any], tmp_path: Path) -> None:
    theirs = exported(model(**experts), tmp_path).train()
    loss, gradients = losses_and_gradients(theirs)
    theirs.activation_checkpointing_enable()
    again, recomputed = losses_and_gradients(theirs, use_cache=True)
    assert torch.equal(loss, again)
    assert all(gap(recomputed[name], gradients[name]) < 1e-6 for name in gradients)


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("name", ["hybridnorm-star", "olmo2", "derf"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own compiler
def test_a_block_compiles_to_one_graph(name: str, experts: dict[str, Any], tmp_path: Path) -> None:
    theirs = exported(model(name, **experts), tmp_path)
    inputs = theirs.model.embed_tokens(IDS).detach()
    rotary = theirs.model.rotary_emb(inputs, torch.arange(21)[None])
    for layer in theirs.model.layers:
        expected = layer(inputs, position_embeddings=rotary)
        block = torch.compile(layer, fullgraph=True)
        assert gap(block(inputs, position_embeddings=rotary), expected) < 1e-5


def test_the_file_is_short_and_imports_nothing_of_ours() -> None:
    for module in (modeling_hybridnorm, norms_hybridnorm):
        text = Path(str(module.__file__)).read_text()
        assert len(text.splitlines()) < 450
        assert "import hybridnorm" not in text
        assert "from hybridnorm" not in text
    assert sys.modules[modeling_hybridnorm.__name__] is modeling_hybridnorm


def test_an_export_with_an_older_word_for_the_same_is_read() -> None:
    config = to_config(model("gemma-v").config, placement("gemma-v"))
    config.placement["definition"]["attention"]["v_norm"]["affine"] = False
    assert from_config(config)[1] == placement("gemma-v")
