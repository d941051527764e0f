"""Normalization and random augmentation of images on the device.

`augment=` of `jaxcnn.train` takes an augmentation: what one of the makers below returns, or a
function of your own. It is called as `function(rng, image, target)` and returns an image and a
target. The image is float32 [h, w, c] and normalized, by default to 0..1 with the mean training
image subtracted. A function with the arguments `(rng, image, target, other_image, other_target)`
also gets another example of the batch.

- Makers of augmentations: `from_config` (of an `AugmentConfig`: crops and flips), `cutout`,
  `cutmix`, `mixup`, `rand_augment` (of `OPERATIONS`), `chain`. `standard_augmentation` returns the
  usual one of a named data set.
- For the inside of your own: `random_crop`, `random_flip`, `random_resized_crop`, and `augment`,
  which applies an `AugmentConfig`. They take a key and an image, without a target.
- Normalization: `normalize`, `Normalizer`, `make_normalizer`, `IMAGENET_NORMALIZER`.
- For loops of your own: `Augmentation` (the type), `as_augmentation`, `augment_batch`,
  `needs_partner`, `augmented_shapes`.

Example:
  >>> import jax
  >>> import numpy as np
  >>> from jaxcnn import AugmentConfig, augment
  >>> function = augment.chain(
  ...     augment.from_config(AugmentConfig(padding=4, flip=True)),
  ...     augment.mixup(0.2, num_classes=10),
  ... )
  >>> image, other = np.zeros((32, 32, 3), "float32"), np.ones((32, 32, 3), "float32")
  >>> image, target = function(jax.random.key(0), image, np.int32(3), other, np.int32(4))
  >>> image.shape, target.shape, round(float(target.sum()), 4)
  ((32, 32, 3), (10,), 1.0)
"""

from jaxcnn.augment.functions import Augmentation as Augmentation
from jaxcnn.augment.functions import as_augmentation as as_augmentation
from jaxcnn.augment.functions import augment_batch as augment_batch
from jaxcnn.augment.functions import augmented_shapes as augmented_shapes
from jaxcnn.augment.functions import chain as chain
from jaxcnn.augment.functions import from_config as from_config
from jaxcnn.augment.functions import needs_partner as needs_partner
from jaxcnn.augment.functions import standard_augmentation as standard_augmentation
from jaxcnn.augment.images import IMAGENET_NORMALIZER as IMAGENET_NORMALIZER
from jaxcnn.augment.images import AugmentConfig as AugmentConfig
from jaxcnn.augment.images import Normalizer as Normalizer
from jaxcnn.augment.images import augment as augment
from jaxcnn.augment.images import make_normalizer as make_normalizer
from jaxcnn.augment.images import normalize as normalize
from jaxcnn.augment.images import random_crop as random_crop
from jaxcnn.augment.images import random_flip as random_flip
from jaxcnn.augment.images import random_resized_crop as random_resized_crop
from jaxcnn.augment.mixing import cutmix as cutmix
from jaxcnn.augment.mixing import cutout as cutout
from jaxcnn.augment.mixing import mixup as mixup
from jaxcnn.augment.rand_augment import OPERATIONS as OPERATIONS
from jaxcnn.augment.rand_augment import rand_augment as rand_augment
