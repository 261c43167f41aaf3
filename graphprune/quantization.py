"""Quantised operators: scales and zero points per channel are carriers.  Start reading at `quantize`."""

from __future__ import annotations

from .node_view import normal_axis
from .site import Results, Site


def quantize(site: Site) -> Results:
    """QuantizeLinear and DequantizeLinear: per-channel scales and zero points are carriers."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    for index in (1, 2):
        scale = site.axes(index)
        if scale is None or not scale:
            continue
        at = normal_axis(site.attribute("axis", 1), len(axes))
        if len(scale) != 1:
            return site.refuse(f"blocked {site.operator} has no rule")
        if (site.shape(index) or (0,))[0] != 1:
            site.unify(axes[at], scale[0])
            site.note_carrier(index)
    if site.is_constant(0):
        site.ledger.origins[site.outputs[0]] = site.ledger.origins.get(site.inputs[0], site.inputs[0])
    return [list(axes)]
