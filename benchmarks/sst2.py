"""Train a small transformer encoder on SST-2, prune its blocks to 0.7 of their MACs, and compare accuracy on the dev set.

    python benchmarks/sst2.py FOLDER_WITH_TSV [OUTPUT_FOLDER] [--target 0.7] [--recipe balanced]

FOLDER_WITH_TSV has `sst2_train.tsv` and `sst2_dev.tsv` (sentence, tab, label).  Words are the vocabulary.  Calibration: 2,048
training sentences, no labels.  Needs torch and onnxscript.  Start reading at `main`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import train

import graphprune
from graphprune.evaluation import accuracy

LENGTH, WIDTH, HEADS, LAYERS, WORDS, CALIBRATION = 32, 128, 4, 3, 12000, 2048


class Encoder(nn.Module):
    """Embedding, pre-norm blocks, mean over the words, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x, there = self.words(tokens) + self.places, (tokens > 0).float()[:, :, None]
        for block in self.blocks:
            x = block(x, there)
        return self.head((self.norm(x) * there).sum(1) / there.sum(1))


class Block(nn.Module):
    """Attention and a GELU network."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down, self.drop = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.2)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        y = self.one(x)
        q, k, v = (part(y).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + (there[:, None, None, :, 0] - 1) * 1e4).softmax(3)
        x = x + self.drop(self.o((weights @ v).transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(F.gelu(self.up(self.two(x)))))


def read(path: Path) -> tuple[list[list[str]], np.ndarray]:
    """Words and labels; a first line that has no label is left out."""
    rows = [line.rstrip("\n").split("\t")[:2] for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row) == 2 and row[1].strip() in {"0", "1"}]
    return [row[0].split() for row in rows], np.array([int(row[1]) for row in rows], np.int64)


def encoded(sentences: list[list[str]], index: dict[str, int]) -> np.ndarray:
    """[sentences, LENGTH]; 0 is padding, 1 an unknown word."""
    table = np.zeros((len(sentences), LENGTH), np.int64)
    for row, words in zip(table, sentences, strict=True):
        ids = [index.get(word, 1) for word in words[:LENGTH]]
        row[: len(ids)] = ids
    return table


def trained(x: np.ndarray, y: np.ndarray, epochs: int) -> Encoder:
    """AdamW, one cycle, words dropped at random."""
    torch.manual_seed(0)
    model = Encoder()
    descent = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    train(model, torch.from_numpy(x), torch.from_numpy(y), epochs, descent, 0.1, with_unknown_words)
    return model.eval()


def with_unknown_words(tokens: Tensor) -> Tensor:
    """A tenth of the words become unknown ones."""
    return torch.where((torch.rand(tokens.shape) < 0.1) & (tokens > 0), 1, tokens)


def main() -> None:
    """Train, export, prune, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("output", type=Path, nargs="?", default=Path())
    parser.add_argument("--target", type=float, default=0.7)
    parser.add_argument("--recipe", default="balanced,best")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    sentences, labels = read(arguments.texts / "sst2_train.tsv")
    common = Counter(word for words in sentences for word in words).most_common(WORDS - 2)
    index = {word: k + 2 for k, (word, _) in enumerate(common)}
    x = encoded(sentences, index)
    dev, answers = read(arguments.texts / "sst2_dev.tsv")
    samples = {"tokens": encoded(dev, index), "labels": answers}
    path = arguments.output / "sst2.onnx"
    if not path.exists():
        model = trained(x, labels, arguments.epochs)
        shapes = {"tokens": {0: torch.export.Dim("batch")}}
        torch.onnx.export(
            model,
            (torch.from_numpy(x[:4]),),
            path,
            input_names=["tokens"],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
        )
    graph = graphprune.load(path)
    print(f"original: {accuracy(graph.model, samples):.2%} on {len(answers)} sentences")
    rows = x[np.random.default_rng(0).choice(len(x), CALIBRATION, replace=False)]
    for recipe in arguments.recipe.split(","):
        result = graphprune.prune(graph, targets=f"macs={arguments.target}", calibration={"tokens": rows}, recipe=recipe)
        share = accuracy(result.model, samples)
        print(f"{recipe}: {result.realised[0].fraction:.3f} of the MACs, {share:.2%}, {result.proof}", flush=True)


if __name__ == "__main__":
    main()
