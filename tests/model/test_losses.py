import torch

from hybridnorm.model.config import ModelConfig
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
    cross_entropy = (
        partition.log() - logits.gather(1, targets[targets != -100][:, None])[:, 0]
    ).mean()
    z = (partition.log() ** 2).mean()
    expected = torch.autograd.grad(cross_entropy + 0.3 * z, list(model.parameters()))

    losses = model.losses(IDS, targets, z_weight=0.3)
    torch.testing.assert_close(losses.cross_entropy, cross_entropy)
    torch.testing.assert_close(losses.z, z)
    actual = torch.autograd.grad(losses.minimized, list(model.parameters()))
    torch.testing.assert_close(actual, expected)
    assert torch.equal(model.loss(IDS, targets), losses.cross_entropy)
    with torch.no_grad():
        assert torch.equal(model.loss(IDS, targets), losses.cross_entropy)


def test_logits_of_ignored_targets_do_not_matter() -> None:
    model = Transformer(CONFIG)
    targets = IDS.clone()
    targets[:, 12:] = -100  # causal: what comes later changes nothing that counts
    other = IDS.clone()
    other[:, 12:] = 0
    for a, b in zip(model.losses(IDS, targets), model.losses(other, targets), strict=True):
        torch.testing.assert_close(a, b)
