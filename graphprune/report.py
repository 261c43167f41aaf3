"""Reports as one HTML file each: everything inside, nothing from the network, whatever the names in a model contain.

Templates with autoescape (templates/) draw what `graphprune.layers`, `strip`, `distributions` and `curves` compute.  A policy in
each page forbids all but its own style and script, which it names by hash.  Start reading at `prune_page`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .bench import Latency
from .comparison import Comparison
from .cost import Cost
from .curves import plots
from .distributions import Distribution, distributions
from .graph import operator_name
from .inference import Analysis
from .layers import layers_of
from .pipeline import Result
from .plan import Plan
from .profiling import NodeTimes
from .strip import KEPT, MACS, TIME, WIDTH, strip
from .tables import amount, headline, recipe_line

LONGEST = 1000
"""Longer texts are cut: a name in an untrusted model can have any length."""

LISTED = 200
"""Rows of a table whose length hangs on names in the model."""

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


@dataclass(frozen=True)
class Why:
    """A reason for pinned axes."""

    text: str
    axes: int
    places: tuple[str, ...]


@dataclass(frozen=True)
class Copy:
    """A node that the rewrite added."""

    node: str
    operator: str
    source: str


def prune_page(
    result: Result,
    name: str,
    sizes: tuple[int, int],
    run: Mapping[str, str],
    latency: Sequence[Latency] = (),
    accuracies: Sequence[float] = (),
    times: tuple[NodeTimes, NodeTimes] | None = None,
) -> str:
    """The report of a pruning run as HTML.

    `name` is the model's, `sizes` are bytes of the files, `run` is `graphprune.environment`; `latency`, `accuracies` and `times`
    have what was measured, before and after.
    """
    analysis, plan = result.analysis, result.plan
    present = analysis.present(result.keep)
    layers = layers_of(analysis, present, times)
    measures = [WIDTH, KEPT, MACS, *([TIME] if times else [])]
    known = dict(run) | ({"threads": str(latency[0].threads), "batch": str(latency[0].batch)} if latency else {})
    groups = distributions(analysis.groups, result.scores, result.keep)
    return _page(
        "prune.html",
        title=f"{name}, pruned",
        name=name,
        result=result,
        figures=headline(result, sizes, latency, accuracies),
        proof=_sentence(str(result.proof)),
        recipe=_sentence(recipe_line(result)),
        latency=latency,
        layers=layers,
        times=times,
        strip=strip(layers, analysis.groups, measures),
        groups=analysis.groups,
        distributions=groups,
        shown=_most_changed(groups),
        pinned=_pinned(analysis),
        pinned_axes=len(analysis.pinned),
        copies=_copies(result),
        reads=plan.reads,
        run=known | _hashes(plan),
        options={key: json.dumps(value, ensure_ascii=False) for key, value in sorted(result.options.items())},
    )


def comparison_page(comparison: Comparison, name: str, run: Mapping[str, str]) -> str:
    """The report of `graphprune compare` as HTML."""
    base = comparison.latency.median_ms if comparison.latency else 1.0
    return _page(
        "comparison.html",
        title=f"{name}, recipes compared",
        name=name,
        comparison=comparison,
        base=base,
        plots=plots(comparison),
        run=run,
    )


def analysis_page(analysis: Analysis, cost: Cost, name: str, run: Mapping[str, str]) -> str:
    """The groups of a model, to look at: the report of `graphprune view` as HTML."""
    layers = layers_of(analysis, analysis.present({}))
    return _page(
        "view.html",
        title=f"{name}, groups",
        name=name,
        cost=cost,
        layers=layers,
        strip=strip(layers, analysis.groups, [WIDTH, MACS]),
        groups=analysis.groups,
        pinned=_pinned(analysis),
        pinned_axes=len(analysis.pinned),
        run=run,
    )


# ---- what the templates show -----------------------------------------------------------------------


def _most_changed(groups: Sequence[Distribution]) -> list[Distribution]:
    """The groups that are shown at once: those that lost most, in the order of the network."""
    if len(groups) <= 16:
        return list(groups)
    first = {group.group for group in sorted(groups, key=lambda group: -group.removed)[:12]}
    return [group for group in groups if group.group in first]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pinned(analysis: Analysis) -> list[Why]:
    """Reasons, that with most axes first."""
    places: dict[str, list[str]] = defaultdict(list)
    for item in analysis.pinned:
        places[item.reason.text].append(f"{item.tensor} (axis {item.axis})")
    ranked = sorted(places.items(), key=lambda entry: -len(entry[1]))
    return [Why(text, len(found), tuple(found[:LISTED])) for text, found in ranked[:LISTED]]


def _copies(result: Result) -> list[Copy]:
    """The Slices and Gathers that were not in the original."""
    before = {node.name for node in result.original.nodes}
    added = (node for node in result.cut.graph.node if node.op_type in ("Slice", "Gather") and node.name not in before)
    return [Copy(node.name, operator_name(node), node.input[0]) for node in added]


def _hashes(plan: Plan) -> dict[str, str]:
    return {"model (normalised), SHA-256": plan.model_sha256, "plan, SHA-256": plan.digest}


# ---- pages ------------------------------------------------------------------------------------------


def _page(template: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    pages = Environment(
        loader=PackageLoader("graphprune"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"amount": amount, "percent": lambda value: f"{value:.1%}"}
    loader = pages.loader
    assert loader is not None
    style, script = (loader.get_source(pages, name)[0] for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_source(style)}'; script-src '{_source(script)}'; base-uri 'none'; form-action 'none'"
    )
    parts = {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}  # noqa: S704 - our own files
    return pages.get_template(template).render(values | parts) + "\n"


def _source(text: str) -> str:
    """How a content security policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def visible(text: str) -> str:
    """A text with everything that cannot be seen (line breaks, controls, changes of direction) as an escape sequence."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _INVISIBLE else c for c in text)
