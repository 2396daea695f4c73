"""A small Vision Transformer on Fashion-MNIST: four placements, three seeds, accuracy and a figure.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion
    python examples/vit.py --data fashion/usr/share/datasets/fashion-mnist --out docs/results/vit

Without `--data` it takes scikit-learn's 1797 digits. For a seed all placements see the same images
in the same order and start from the same matrices; intervals are Student's t, 95%, over seeds.
Copy it: what a model of yours needs of hybridnorm are the two classes in `ViT`.
"""

import argparse
import gzip
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from hybridnorm.nn import TransformerEncoder, TransformerEncoderLayer

PLACEMENTS = ("post-norm", "pre-norm", "hybridnorm", "hybridnorm-star")
SEEDS = (0, 1, 2)
D, LAYERS, HEADS, BATCH = 64, 6, 4, 64
T_95 = 4.303  # Student's t for 3 seeds


class ViT(nn.Module):
    """Images `(batch, side, side)` in patches of `patch` x `patch` to 10 classes."""

    def __init__(self, placement: str, side: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch, D)
        self.positions = nn.Parameter(torch.empty((side // patch) ** 2, D))
        layer = TransformerEncoderLayer(
            D, HEADS, 4 * D, dropout=0.0, activation="gelu", batch_first=True, placement=placement
        )
        self.encoder = TransformerEncoder(layer, LAYERS)  # brings its final norm along
        self.head = nn.Linear(D, 10)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:  # Megatron's: small, and smaller where the stream is written
                writes = name.endswith(("out_proj.weight", "linear2.weight"))
                std = 0.08 / math.sqrt(2 * LAYERS) if writes else 0.08
                nn.init.trunc_normal_(parameter, std=std, a=-3 * std, b=3 * std)

    def forward(self, images: Tensor) -> Tensor:
        patches = F.unfold(images[:, None], self.patch, stride=self.patch).mT
        return self.head(self.encoder(self.embed(patches) + self.positions).mean(1))


def fashion(folder: Path) -> list[Tensor]:
    def read(name: str, header: int) -> Tensor:
        content = gzip.decompress((folder / f"{name}.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())

    found = []
    for part in ("train", "t10k"):
        images = read(f"{part}-images-idx3-ubyte", 16).view(-1, 28, 28).float() / 255
        found += [(images - 0.286) / 0.353, read(f"{part}-labels-idx1-ubyte", 8).long()]
    return found


def digits() -> list[Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float() / 8 - 1
    labels = torch.from_numpy(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return [images[train], labels[train], images[test], labels[test]]


def train(placement: str, seed: int, data: list[Tensor], steps: int, lr: float) -> list[float]:
    """Accuracy on the test images, ten times in a run."""
    images, labels, test_images, test_labels = data
    torch.manual_seed(seed)
    side = images.shape[-1]
    model = ViT(placement, side, side // 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    order = torch.Generator().manual_seed(seed)
    accuracies = []
    for step in range(1, steps + 1):
        warm, left = step / (steps / 10), (steps - step) / (steps * 0.9)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, warm, left)
        batch = torch.randint(len(labels), (BATCH,), generator=order)
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % (steps // 10) == 0:
            with torch.no_grad():
                right = [
                    (model(x).argmax(-1) == y).float()
                    for x, y in zip(test_images.split(1000), test_labels.split(1000), strict=True)
                ]
            accuracies.append(100 * torch.cat(right).mean().item())
    return accuracies


def interval(values: np.ndarray) -> str:
    half = T_95 * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():6.2f}  ({values.mean() - half:.2f} to {values.mean() + half:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of Debian's dataset-fashion-mnist")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("vit"))
    args = parser.parse_args()
    data = fashion(args.data) if args.data else digits()
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="test accuracy, %", title=f"ViT, learning rate {args.lr:g}")
    axes.grid(alpha=0.3)
    steps = args.steps // 10 * np.arange(1, 11)
    lines, base = [], None
    for placement in PLACEMENTS:
        curves = np.array([train(placement, seed, data, args.steps, args.lr) for seed in SEEDS])
        last = curves[:, -1]
        base = last if placement == "pre-norm" else base
        lines.append((placement, last))
        (line,) = axes.plot(steps, curves.mean(0), label=placement)
        axes.fill_between(steps, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.15)
        print(placement, " ".join(f"{accuracy:.2f}" for accuracy in last), flush=True)
    axes.legend()
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "vit.svg", metadata={"Date": None})
    table = ["placement         accuracy, %  (95% interval)  minus pre-norm, paired by seed"]
    for placement, last in lines:
        paired = "" if placement == "pre-norm" else interval(last - base)
        table.append(f"{placement:<16} {interval(last)}    {paired}".rstrip())
    (args.out / "vit.txt").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
