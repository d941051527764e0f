"""Programs (jaxprs) that are read and evaluated with other operations in place of some: how one machine is made fast.

`parallel` uses it by default for long runs on an x86 CPU. A step of ResNet-20 takes 0.56 of the time, one of VGG-11 at 32x32
0.12 (`experiments/results/benchmark/tried.md`). That is worth it only while the numbers are XLA's up to rounding, so three
checks guard them: `onednn.proven` lists the geometries that are rewritten and XLA keeps the rest; `available` computes ten of
them, near the limits of the list, in each process before the first is rewritten; `tests/test_programs_property.py` compares
random programs, their gradients and second derivatives with XLA's. `JAXCNN_PLAIN=1` turns it off.
"""

from jaxcnn.programs.onednn import OPTIONS, available, unkept
from jaxcnn.programs.replacing import Instead, replaced
from jaxcnn.programs.tuning import negative, nonnegative, tuned

__all__ = [
    "OPTIONS",
    "Instead",
    "available",
    "negative",
    "nonnegative",
    "replaced",
    "tuned",
    "unkept",
]
