"""Whether there is room for the probes, before they start."""

from collections.abc import Sequence

from hybridnorm.diagnose.probe import Probe, Size
from hybridnorm.errors import HybridNormError
from hybridnorm.text import size
from hybridnorm.train import State, free_memory


def check_memory(probes: Sequence[Probe], state: State) -> None:
    """Raise `HybridNormError` for the probe that needs more memory than is free on some rank."""
    train, world = state.recipe.train, state.world
    rows = train.micro_batch_size or -(-train.batch_size // world.data_size)
    measured = Size(state.model.config, min(rows, state.recipe.diagnose.sequences), train.seq_len)
    free = min(filter(None, world.gather(lambda: free_memory(world.device))), default=None)
    dearest = max(probes, key=lambda probe: probe.memory(measured))
    needed = dearest.memory(measured)
    if free is not None and needed > free:
        raise HybridNormError(
            f"diagnose.probes: {dearest.name} needs about {size(needed)} beside the model, "
            f"{size(free)} are free; leave it out, or lower diagnose.sequences or "
            "train.micro_batch_size"
        )
