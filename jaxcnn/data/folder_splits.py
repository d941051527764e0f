"""Which pictures of a folder are for training, validation and testing: by directories, or by a seeded choice in each class."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxcnn.arguments import format_value
from jaxcnn.data.listing import Listed
from jaxcnn.data.types import DataError, printable

ORDER = ("train", "validation", "test")


class Choice(NamedTuple):
    """Shares of each class's training pictures that go elsewhere, where there is no directory for that."""

    validation: float
    test: float
    seed: int


def choice(validation: Any, test: Any, seed: Any) -> Choice:
    """A `Choice`, or a DataError that says which number is none."""
    for name, value in (("validation", validation), ("test", test)):
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
        if not good:
            expected = "expected a share of each class, at least 0 and below 1"
            raise DataError(f"{name} is {format_value(value)}; {expected}: write {name}=0.2")
    if validation + test >= 1:
        raise DataError(f"validation and test are {validation} and {test}, which leaves nothing; expected less than 1")
    if type(seed) is not int or seed < 0:
        raise DataError(f"seed is {format_value(seed)}; expected an integer >= 0: write seed=0")
    return Choice(float(validation), float(test), seed)


def parted(listed: Sequence[Listed], classes: Sequence[str], share: Choice) -> list[Listed]:
    """The pictures with every part filled in, sorted by part and then by name.

    Where the part that a share is for is a directory, the share is not used. A picture's place in the choice is the SHA-256
    of the seed and its name, so that a picture more or less moves few others.

    Raises:
      DataError: a class has too few pictures to give one to each part.
    """
    there = {one.part for one in listed}
    wanted = {part: getattr(share, part) for part in ("test", "validation") if part not in there}
    by_label: dict[int, list[Listed]] = defaultdict(list)
    for one in listed:
        if one.part in ("", "train"):
            by_label[one.label].append(one._replace(part="train"))
    moved = [one for one in listed if one.part not in ("", "train")]
    short_of = {}
    for label in range(len(classes)):
        mine = sorted(by_label[label], key=lambda one: _place(share.seed, one.name))
        counts = {part: max(1, round(value * len(mine))) for part, value in wanted.items() if value}
        if len(mine) <= sum(counts.values()):
            short_of[classes[label]] = len(mine), 1 + len(counts)
        for part, count in counts.items():
            moved += [one._replace(part=part) for one in mine[:count]]
            mine = mine[count:]
        moved += mine
    if short_of:
        name, (n, need) = next(iter(short_of.items()))
        others = f", and {len(short_of) - 1} more classes have too few" if len(short_of) > 1 else ""
        raise DataError(
            f"class {name} has {n} picture{'s' * (n != 1)} to train on{others}; expected at least {need}, to give one to each "
            "part: add some, or leave the class out"
        )
    return sorted(moved, key=lambda one: (ORDER.index(one.part), one.name))


def _place(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).hexdigest()


def twins(listed: Sequence[Listed], digests: Sequence[str]) -> list[str]:
    """Warnings: pictures with the same bytes in two parts, or in two classes."""
    seen: dict[str, list[Listed]] = defaultdict(list)
    for one, digest in zip(listed, digests, strict=True):
        seen[digest].append(one)
    said = []
    for what, field, why in (
        ("in two parts", "part", "what is measured there is no surprise to the network"),
        ("in two classes", "label", "one of them is wrong"),
    ):
        found = [same for same in seen.values() if len({getattr(one, field) for one in same}) > 1]
        if found:
            names = " and ".join(printable(one.name) for one in found[0][:3])
            n = f"{len(found)} picture{'s are' if len(found) > 1 else ' is'}"
            said.append(f"{n} {what} with the same bytes, the first {names}: {why}")
    return said
