"""The progress of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxcnn.progress import Progress


class Watch:
    """Turns the steps of a run, called `what`, into progress."""

    def __init__(self, progress: Progress, steps: int, what: str = ""):
        self.progress, self.steps, self.what = progress, steps, what
        self.step: int | None = None

    def __call__(self, step: int, row: Mapping[str, Any] | None) -> None:
        """`row` is there after some of the steps; the first step told is where the run starts from."""
        where = f"{self.what}step {step}/{self.steps}"
        if self.step is None:
            self.progress.skip(step)
        else:
            self.progress.advance(step - self.step, where)
        self.step = step
        if row is not None:
            errors = f"train error {row['train_error']:5.2f}%  {row['eval_split']} error {row['eval_error']:5.2f}%"
            self.progress.write(f"{where}  {errors}  {row['images_per_second']:,.0f} images/s")
