"""What a training process sets before torch is imported. No torch."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from hybridnorm.processes import end_with_starter
from hybridnorm.recipe import TrainConfig

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def set_up_process(config: TrainConfig) -> None:
    """End with the study or torchrun; keep what is needed again: memory, and compiled code.

    A training step frees the tensors that the next one takes again. glibc gives large ones back to
    the system, and taking them again, page by page, is up to a third of a step.
    """
    end_with_starter()
    with contextlib.suppress(OSError, RuntimeError):  # no home that can be written: torch's default
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = home / "hybridnorm" / "torchinductor"
        cache.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    if config.allocator == "keep" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in musl
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
