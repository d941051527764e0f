"""The notebooks: the committed files, and their execution in kernels of their own."""

import ast
import asyncio
import json
import os
import re
import threading
from pathlib import Path

import pytest

import jaxcnn

FOLDER = Path(jaxcnn.__file__).parent.parent / "experiments/notebooks"
NAMES = ["learning_rate", "quick_start", "what_a_network_looks_at"]
MAX_BYTES = 400_000


def load(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text(part):
    """A source or an output, which files hold as lines."""
    return part if isinstance(part, str) else "".join(part)


def faults(cells):
    """What a reader would not want to see: errors and red boxes."""
    return [
        f"{output.get('ename', 'stderr')}: {output.get('evalue', output.get('text'))}"
        for cell in cells
        for output in cell["outputs"]
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]


def kinds(cell):
    """The outputs of a cell by their types, of which those of streams have no order."""
    outputs = [
        f"{output['output_type']} {' '.join(sorted(output.get('data', {})))}".strip()
        for output in cell["outputs"]
    ]
    return sorted(set(outputs)) if "stream" in outputs else outputs


# ------------------------------------------------------------------ the committed files


def test_the_folder_has_these_notebooks():
    assert sorted(path.name for path in FOLDER.iterdir() if path.name != "runs") == [
        f"{name}.ipynb" for name in NAMES
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_was_executed_once_from_above(name):
    notebook = load(name)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MAX_BYTES
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert faults(cells) == []
    assert sum("image/png" in kind for cell in cells for kind in kinds(cell)) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_what_is_an_expression_has_an_output_of_its_own(name):
    for cell in code_cells(load(name)):
        *_, last = ast.parse(text(cell["source"])).body
        is_shown = isinstance(last, ast.Expr)
        results = [o for o in cell["outputs"] if o["output_type"] == "execute_result"]
        # A figure is shown once, and by nothing but the expression.
        assert len(results) == is_shown, text(cell["source"])
        images = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
        assert all(o in results for o in images)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_no_paths_of_the_machine(name):
    outputs = [output for cell in code_cells(load(name)) for output in cell["outputs"]]
    shown = [text(output.get("text", "")) for output in outputs]
    for output in outputs:
        shown += [text(t) for kind, t in output.get("data", {}).items() if kind != "image/png"]
    shown += [text(cell["source"]) for cell in load(name)["cells"]]
    pattern = r"(?<![\w.\])])/(home|root|opt|tmp|work|usr|var|Users|mnt)\b|file:/|0x[0-9a-f]{6}"
    assert not re.search(pattern, "\n".join(shown))
    assert str(Path.home()) not in "\n".join(shown)


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name):
    for cell in code_cells(load(name)):
        for node in ast.walk(ast.parse(text(cell["source"]))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_")
            for module in modules:
                assert not module.startswith(("experiments", "tests"))
                assert not any(part.startswith("_") for part in module.split("."))


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_short_and_links_exist(name):
    for cell in load(name)["cells"]:
        if cell["cell_type"] == "markdown":
            assert max(map(len, text(cell["source"]).splitlines())) <= 100
            for target in re.findall(r"\]\(([^)\s]+)\)", text(cell["source"])):
                assert target.startswith("https://") or (FOLDER / target).exists(), target


# ------------------------------------------------------------------ execution


@pytest.fixture
def kernels(tmp_path, tmp_path_factory, monkeypatch, quick_environment):
    """Run a coroutine function of a client, in a kernel of its own that ends with it."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    import psutil

    # Not those of the user.
    for variable in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path_factory.mktemp("jupyter")))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    # A reader's process has none of the settings of tests.
    settings = ("XLA_FLAGS", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION", "MPLBACKEND")
    path = os.pathsep.join([str(FOLDER.parent.parent), os.environ.get("PYTHONPATH", "")])
    env = {name: value for name, value in os.environ.items() if name not in settings}
    env |= {"PYTHONPATH": path.strip(os.pathsep), "PYTHONWARNINGS": "default"}
    # Kernels that execute the same cells share what they compile.
    env["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["JAXCNN_CACHE"], "programs")
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    env |= quick_environment  # No number of a kernel is compared with one of another program.

    def run(sources, work, folder=tmp_path):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = nbformat.v4.new_notebook(cells=cells)
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            allow_errors=True,
            coalesce_streams=True,
            # The kernel warns of its sockets, which are those of this machine alone.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )

        async def main():
            async with client.async_setup_kernel(env=env):
                await work(client)

        asyncio.run(main())
        return notebook.cells

    threads = set(threading.enumerate())
    children = set(psutil.Process().children(recursive=True))
    yield run
    assert set(psutil.Process().children(recursive=True)) <= children
    assert {t for t in threading.enumerate() if not t.daemon} <= threads


async def execute_all(client):
    for i, cell in enumerate(client.nb.cells):
        await client.async_execute_cell(cell, i)


FEWER = {
    "learning_rate": {"num_steps=500": "num_steps=75", "num_steps=200": "num_steps=40"},
    "what_a_network_looks_at": {"num_steps=400": "num_steps=100"},
}
"""Notebook -> what is replaced in its cells: steps of training, of which no test needs so many."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FEWER)
def test_a_notebook_runs(name, kernels, tmp_path):
    committed = code_cells(load(name))
    source = "\0".join(text(cell["source"]) for cell in committed)
    for steps, fewer in FEWER[name].items():
        assert source.count(steps) == 1
        source = source.replace(steps, fewer)
    executed = kernels(source.split("\0"), execute_all)
    assert faults(executed) == []
    assert [kinds(cell) for cell in executed] == [kinds(cell) for cell in committed]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_every_cell_runs_twice_and_a_new_kernel_reads_the_finished_runs(kernels, tmp_path):
    committed = code_cells(load("quick_start"))
    sources = [text(cell["source"]) for cell in committed]
    twice = kernels([source for source in sources for _ in range(2)], execute_all)
    assert faults(twice) == []
    assert [kinds(cell) for cell in twice[::2]] == [kinds(cell) for cell in committed]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    again = kernels(sources, execute_all)
    assert faults(again) == []


SETUP = """
import jaxcnn as jc
data = jc.subset(jc.load_dataset("digits"), 128, seed=0)
model = jc.create_model("mlp", 10)
tx = jc.create_optimizer(jc.OptimizerConfig("adam", learning_rate=0.001))
config = jc.TrainConfig(num_steps=1500, eval_every=100, batch_size=16)
"""
TRAIN = """
for state, row in jc.train(model, tx, data, config, run_dir="runs/a"):
    print(row["step"], "interrupted" in row, flush=True)
"""
CHECK = """
*_, (whole, _) = jc.train(model, tx, data, config, run_dir="runs/b", progress=False)
import jax, numpy as np
equal = jax.tree.map(np.array_equal, state.params, whole.params)
print(all(jax.tree.leaves(equal)), [row["step"] for row in jc.read_metrics("runs/a")] == list(range(100, 1501, 100)))
"""


def stdout(cell):
    return "".join(output["text"] for output in cell["outputs"] if output.get("name") == "stdout")


@pytest.mark.slow
def test_an_interrupted_cell_resumes_when_it_is_run_again(kernels):
    async def work(client):
        setup, first, alive, *rest = client.nb.cells
        await client.async_execute_cell(setup, 0)
        running = asyncio.create_task(client.async_execute_cell(first, 1))
        while "100 False" not in stdout(first):
            assert not running.done(), first
            await asyncio.sleep(0.01)
        await client.km.interrupt_kernel()
        await running
        for i, cell in enumerate([alive, *rest], 2):
            await client.async_execute_cell(cell, i)

    _, first, alive, second, check = kernels([SETUP, TRAIN, "print(1 + 1)", TRAIN, CHECK], work)
    assert stdout(alive) == "2\n"
    last, is_interrupted = stdout(first).splitlines()[-1].split()
    # Between two rows the interrupt is Python's own.
    names = [output["ename"] for output in first["outputs"] if output["output_type"] == "error"]
    assert names == ([] if is_interrupted == "True" else ["KeyboardInterrupt"])
    assert 100 <= int(last) < 1500
    steps = [int(line.split()[0]) for line in stdout(second).splitlines()]
    assert steps == list(range(int(last) // 100 * 100 + 100, 1501, 100))
    assert faults([alive, second, check]) == []
    assert stdout(check) == "True True\n"


@pytest.mark.slow
def test_an_error_in_a_loop_leaves_the_run_free_and_a_named_iterator_is_closed(kernels):
    named = "run = jc.train(model, tx, data, config, run_dir='runs/c')\nprint(next(run)[1]['step'])"
    broken = TRAIN + "    raise KeyboardInterrupt"
    short = SETUP.replace("1500", "300")
    sources = [short, broken, broken, TRAIN, named, named, "run.close()", named]
    _, first, second, third, *rest = kernels(sources, execute_all)
    assert [stdout(cell) for cell in (first, second)] == ["100 False\n", "200 False\n"]
    assert stdout(third) == "300 False\n"
    assert [stdout(cell) for cell in rest] == ["100\n", "", "", "200\n"]
    (refused,) = (output for output in rest[1]["outputs"] if output["output_type"] == "error")
    assert re.fullmatch(
        r"\S*runs/c/checkpoints is in use by process \d+ on \S+, which is this process: .* "
        r"Call close\(\) .* what jaxcnn.train returned, .*",
        refused["evalue"],
    )
    assert faults([third, rest[0], rest[2], rest[3]]) == []


@pytest.mark.slow
def test_a_figure_is_shown_once_and_progress_is_one_line(kernels):
    draw = "from jaxcnn import plots\nplots.panels([plots.Panel('', [plots.Line([1, 2], [3, 2])])])"
    hidden = draw.replace("plots.panels", "figure = plots.panels")
    short = SETUP.replace("1500", "300")
    hide = "import importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'ipywidgets' else find(name, *a)"
    import_pyplot = "import matplotlib.pyplot as plt"
    sources = [short + hide, draw, hidden, "figure", import_pyplot, draw, hidden, TRAIN]
    cells = kernels(sources, execute_all)
    assert faults(cells) == []
    shown = ["execute_result image/png text/plain"]
    assert [kinds(cell) for cell in cells[1:-1]] == [shown, [], shown, [], shown, []]
    (bar,) = (o for o in cells[-1]["outputs"] if o["output_type"] == "display_data")
    assert bar["data"]["text/plain"].startswith("100% |█")
    assert stdout(cells[-1]) == "100 False\n200 False\n300 False\n"
