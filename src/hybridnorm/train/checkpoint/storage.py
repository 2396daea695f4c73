"""Checkpoints: torch.distributed.checkpoint in safetensors files, complete or absent.

    checkpoints/step-00000100/*.safetensors    weights and optimizer state; no pickle anywhere
    checkpoints/step-00000100/checkpoint.json  step, what the run was, a checksum per file
    checkpoints/step-00000100/checkpoint.sha256    the checksum of checkpoint.json

Every rank writes what it holds, under a temporary name; then the files are flushed to the disk and
the folder is renamed. A kill at any moment leaves the previous checkpoint untouched. Any number of
ranks, in any layout, reads what another wrote.
"""

import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hybridnorm.data import checksum
from hybridnorm.errors import HybridNormError, in_a_line
from hybridnorm.files import read_json, read_text, write_whole
from hybridnorm.train.checkpoint.retention import FOLDER, META, clear_partial, partial_path, prune
from hybridnorm.train.optim import Optimizers, optimizer_state
from hybridnorm.train.world import World

State = dict[str, Tensor]
_SUFFIX = ".safetensors"
_META_CHECKSUM = "checkpoint.sha256"


def training_state(model: nn.Module, optimizer: Optimizers | None) -> State:
    """The tensors to save or to load into: weights, and optimizer state by parameter name."""
    weights = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    return {**weights, **(optimizer_state(model, optimizer) if optimizer else {})}


