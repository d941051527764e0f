"""What surrounds an operation, and tells which part of a layer it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxcnn.interpret._jaxpr import Op


class Known(NamedTuple):
    """The operations around, and what is known of values so far."""

    maker: dict[Any, Op]
    """id of a value -> the operation that made it."""
    users: dict[Any, list[Op]]
    """id of a value -> the operations that read it."""
    source: dict[Any, int]
    """id of a value that comes of the image -> a number, the same for values of the same last layer."""


Name = tuple[str, str]
"""A label, for the row's name, and the kind."""
SQUARES = ("square", "integer_pow")


def made_by(value: Any, known: Known, through: Sequence[str] = ()) -> str | None:
    """The name of the operation that made the value of this id, those `through` which it came not counted."""
    made = known.maker.get(value)
    if made and made.name in through:
        return made_by(made.ins[0].id, known, through)
    return made and made.name


def averaged(op: Op, known: Known) -> str:
    """A sum divided by a number is an "average"."""
    users = known.users.get(op.outs[0].id, [])
    return "average" if any(user.name in ("div", "mul") and user.ins[1].shape == () for user in users) else "sum"


def by(sizes: Sequence[int], short: bool = False) -> str:
    """Sizes for reading; `short` writes equal ones once.

    Example:
      >>> by((3, 3)), by((2, 2), short=True), by((2, 1), short=True)
      ('3x3', '2', '2x1')
    """
    return str(sizes[0]) if short and len(set(sizes)) == 1 else "x".join(map(str, sizes))
