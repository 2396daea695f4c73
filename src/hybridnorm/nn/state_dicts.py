"""The names of weights here and in torch.nn."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from hybridnorm.errors import HybridNormError
from hybridnorm.model import Residual
from hybridnorm.nn.layer import Layer

_ATTENTION = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}


def convert_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torch.nn's layers under the names of ours, or the other way round.

        ours.load_state_dict(convert_state_dict(ours, theirs.state_dict()))
        theirs.load_state_dict(convert_state_dict(ours, ours.state_dict()))

    All other names stay. A placement without a norm on a sublayer's input or sum has no place for
    torch.nn's `norm1` to `norm3` there: they keep their names, for `strict=False` to leave out.

    Args:
        model: of our layers, anywhere within.
        state: of `model`, or of the same model made of torch.nn's layers.

    Raises:
        HybridNormError: no layer of ours in `model`.
    """
    names = dict(_names(model))
    if not names:
        raise HybridNormError("model: has no hybridnorm.nn layer, so there is nothing to convert")
    is_ours = any(_renamed(name, names) != name for name in state)
    if not is_ours:
        names = {theirs: ours for ours, theirs in names.items()}
    return {_renamed(name, names): tensor for name, tensor in state.items()}


def _names(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs of prefixes, ours and torch.nn's."""
    for path, layer in model.named_modules():
        if isinstance(layer, Layer):
            start = f"{path}." if path else ""
            for ours, theirs in _layer_names(layer):
                yield f"{start}{ours}.", f"{start}{theirs}."


def _layer_names(layer: Layer) -> Iterator[tuple[str, str]]:
    for number, name in enumerate((*layer.attentions, "feed_forward"), start=1):
        sublayer = getattr(layer, name)
        assert isinstance(sublayer, Residual)
        if name in _ATTENTION:
            yield f"{name}.branch.attention", _ATTENTION[name]
        else:
            for part in ("linear1", "activation", "linear2"):
                yield f"{name}.branch.{part}", part
        norm = "input_norm" if isinstance(sublayer.post_norm, nn.Identity) else "post_norm"
        if not isinstance(getattr(sublayer, norm), nn.Identity):
            yield f"{name}.{norm}", f"norm{number}"


def _renamed(name: str, names: Mapping[str, str]) -> str:
    found = next((prefix for prefix in names if name.startswith(prefix)), None)
    return name if found is None else names[found] + name.removeprefix(found)
