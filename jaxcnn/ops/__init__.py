"""What the layers of the talks compute, written out for one example [h, w, c]; `jax.vmap` makes a batch of it.

They are for reading and for figures: each equals the library's layer, forward and in its gradient, and is slower.
"""

from jaxcnn.ops.convolution import convolution as convolution
from jaxcnn.ops.convolution import convolution_by_loops as convolution_by_loops
from jaxcnn.ops.convolution import patches as patches
from jaxcnn.ops.convolution import transposed_convolution as transposed_convolution
from jaxcnn.ops.filters import FILTERS as FILTERS
from jaxcnn.ops.filters import filtered as filtered
from jaxcnn.ops.pooling import average_pool as average_pool
from jaxcnn.ops.pooling import local_response_norm as local_response_norm
from jaxcnn.ops.pooling import max_pool as max_pool
from jaxcnn.ops.sizes import Padding as Padding
from jaxcnn.ops.sizes import borders as borders
from jaxcnn.ops.sizes import output_size as output_size
from jaxcnn.ops.sizes import padded as padded
from jaxcnn.ops.sizes import transposed_size as transposed_size
from jaxcnn.ops.upsampling import bilinear as bilinear
from jaxcnn.ops.upsampling import nearest as nearest
