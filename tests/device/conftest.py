"""What a GPU could change, on the GPU where there is one and at the same sizes on the CPU.

    pytest -m slow -W default tests/device --junitxml device.xml -o junit_family=xunit1

What is measured is among the properties in that file. The tests may warn: compilers and drivers
have warnings of their own. Most of the time goes to compilation, one file after the other:
test_device_placements.py and the rest can run at the same time.
"""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> torch.device:
    """CUDA or CPU; float32 means float32 (no TF32). Compiled code is shared by all processes."""
    torch.set_float32_matmul_precision("highest")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _compiled_afresh(device: torch.device) -> Iterator[None]:
    """No test meets the limits on recompilation, or the dynamic shapes, of those before it."""
    yield
    torch._dynamo.reset()
