"""Files of measurements: one for each network, with arrays and their request."""

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


class Measurement(NamedTuple):
    """Contents of a file."""

    request: dict[str, Any]
    """Run and settings that were measured, as JSON has them."""
    arrays: dict[str, np.ndarray]
    """Name -> array."""

    @property
    def config(self) -> jc.ExperimentConfig:
        """Return the config of the run."""
        return jc.ExperimentConfig.from_json(self.request["config"])

    @property
    def is_complete(self) -> bool:
        """Return whether all points have been measured."""
        return "done" not in self.arrays or int(self.arrays["done"]) == self.arrays["loss"].size


def write(path: Path, measurement: Measurement) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer, part_path = io.BytesIO(), path.with_name(f"{path.name}.part")
    np.savez(
        buffer,
        allow_pickle=False,
        request=np.array(json.dumps(measurement.request)),
        **measurement.arrays,
    )
    # A link with that name would write the bytes elsewhere.
    part_path.unlink(missing_ok=True)
    with open(part_path, "xb") as file:
        file.write(buffer.getvalue())
    os.replace(part_path, path)


def read(path: Path) -> Measurement:
    """Return the contents of a file.

    Raises:
      ArgumentError: the file is not one of these.
    """
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Measurement(dict(json.loads(str(arrays.pop("request")))), arrays)
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
        problem = " ".join(str(error).split())[:200]
        raise jc.ArgumentError(
            f"{path} cannot be read: {problem}; delete it, and it is measured again"
        ) from None


def read_matching(path: Path, request: dict[str, Any]) -> Measurement | None:
    """Return the contents of the file that answers a request, or None.

    It is None if there is no file, or if it answers another request.
    """
    # A round trip through JSON makes lists of tuples, as in the file.
    measurement = read(path) if path.exists() else None
    return (
        measurement
        if measurement is not None and measurement.request == json.loads(json.dumps(request))
        else None
    )


def read_complete(out: Path, part: str) -> dict[str, Measurement]:
    """Return name of the file -> complete measurement of a part.

    Plain networks come first, then by depth.

    Raises:
      ArgumentError: nothing is complete.
    """
    measurements = {
        path.stem: read(path)
        for path in sorted((out / part).glob("*.npz"), key=lambda path: natural_key(path.stem))
    }
    complete = {
        name: measurement for name, measurement in measurements.items() if measurement.is_complete
    }
    if not complete:
        raise jc.ArgumentError(
            f"{out / part} holds nothing that was measured to its end; leave out --plot-only"
        )
    return complete


def natural_key(name: str) -> list[Any]:
    """Return a key that sorts 56 before 110."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def network_name(name: str) -> str:
    """Return the network's name from that of its file.

    Example:
      >>> network_name("lenet5-relu-direction2"), network_name("plain20")
      ('lenet5-relu', 'plain20')
    """
    return re.sub(r"-direction\d+$", "", name)


def display_title(name: str) -> str:
    """Return the network's name as the papers write it.

    Example:
      >>> display_title("plain20"), display_title("resnet56")
      ('plain-20', 'ResNet-56')
    """
    return re.sub(r"(\D)(\d)", r"\1-\2", name.replace("resnet", "ResNet"), count=1)


def setting_text(measurement: Measurement) -> str:
    """Return one line on what was trained and measured."""
    config, settings = measurement.config, measurement.request["settings"]
    width = f", width {config.model_kwargs['width']}" if "width" in config.model_kwargs else ""
    return (
        f"{config.dataset}{width}, step {measurement.request['row']['step']}, {settings['images']} "
        "training images"
    )
