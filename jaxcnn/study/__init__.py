"""Studies: many runs, each in a folder of its own, that can be stopped at any moment and go on under the same command."""

from jaxcnn.study.finished import Run as Run
from jaxcnn.study.finished import eval_split as eval_split
from jaxcnn.study.finished import finished as finished
from jaxcnn.study.finished import over_seeds as over_seeds
from jaxcnn.study.finished import pack as pack
from jaxcnn.study.running import Measure as Measure
from jaxcnn.study.running import claim as claim
from jaxcnn.study.running import cut as cut
from jaxcnn.study.running import prepare as prepare
from jaxcnn.study.running import run as run
from jaxcnn.study.sweeping import sweep as sweep
from jaxcnn.study.trained import Trained as Trained
from jaxcnn.study.trained import trained as trained
