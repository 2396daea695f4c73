"""What a run will do, on one screen, before it does it."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from hybridnorm.model import ModelConfig, ParameterCounts, flops_per_token, parameter_counts, scheme
from hybridnorm.placements import Placement, stream_norms
from hybridnorm.recipe import Recipe
from hybridnorm.text import count, size
from hybridnorm.train.preflight.memory import MemoryEstimate, memory_estimate
from hybridnorm.train.preflight.misfits import Mix, epochs, misfits

_PARTS_SHOWN = 6


@dataclass(frozen=True)
class Preflight:
    """Facts of a run by label, and where its recipe does not fit."""

    rows: dict[str, str]
    warnings: list[str]
    memory: MemoryEstimate

    def print(self, console: Console) -> None:
        """One table, then one line per warning."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for label, text in self.rows.items():
            table.add_row(label, text)
        console.print(table)
        for warning in self.warnings:
            console.print(f"warning: {warning}", style="yellow")


def preflight(
    recipe: Recipe, placement: Placement, mix: Mix, world_size: int = 1, device: str = "cpu"
) -> Preflight:
    """What `recipe` (`in_steps`, with its vocabulary size) will do on `world_size` ranks.

    Args:
        device: its type.
        mix: the training data as (name, weight, tokens).

    Raises:
        HybridNormError: no vocabulary size.
    """
    config, train, parallel = recipe.model, recipe.train, recipe.parallel
    counts = parameter_counts(config, placement)
    per_token = flops_per_token(config, train.seq_len, placement)
    per_step = train.tokens_per_step
    tokens = train.planned_tokens
    shard = parallel.shard or max(1, world_size // (parallel.replicate * parallel.tensor))
    share = -(-train.batch_size // (parallel.replicate * shard))
    micro = train.micro_batch_size or share
    memory = memory_estimate(recipe, placement, shard=shard, micro_batch_size=micro, device=device)
    rows = {
        "placement": placement_in_words(placement, config.n_layers),
        "init": f"{scheme(config, placement)}, standard deviation {config.sigma:.4f}",
        "model": shape_in_words(config),
        "parameters": parameters_in_words(counts),
        "FLOPs": f"{_si(per_token)} per token, {_si(per_token * tokens)} in total",
        "memory": _memory(memory),
        "length": f"{count(train.steps, 'step')}, {_si(tokens)} tokens, "
        f"{tokens / counts.total:,.2f} per parameter",
        "batch": f"{count(train.batch_size, 'sequence')} of {train.seq_len:,} = "
        f"{count(per_step, 'token')}; per rank {-(-share // micro)} x {count(micro, 'sequence')}",
        "optimizer": f"{recipe.optimizer.name}, learning rate {recipe.optimizer.lr:g}, "
        f"{recipe.schedule.name}, {count(recipe.schedule.warmup_steps, 'step')} of warm-up",
        "data": _data(recipe, mix),
        "layout": f"replicate {parallel.replicate} x shard {shard} x tensor {parallel.tensor}; "
        f"{train.dtype}; activation checkpointing {parallel.activation_checkpointing}",
    }
    return Preflight(rows=rows, warnings=misfits(recipe, placement, mix), memory=memory)


def placement_in_words(placement: Placement, n_layers: int) -> str:
    """Its title, and how many norms are on the stream."""
    norms = count(stream_norms(placement, n_layers), "norm")
    title = placement.title or placement.name
    return f"{title}, {norms} on the stream of {count(n_layers, 'block')}"


def parameters_in_words(counts: ParameterCounts) -> str:
    """How many parameters: `1.27M (0.74M without embeddings)`."""
    active = f", {_si(counts.active)} active" if counts.experts else ""
    return f"{_si(counts.total)}{active} ({_si(counts.non_embedding)} without embeddings)"


def shape_in_words(config: ModelConfig) -> str:
    """Widths, heads, experts and vocabulary on one line."""
    return (
        f"d_model {config.d_model}, {count(config.n_heads, 'head')} ({config.kv_heads} for keys "
        f"and values), d_ff {config.d_ff} ({config.activation}){_experts(config)}, vocabulary "
        f"{config.vocab_size:,}"
    )


def _experts(config: ModelConfig) -> str:
    if not config.n_experts:
        return ""
    shared = f" and {config.n_shared_experts} shared" if config.n_shared_experts else ""
    every = f" in one of {config.moe_every} blocks" if config.moe_every > 1 else ""
    return (
        f", {config.top_k} of {config.n_experts}{shared} experts of width "
        f"{config.expert_width}{every}"
    )


def _memory(estimate: MemoryEstimate) -> str:
    parts = (
        f"{name} {size(getattr(estimate, name))}"
        for name in ("weights", "gradients", "optimizer", "activations", "working")
    )
    return f"about {size(estimate.total)} per rank ({', '.join(parts)})"


def _data(recipe: Recipe, mix: Mix) -> str:
    total = sum(weight for _, weight, _ in mix)
    lines = [
        f"{name}: {weight / total:.1%}, {_si(size)} tokens, {times:,.2f} epochs"
        for (name, weight, size), times in zip(mix, epochs(recipe, mix), strict=True)
    ]
    if len(lines) > _PARTS_SHOWN:
        lines[_PARTS_SHOWN:] = [f"and {len(lines) - _PARTS_SHOWN} more"]
    return "\n".join(lines)


def _si(number: float) -> str:
    """1234567 as 1.23M."""
    for factor, prefix in zip((1e24, 1e21, 1e18, 1e15, 1e12, 1e9, 1e6), "YZEPTBM", strict=True):
        if number >= factor:
            return f"{number / factor:.3g}{prefix}"
    return f"{number:,.0f}"
