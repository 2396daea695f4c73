"""What the paper says beside what the built-in studies found: a page, with its data.

    hybridnorm study placements --jobs 2                    # and the others of docs/studies.md
    python scripts/claims.py studies docs/results/paper     # paper.md, and a folder for each study

A study that has not been run is said to be so; the page says what a verdict is.
"""

import argparse
import json
import math
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridnorm.files import write_whole
from hybridnorm.study.folder import environments
from hybridnorm.study.growth import completed
from hybridnorm.study.parts import Part, parts
from hybridnorm.study.plan import Study, load_study
from hybridnorm.study.rates import Stable, stable
from hybridnorm.study.results import Arm, Result, arms
from hybridnorm.study.scaling import ENOUGH
from hybridnorm.study.tables import arm_columns, interval

_MADE = ("hybridnorm", "commit", "python", "torch", "processor", "device", "cores", "threads")
HEAD = """# What the paper says, what we measured

Each line is a claim of the HybridNorm paper (arXiv 2503.04598), or of later work on it, beside the
same comparison in a small model: a thousandth of the paper's size and English Wikipedia summaries,
or a tenth and Debian's documentation where the study's name says 47M. Each arm is at its own best
learning rate, and has the initialization it was published with, where the study does not set one
([how, and what differs](../studies.md)).

*Paper* and *ours* are differences to the baseline in nats per token; below zero the arm is better.
Brackets: 95% interval over seeds; `*`: p < 0.05, corrected for the number of arms of one comparison
that were run (Holm), and not for there being many rows. In rows of `learning-rate`, *paper* and
*ours* are the largest stable rate of the arm and that of the baseline: of ours, the highest one up
to which no run diverged and, at the arm's best rate and above, none ended at the unigram plateau,
the loss of knowing how frequent each token is and no more. *Runs* are all of an arm's, at every
rate. Runs of one model, placement, rate and seed are the same in every study (those of 0.6M in
`placements`, `depth` and `scaling`): such rows are no second evidence. One command makes the page;
*made by*, below, names the state of the code that made the runs of a study.

A verdict is about the direction, at this size: significant in the paper's is *confirmed*, in the
other one *contradicted*, however far the sizes of the differences are apart; anything else is *not
resolved*. A largest stable rate lies between the one given and the next one tried; two are told
apart where these ranges do not overlap. *Diverges* is confirmed where no rate was stable. Table 11,
what HybridNorm costs, was measured [on a GPU](gpu.md#ratios); Figures 2, 7 and 8 [by the
probes](diagnose.md).

    hybridnorm study STUDY --jobs 2
    python scripts/claims.py studies docs/results/paper

| claim | paper | ours | p | runs | verdict |
|---|---|---|---|---|---|
"""


def rows(claim: dict[str, Any], folder: Path) -> Iterator[list[str]]:
    """A line for each arm of the claim."""
    part = claim.get("part", "")
    found, baseline = measured(folder, part) if (folder / "results.csv").exists() else ({}, "")
    where = f" ({part.partition('.')[2]})" if part else ""
    for name, said in claim["arms"].items():
        title = f"`{claim['study']}`{where}: {name}, {claim['source']}"
        if "rate" in claim:
            paper, sign = f"{said:g} against {claim['rate']:g}", 1 if said > claim["rate"] else -1
        else:
            paper, sign = in_nats(said, claim.get("baseline"))
        if (arm := found.get(name)) is None:
            yield [title, paper, "–", "–", "–", "not run yet"]
        elif "rate" in claim:
            rate, base = stable(arm), stable(found[baseline])
            reached = rate_verdict(rate, base, sign)
            yield [title, paper, f"{rate} against {base}", "–", counts(arm), reached]
        else:
            ours = interval(arm.comparison, arm.p)
            yield [title, paper, ours, p_value(arm), counts(arm), verdict(arm, sign)]


def measured(folder: Path, part: str) -> tuple[dict[str, Arm], str]:
    """The arms of a part of the study by name, and which of them is the baseline.

    Without a part, what arms are otherwise compared within is one more setting of theirs.
    """
    study, results = read(folder)
    if part:
        [(study, results)] = [(p.study, p.results) for p in parts(study, results) if p.name == part]
    found = arms(replace(study, within=()), results)
    return {str(arm.value): arm for arm in found}, str(study.baseline)


