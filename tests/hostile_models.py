"""Models that somebody meant to do harm with: valid networks with something changed, and networks made for the purpose.

`MUTATIONS` change a model in place (or give the bytes of another), `TRAPS` make one from nothing.  Each takes a random
generator, so that a seed names a mutant.  Start reading at `mutant`.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
from hostile_changes import MUTATIONS
from hostile_networks import CORPUS
from hostile_traps import TRAPS


def mutant(seed: int) -> tuple[str, bytes]:
    """The kind and the bytes of the mutant that a seed names: one to three changes to a network, or (one in four) a trap."""
    rng = Random(seed)
    if seed % 4 == 3:
        trap = TRAPS[seed // 4 % len(TRAPS)]
        made = trap(rng)
        return trap.__name__, made if isinstance(made, bytes) else made.SerializeToString()
    model = rng.choice(CORPUS)()
    changes = [MUTATIONS[(seed - seed // 4) % len(MUTATIONS)], *rng.choices(MUTATIONS, k=rng.choice([0, 0, 1, 2]))]
    for change in changes:
        try:
            data = change(model, rng)
        except (ValueError, IndexError, TypeError, MemoryError):  # an earlier change left nothing to change
            continue
        if data is not None:
            return change.__name__, data
    return changes[0].__name__, model.SerializeToString()


def populate(folder: Path, secret: Path) -> None:
    """What external data may name: a file, one in a folder, and ways out."""
    import os

    (folder / "w.bin").write_bytes(np.random.default_rng(0).random(4096).astype(np.float32).tobytes())
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(secret / "canary")
    (folder / "linked").symlink_to(secret)
    os.mkfifo(folder / "fifo")
