"""`python -m experiments.stress.teller FILE ...`: `python -m experiments.depth ...`, telling FILE of every step it has done."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from experiments import depth
from jaxcnn.progress import Progress


def main() -> int:
    """The script itself; nothing but its progress is listened to."""
    file, *args = sys.argv[1:]
    advance = Progress.advance

    def tell(self: Progress, units: float, position: str) -> None:
        with Path(file).open("a") as steps:
            steps.write(re.findall(r"step (\d+)/", position)[0] + "\n")
        advance(self, units, position)

    Progress.advance = tell
    return depth.main(args)


if __name__ == "__main__":
    sys.exit(main())
