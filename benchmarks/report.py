"""What a comparison found, as a Markdown table, JSON and a picture."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from contenders import DEFAULT, Arm, Shape
from matplotlib.figure import Figure

from hybridnorm.text import svg
from hybridnorm.train.environment import environment

COLOURS = {"fp32": "#0072B2", "bf16": "#D55E00", "default": "#D55E00"}


@dataclass
class Results:
    """Of one shape on one machine. `found`: the turns alone; `turns`: those of the rounds."""

    shape: Shape
    device: str
    steps: int
    found: dict[Arm, dict]
    arms: Sequence[Arm]
    parameters: dict[Arm, int] = field(default_factory=dict)
    turns: dict[Arm, list[dict]] = field(default_factory=lambda: defaultdict(list))
    gemm: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def reference(self) -> Arm:
        return DEFAULT if DEFAULT in self.arms else self.arms[0]

    def seconds(self, arm: Arm) -> list[float]:
        return [turn["seconds"] for turn in self.turns[arm]]

    def speeds(self, arm: Arm) -> list[float]:
        """Tokens per second, by round."""
        return [self.shape.tokens / seconds for seconds in self.seconds(arm)]

    def ratios(self, arm: Arm, other: Arm) -> list[float]:
        """How many times as fast `arm` is as `other`, by round."""
        pairs = zip(self.seconds(arm), self.seconds(other), strict=True)
        return [theirs / mine for mine, theirs in pairs]

    def peak(self, arm: Arm) -> int:
        return max(turn["peak"] for turn in self.turns[arm])

    def by_speed(self) -> list[Arm]:
        return sorted(self.arms, key=lambda arm: statistics.median(self.seconds(arm)))


def write(results: Results, folder: Path, name: str) -> str:
    """NAME.md, NAME.json, NAME.svg and NAME.png; returns the table."""
    about = environment(torch.device(results.device))
    text = "\n\n".join([heading(results, about), race_table(results), *sentences(results)])
    text += f"\n\nEvery setting alone, the best of its turns:\n\n{qualifying_table(results)}\n"
    save(folder, name, text, raw(results, about))
    figure = picture(results)
    (folder / f"{name}.svg").write_text(svg(figure, name, bbox_inches="tight"), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    return text


def save(folder: Path, name: str, text: str, data: dict) -> None:
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1), encoding="utf-8")


def place(about: dict) -> str:
    """The machine, in words."""
    device = about["processor"] if about["device"] == "cpu" else about["device"]
    return f"{device}, {about['threads']} threads, torch {about['torch']}"


def heading(results: Results, about: dict) -> str:
    rounds = len(results.turns[results.arms[0]])
    rates = " and ".join(
        f"{statistics.median(rate) / 1e9:,.0f} GFLOP/s in {dtype}"
        for dtype, rate in results.gemm.items()
    )
    return (
        f"{results.shape}; {rounds} rounds of {results.steps} steps; {place(about)}. A "
        f"feed-forward product of this shape, timed in every round, reaches {rates}."
    )


def race_table(results: Results) -> str:
    reference = results.reference
    products = {dtype: statistics.median(rate) for dtype, rate in results.gemm.items()}
    columns = ["model", "setting", "tokens/s", "range", "GFLOP/s", "of GEMM"]
    columns += [f"{reference.peer}, {reference.setting} is", "range", "peak MB", "parameters"]
    rows = [[*columns, "loss"]]
    for arm in results.by_speed():
        speeds = results.speeds(arm)
        rate = results.shape.flops / results.shape.tokens * statistics.median(speeds)
        # By default the dtype whose products are faster.
        product = products.get(arm.dtype, max(products.values()))
        ratios = results.ratios(reference, arm)
        name = f"**{arm.peer}**" if arm == reference else arm.peer
        row = [name, arm.setting, f"{statistics.median(speeds):,.0f}"]
        row += [f"{min(speeds):,.0f}-{max(speeds):,.0f}", f"{rate / 1e9:,.0f}"]
        row += [f"{rate / product:.0%}", f"{statistics.median(ratios):.2f}x"]
        row += [f"{min(ratios):.2f}-{max(ratios):.2f}", f"{results.peak(arm) / 1e6:,.0f}"]
        row += [f"{results.parameters[arm]:,}", f"{results.turns[arm][-1]['losses'][-1]:.2f}"]
        rows.append(row)
    return markdown(rows, left=2)


def qualifying_table(results: Results) -> str:
    rows = [["model", "setting", "tokens/s", "peak MB"]]
    for arm, turn in results.found.items():
        if "error" in turn:
            rows.append([arm.peer, arm.setting, turn["error"], ""])
        else:
            speed = results.shape.tokens / turn["seconds"]
            rows.append([arm.peer, arm.setting, f"{speed:,.0f}", f"{turn['peak'] / 1e6:,.0f}"])
    return markdown(rows, left=2)


def sentences(results: Results) -> list[str]:
    """HybridNorm beside Pre-Norm, wherever both ran in the same setting."""
    lines = []
    for arm in results.arms:
        twin = next(
            (a for a in results.arms if a.peer == "pre-norm" and a.setting == arm.setting), None
        )
        if arm.peer == "hybridnorm-star" and twin is not None:
            ratios = results.ratios(arm, twin)
            lines.append(
                f"- {arm.setting}: hybridnorm-star trains {statistics.median(ratios):.2f} times as "
                f"fast as pre-norm ({min(ratios):.2f}-{max(ratios):.2f}), with "
                f"{results.peak(arm) / results.peak(twin):.2f} times the peak memory."
            )
    return ["\n".join(lines)] if lines else []


def raw(results: Results, about: dict) -> dict:
    return {
        "environment": about,
        "shape": vars(results.shape),
        "flops_per_step": results.shape.flops,
        "steps_per_turn": results.steps,
        "gemm_flops_per_second": results.gemm,
        "alone": [vars(arm) | turn for arm, turn in results.found.items()],
        "rounds": [
            vars(arm) | {"parameters": results.parameters[arm], "turns": results.turns[arm]}
            for arm in results.arms
        ],
    }


def picture(results: Results) -> Figure:
    """One bar per arm: the median, with a line from the slowest to the fastest round."""
    arms = results.by_speed()
    figure = Figure(figsize=(7.2, 0.28 * len(arms) + 0.9))
    axes = figure.add_subplot()
    for row, arm in enumerate(arms):
        speeds = results.speeds(arm)
        ours = arm.peer in ("hybridnorm-star", "pre-norm")
        axes.barh(
            row, statistics.median(speeds), color=COLOURS[arm.dtype], alpha=1 if ours else 0.4
        )
        axes.plot([min(speeds), max(speeds)], [row, row], color="0.2", lw=1)
    axes.set_yticks(range(len(arms)), [str(arm) for arm in arms], fontsize=8)
    for label, arm in zip(axes.get_yticklabels(), arms, strict=True):
        label.set_fontweight("bold" if arm == results.reference else "normal")
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second (median, and range of the rounds)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    return figure


def markdown(rows: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first row is its heading; the columns after `left` are numbers."""
    rule = ["---" if column < left else "---:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
