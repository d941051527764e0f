"""Training states on disk: saved in the background, verified when restored.

A folder has one owner at a time. Orbax commits a step atomically, but it restores a flipped byte
without an error. So each step has two more parts.

* A manifest, committed with the arrays: the dtype, the shape and the SHA-256 of every leaf. A
  digest of its own seals it.
* A record of every file, written after the committed step has been read back.

A restored state is bit for bit what was saved. A damaged step is reported with its file and renamed
to `<step>.damaged`, and another step is used.

`Checkpoints` saves and restores, and raises `CheckpointError`. `lock_folder` takes a folder for
this process, and raises `FolderInUseError`.
"""

from jaxcnn.checkpoint._integrity import CheckpointError as CheckpointError
from jaxcnn.checkpoint._lock import FolderInUseError as FolderInUseError
from jaxcnn.checkpoint._lock import lock_folder as lock_folder
from jaxcnn.checkpoint.checkpoints import Checkpoints as Checkpoints
