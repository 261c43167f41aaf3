"""Samples that are varied: mixtures lie between samples, texts are continued as the network would."""

from __future__ import annotations

import numpy as np
import pytest
from nets import net, set_initializer

from graphprune.differentiable import Differentiable
from graphprune.variation import mixed, variation

pytestmark = pytest.mark.torch

TOKENS = 7


def speaker(step: int) -> Differentiable:
    """A network that is sure that `step` is added to each token next; the other input has no say."""
    model = net(f"""
        m (int64[N,P] mask, int64[N,P] tokens) => (float[N,P,{TOKENS}] y) <float[{TOKENS},{TOKENS}] table> {{
            y = Gather<axis = 0>(table, tokens)
        }}""")
    set_initializer(model, "table", 90 * np.roll(np.eye(TOKENS, dtype=np.float32), step, axis=1))
    return Differentiable(model)


def counting(step: int) -> dict[str, np.ndarray]:
    """Sequences in which each token is `step` more than the one before."""
    start = np.arange(40)[:, None]
    tokens = (start + step * np.arange(12)) % TOKENS
    return {"mask": np.ones_like(tokens), "tokens": tokens}


def test_a_text_is_told_anew_by_what_comes_next() -> None:
    samples, rng = counting(3), np.random.default_rng(0)
    vary = variation(speaker(3), samples, ["y"], 0.5)
    assert all(np.array_equal(vary(samples, rng)[name], samples[name]) for name in samples)  # the teacher would say the same
    broken = samples | {"tokens": np.where(rng.random(samples["tokens"].shape) < 0.3, 0, samples["tokens"])}
    told = vary(broken, rng)["tokens"]
    own, said = told == broken["tokens"], told[:, 1:] == (broken["tokens"][:, :-1] + 3) % TOKENS
    assert own[:, 0].all()
    assert (own[:, 1:] | said).all()
    assert 0.05 < 1 - own.mean() < 0.3
    assert np.array_equal(variation(speaker(3), samples, ["y"], 0.0)(broken, rng)["tokens"], broken["tokens"])


def test_a_network_that_fills_in_the_same_position() -> None:
    samples, rng = counting(1), np.random.default_rng(0)
    vary = variation(speaker(0), samples, ["y"], 0.5)
    assert np.array_equal(vary(samples, rng)["tokens"], samples["tokens"])


@pytest.mark.parametrize("broken", ["larger", "unlikely"])
def test_what_is_no_text_stays(broken: str) -> None:
    """Classes of tokens are no tokens where there are fewer of them, or where they are never what comes next."""
    samples, rng = counting(2), np.random.default_rng(0)
    teacher = speaker(5)
    if broken == "larger":
        teacher.values["table"] = teacher.values["table"][:, :5]
    vary = variation(teacher, samples, ["y"], 0.5)
    assert vary(samples, rng) is samples


def test_numbers_are_mixed_in_pairs() -> None:
    rng = np.random.default_rng(1)
    samples = {
        "a": rng.normal(size=(50, 3)).astype(np.float32),
        "b": rng.normal(size=(50, 2, 2)).astype(np.float32),
        "c": np.float32(4),
    }
    samples = {name: np.asarray(array) for name, array in samples.items()}
    varied = mixed(samples, np.random.default_rng(2), 0.4)
    assert varied["c"] == 4
    assert {name: array.dtype for name, array in varied.items()} == {name: array.dtype for name, array in samples.items()}
    order = np.random.default_rng(2).permutation(50)
    shares = []
    for k, other in enumerate(order):
        if other == k:
            continue
        towards = samples["a"][other] - samples["a"][k]
        share = (varied["a"][k] - samples["a"][k]) @ towards / (towards @ towards)
        np.testing.assert_allclose(varied["b"][k], (1 - share) * samples["b"][k] + share * samples["b"][other], atol=1e-5)
        shares.append(share)
    assert -1e-6 <= min(shares) < 0.1
    assert 0.3 < max(shares) <= 0.4 + 1e-6


def test_integers_and_numbers_together_stay() -> None:
    model = net(
        "m (float[N,3] x, int64[N] k) => (float[N,3] y) { f = Cast<to = 1>(k)  g = Unsqueeze(f, axis)  y = Add(x, g) }".replace(
            "=> (float[N,3] y)", "=> (float[N,3] y) <int64[1] axis = {1}>"
        )
    )
    samples = {"x": np.ones((4, 3), np.float32), "k": np.arange(4)}
    assert variation(Differentiable(model), samples, [], 0.5)(samples, np.random.default_rng(0)) is samples
