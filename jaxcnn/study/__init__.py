"""Studies: many runs, each in a folder of its own, that can be stopped at any moment and go on under the same command."""

from jaxcnn.study.finished import Run as Run
from jaxcnn.study.finished import aggregate_seeds as aggregate_seeds
from jaxcnn.study.finished import eval_split as eval_split
from jaxcnn.study.finished import finished_runs as finished_runs
from jaxcnn.study.finished import pack as pack
from jaxcnn.study.running import Measure as Measure
from jaxcnn.study.running import model_and_optimizer as model_and_optimizer
from jaxcnn.study.running import open_run_dir as open_run_dir
from jaxcnn.study.running import run as run
from jaxcnn.study.running import subset_for as subset_for
from jaxcnn.study.sweeping import sweep as sweep
from jaxcnn.study.trained import TrainedModel as TrainedModel
from jaxcnn.study.trained import load_trained_model as load_trained_model
