"""Which parameters an optimizer treats alike, and how much it decays them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from torch import nn

from hybridnorm.placements import HEAD_NORMS
from hybridnorm.recipe import OptimizerConfig


@dataclass(frozen=True)
class DecayGroup:
    """Parameters with one optimizer and one weight decay."""

    name: str
    optimizer: str
    """adamw, muon, or an import path."""
    weight_decay: float
    members: dict[str, nn.Parameter]


def decay_groups(model: nn.Module, config: OptimizerConfig) -> list[DecayGroup]:
    """The groups of `model`, in the order of their first parameters; every parameter is in one.

    `undecayed_gains` are groups of their own. The paper decays matrices, head, norms and biases by
    0.1 and leaves the embedding of a dense model alone. Muon takes matrices of blocks only; AdamW
    takes what is left to it.
    """
    parts: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part, role = _part(name, parameter), _role(name, model)
        if part == "vectors" and role in config.undecayed_gains:
            part = f"{role} gains"
        parts.setdefault(part, {})[name] = parameter
    rest = "adamw" if config.name == "muon" else config.name
    undecayed = {"embedding": not config.decay_embeddings, "vectors": not config.decay_norms}
    undecayed |= {f"{role} gains": True for role in config.undecayed_gains}
    return [
        DecayGroup(
            name=part,
            optimizer=config.name if part == "matrices" else rest,
            weight_decay=0.0 if undecayed.get(part) else config.weight_decay,
            members=members,
        )
        for part, members in parts.items()
    ]


def decay_table(groups: Sequence[DecayGroup]) -> Table:
    """The groups as people read them before a run."""
    table = Table(box=None, header_style="bold")
    for column in ("decay group", "optimizer"):
        table.add_column(column, no_wrap=True)
    for column in ("weight decay", "tensors", "parameters"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("such as", overflow="fold")
    for group in groups:
        count = sum(parameter.numel() for parameter in group.members.values())
        table.add_row(
            group.name,
            group.optimizer,
            f"{group.weight_decay:g}",
            f"{len(group.members):,}",
            f"{count:,}",
            ", ".join(_examples(group)),
        )
    return table


def _examples(group: DecayGroup) -> list[str]:
    """Three members by names that all layers share."""
    short = (re.sub(r"blocks\.\d+\.|\.branch|\.weight$", "", name) for name in group.members)
    return list(dict.fromkeys(short))[:3]


_ROLES = {
    **dict.fromkeys(HEAD_NORMS, "heads"),
    **dict.fromkeys(("embed_norm", "post_norm"), "stream"),
    **dict.fromkeys(("input_norm", "shared_norm", "final_norm"), "input"),
    "output_norm": "output",
    "mid_norm": "hidden",
}


def _role(name: str, model: nn.Module) -> str:
    """What the norm that a parameter is of norms; "" where it is of none."""
    path, _, norm = name.rpartition(".")[0].rpartition(".")
    carried = norm == "input_norm" and getattr(model.get_submodule(path), "skip", "") == "normed"
    return "stream" if carried else _ROLES.get(norm, "")


def _part(name: str, parameter: nn.Parameter) -> str:
    if name.startswith("embedding."):
        return "embedding"
    if parameter.ndim < 2:
        return "vectors"  # norm gains, biases, learned scales
    if not name.startswith("blocks."):
        return "head"
    return "matrices" if parameter.ndim == 2 else "stacks"  # (experts, rows, columns)
