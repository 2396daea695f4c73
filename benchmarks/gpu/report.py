"""Turn what the stages of benchmarks/gpu.sh found into a page with pictures.

    python benchmarks/gpu/report.py docs/results/gpu

Reads the JSON files in that folder, and writes docs/results/gpu.md beside it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hybridnorm.text import svg

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import markdown

Table = dict[str, Any]
PRE_NORM, STAR = ("pre-norm", "pre-norm-qk"), "hybridnorm-star"
KINDS = (
    "products",
    "attention",
    "fused by torch.compile",
    "optimizer",
    "clipping",
    "routing and embedding",
    "copies",
    "other",
    "gaps",
)
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#F0E442", "#CC79A7", "#999999", "#D55E00")


def read(folder: Path, pattern: str) -> dict[str, Any]:
    """The files that match, by what follows the first dash of their names."""
    return {p.stem.partition("-")[2]: json.loads(p.read_text()) for p in folder.glob(pattern)}


def size(race: Table) -> tuple[int, int]:
    """Dense models come first, small ones before large ones."""
    return race["model"]["n_experts"], race["flops_per_token"]


def seconds(arm: Table) -> float:
    return statistics.median(turn["seconds"] for turn in arm["turns"])


def ratio(race: Table, one: str, other: str) -> float:
    """How many times as fast `one` trains as `other`."""
    return seconds(race["arms"][other]) / seconds(race["arms"][one])


def overview(races: dict[str, Table]) -> str:
    rows = [["shape", "HybridNorm* / Pre-Norm", "/ the peer at its best", "that peer", "MFU"]]
    for name, race in races.items():
        arms = {n: arm for n, arm in race["arms"].items() if arm["turns"]}
        baseline = next(n for n in arms if n in PRE_NORM)
        peer = min((n for n in arms if "transformers" in n), key=lambda n: seconds(arms[n]))
        row = [name, f"{ratio(race, STAR, baseline):.3f}", f"{ratio(race, STAR, peer):.2f}", peer]
        rows.append([*row, f"{mfu(race, arms[STAR]):.1%}"])
    return markdown(rows, left=1)


def mfu(race: Table, arm: Table) -> float:
    rate = race["tokens_per_step"] * race["flops_per_token"] / seconds(arm)
    return float(rate / race["peak_flops"])


def details(race: Table) -> str:
    rows = [["arm", "micro-batch", "ms per step", "tokens/s", "MFU", "peak GB", "first step, s"]]
    for name, arm in race["arms"].items():
        if not arm["turns"]:
            rows.append([name, arm["error"].partition("\n")[0][:60], *[""] * 5])
            continue
        times = [turn["seconds"] * 1e3 for turn in arm["turns"]]
        span = f"{min(times):,.0f}-{max(times):,.0f}" if len(times) > 1 else f"{times[0]:,.0f}"
        speed = race["tokens_per_step"] / seconds(arm)
        first, last = arm["turns"][0], arm["turns"][-1]
        row = [name + " †" * arm.get("another_call", False), str(last["micro"]), span]
        row += [f"{speed:,.0f}", f"{mfu(race, arm):.1%}", f"{last['peak'] / 1e9:.1f}"]
        rows.append([*row, f"{first['first']:.1f}"])
    config = race["model"]
    experts = f", {config['n_experts']} experts, {config['top_k']} per token"
    shape = (
        f"{config['n_layers']} layers, d_model {config['d_model']}, {config['n_heads']} heads, "
        f"vocabulary {config['vocab_size']:,}{experts if config['n_experts'] else ''}; "
        f"{race['tokens_per_step']:,} tokens per optimizer step in sequences of {race['seq']:,}"
    )
    text = f"### {race['shape']}\n\n{shape}.\n\n{markdown(rows, left=1)}"
    if any(arm.get("another_call") for arm in race["arms"].values()):
        text += "\n\n† on the same kind of card, in another call."
    return text


def attention(rows: Sequence[Table]) -> str:
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    table = [["shape", *(name.removesuffix("_ATTENTION").lower() for name in backends)]]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        found = {row["backend"]: row for row in rows if row["shape"] == shape}
        cells = [found[b].get("ms") for b in backends]
        table.append([shape, *(f"{ms:.2f}" if ms else "refused" for ms in cells)])
    return markdown(table, left=1)


def generation(rows: Sequence[Table]) -> str:
    table = [["batch", "model", "tokens/s"]]
    for row in rows:
        for name, times in row["seconds"].items():
            speed = row["batch"] * row["new"] / statistics.median(times)
            table.append([str(row["batch"]), name, f"{speed:,.0f}"])
    return markdown(table, left=2)


def profiles(found: dict[str, Table]) -> str:
    arms = [(f"{s}, {n}", arm) for s, t in found.items() for n, arm in t.items() if "kinds" in arm]
    table = [["ms per optimizer step", *(name for name, _ in arms)]]
    for kind in KINDS:
        table.append([kind, *(f"{arm['kinds'].get(kind, 0):.1f}" for _, arm in arms)])
    table.append(["all", *(f"{arm['ms']:.0f}" for _, arm in arms)])
    return markdown(table, left=1)


def picture(found: dict[str, Table]) -> Figure:
    """A bar per arm, cut into kinds of kernels."""
    arms = [(f"{s}, {n}", arm) for s, t in found.items() for n, arm in t.items() if "kinds" in arm]
    figure = Figure(figsize=(8, 0.42 * len(arms) + 1.5))
    axes = figure.add_subplot()
    left = [0.0] * len(arms)
    for kind, colour in zip(KINDS, (*COLOURS, "#000000"), strict=True):
        shares = [arm["kinds"].get(kind, 0) / arm["ms"] for _, arm in arms]
        axes.barh(range(len(arms)), shares, left=left, color=colour, label=kind)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(arms)), [name for name, _ in arms], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of an optimizer step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=3, fontsize=7, loc="upper center", bbox_to_anchor=(0.45, -0.25))
    return figure


def checks(found: Table) -> str:
    failed = "".join(f"\n- failed: `{name}`: {why}" for name, why in found["failed"].items())
    measured = "".join(
        f"\n- `{test}`: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in values.items())
        for test, values in sorted(found["measured"].items())
    )
    n_failed = len(found["failed"])
    return (
        f"{found['passed']} passed, {n_failed} failed, {found['skipped']} skipped.\n{failed}"
        f"\n\nWhat the tests measured:\n{measured}"
    )


def page(folder: Path) -> str:
    speed = read(folder, "speed-*.json")
    found = [table for table in speed.values() if isinstance(table, dict)]
    races = {table["shape"]: table for table in sorted(found, key=size)}
    about = next(iter(races.values()))["environment"]
    notes = {path.stem: path.read_text().strip() for path in folder.glob("*.txt")}
    profile = dict(sorted(read(folder, "profile-*.json").items()))
    (folder / "profile.svg").write_text(svg(picture(profile), "profile", bbox_inches="tight"))
    parts = [
        "# On one GPU",
        f"{about['device']}, torch {about['torch']}.\nMade "
        "by `benchmarks/gpu.sh` ([how to run it](../gpu.md)) and "
        "`python benchmarks/gpu/report.py docs/results/gpu`.",
        notes.get("summary", ""),
        "## Ratios",
        overview(races),
        "MFU is model FLOPs utilization: the FLOPs of the matrix products per second (PaLM's "
        "count), over the\npublished dense peak of the card. Activations are bfloat16 over float32 "
        "weights; AdamW, clipping to 1.",
        "## Speed",
        *(details(race) for race in races.values()),
        "### Attention\n\nMilliseconds of forward and backward pass, causal, 4 sequences, by "
        "kernel; `default` is\nwhat PyTorch chooses by itself.",
        attention(speed["attention"]),
        *(["### Generation", generation(speed["generation"])] if "generation" in speed else []),
        "## Where a step goes",
        "![Shares of a step](gpu/profile.svg)",
        profiles(profile),
        "## Tests on the card",
        checks(json.loads((folder / "check.json").read_text())),
        notes.get("check", ""),
        "## A study",
        "`placements-47M`, 54 runs in 21 minutes: [what the paper says, what we "
        "measured](paper.md#table-13-at-47m-parameters).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.with_suffix(".md").write_text(page(folder))


if __name__ == "__main__":
    main()
