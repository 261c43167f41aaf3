"""Small torch modules with random weights, each with what its forward is called with."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Mobile(nn.Module):
    """Batch norm behind convolutions (folded in ONNX), residual, depthwise, grouped, concatenation, a head behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.project, self.norm3 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.branch = nn.Conv2d(16, 8, 1)
        self.pre = nn.BatchNorm2d(32)
        self.up = nn.ConvTranspose2d(32, 12, 2, stride=2)
        self.slope = nn.PReLU(12)
        self.head = nn.Linear(12 * 4 * 4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.norm3(self.project(F.relu6(self.norm2(self.depthwise(x)))))
        x = F.relu(self.pre(torch.cat([self.grouped(x), self.branch(x)], 1)))
        x = F.adaptive_avg_pool2d(self.slope(self.up(x)), 4)
        return self.head(x.flatten(1))


class Encoder(nn.Module):
    """Torch's own encoder layers, deep copies of each other before they are randomised."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(10, 24)
        layer = nn.TransformerEncoderLayer(24, heads, 40, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.layers(self.embed(x)))


class Attention(nn.Module):
    """Attention with heads by hand: `heads` and `size` are attributes, the scale is a constant of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.scale = 4, 6, 6**-0.5
        self.norm = nn.LayerNorm(20)
        self.qkv, self.out = nn.Linear(20, 3 * 24), nn.Linear(24, 20)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, self.size)).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(2, 3) * self.scale, -1)
        return x + self.out((scores @ v).transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 12, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(24, 10, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.gru(self.lstm(x)[0])[0])


class Tied(nn.Module):
    """One weight for two layers, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(8, 16)
        self.second.weight = self.first.weight
        self.shared, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 4)

    def forward(self, x):
        y = F.relu(self.first(x)) * torch.sigmoid(self.second(x))
        return self.head(self.shared(self.shared(y)))


class Baked(nn.Module):
    """The size of a layer is written into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(x.view(-1, 8))


def randomised(module: nn.Module) -> nn.Module:
    """In evaluation mode, with nothing equal by chance: biases, scales and statistics are random too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if "var" in name else noise - 0.4 if tensor.dim() == 1 else (noise - 0.5) * 0.7)
    return module.eval()


def seeded(*shape: int) -> torch.Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def network(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A module by the name of its class in lower case, and its inputs."""
    module, *shape = {
        "mobile": (Mobile, 2, 3, 8, 8),
        "encoder": (Encoder, 2, 7, 10),
        "attention": (Attention, 2, 7, 20),
        "recurrent": (Recurrent, 2, 7, 6),
        "tied": (Tied, 3, 8),
        "baked": (Baked, 2, 3, 8, 8),
    }[name]
    return randomised(module()), (seeded(*shape),)
