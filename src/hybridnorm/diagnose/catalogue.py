"""All probes by name."""

from collections.abc import Sequence

from hybridnorm.diagnose import (
    attention,
    depth,
    forward,
    gradients,
    representations,
    stability,
    theory,
)
from hybridnorm.diagnose.probe import Probe
from hybridnorm.errors import HybridNormError, nearest

FAMILIES: dict[str, tuple[type[Probe], ...]] = {
    "gradients": gradients.PROBES,
    "forward": forward.PROBES,
    "attention": attention.PROBES,
    "representations": representations.PROBES,
    "use of depth": depth.PROBES,
    "theory": theory.PROBES,
    "stability": stability.PROBES,
}


def catalogue() -> dict[str, type[Probe]]:
    """Every probe by its name, family by family."""
    return {probe.name: probe for family in FAMILIES.values() for probe in family}


def quick_probes() -> list[str]:
    """Those that need no training of their own."""
    return [name for name, probe in catalogue().items() if not probe.looks_at("trial")]


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


def listing() -> str:
    """Every probe with the first line of its definition, by family."""
    width = max(map(len, catalogue()))
    lines = []
    for family, probes in FAMILIES.items():
        lines.append(f"{family}:")
        lines += [f"  {probe.name:<{width}}  {definition(probe)[0]}" for probe in probes]
    return "\n".join(lines)


def definition(probe: type[Probe]) -> list[str]:
    """The paragraphs of a probe's docstring."""
    return [" ".join(part.split()) for part in (probe.__doc__ or "").split("\n\n")]
