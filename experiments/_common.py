"""What scripts of several parts have in common: the parts run one after another, and a stop is told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def done(parts: Mapping[str, ModuleType], options: Any, stop: Any) -> bool:
    """Run each part's `run(options, stop)`, which is True when all of it is there; False when one was stopped on the way."""
    for name, part in parts.items():
        print(f"== {name}", file=sys.stderr)
        if not part.run(options, stop):
            print("stopped and saved; the same command goes on from here", file=sys.stderr)
            return False
    return True
