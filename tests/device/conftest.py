"""What a GPU could change, on the GPU where there is one and at the same sizes on the CPU.

    pytest -m slow -W default tests/device --junitxml device.xml -o junit_family=xunit1

What is measured is among the properties in that file. The tests may warn: compilers and drivers
have warnings of their own. Most of the time goes to compilation, one file after the other:
test_device_placements.py and the rest can run at the same time.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Compiled code is shared by the processes of the tests, and the next time.
_CACHE = Path(tempfile.gettempdir()) / f"hybridnorm-inductor-{torch.__version__}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_CACHE))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CUDA or CPU; float32 means float32 (no TF32)."""
    torch.set_float32_matmul_precision("highest")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _compiled_afresh(device: torch.device) -> Iterator[None]:
    """No test meets the limits on recompilation, or the dynamic shapes, of those before it."""
    yield
    torch._dynamo.reset()
