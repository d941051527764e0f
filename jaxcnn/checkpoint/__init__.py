"""Training states on disk: saved in the background, verified on the way back, one owner per folder.

Orbax commits a step atomically, but it restores a flipped byte without a word. So each step also carries a manifest,
committed with the arrays: the type, the shape and the SHA-256 of every leaf, sealed by a digest of its own; and, written
once the committed step has been read back, a record of every file. What comes back is bit for bit what was saved; a step
that is not is named with its file, set aside as `<step>.damaged`, and another is used.
"""

from jaxcnn.checkpoint.folder import lock_folder as lock_folder
from jaxcnn.checkpoint.manifest import CheckpointError as CheckpointError
from jaxcnn.checkpoint.store import Checkpoints as Checkpoints
