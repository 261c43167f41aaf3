"""Inputs made up for data-free calibration: random images with the statistics of natural ones, random numbers elsewhere.

Networks for images answer to edges, surfaces and textures; white noise leaves most of their channels silent, and what is fitted
to it does not carry over.  The dead leaves model (Lee, Mumford and Huang 2001; as training data: Baradad et al. 2021) has what
they answer to.
Start reading at `random_runs`.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from .graph import Array, Graph, Shape, declared_shape
from .runtime import random_inputs
from .samples import Runs, fixed_batch
from .shape_inference import InputShapes

ELEMENTS = 2**23
"""Made up numbers in all; the number of samples follows from it."""

MOST_SAMPLES, LEAST_SAMPLES = 2048, 16

SMALLEST_IMAGE = 8
"""Axes shorter than this are no height or width."""

Image = NDArray[np.float32]


def random_runs(graph: Graph, seed: int, size: int, shapes: InputShapes | None = None, most: int = MOST_SAMPLES) -> Runs:
    """Seeded runs of `size` samples: images where an input looks like one, else as the proof's (normal, small integers)."""
    first = random_inputs(graph, seed, shapes, batch=1, scale=4)
    fixed = fixed_batch(graph)
    per_sample = sum(array.size for array in first.values()) // max(1, fixed)
    total = max(LEAST_SAMPLES, min(ELEMENTS // max(1, per_sample), MOST_SAMPLES, most))
    size = fixed or min(size, total)
    rng = np.random.default_rng(seed)
    runs = [random_inputs(graph, seed + k, shapes, batch=size, scale=4) for k in range(-(-total // size))]
    for value in graph.inputs:
        layout = image_layout(declared_shape(value), first[value.name])
        for run in runs if layout is not None else ():
            run[value.name] = _images(run[value.name], str(layout), rng)
    return runs


def image_layout(declared: Shape | None, array: Array) -> str | None:
    """`channels first` or `channels last` where an input looks like an image of one to four channels, else None."""
    if declared is None or array.ndim != 4 or array.dtype.kind != "f":
        return None
    _, a, b, c = array.shape
    if a <= 4 and min(b, c) >= SMALLEST_IMAGE:
        return "channels first"
    return "channels last" if c <= 4 and min(a, b) >= SMALLEST_IMAGE else None


def _images(like: Array, layout: str, rng: np.random.Generator) -> Array:
    last = layout == "channels last"
    count, channels, height, width = np.moveaxis(like, -1, 1).shape if last else like.shape
    images = dead_leaves(count, channels, height, width, rng)
    return np.ascontiguousarray(np.moveaxis(images, 1, -1) if last else images).astype(like.dtype)


def dead_leaves(count: int, channels: int, height: int, width: int, rng: np.random.Generator) -> Image:
    """Images [count, channels, height, width] of overlapping shaded leaves with some texture, of mean 0 and variance 1."""
    images = np.empty((count, channels, height, width), np.float32)
    for image in images:
        image[:] = (rng.normal(0, 0.8) + rng.normal(0, 0.5, channels))[:, None, None]
        for _ in range(int(rng.integers(5, 60))):
            _add_leaf(image, rng)
        image += rng.uniform(0, 0.4) * _texture(image.shape, rng)
    return np.asarray((images - images.mean()) / max(float(images.std()), 1e-6), np.float32)


def _add_leaf(image: Image, rng: np.random.Generator) -> None:
    """Paint one ellipse or rectangle; sizes follow a power law, as those of things in pictures do."""
    size = min(image.shape[1:])
    radius = 0.5 * size * float(np.clip(0.08 * rng.pareto(1.5) + 0.04, 0.04, 0.6))
    y, x = rng.uniform(0, image.shape[1]), rng.uniform(0, image.shape[2])
    reach = 1.5 * radius
    rows = slice(max(0, int(y - reach)), int(y + reach) + 2)
    columns = slice(max(0, int(x - reach)), int(x + reach) + 2)
    dy = np.arange(image.shape[1])[rows, None] - y
    dx = np.arange(image.shape[2])[None, columns] - x
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.4, 1)
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radius
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / (radius * aspect)
    inside = u**2 + v**2 < 1 if rng.random() < 0.5 else np.maximum(np.abs(u), np.abs(v)) < 1
    colour = rng.normal(0, 0.9) + rng.normal(0, 0.4, len(image))
    slope = rng.normal(0, 0.3, 2) / size
    shade = colour[:, None, None] + slope[0] * dy + slope[1] * dx
    image[:, rows, columns] = np.where(inside, shade, image[:, rows, columns])


def _texture(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose spectrum falls with frequency, of variance 1."""
    height, width = shape[1:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.standard_normal((prod(shape[:1]), height, width))) / frequency
    noise = np.fft.ifft2(spectrum).real
    return np.asarray(noise / max(float(noise.std()), 1e-9))
