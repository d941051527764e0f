"""What was measured of one network, in a file: arrays by name, and what they are an answer to."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxcnn as jc
from jaxcnn.run_log import LogError, read_bytes


class Kept(NamedTuple):
    """The contents of a file."""

    asked: dict[str, Any]
    """The run and the settings, as JSON has them."""
    arrays: dict[str, np.ndarray]

    @property
    def recipe(self) -> jc.Recipe:
        """Of the run."""
        return jc.Recipe.from_json(self.asked["recipe"])

    @property
    def over(self) -> bool:
        """Whether all points have been measured."""
        return "done" not in self.arrays or int(self.arrays["done"]) == self.arrays["loss"].size


def write(path: Path, kept: Kept) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed, part = io.BytesIO(), path.with_name(f"{path.name}.part")
    np.savez(packed, allow_pickle=False, asked=np.array(json.dumps(kept.asked)), **kept.arrays)
    part.unlink(missing_ok=True)  # a link there would lead the bytes elsewhere
    with open(part, "xb") as file:
        file.write(packed.getvalue())
    os.replace(part, path)


def read(path: Path) -> Kept:
    """What the file holds; ArgumentError if it is none of these."""
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Kept(dict(json.loads(str(arrays.pop("asked")))), arrays)
    except LogError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        MemoryError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        what = " ".join(str(error).split())[:200]
        raise jc.ArgumentError(f"{path} cannot be read: {what}; delete it, and it is measured again") from None


def same(path: Path, asked: dict[str, Any]) -> Kept | None:
    """What the file holds, if it is an answer to this; None if there is no file, or it answers something else."""
    kept = read(path) if path.exists() else None
    return kept if kept is not None and kept.asked == json.loads(json.dumps(asked)) else None


def every(out: Path, part: str) -> dict[str, Kept]:
    """What is complete of a part, by the names of its files, plain networks first and by depth; ArgumentError if nothing is."""
    found = {path.stem: read(path) for path in sorted((out / part).glob("*.npz"), key=lambda path: order(path.stem))}
    whole = {name: kept for name, kept in found.items() if kept.over}
    if not whole:
        raise jc.ArgumentError(f"{out / part} holds nothing that was measured to its end; leave out --plot-only")
    return whole


def order(name: str) -> list[Any]:
    """What sorts names so that 56 comes before 110."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def network(name: str) -> str:
    """The network's name from that of its file.

    Example:
      >>> network("lenet5-relu-direction2"), network("plain20")
      ('lenet5-relu', 'plain20')
    """
    return re.sub(r"-direction\d+$", "", name)


def title(network: str) -> str:
    """The network's name as people write it.

    Example:
      >>> title("plain20"), title("resnet56")
      ('plain-20', 'ResNet-56')
    """
    return re.sub(r"(\D)(\d)", r"\1-\2", network.replace("resnet", "ResNet"), count=1)


def setting(kept: Kept) -> str:
    """One line on what was trained and looked at."""
    recipe, numbers = kept.recipe, kept.asked["settings"]
    width = f", width {recipe.options['width']}" if "width" in recipe.options else ""
    return f"{recipe.dataset}{width}, step {kept.asked['row']['step']}, {numbers['images']} training images"
