"""Text to a folder of token shards, in parallel, restartable, the same whatever the workers.

prepared/demo-bpe4096-1a2b3c4d/manifest.json     written last: dtype, counts, checksums, tokenizer
prepared/demo-bpe4096-1a2b3c4d/train-00000.bin   token ids, little-endian, documents end to end
prepared/demo-bpe4096-1a2b3c4d/tokenizer.json
prepared/demo-bpe4096-1a2b3c4d/unfinished/       while it is made: the plan, and a record per unit
"""

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hybridnorm.data.config import DataConfig, PrepareConfig
from hybridnorm.data.manifest import (
    MANIFEST,
    SEAL,
    SPLITS,
    WORK,
    Manifest,
    Split,
    read_manifest,
    report,
    write_manifest,
)
from hybridnorm.data.prepare.documents import Tally
from hybridnorm.data.prepare.inputs import Unit, cut_units, size_of
from hybridnorm.data.prepare.plan import PLAN, claimed, make_plan, name_of
from hybridnorm.data.prepare.pool import cores, mapped
from hybridnorm.data.prepare.progress import PrepareProgress
from hybridnorm.data.prepare.shards import (
    Job,
    Record,
    digest_unit,
    read_record,
    tokenize_unit,
)
from hybridnorm.data.prepare.sources import Found, find_sources
from hybridnorm.data.prepare.summary import located, manifest_of
from hybridnorm.data.prepared import Prepared, open_prepared
from hybridnorm.data.tokenizer import (
    BYTE,
    CONFIG,
    JSON,
    ByteTokenizer,
    load_tokenizer,
    tokenizer_file,
    train_bpe,
)
from hybridnorm.errors import HybridNormError
from hybridnorm.files import write_whole

_PARTIAL = ".*.partial"  # what a kill leaves of a file that is written whole


def open_data(config: DataConfig, *, console: Console) -> Prepared:
    """The prepared folders of a recipe; its source is prepared if it is not yet.

    Raises:
        HybridNormError: a missing or corrupt source, tokenizer or prepared folder, no text in a
            split, or a cache that cannot be written.
    """
    if config.prepared:
        return open_prepared([Path(folder) for folder in config.prepared], config.weights)
    found = find_sources([config.source], config.validation)
    folder = Path(config.cache) / name_of(config, make_plan(found, config))
    known = (folder / MANIFEST).exists()
    manifest = prepare_folder(found, folder, config, workers=cores(), console=console)
    if not known:
        console.print(report(folder, manifest))
    return open_prepared([folder])


def prepare_folder(
    found: Found, out: Path, config: PrepareConfig, *, workers: int, console: Console
) -> Manifest:
    """Prepare what was `found` into the folder `out`, or go on where that was left off.

    Returns:
        The folder's manifest.

    Raises:
        HybridNormError: bad input, a folder that holds something else, or a disk that cannot be
            written.
    """
    plan = make_plan(found, config)
    try:
        with claimed(out, plan, console):
            if not (out / MANIFEST).exists():
                _make(found, out, config, plan, workers, console)
            shutil.rmtree(out / WORK, ignore_errors=True)  # a kill may have left it
        manifest = read_manifest(out)
    except OSError as error:
        raise HybridNormError(
            f"cannot write {out}: {error.strerror}; what is finished is kept, and the same command "
            "continues"
        ) from None
    if config.bad_lines == "fail" and (lines := manifest.counts.first_corrupt):
        raise _fatal(lines[0])
    return manifest


def _make(
    found: Found,
    out: Path,
    config: PrepareConfig,
    plan: dict[str, Any],
    workers: int,
    console: Console,
) -> None:
    work = out / WORK
    work.mkdir(exist_ok=True)
    for left in (*work.glob("*.part"), *work.glob(_PARTIAL), *out.glob(_PARTIAL)):
        left.unlink()
    write_whole(work / PLAN, json.dumps(plan, indent=1))
    if len(found.sources) > 1 or found.passed_over:
        for line in found.lines():
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    try:
        units = cut_units(found.sources)
        with PrepareProgress(console) as progress:
            repeated = _repeated(units, config, workers, progress)
            jobs = [Job(*job) for job in zip(itertools.count(), units, repeated)]
            jobs = _with_both_splits(jobs, config)
            _save_tokenizer(out, jobs, config, progress)
            records = _tokenize(out, jobs, config, workers, progress)
    except HybridNormError:
        if not any(work.glob("[0-9]*.json")):
            _discard(out)  # nothing to continue
        raise
    for split in SPLITS:
        if not any(split in record.shards for record in records):
            _discard(out)  # to go on would end here again
            raise _empty(split, plan["inputs"][0][0] if plan["inputs"] else out.name)
    write_manifest(out, manifest_of(out, plan, records))


