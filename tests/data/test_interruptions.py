"""Preparation killed, out of disk, or started twice: the same bytes as undisturbed."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from processes import children, linux, wait_for_end


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second or two of work in half a dozen units."""
    words = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("large") / "large.jsonl"
    with path.open("w") as file:
        for _ in range(4000):
            text = " ".join(f"w{n}" for n in words.zipf(1.3, 300) % 9000)
            file.write(json.dumps({"text": text}) + "\n")
    return path


COMMON = ("--tokenizer-vocab-size", "400", "--tokenizer-train-bytes", "200000", "--workers", "2")


def start(source: Path, out: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hybridnorm", "prepare", str(source), "--out", str(out)]
    return subprocess.Popen(
        [*command, *COMMON],
        stdout=-1,
        stderr=-1,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def finish(source: Path, out: Path) -> str:
    process = start(source, out)
    output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return output


@pytest.fixture(scope="module")
def undisturbed(large: Path) -> dict[str, bytes]:
    output = finish(large, large.parent / "undisturbed")
    assert "documents" in output and "4,000" in output
    return content(large.parent / "undisturbed")


def records(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "unfinished").glob("[0-9]*.json")}


def wait_for_records(process: subprocess.Popen[str], out: Path, number: int) -> dict[str, int]:
    while len(found := records(out)) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


@linux
def test_killed_and_started_again(
    large: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(large, out)
    wait_for_records(process, out, 2)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for_end(workers)
    kept = records(out)
    assert len(kept) >= 2 and not (out / "manifest.json").exists()
    stamps = {p: p.stat().st_mtime_ns for n in kept for p in out.glob(f"*-{Path(n).stem}.bin")}
    broken = next(iter(out.glob("train-*.bin")))
    broken.write_bytes(b"a half-written shard")
    finish(large, out)
    assert content(out) == undisturbed
    redone = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert {path.stem[-5:] for path in redone} == {broken.stem[-5:]}


@linux
def test_a_killed_worker_is_one_line_and_the_same_command_continues(
    large: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(large, out)
    wait_for_records(process, out, 1)
    # The first child is Python's resource tracker, the last one a worker.
    os.kill(max(children(process.pid)), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker process was killed" in error
    assert error.count("\n") == 1
    finish(large, out)
    assert content(out) == undisturbed


def test_a_full_disk_is_one_line_and_the_same_command_continues(
    large: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def limit() -> None:
        # The kernel refuses to write more, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = start(large, out, preexec_fn=limit)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1 and error.startswith(f"hybridnorm: cannot write {out}: ")
    assert error.count("\n") == 1 and not (out / "manifest.json").exists()
    finish(large, out)
    assert content(out) == undisturbed


def test_two_processes_at_once_prepare_once(
    large: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    processes = [start(large, tmp_path / "out") for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("waiting for another process" in output for output, _ in outputs) == 1
    assert content(tmp_path / "out") == undisturbed
