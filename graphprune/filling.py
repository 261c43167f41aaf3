"""Copies that cost more than they save: a reader takes the channels between those it wants along with them.

A Gather lets its reader compute less and takes time itself.  UPSCALE (Wan et al. 2023) lets such a reader keep channels with
weights of zero; here they keep their own weights, since what is computed anyway need not be thrown away.  Start reading at
`filled`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .cost import CostModel
from .inference import Analysis
from .reorder import order_of
from .site import Taken
from .taking import gather_name

Mask = NDArray[np.bool_]


def filled(analysis: Analysis, present: Mask, model: CostModel, times: Mapping[str, float]) -> Mask:
    """The labels that stay when every reader takes what lies between its channels, where its Gather takes longer than that.

    `analysis` has channels in order (`graphprune.reorder.reordered`), `model` knows the latency of nodes, and `times` are those
    of the nodes of the network that the labels `present` give, by name, in the same unit.  The order is then to be found anew.
    """
    for reader, takes in _takes_by_reader(analysis).items():
        copying = sum(times.get(name, 0.0) for name in _gathers(analysis, reader, takes))
        if not copying:
            continue
        wider = present.copy()
        for taken in takes:
            wider[_between(analysis, taken, present)] = True
        wider = analysis.closed(wider)
        if model.cost(wider).latency - model.cost(present).latency < copying:
            present = wider
    return present


def _takes_by_reader(analysis: Analysis) -> dict[int, list[Taken]]:
    """What each node takes, by its position; the Takes in front of a Concat have one Gather."""
    readers = defaultdict(list)
    for taken in analysis.ledger.taken:
        readers[analysis.reader(taken).node].append(taken)
    return readers


def _gathers(analysis: Analysis, reader: int, takes: Sequence[Taken]) -> set[str]:
    """The names that the rewrite gives to copies for one reader (`graphprune.taking`)."""
    nodes = analysis.graph.nodes
    values = {nodes[taken.node].output[0] for taken in takes}
    return {gather_name(value) for value in (*values, nodes[reader].output[0], *(f"{v}_{t.axis}" for v in values for t in takes))}


def _between(analysis: Analysis, taken: Taken, present: Mask) -> NDArray[np.int32]:
    """The labels of what is there between the first and the last index that a reader takes, in the new order."""
    labels = analysis.ledger.labels
    outer, inner = analysis.index_mask(taken.outer, present), analysis.index_mask(taken.inner, present)
    order = order_of(analysis, taken.outer)
    chosen = np.flatnonzero(inner[order])
    if not len(chosen):
        return np.zeros(0, np.int32)
    span = order[chosen[0] : chosen[-1] + 1]
    return np.asarray(labels.leaves(taken.inner[span[outer[span]]]).ravel(), np.int32)
