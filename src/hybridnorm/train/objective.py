"""What a step minimizes, term by term, and what is watched beside it."""

from typing import NamedTuple

from torch import Tensor

from hybridnorm.model import Transformer, load_balance
from hybridnorm.recipe import TrainConfig
from hybridnorm.train.batches import Batch
from hybridnorm.train.world import World


class Objective(NamedTuple):
    """Scalars of one micro-batch by name."""

    total: Tensor
    """The sum of the terms."""
    terms: dict[str, Tensor]
    """Weighted, for the record."""
    watched: dict[str, Tensor]
    """What is not total."""


def objective(model: Transformer, batch: Batch, config: TrainConfig, world: World) -> Objective:
    """The objective of this rank's part of a micro-batch; all ranks must call it."""
    losses = model.losses(*batch, z_weight=config.z_loss)
    terms = {"loss": losses.cross_entropy}
    if config.z_loss:
        terms["z_loss"] = config.z_loss * losses.z
    if losses.routing is None:
        return Objective(losses.total, terms, {})
    routing = losses.routing
    # The load of a micro-batch is that of all ranks (arXiv 2501.11873): the mean of the ranks'
    # losses is then the loss of a single rank that has all tokens.
    routing = routing._replace(counts=world.mean(routing.counts))
    of_routers = {
        "load_balance_loss": config.load_balance_loss * load_balance(routing),
        "router_z_loss": config.router_z_loss * routing.z.mean(),
    }
    watched = {
        "max_expert_load": (routing.counts.amax(-1) / routing.counts.mean(-1)).amax(),
        "router_entropy": routing.entropy.mean(),
    }
    total = sum(of_routers.values(), losses.total)
    return Objective(total, terms | of_routers, watched)
