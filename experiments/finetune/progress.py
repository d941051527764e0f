"""Progress of a run by its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxcnn.progress import Progress


class StepProgress:
    """Callback of a run that reports its steps as progress.

    Attributes:
      progress: the bar, which other runs may share.
      steps: of the run.
      prefix: text in front of the step.
      step: the last reported step.
    """

    def __init__(self, progress: Progress, steps: int, prefix: str = ""):
        self.progress, self.steps, self.prefix = progress, steps, prefix
        self.step: int | None = None

    def __call__(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Report a step.

        Args:
          step: the first is where the run starts from.
          row: of metrics, after some of the steps.
        """
        position = f"{self.prefix}step {step}/{self.steps}"
        if self.step is None:
            self.progress.skip(step)
        else:
            self.progress.advance(step - self.step, position)
        self.step = step
        if row is not None:
            errors = (
                f"train error {row['train_error']:5.2f}%  {row['eval_split']} error "
                f"{row['eval_error']:5.2f}%"
            )
            self.progress.write(f"{position}  {errors}  {row['images_per_second']:,.0f} images/s")