def _discard(out: Path) -> None:
    """Delete what preparation made. What says whose folder this is goes last, in case of a kill."""
    made = (f"{split}-*.bin" for split in SPLITS)
    for pattern in (*made, JSON, CONFIG, BYTE, SEAL, _PARTIAL):
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)
    shutil.rmtree(out / WORK, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
        out.rmdir()


def _repeated(
    units: Sequence[Unit], config: PrepareConfig, workers: int, progress: PrepareProgress
) -> list[bytes]:
    """For each unit, a byte per document: whether an equal one came before."""
    if not config.dedup or not units:
        return [b""] * len(units)
    found = []
    with mapped(partial(digest_unit, config), units, workers) as results:
        for unit_digests, tally in progress.follow("looking for duplicates", units, results):
            refuse_corrupt(tally, config)
            found.append(unit_digests)
    ends = np.cumsum([len(part) for part in found])
    digests = np.concatenate(found)
    found.clear()  # tens of millions of documents are hundreds of megabytes
    repeated = np.ones(len(digests), dtype=bool)
    parts = digests.view(np.uint8)[::16] >> 4  # sorted part by part, which takes less memory
    for part in range(16):
        places = np.flatnonzero(parts == part)
        repeated[places[np.unique(digests[places], return_index=True)[1]]] = False
    return [part.tobytes() for part in np.split(repeated, ends[:-1])]


def _with_both_splits(jobs: list[Job], config: PrepareConfig) -> list[Job]:
    """The jobs; where the hashes leave a split empty, the last one with text holds out its end.

    Looks no further than the first document on each side.

    Raises:
        HybridNormError: a split whose inputs were named is empty.
    """
    sides, last = set[bool](), 0
    for job in jobs:
        for document in job.documents(config, Tally()):
            sides.add(document.held_out)
            last = job.number
            if job.sides <= sides:
                break
        if len(sides) == 2:
            return jobs
    pieces = [piece for job in jobs for piece in job.unit if piece.split]
    if pieces:
        missing: Split = "train" if True in sides else "validation"
        path = next((piece.path for piece in pieces if piece.split == missing), pieces[0].path)
        raise _empty(missing, path)
    return [job._replace(holds_tail=job.number == last) for job in jobs]


def _save_tokenizer(
    out: Path, jobs: Sequence[Job], config: PrepareConfig, progress: PrepareProgress
) -> None:
    if tokenizer_file(out).exists():
        return
    if config.tokenizer == "byte":
        ByteTokenizer().save(out)
    elif config.tokenizer == "bpe":
        train_bpe(_sample(jobs, config, progress), config.tokenizer_vocab_size).save(out)
    else:
        load_tokenizer(Path(config.tokenizer), config.end_of_document).save(out)


def _sample(jobs: Sequence[Job], config: PrepareConfig, progress: PrepareProgress) -> Iterator[str]:
    """Training documents up to the limit: the first ones of every unit, by its size."""
    units = [job.unit for job in jobs]
    total = sum(map(size_of, units))
    for job in progress.follow("training the tokenizer", units, jobs):
        left = config.tokenizer_train_bytes * size_of(job.unit) / total
        tally = Tally()
        for document in job.documents(config, tally):
            if left <= 0:
                break
            if not document.held_out:
                left -= len(document.text.encode())
                yield document.text
        refuse_corrupt(tally, config)


def _tokenize(
    out: Path,
    jobs: Sequence[Job],
    config: PrepareConfig,
    workers: int,
    progress: PrepareProgress,
) -> list[Record]:
    """The record of every unit; those found intact are not made again."""
    records = {job.number: record for job in jobs if (record := read_record(out, job.number))}
    missing = [job for job in jobs if job.number not in records]
    for record in records.values():
        refuse_corrupt(record.tally, config)
    with mapped(partial(tokenize_unit, out, config), missing, workers) as results:
        units = [job.unit for job in missing]
        for job, record in zip(missing, progress.follow("tokenizing", units, results), strict=True):
            refuse_corrupt(record.tally, config)
            records[job.number] = record
    return [records[job.number] for job in jobs]


def refuse_corrupt(tally: Tally, config: PrepareConfig) -> None:
    """Raise `HybridNormError` naming the first corrupt line, where such lines are fatal."""
    if config.bad_lines == "fail" and tally.corrupt:
        raise _fatal(located(tally)[0])


def _fatal(line: str) -> HybridNormError:
    return HybridNormError(f"{line}; bad_lines = skip passes over such lines")


def _empty(split: Split, source: str) -> HybridNormError:
    return HybridNormError(f"{source}: the {split} split is empty; add text")
