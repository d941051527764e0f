"""Programs (jaxprs) that are read and evaluated with other operations in place of some: how one machine is made fast."""

from jaxcnn.programs.onednn import OPTIONS, available, unkept
from jaxcnn.programs.replacing import Instead, replaced
from jaxcnn.programs.tuning import tuned

__all__ = [
    "OPTIONS",
    "Instead",
    "available",
    "replaced",
    "tuned",
    "unkept",
]
