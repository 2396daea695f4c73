"""Preparation beside the `tokenizers` library called directly, and its memory.

    python benchmarks/prepare.py speed --megabytes 40 --rounds 5
    python benchmarks/prepare.py memory --megabytes 50 100 200

Speed: the library gets the text as lists in memory and its own threads; preparation reads JSON
lines, hashes, tokenizes, writes and checks. The two take turns, and the table gives medians:
of the wall clock, and of the CPU time of all processes, which a busy machine distorts less.
Memory: the peak resident memory of the parent and of its workers, for inputs of several sizes.
"""

import argparse
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hybridnorm.data.config import PrepareConfig
from hybridnorm.data.prepare.documents import Tally, documents
from hybridnorm.data.prepare.folder import prepare_folder
from hybridnorm.data.prepare.inputs import cut_units
from hybridnorm.data.prepare.pool import cores
from hybridnorm.data.prepare.sources import find_sources
from hybridnorm.data.tokenizer import load_tokenizer, train_bpe

CONSOLE = Console(width=120)
QUIET = Console(quiet=True)
DIRECT_BATCH = 10_000  # documents; all at once would need gigabytes


def demo_texts() -> list[str]:
    units = cut_units(find_sources(["demo"]).sources)
    return [d.text for unit in units for d in documents(unit, PrepareConfig(), Tally())]


def write_corpus(path: Path, texts: list[str], megabytes: int) -> None:
    """The demo documents again and again, each time in another order, as JSON lines."""
    order = random.Random(0)
    left = megabytes * 1_000_000
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            for text in order.sample(texts, len(texts)):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                left -= len(text.encode())
                if left <= 0:
                    break


def speed(folder: Path, megabytes: int, rounds: int, vocab_size: int) -> None:
    texts = demo_texts()
    corpus, tokenizer_folder = folder / "corpus.jsonl", folder / "tokenizer"
    write_corpus(corpus, texts, megabytes)
    tokenizer_folder.mkdir()
    train_bpe(texts, vocab_size).save(tokenizer_folder)
    loaded = load_tokenizer(tokenizer_folder)
    with corpus.open(encoding="utf-8") as file:
        in_memory = [json.loads(line)["text"] for line in file]
    size = sum(len(text.encode()) for text in in_memory) / 1e6
    config = PrepareConfig(tokenizer=str(tokenizer_folder))
    numbers = itertools.count()

    def direct() -> None:
        for start in range(0, len(in_memory), DIRECT_BATCH):
            batch = in_memory[start : start + DIRECT_BATCH]
            loaded.tokenizer.encode_batch_fast(batch, add_special_tokens=False)  # type: ignore[attr-defined]

    def ours() -> None:
        out = folder / f"out-{next(numbers)}"
        found = find_sources([str(corpus)])
        prepare_folder(found, out, config, workers=cores(), console=QUIET)

    contenders: dict[str, Callable[[], None]] = {
        "tokenizers.encode_batch_fast": direct,
        "hybridnorm prepare": ours,
    }
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start, cpu_start = time.perf_counter(), cpu_seconds()
            run()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(cpu_seconds() - cpu_start)
    table = Table(
        title=f"{size:.0f} MB of text, {cores()} cores, vocabulary {vocab_size}, {rounds} rounds"
    )
    for heading in ("", "wall s", "range", "MB/s", "of library", "CPU s", "of library"):
        table.add_column(heading, justify="right" if heading else "left")
    library = next(iter(contenders))
    for name in contenders:
        row = []
        for found in (wall, cpu):
            seconds, reference = (statistics.median(found[n]) for n in (name, library))
            row += [f"{seconds:.2f}"]
            if found is wall:
                row += [f"{min(wall[name]):.2f}-{max(wall[name]):.2f}", f"{size / seconds:.2f}"]
            row += [f"{reference / seconds:.0%}"]
        table.add_row(name, *row)
    CONSOLE.print(table)


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_memory(command: list[str]) -> tuple[float, list[float]]:
    """Peak resident megabytes of a process and of each of its children (Linux)."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for pid in [process.pid, *children(process.pid)]:
            peaks[pid] = max(peaks.get(pid, 0), resident_peak(pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return peaks.pop(process.pid), list(peaks.values())


def children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def resident_peak(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(next(found, "0")) / 1000


def memory(folder: Path, sizes: list[int], vocab_size: int) -> None:
    table = Table(title=f"Peak resident MB, {cores()} workers, tokenizer trained on the input")
    for heading in ("input MB", "parent", "workers", "all together"):
        table.add_column(heading, justify="right")
    texts = demo_texts()
    for size in sizes:
        corpus = folder / f"{size}.jsonl"
        write_corpus(corpus, texts, size)
        command = [sys.executable, "-m", "hybridnorm", "prepare", str(corpus), "--dedup"]
        command += ["--out", str(folder / f"out-{size}"), "--tokenizer-vocab-size", str(vocab_size)]
        parent, workers = peak_memory([*command, "--tokenizer-train-bytes", "20000000"])
        workers = sorted(workers)[-cores() :]
        row = [f"{parent:.0f}", ", ".join(f"{w:.0f}" for w in workers)]
        table.add_row(f"{corpus.stat().st_size / 1e6:.0f}", *row, f"{parent + sum(workers):.0f}")
    CONSOLE.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--megabytes", type=int, nargs="+", default=[40])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "speed":
            speed(Path(folder), args.megabytes[0], args.rounds, args.vocab_size)
        else:
            memory(Path(folder), args.megabytes, args.vocab_size)


if __name__ == "__main__":
    main()
