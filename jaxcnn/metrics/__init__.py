"""Sums over examples that add over batches and devices, and measures of all predictions.

`Metrics` are the sums of losses and their metrics; `count` makes those of a batch, `zeros` those of
no examples, and `add` adds two. Other measures are computed from all predictions of a model:

- a classifier: `confusion`, `calibration` of probabilities (`Calibration`);
- segmentation: `iou` of a confusion matrix;
- a detector: `average_precision` (at `IOU_THRESHOLDS`);
- poses: `pck`, `correct_keypoints`, `keypoint_similarity`;
- depth maps: `depth_errors` (`DepthErrors`);
- text, as padded integers: `character_error_rate`, `edit_distance`;
- a generator of images: `frechet_distance`.
"""

from jaxcnn.metrics.classification import Calibration as Calibration
from jaxcnn.metrics.classification import calibration as calibration
from jaxcnn.metrics.classification import confusion as confusion
from jaxcnn.metrics.classification import iou as iou
from jaxcnn.metrics.depth import DepthErrors as DepthErrors
from jaxcnn.metrics.depth import depth_errors as depth_errors
from jaxcnn.metrics.detection import IOU_THRESHOLDS as IOU_THRESHOLDS
from jaxcnn.metrics.detection import average_precision as average_precision
from jaxcnn.metrics.frechet import frechet_distance as frechet_distance
from jaxcnn.metrics.keypoints import correct_keypoints as correct_keypoints
from jaxcnn.metrics.keypoints import keypoint_similarity as keypoint_similarity
from jaxcnn.metrics.keypoints import pck as pck
from jaxcnn.metrics.text import character_error_rate as character_error_rate
from jaxcnn.metrics.text import edit_distance as edit_distance
from jaxcnn.metrics.totals import Metrics as Metrics
from jaxcnn.metrics.totals import add as add
from jaxcnn.metrics.totals import count as count
from jaxcnn.metrics.totals import zeros as zeros