class CheckpointWriter:
    """Writes the checkpoints of a run, in the background if asked, and drops superseded ones."""

    def __init__(
        self, run_dir: Path, world: World, *, keep: int, keep_every: int | None, background: bool
    ) -> None:
        self.run_dir, self.keep, self.keep_every = run_dir, keep, keep_every
        self.world = world.with_own_group() if background else world
        self._thread = ThreadPoolExecutor(1) if background else None
        self._pending: Future[None] | None = None
        world.on_main(lambda: clear_partial(run_dir))

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """However the run ends, no thread writes on; what ended it is what the user hears."""
        with suppress(HybridNormError) if error else nullcontext():
            self.finish()

    def write(self, step: int, state: State, meta: dict[str, Any]) -> None:
        """Save `state` as it is now; a background write copies it first.

        Raises:
            HybridNormError: this or the previous checkpoint cannot be written.
        """
        self.finish()
        if self._thread is None:
            self._write(step, state, meta)
        else:
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
            self._pending = self._thread.submit(self._write, step, copies, meta)

    def finish(self) -> None:
        """Wait for the background write; raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, state: State, meta: dict[str, Any]) -> None:
        save_checkpoint(self.run_dir, step, state, meta, self.world)
        self.world.on_main(lambda: prune(self.run_dir, self.keep, self.keep_every))


def save_checkpoint(
    run_dir: Path, step: int, state: State, meta: dict[str, Any], world: World
) -> Path:
    """Write `state` and `meta` as the checkpoint of `step`; complete or absent.

    Raises:
        HybridNormError: the disk is full or not writable; earlier checkpoints are intact.
    """
    target = run_dir / FOLDER / f"step-{step:08d}"
    partial = partial_path(target)

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def flush() -> dict[str, str]:
        mine = sorted(partial.iterdir())[world.rank :: world.size]
        for path in mine:
            _flush(path)
        return {path.name: checksum(path) for path in mine}

    def publish(checksums: list[dict[str, str]]) -> None:
        files = {name: digest for part in checksums for name, digest in part.items()}
        record = {**meta, "step": step, "files": dict(sorted(files.items()))}
        write_whole(partial / META, json.dumps(record, indent=1))
        write_whole(partial / _META_CHECKSUM, checksum(partial / META))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _flush(target.parent)

    try:
        world.on_main(begin)
        with _quiet_single_process():
            writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
            save(
                state,
                storage_writer=writer,
                process_group=world.group,
                no_dist=world.mesh is None,
            )
        checksums = world.gather(flush)
        world.on_main(lambda: publish(checksums))
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise HybridNormError(
            f"checkpoint: cannot write {target}: {_root_cause(error)}; "
            "earlier checkpoints are intact: make room and continue with --resume"
        ) from None
    return target


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """What `checkpoint.json` says, after every file's checksum was verified.

    Raises:
        HybridNormError: a file is missing or damaged; it is named.
    """
    path = checkpoint / META
    try:
        meta = read_json(path)
        if read_text(checkpoint / _META_CHECKSUM) != checksum(path):
            raise HybridNormError(f"{path} is damaged (wrong checksum)")
        for name, digest in _files(checkpoint, meta).items():
            path = checkpoint / name
            if not path.is_file():
                raise HybridNormError(f"{path} is missing")
            if checksum(path) != digest:
                raise HybridNormError(f"{path} is damaged (wrong checksum)")
    except OSError as error:
        raise HybridNormError(f"checkpoint: {path}: cannot read: {error.strerror}") from None
    except HybridNormError as error:
        raise HybridNormError(f"checkpoint: {error}") from None
    return meta


def _files(checkpoint: Path, meta: dict[str, Any]) -> dict[str, str]:
    """The checksums of its files, of which none is outside of it.

    Raises:
        HybridNormError: this is not the content of a checkpoint.json.
    """
    files = meta.get("files")
    step = int(checkpoint.name.rpartition("-")[2])
    if not isinstance(files, dict) or meta.get("step") != step:
        raise HybridNormError(f"{checkpoint / META} is damaged: not the record of step {step}")
    if strange := [name for name in files if Path(name).name != name or not name.endswith(_SUFFIX)]:
        raise HybridNormError(f"{checkpoint / META} is damaged: it lists {strange[0]!r}")
    return files


def load_checkpoint(checkpoint: Path, state: State, world: World | None = None) -> None:
    """Fill the tensors of `state` in place, resharding where the layout differs.

    Raises:
        HybridNormError: the checkpoint is damaged, or holds other tensors, or of other shapes.
    """
    reader, state = _open(checkpoint, state)
    try:
        with _quiet_single_process():
            load(state, storage_reader=reader, no_dist=world is None or world.mesh is None)
    except (CheckpointException, SafetensorError) as error:
        raise HybridNormError(f"{checkpoint}: cannot load: {_root_cause(error)}") from None


def check_tensors(checkpoint: Path, state: State) -> None:
    """Raise `HybridNormError` unless `load_checkpoint` can fill `state`, which may be on meta."""
    _open(checkpoint, state)


def _open(checkpoint: Path, state: State) -> tuple[HuggingFaceStorageReader, State]:
    """A reader of the files that checkpoint.json lists, and `state` by the names in them."""
    reader = HuggingFaceStorageReader(str(checkpoint))
    reader.fs = _Listed(read_json(checkpoint / META)["files"])
    try:
        found: dict[str, Any] = reader.read_metadata().state_dict_metadata
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HybridNormError(f"{checkpoint}: is damaged: {_root_cause(error)}") from None
    if not any(name.startswith("optimizer.") for name in state):
        found = {name: tensor for name, tensor in found.items() if name.startswith("model.")}
    if unlike := found.keys() ^ state.keys():
        name = min(unlike)
        what = "has" if name in found else "lacks"
        raise HybridNormError(
            f"{checkpoint}: {what} the tensor {name!r}; it is of another model or optimizer"
        )
    for name, tensor in state.items():
        if (shape := found[name].size) != tensor.shape:
            raise HybridNormError(
                f"{checkpoint}: {name!r} is {tuple(shape)}, not {tuple(tensor.shape)}"
            )
    return reader, state


class _Listed(FileSystem):
    """Sees those of a folder's files that it was told of."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [file for file in super().ls(path) if Path(file).name in self.names]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _root_cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return in_a_line(error)


@contextmanager
def _quiet_single_process() -> Iterator[None]:
    """torch warns that a single process saves alone, which is what we asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
