import pytest
import torch
import torch.nn.functional as F

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels import cross_entropy
from hybridnorm.model.kernels.chunks import chunk_rows
from hybridnorm.model.kernels.cross_entropy import linear_cross_entropy
from hybridnorm.model.transformer import Transformer

CONFIG = ModelConfig(d_model=32, n_layers=2, d_ff=64, vocab_size=50, tie_embeddings=False)
IDS = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))


def test_cross_entropy_and_z_against_their_formulas() -> None:
    """The z term as in PaLM (arXiv 2204.02311, section 5); ignored targets are left out."""
    model = Transformer(CONFIG).double()
    model.dtype = torch.float64
    targets = IDS.roll(-1, 1)
    targets[:, -1] = -100
    targets[0, 3:9] = -100

    logits = model(IDS)[targets != -100]
    partition = logits.exp().sum(-1)
    nats = (partition.log() - logits.gather(1, targets[targets != -100][:, None])[:, 0]).mean()
    z = (partition.log() ** 2).mean()
    expected = torch.autograd.grad(nats + 0.3 * z, list(model.parameters()))

    losses = model.losses(IDS, targets, z_weight=0.3)
    torch.testing.assert_close(losses.cross_entropy, nats)
    torch.testing.assert_close(losses.z, z)
    actual = torch.autograd.grad(losses.total, list(model.parameters()))
    torch.testing.assert_close(actual, expected)
    assert torch.equal(model.loss(IDS, targets), losses.cross_entropy)
    with torch.no_grad():
        assert torch.equal(model.loss(IDS, targets), losses.cross_entropy)


@pytest.mark.filterwarnings("ignore")  # the compiler has warnings of its own
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [1, 300])  # of the logits; in the second, exponentials underflow
def test_chunks_add_up(size: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch's own cross-entropy of all logits, whose gradient autograd takes."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        (size**0.5 * torch.randn(n, 16, generator=generator).double()).requires_grad_()
        for n in (37, 50)
    )
    targets = torch.randint(50, (37,), generator=generator)
    targets[3:7] = -100
    logits = hidden @ weight.T
    loss = F.cross_entropy(logits, targets)
    z = logits[targets != -100].logsumexp(-1).square().mean()
    expected = torch.autograd.grad((loss + 0.1 * z) / 3, (hidden, weight))
    for rows in (37, 10, 1):
        monkeypatch.setattr(cross_entropy, "chunk_rows", lambda n, vocab, device, rows=rows: rows)
        with torch.compiler.set_stance("force_eager"):  # what would be compiled, without the wait
            total, *parts = linear_cross_entropy(
                hidden, weight, targets, z_weight=0.1, compiled=compiled
            )
        torch.testing.assert_close(parts, [loss, z])
        actual = torch.autograd.grad(total / 3, (hidden, weight))
        torch.testing.assert_close(actual, expected)


def test_chunks_are_equal_and_bounded() -> None:
    assert chunk_rows(4096, 4096) == 2048 * 2
    assert chunk_rows(2048, 50304) == 512
    assert chunk_rows(2048, 50304, "cuda") == 2048
    assert chunk_rows(1, 2**26) == 1


def test_logits_of_ignored_targets_do_not_matter() -> None:
    model = Transformer(CONFIG)
    targets = IDS.clone()
    targets[:, 12:] = -100  # causal: what comes later changes nothing that counts
    other = IDS.clone()
    other[:, 12:] = 0
    for a, b in zip(model.losses(IDS, targets), model.losses(other, targets), strict=True):
        torch.testing.assert_close(a, b)
