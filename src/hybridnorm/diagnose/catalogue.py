"""All probes by name."""

from collections.abc import Sequence

from hybridnorm.diagnose import attention, depth, forward, gradients, representations
from hybridnorm.diagnose.probe import Probe
from hybridnorm.errors import HybridNormError, nearest

FAMILIES: dict[str, tuple[type[Probe], ...]] = {
    "gradients": gradients.PROBES,
    "forward": forward.PROBES,
    "attention": attention.PROBES,
    "representations": representations.PROBES,
    "use of depth": depth.PROBES,
}


def catalogue() -> dict[str, type[Probe]]:
    """Every probe by its name, family by family."""
    return {probe.name: probe for family in FAMILIES.values() for probe in family}


def named_probes(names: Sequence[str]) -> list[Probe]:
    """A new probe for each name.

    Raises:
        HybridNormError: an unknown name; the nearest one is offered.
    """
    known = catalogue()
    for name in names:
        if name not in known:
            raise HybridNormError(
                f"diagnose.probes: unknown probe {name!r}; {nearest(name, known)}"
            )
    return [known[name]() for name in dict.fromkeys(names)]
