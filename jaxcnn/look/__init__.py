"""What looks at a network: functions of a model, its state and images."""

from jaxcnn.look.gradcam import gradcam as gradcam
from jaxcnn.look.gradcam import stages as stages
from jaxcnn.look.summary import Row as Row
from jaxcnn.look.summary import Summary as Summary
from jaxcnn.look.summary import summary as summary
