"""Runs in folders, alone or in sweeps.

They can be stopped at any moment. The same call, with the same folder, resumes them.

- Train: `run` trains a config, `sweep` several. `Build` and `Measure` are the types of your own
  pieces.
- Log: `open_run_dir` opens the log of a run, for a loop of your own.
- Read: `finished_runs` (`Run`), `load_trained_model` (`TrainedModel`), `aggregate_seeds`,
  `eval_split`. `pack` writes the finished runs to one file.
- For `jaxcnn.search`: `experiment_evaluator`, `train_until`, `run_name`, `SearchStopped`.
- Pieces of a config: `model_and_optimizer`, `subset_for`.
"""

from jaxcnn.records import open_run_dir as open_run_dir
from jaxcnn.runs.evaluator import SearchStopped as SearchStopped
from jaxcnn.runs.evaluator import experiment_evaluator as experiment_evaluator
from jaxcnn.runs.evaluator import run_name as run_name
from jaxcnn.runs.evaluator import train_until as train_until
from jaxcnn.runs.results import Run as Run
from jaxcnn.runs.results import aggregate_seeds as aggregate_seeds
from jaxcnn.runs.results import eval_split as eval_split
from jaxcnn.runs.results import finished_runs as finished_runs
from jaxcnn.runs.results import pack as pack
from jaxcnn.runs.single import Build as Build
from jaxcnn.runs.single import Measure as Measure
from jaxcnn.runs.single import TrainedModel as TrainedModel
from jaxcnn.runs.single import load_trained_model as load_trained_model
from jaxcnn.runs.single import model_and_optimizer as model_and_optimizer
from jaxcnn.runs.single import run as run
from jaxcnn.runs.single import subset_for as subset_for
from jaxcnn.runs.sweeps import sweep as sweep
