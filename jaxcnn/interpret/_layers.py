"""From a model's operations to its rows: modules whole, and the operations between them by what they are."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxcnn.interpret._dataflow import Known
from jaxcnn.interpret._jaxpr import END, Op, Traced, scope
from jaxcnn.interpret._layer_names import BREAKS, macs, name

Names = frozenset[tuple[str, ...]]
"""Of variables: their collection, path and name."""
NONE: Names = frozenset()


class Found(NamedTuple):
    """A row, and the variables that it uses and no row before it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    uses: Names
    macs: int


class _Flow(NamedTuple):
    """What is known of values while the operations are read in their order."""

    known: Known
    uses: dict[Any, Names]
    """id of a value that does not come of the image -> the variables that it was made of."""
    inside: dict[str, list[tuple[Op, Names]]]
    """path of a module that has not ended yet -> what it has done, and with which variables."""


def find_layers(traced: Traced) -> list[Found]:
    """The rows of a model in the order of computation; at the end, one for each part that test mode leaves out.

    Example:
      >>> from jaxcnn.interpret._jaxpr import trace
      >>> from jaxcnn.models import create_model
      >>> [found.name for found in find_layers(trace(create_model("resnet8", 10), (32, 32, 3)))][:6]
      ['stem', 'stem_norm', 'relu', 'stage1_block1/conv1', 'stage1_block1/norm1', 'stage1_block1/relu']
    """
    flow = _Flow(_known(traced), {value: frozenset([n]) for value, n in traced.variables.items()}, {})
    rows: list[Found] = []
    for number, op in enumerate(traced.ops, 1):
        used = NONE.union(*(flow.uses.get(value.id, NONE) for value in op.ins))
        row, source = _step(op, used, number, flow, traced.modules)
        if row is not None:
            rows.append(row)
        elif used and source is not None and rows and op.path not in traced.modules:  # a bias, say, of the row before
            rows[-1] = rows[-1]._replace(uses=rows[-1].uses | used)
        for value in op.outs:
            flow.known.maker[value.id] = op
            if source is None:
                flow.uses[value.id] = used
            else:
                flow.known.source[value.id] = source
    return _told_apart(_owned([*rows, *_unused(traced, rows)]))


def _known(traced: Traced) -> Known:
    users = collections.defaultdict(list)
    for op in traced.ops:
        for value in op.ins:
            users[value.id].append(op)
    return Known({}, users, {traced.image: 0})


def _step(op: Op, used: Names, number: int, flow: _Flow, modules: dict[str, type]) -> tuple[Found | None, int | None]:
    """The row that an operation makes or ends, and the source of its result: None where that does not come of the image."""
    sources = {flow.known.source[value.id] for value in op.ins if value.id in flow.known.source}
    source = min(sources) if len(sources) == 1 else number if sources else None
    path = scope(str(op.params.get("name"))) if op.name == END else None
    if path in modules:
        return _module(path, modules[path], op, used, flow), number if sources else None
    if op.path in modules:
        if sources:
            flow.inside.setdefault(op.path, []).append((op, used))
        return None, source
    label, words = (name(op, flow.known) if sources else None) or ("", "")
    row = Found(f"{op.path}/{label}".lstrip("/"), words, op.outs[0].shape[1:], used, macs(op)) if label else None
    return row, number if label in BREAKS else source


def _module(path: str, kind: type, end: Op, used: Names, flow: _Flow) -> Found:
    """The row of a module that calls no other. Flax's convolutions and dense layers are told by what they do."""
    done = flow.inside.pop(path, [])
    products = [op for op, _ in done if macs(op)]
    words = kind.__name__
    if len(products) == 1 and kind.__module__.startswith("flax."):
        _, words = name(products[0], flow.known) or ("", words)
    uses = used.union(*(names for _, names in done))
    return Found(path, words, end.outs[0].shape[1:], uses, sum(map(macs, products)))


def _unused(traced: Traced, rows: Sequence[Found]) -> list[Found]:
    """A row for each part of the model whose variables no row uses."""
    used = NONE.union(*(row.uses for row in rows))
    left = [names for names in traced.sizes if names not in used]
    parts: dict[str, Names] = {}
    for names in left:
        part = names[1] if len(names) > 2 else "(network)"
        parts[part] = parts.get(part, NONE) | {names}
    return [Found(part, "not used in test mode", (), names, 0) for part, names in parts.items()]


def _owned(rows: Sequence[Found]) -> list[Found]:
    """Variables go to the first row that uses them."""
    seen: set[tuple[str, ...]] = set()
    owned = []
    for row in rows:
        owned.append(row._replace(uses=row.uses - seen))
        seen |= row.uses
    return owned


def _told_apart(rows: Sequence[Found]) -> list[Found]:
    """The second of a name is called name_2, and so on."""
    counts: collections.Counter[str] = collections.Counter()
    apart = []
    for row in rows:
        counts[row.name] += 1
        apart.append(row._replace(name=f"{row.name}_{counts[row.name]}") if counts[row.name] > 1 else row)
    return apart
