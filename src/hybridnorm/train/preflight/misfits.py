"""Where a recipe does not fit its placement or its data: one line each, with the source.

The rules read what a placement does, never its name, so a user's own placement is judged alike.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields

from hybridnorm.model import scheme
from hybridnorm.placements import Placement, stream_norms, without_effect
from hybridnorm.recipe import Recipe
from hybridnorm.train.preflight.edges import measured_edge

Mix = Sequence[tuple[str, float, int]]
"""The data as (name, weight, tokens); the weights need not sum to 1."""

_PAPER = "arXiv 2503.04598"
# C4 perplexity at 550M parameters by initialization (paper, Table 5): Pre-Norm, HybridNorm.
_TABLE_5 = {"normal": (20.29, 20.44), "depth-scaled": (20.49, 20.40), "megatron": (20.44, 20.00)}
# Table 10: warm-up of 2000 steps; the shortest of these runs has 200B tokens in batches of 4.19M.
_WARMUP_STEPS, _SHORTEST_RUN = 2000, 47_684
# arXiv 2602.08064, 1.3B (d_model 2048): HybridNorm trains at 4e-4 and diverges at 1e-3. The paper
# trains all its sizes at 3e-4. For other widths the edge is taken to fall as 1/d_model, as the
# best learning rate of Adam does (arXiv 2203.03466).
_STABLE_LR, _STABLE_WIDTH, _PUBLISHED_LR = 4e-4, 2048, 3e-4
_MAX_EPOCHS = 4


def misfits(recipe: Recipe, placement: Placement, mix: Mix) -> list[str]:
    """Warnings about a recipe (`in_steps`), most important first; empty where all is well."""
    return [
        *_initialization(recipe, placement),
        *_learning_rate(recipe, placement),
        *_warmup(recipe, placement),
        *_repetition(recipe, mix),
        *(f"placement {line}" for line in without_effect(placement, recipe.model.n_layers)),
        *_without_effect(recipe, placement),
    ]


def epochs(recipe: Recipe, mix: Mix) -> list[float]:
    """How often the run goes over each part of the data."""
    tokens = recipe.train.planned_tokens
    total = sum(weight for _, weight, _ in mix)
    return [tokens * weight / total / size for _, weight, size in mix]


def _initialization(recipe: Recipe, placement: Placement) -> Iterator[str]:
    init, published = scheme(recipe.model, placement), placement.init
    block = placement.block(recipe.model.n_layers - 1, recipe.model.n_layers)
    scales = (block.attention.input_scale, block.feed_forward.input_scale)
    if _is_hybrid(placement, recipe.model.n_layers) and init in _TABLE_5 and init != "megatron":
        (pre_norm, hybrid), (_, best) = _TABLE_5[init], _TABLE_5["megatron"]
        yield (
            f"model.init {init}: HybridNorm needs megatron ({_PAPER}, Table 5: perplexity "
            f"{hybrid:.2f} with {init}, {best:.2f} with megatron; Pre-Norm {pre_norm:.2f} with "
            f"{init})"
        )
    elif init in ("depth-scaled", "megatron") and any(s.layer_power < 0 for s in scales):
        yield (
            f"model.init {init}: norms scaled by depth are not to be combined with a "
            "depth-scaled initialization (arXiv 2502.05795); set model.init normal"
        )
    elif init != published:
        source = f" ({placement.source})" if placement.source else ""
        yield (
            f"model.init {init}: {placement.title or placement.name} is published with "
            f"{published}{source}; set model.init published"
        )


def _learning_rate(recipe: Recipe, placement: Placement) -> Iterator[str]:
    config, lr = recipe.model, recipe.optimizer.lr
    if (measured := measured_edge(recipe)) is not None:
        if lr > measured.lr:
            yield (
                f"optimizer.lr {lr:g}: a ramp of the rate on this model was stable up to "
                f"{measured.lr:.1e} and then diverged ({measured.table}); lower it"
            )
        return
    block = placement.block(config.n_layers - 1, config.n_layers)
    scales = (block.attention.branch_scale, block.feed_forward.branch_scale)
    repaired = all(scale.layer_power < 0 for scale in scales)
    edge = max(_PUBLISHED_LR, _STABLE_LR * _STABLE_WIDTH / config.d_model)
    comparable = recipe.optimizer.name in ("adamw", "muon")
    if comparable and lr > edge and _is_hybrid(placement, config.n_layers) and not repaired:
        yield (
            f"optimizer.lr {lr:g}: at d_model {config.d_model} HybridNorm is expected to be stable "
            f"up to {edge:.1e} (1.3B trains at 4e-4, diverges at 1e-3, arXiv 2602.08064; scaled by "
            "1/d_model); lower it, or scale the branches (hybridnorm-scaled)"
        )


def _warmup(recipe: Recipe, placement: Placement) -> Iterator[str]:
    steps, warmup = recipe.train.steps, recipe.schedule.warmup_steps
    wanted = math.ceil(_WARMUP_STEPS * min(1, steps / _SHORTEST_RUN))
    if warmup < wanted and stream_norms(placement, recipe.model.n_layers):
        yield (
            f"schedule.warmup_steps {warmup}: with norms on the stream, {steps:,} steps want "
            f"{wanted:,} or more (published: {_WARMUP_STEPS:,}, in runs of {_SHORTEST_RUN:,} steps "
            f"and more, {_PAPER}, Table 10)"
        )


def _repetition(recipe: Recipe, mix: Mix) -> Iterator[str]:
    for (name, _, _), times in zip(mix, epochs(recipe, mix), strict=True):
        if times > _MAX_EPOCHS:
            yield (
                f"data {name}: {times:,.1f} epochs; tokens repeated more than {_MAX_EPOCHS} times "
                "are worth less and less (arXiv 2305.16264)"
            )


def _without_effect(recipe: Recipe, placement: Placement) -> Iterator[str]:
    """What is set in one section though another makes it meaningless."""
    train, optimizer, schedule = recipe.train, recipe.optimizer, recipe.schedule
    idle = {
        "model.init_std: init tiny has its own": (
            recipe.model.init_std is not None and scheme(recipe.model, placement) == "tiny"
        ),
        "train.load_balance_loss: the model has no experts": (
            _is_set(train, "load_balance_loss") and not recipe.model.n_experts
        ),
        "train.router_z_loss: the model has no experts": (
            _is_set(train, "router_z_loss") and not recipe.model.n_experts
        ),
        "train.keep_every: no checkpoint is of such a step": (
            train.keep_every is not None
            and train.steps % train.keep_every
            and math.lcm(train.keep_every, train.checkpoint_every) > train.steps
        ),
        "optimizer.decay_norms: weight_decay is 0": (
            _is_set(optimizer, "decay_norms") and not optimizer.weight_decay
        ),
        "optimizer.undecayed_gains: no norm is decayed anyway": bool(
            optimizer.undecayed_gains and not (optimizer.decay_norms and optimizer.weight_decay)
        ),
        "optimizer.decay_embeddings: weight_decay is 0": (
            _is_set(optimizer, "decay_embeddings") and not optimizer.weight_decay
        ),
        f"schedule.name {schedule.name}: the warm-up takes all steps": (
            schedule.warmup_steps == train.steps and schedule.name != "constant"
        ),
    }
    yield from (f"{line}; it has no effect" for line, holds in idle.items() if holds)


def _is_set(section: object, name: str) -> bool:
    defaults = {field.name: field.default for field in fields(section)}  # type: ignore[arg-type]
    return bool(getattr(section, name) != defaults[name])


def _is_hybrid(placement: Placement, n_layers: int) -> bool:
    """Whether queries, keys and values are normed, and the stream itself, too: HybridNorm's mark,
    in either spelling."""
    attention = placement.block(n_layers - 1, n_layers).attention
    qkv = (attention.q_norm, attention.k_norm, attention.v_norm)
    return all(qkv) and stream_norms(placement, n_layers) > 0