def read(folder: Path) -> tuple[Study, list[Result]]:
    return completed(load_study(folder / "study.toml"), folder)


def in_nats(said: float | str, baseline: float | None) -> tuple[str, int]:
    """What the paper has as text, and the sign of the difference; 0: it diverges."""
    if isinstance(said, str):
        return said, {"below": -1, "above": 1, "diverges": 0}[said]
    assert baseline is not None
    difference = math.log(said / baseline)
    return f"{difference:+.4f}".replace("-", "−"), round(math.copysign(1, difference))


def verdict(arm: Arm, sign: int) -> str:
    if not sign:
        return "confirmed" if stable(arm).rate is None else "**contradicted**"
    if arm.comparison is None or not arm.significant:
        return "not resolved"
    return "confirmed" if arm.comparison.mean * sign > 0 else "**contradicted**"


def rate_verdict(rate: Stable, base: Stable, sign: int) -> str:
    """Of the claim that the first rate is higher (1), or lower (-1).

    Each lies between the last rate that was stable and the next one tried: only where these do not
    overlap are the two told apart.
    """
    low, high = bounds(rate)
    base_low, base_high = bounds(base)
    found = 1 if low >= base_high else -1 if high <= base_low else 0
    return {0: "not resolved", sign: "confirmed"}.get(found, "**contradicted**")


def bounds(found: Stable) -> tuple[float, float]:
    return found.rate or 0.0, found.unstable_at or math.inf


def p_value(arm: Arm) -> str:
    return "–" if arm.p is None else f"{arm.p:.2g}"


def counts(arm: Arm) -> str:
    lost = len(arm.results) - arm.count("finished")
    further = {"lost": lost, "at the plateau": sum(r.at_plateau for r in arm.results)}
    return ", ".join([str(len(arm.results)), *(f"{n} {what}" for what, n in further.items() if n)])


def keep(folder: Path, out: Path) -> Iterator[str]:
    """Copy what a study found, and say of it what no table does."""
    target = out / folder.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "figures", target)
    for name in ("results.csv", "study.toml"):
        shutil.copy(folder / name, target)
    study, results = read(folder)
    made = {name: environments(folder, study.runs)[name] for name in _MADE}
    write_whole(target / "environment.json", json.dumps(made, indent=1) + "\n")
    device = ", ".join(made["processor" if made["device"] == ["cpu"] else "device"])
    torch = ", ".join(made["torch"])
    recipe = study.runs[0].recipe.train
    yield f"\n## {study.title}\n\n    {(folder / 'command.txt').read_text().strip()}\n\n"
    yield (
        f"{study.note}\n\n{len(results)} runs of {recipe.steps:,} steps, torch {torch}, {device}. "
        f"[Every run]({out.name}/{folder.name}/results.csv), "
        f"[made by]({out.name}/{folder.name}/environment.json).\n"
    )
    found = parts(study, results)
    yield from ("\n" + markdown(part) for part in found)
    for figure in ("final-loss", "learning-rate", *(["scaling"] if len(found) >= ENOUGH else [])):
        for path in sorted(target.glob(f"*{figure}.svg")):
            yield f"\n![{path.stem}]({out.name}/{folder.name}/{path.name})\n"


def markdown(part: Part) -> str:
    """The arms of a study, or of a part of it, as a table."""
    columns = arm_columns(part.study, arms(part.study, part.results))
    for heading in ("perplexity", "bits/byte", "tokens/s"):
        del columns[heading]
    name = part.name.partition(".")[2]
    headings = [name or part.study.compare, *list(columns)[1:]]
    lines = [headings, ["---"] * len(headings), *zip(*columns.values(), strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", type=Path, help="the folder of studies")
    parser.add_argument("out", type=Path, help="folder of the data; the page is beside it")
    options = parser.parse_args()
    claims = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["claims"]
    lines = [
        f"| {' | '.join(row)} |\n"
        for claim in claims
        for row in rows(claim, options.studies / claim["study"])
    ]
    names = dict.fromkeys(claim["study"] for claim in claims)
    done = [name for name in names if (options.studies / name / "results.csv").exists()]
    sections = [line for name in done for line in keep(options.studies / name, options.out)]
    write_whole(options.out.with_suffix(".md"), "".join([HEAD, *lines, *sections]))


if __name__ == "__main__":
    main()
