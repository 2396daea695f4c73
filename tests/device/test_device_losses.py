"""Output matrix and cross-entropy in one, against PyTorch's cross-entropy in float64."""

import pytest
import torch
import torch.nn.functional as F

from authors import relative
from hybridnorm.model.kernels import cross_entropy
from hybridnorm.model.kernels.cross_entropy import linear_cross_entropy

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

# Logits of a bfloat16 product are off by 2^-9 of their size.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("n_tokens", "vocab_size", "rows"), [(74, 83, 37), (512, 50_257, 256)])
def test_losses_and_gradients(
    n_tokens: int,
    vocab_size: int,
    rows: int,
    dtype: torch.dtype,
    compiled: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In two chunks, a third of the targets ignored, with a z-loss."""
    if device.type == "cpu" and n_tokens == 512:
        pytest.skip("a large vocabulary takes long on a CPU")
    monkeypatch.setattr(cross_entropy, "chunk_rows", lambda n, vocab, device: rows)
    random = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(n, 64, generator=random).div(scale).to(dtype).to(device)
        for n, scale in ((n_tokens, 1), (vocab_size, 4))
    )
    targets = torch.randint(vocab_size, (n_tokens,), generator=random).to(device)
    targets[::3] = -100

    plain = [x.double().requires_grad_() for x in (hidden, weight)]
    logits = plain[0] @ plain[1].T
    loss = F.cross_entropy(logits, targets)
    z = logits[targets != -100].logsumexp(-1).square().mean()
    expected = torch.autograd.grad(loss + 1e-2 * z, plain)

    ours = [hidden.requires_grad_(), weight.float().requires_grad_()]
    total, *parts = linear_cross_entropy(*ours, targets, z_weight=1e-2, compiled=compiled)
    found = torch.autograd.grad(total, ours)
    assert (found[0].dtype, found[1].dtype) == (dtype, torch.float32)
    for actual, precise in zip((*parts, *found), (loss, z, *expected), strict=True):
        assert relative(actual, precise) < TOLERANCE[dtype]
    assert not found[0][::3].any()
