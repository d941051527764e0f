"""The 3x3 filters of image processing: kernels that nobody learnt, and the first layer of a network learns anew."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.ops.convolution import convolution

FILTERS: dict[str, np.ndarray] = {
    "identity": np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32),
    "box blur": np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1]], np.float32) / 9,
    "Gaussian blur": np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 16,
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32),
    "Sobel x": np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32),
    "Sobel y": np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]], np.float32),
    "Laplacian": np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32),
    "emboss": np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32),
}
"""name -> float32 [3, 3]. Those that add up to 1 keep the brightness; those that add up to 0 are 0 on every even surface.

Sobel x finds edges that run from above to below: it is positive where the picture gets brighter to the right.
"""


def filtered(image: jax.Array, kernel: jax.Array | np.ndarray) -> jax.Array:
    """One kernel [window, window], odd, over every channel by itself, [h, w, c] -> the same shape; the edge is repeated around.

    Example:
      >>> ramp = jnp.arange(5.0)[None, :, None] * jnp.ones((3, 1, 1))
      >>> filtered(ramp, FILTERS["Sobel x"])[1, :, 0].tolist()
      [4.0, 8.0, 8.0, 8.0, 4.0]
    """
    high, wide = kernel.shape
    more = jnp.pad(image, ((high // 2, high // 2), (wide // 2, wide // 2), (0, 0)), "edge")
    one = jnp.asarray(kernel, image.dtype)[..., None, None]  # [window, window, 1, 1]
    return jax.vmap(lambda channel: convolution(channel[..., None], one)[..., 0], -1, -1)(more)
