"""Samples that are varied, for training with a teacher: whatever it answers is right, so they need no labels.

With few samples a network that is trained to match another one learns them by heart.  Function matching (Beyer et al. 2022) shows
it others that are near: images and other numbers are mixed (mixup, Zhang et al. 2018); of a text that the teacher continues,
tokens are replaced by what it would have said there (after Liu et al. 2023, who let it write all).  Start reading at `variation`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from .extras import need
from .graph import Array
from .samples import Samples, sample_count

if TYPE_CHECKING:
    from .differentiable import Differentiable

Vary = Callable[[Samples, np.random.Generator], Samples]

SEQUENCES = 2
"""The rank of tokens: [sample, position]."""


def variation(teacher: Differentiable, samples: Samples, predicted: Collection[str], share: float) -> Vary:
    """How samples like these are varied: about `share` of each is not its own.

    `predicted` are outputs that hold logits for each position.  Where neither tokens nor numbers are found, nothing is varied.
    """
    if not share:
        return _same
    if all(array.dtype.kind == "f" for array in samples.values()):
        return lambda feeds, rng: mixed(feeds, rng, share)
    text = _text(teacher, samples, predicted)
    return _same if text is None else lambda feeds, rng: text.retold(feeds, rng, share)


def _same(samples: Samples, rng: np.random.Generator) -> Samples:
    return samples


def mixed(samples: Samples, rng: np.random.Generator, share: float) -> Samples:
    """Each sample with up to `share` of another one; inputs of rank 0 stay."""
    count = sample_count([samples])
    other, weight = rng.permutation(count), rng.uniform(0, share, count)

    def mix(array: Array) -> Array:
        part = weight.reshape(-1, *[1] * (array.ndim - 1)).astype(array.dtype)
        return np.asarray((1 - part) * array + part * array[other], array.dtype)

    return {name: mix(array) if array.ndim else array for name, array in samples.items()}


@dataclass(frozen=True)
class Text:
    """Where tokens go in, and where the network says which token comes `ahead` positions later."""

    teacher: Differentiable
    tokens: str
    logits: str
    ahead: int

    def retold(self, samples: Samples, rng: np.random.Generator, share: float) -> Samples:
        """Of each sample a share of up to 1 (in the mean `share`, at most 0.5) of the tokens is what the teacher would say."""
        torch = need("torch")
        old = samples[self.tokens]
        with torch.no_grad():
            chances = torch.softmax(self.teacher(samples, [self.logits])[self.logits].double(), -1).numpy()
        said = (chances.cumsum(-1) > rng.random((*old.shape, 1))).argmax(-1).astype(old.dtype)
        new = np.concatenate([old[:, : self.ahead], said[:, : old.shape[1] - self.ahead]], axis=1)
        chosen = rng.random(old.shape) < rng.uniform(0, 2 * share, (len(old), 1))
        return samples | {self.tokens: np.where(chosen, new, old)}

    def likelihood(self, logits: Any, samples: Samples) -> float:
        """The mean log-likelihood of the tokens of these samples; minus infinity where logits are not about them."""
        torch = need("torch")
        tokens = samples[self.tokens]
        if tokens.shape != tuple(logits.shape[:-1]) or tokens.shape[1] <= self.ahead:
            return -np.inf
        if tokens.min() < 0 or tokens.max() >= logits.shape[-1]:
            return -np.inf
        logs = torch.log_softmax(logits[:, : tokens.shape[1] - self.ahead].double(), -1).numpy()
        return float(np.take_along_axis(logs, tokens[:, self.ahead :, None], -1).mean())


def _text(teacher: Differentiable, samples: Samples, predicted: Collection[str]) -> Text | None:
    """The likeliest of what may be the text and its continuation; None where nothing is better than chance."""
    with need("torch").no_grad():
        outputs = teacher(samples, predicted)
    inputs = [name for name, array in samples.items() if array.dtype.kind in "iu" and array.ndim == SEQUENCES]
    texts = [Text(teacher, name, output, ahead) for name in inputs for output in predicted for ahead in (0, 1)]
    likely = [(text.likelihood(outputs[text.logits], samples), text) for text in texts]
    likely = [(chance, text) for chance, text in likely if chance > -log(outputs[text.logits].shape[-1])]
    return max(likely, key=lambda pair: pair[0])[1] if likely else None
