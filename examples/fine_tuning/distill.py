"""Train a small network, prune it, bring it back to torch and fine-tune it against the original, without labels.

    python examples/fine_tuning/distill.py

Start reading at `main`.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graphprune

DATA = Path(__file__).parent.parent / "fashion_mnist"
TEMPERATURE = 4.0


class Net(nn.Module):
    """A small residual network for images [n, 1, 28, 28] in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv1, self.norm1 = nn.Conv2d(24, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.conv2, self.norm2 = nn.Conv2d(48, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv3, self.norm3 = nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        logits: Tensor = self.head(F.relu(self.norm3(self.conv3(x))).mean((2, 3)))
        return logits


def load(name: str) -> dict[str, Tensor]:
    """Images as float [n, 1, 28, 28] in 0..1, and labels where the file has them."""
    with np.load(DATA / name) as data:
        arrays = {key: torch.from_numpy(data[key]) for key in data.files}
    return {key: value.reshape(-1, 1, 28, 28).float() / 255 if key == "image" else value.long() for key, value in arrays.items()}


def fit(net: nn.Module, images: Tensor, targets: Tensor, epochs: int, rate: float) -> None:
    """Cross-entropy with class indices, or with the softened outputs of a teacher."""
    soft = targets.is_floating_point()
    wanted = F.softmax(targets / TEMPERATURE, 1) if soft else targets
    descent = torch.optim.Adam(net.parameters(), rate)  # made after pruning: it keeps state in the shapes of the parameters
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            logits = net(images[rows])
            loss = F.cross_entropy(logits / TEMPERATURE if soft else logits, wanted[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()
    net.eval()


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that are classified correctly."""
    return float((net(images).argmax(1) == labels).double().mean())


def main() -> None:
    """Train, prune, go back, fine-tune, save and load."""
    torch.manual_seed(0)
    data, unlabelled = load("eval.npz"), load("calibration.npz")["image"]
    train, test = slice(0, 700), slice(700, None)
    images, labels = data["image"], data["labels"]

    net = Net()
    fit(net, images[train], labels[train], epochs=30, rate=3e-3)
    print(f"original:   {accuracy(net, images[test], labels[test]):.1%} of {len(labels[test])} test images")

    teacher = copy.deepcopy(net)
    example = (images[:2],)
    result = graphprune.prune((net, example), targets="macs=0.3", align=1)
    applied = graphprune.apply_to_torch(net, result, example_inputs=example)
    print(
        f"pruned:     {accuracy(net, images[test], labels[test]):.1%}, {result.after.macs / result.before.macs:.0%} of the MACs"
    )

    seen = torch.cat([unlabelled, images[train]])  # images without their labels
    with torch.inference_mode():
        wanted = teacher(seen)
    fit(net, seen, wanted.clone(), epochs=30, rate=2e-3)
    print(f"fine-tuned: {accuracy(net, images[test], labels[test]):.1%}")

    folder = Path(tempfile.mkdtemp())
    torch.save(net.state_dict(), folder / "pruned.pt")
    (folder / "plan.torch.json").write_text(applied.plan.to_json(), encoding="utf-8")
    state = torch.load(folder / "pruned.pt", weights_only=True)
    again = graphprune.module_from_plan(Net(), folder / "plan.torch.json", state).eval()
    print(f"reloaded:   {accuracy(again, images[test], labels[test]):.1%}")


if __name__ == "__main__":
    main()
