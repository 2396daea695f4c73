"""The numbers of the authors' own implementation, and how far from them this one is."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from hybridnorm.interop.official import from_official, to_official

REFERENCES = sorted((Path(__file__).parent / "reference").glob("*.safetensors"))


def load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["config"]), tensors


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over the norm of `theirs`, on any two devices."""
    expected = theirs.detach().double().cpu()
    gap = (ours.detach().double().cpu() - expected).norm()
    return (gap / expected.norm().clamp_min(1e-30)).item()


class Gaps(NamedTuple):
    """How far from the authors; `logits` and `gradients` relative, `loss` in nats."""

    logits: float
    loss: float
    gradients: dict[str, float]


def gaps_to_authors(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Gaps:
    """A forward and a backward pass on `device` with activations of `dtype`."""
    config, tensors = load(path)
    model = from_official(config, part(tensors, "weights.")).to(device)
    model.dtype = dtype
    ids = tensors["input_ids"].to(device)
    logits = relative(model(ids), tensors["logits"])
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    grads = to_official(model, {n: p.grad for n, p in model.named_parameters()})
    expected = part(tensors, "grads.")
    assert grads.keys() == expected.keys()
    gradients = {name: relative(grads[name], gradient) for name, gradient in expected.items()}
    return Gaps(logits, abs(loss.item() - tensors["loss"].item()), gradients)
