"""A study of several sizes or depths: arms are compared within each of them. No torch."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hybridnorm.study.plan import Study
from hybridnorm.study.results import Result


@dataclass(frozen=True)
class Part:
    """The runs that are compared with each other: a study of its own."""

    name: str
    """ "model.preset 550M"; empty where the study has one part."""
    study: Study
    results: list[Result]

    def file_name(self, name: str) -> str:
        """The name of a file of this part among those of the others."""
        return re.sub(r"[^\w.+-]+", "_", f"{self.name} {name}".strip())


def parts(study: Study, results: Sequence[Result]) -> list[Part]:
    """One for every combination of what is compared `within`, in the order of the grid."""
    within = study.within
    grid = {name: values for name, values in study.grid.items() if name not in within}
    found = []
    for values in itertools.product(*(study.grid[name] for name in within)):
        mine = [r for r in results if tuple(r.run.values[name] for name in within) == values]
        name = ", ".join(f"{field} {value}" for field, value in zip(within, values, strict=True))
        title = f"{study.title}: {name}" if name else study.title
        runs = [result.run for result in mine]
        found.append(Part(name, replace(study, title=title, grid=grid, runs=runs, within=()), mine))
    return found
