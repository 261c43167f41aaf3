"""A small network in PaddlePaddle."""

from __future__ import annotations

import paddle
from paddle import nn


class Small(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(3, 8, 3)
        self.conv2 = nn.Conv2D(8, 12, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        y = nn.functional.relu(self.conv2(nn.functional.relu(self.conv1(x))))
        return self.head(paddle.mean(y, [2, 3]))
