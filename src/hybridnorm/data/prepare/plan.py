"""What determines the content of a prepared folder, and who may write it."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridnorm.data.config import DataConfig, PrepareConfig
from hybridnorm.data.manifest import MANIFEST, VERSION, WORK, checksum, read_manifest, remedy
from hybridnorm.data.prepare.sources import Found
from hybridnorm.data.tokenizer import load_tokenizer, tokenizer_file
from hybridnorm.errors import HybridNormError, check_unused
from hybridnorm.files import read_json
from hybridnorm.processes import lock

PLAN = "plan.json"


def make_plan(found: Found, config: PrepareConfig) -> dict[str, Any]:
    """Everything that determines the content.

    Raises:
        HybridNormError: an input or the tokenizer cannot be read, or a setting has no effect.
    """
    # Corrupt lines are no part of it: units without any are the same whether they are fatal.
    names = {f.name for f in fields(PrepareConfig)} - {"bad_lines"}
    settings = {name: getattr(config, name) for name in sorted(names)}
    if config.tokenizer not in ("bpe", "byte"):
        path = Path(config.tokenizer)
        settings["end_of_document"] = load_tokenizer(path, config.end_of_document).end_of_document
        settings["tokenizer"] = checksum(tokenizer_file(path))
    held_out = [str(source.path) for source in found.sources if source.split == "validation"]
    if held_out:
        check_unused(config, f"beside {held_out[0]}, which is held out", "validation_fraction")
    settings["validation"] = held_out or None
    try:
        stats = [(path, path.stat()) for source in found.sources for path in source.files]
    except OSError as error:
        raise HybridNormError(f"cannot read {error.filename}: {error.strerror}") from None
    inputs = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    return {"version": VERSION, **settings, "inputs": inputs}


def name_of(config: DataConfig, plan: dict[str, Any]) -> str:
    """A readable name and a hash of everything that determines the content."""
    kind = Path(config.tokenizer).stem
    size = config.tokenizer_vocab_size if config.tokenizer == "bpe" else ""
    digest = hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:8]
    stem = "".join(c if c.isalnum() else "-" for c in Path(config.source).stem)
    return f"{stem}-{kind}{size}-{digest}"


@contextlib.contextmanager
def claimed(out: Path, plan: dict[str, Any], console: Console) -> Iterator[None]:
    """Hold the folder against other processes; refuse one that holds something else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
        raise HybridNormError(f"cannot write {out}: {reason}; name another folder") from None
    held = os.open(out, os.O_RDONLY)
    try:
        if not lock(held):
            line = f"waiting for another process that prepares {out}"
            console.print(line, soft_wrap=True, markup=False)
            fcntl.flock(held, fcntl.LOCK_EX)
        if (out / MANIFEST).exists():
            _check_same(out, read_manifest(out).plan, plan)
        elif (out / WORK / PLAN).exists():
            _check_same(out, _unfinished(out), plan)
        elif any(child.name != WORK for child in out.iterdir()):
            raise HybridNormError(
                f"{out} is not empty and not a prepared folder; name another, or delete it"
            )
        yield
    finally:
        os.close(held)


def _unfinished(out: Path) -> dict[str, Any]:
    try:
        return read_json(out / WORK / PLAN)
    except HybridNormError as error:
        raise HybridNormError(f"{error}; {remedy(out)}") from None


def _check_same(out: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    if different := [name for name in plan if found.get(name) != plan[name]]:
        raise HybridNormError(
            f"{out} holds another preparation (other {', '.join(different)}); name another folder "
            "or delete it"
        )
