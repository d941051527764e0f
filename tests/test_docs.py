"""Documentation: examples run, and what it names or links to exists."""

import csv
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import pydoc
import re
from pathlib import Path

import flax.linen as nn
import pytest

import jaxcnn

pytestmark = pytest.mark.usefixtures("one_device")

MODULES = ["jaxcnn", *sorted(m.name for m in pkgutil.walk_packages(jaxcnn.__path__, "jaxcnn."))]
README = Path(jaxcnn.__file__).parent.parent / "README.md"
CONTRIBUTING = README.parent / "CONTRIBUTING.md"
RESULTS = README.parent / "experiments/results"
PAGES = [README, CONTRIBUTING, *sorted(RESULTS.glob("**/*.md"))]


SLOW_EXAMPLES = (
    "boxes",
    "dcgan",
    "faster_rcnn",
    "keypoints",
    "line_reader",
    "losses",
    "norm",
    "pose",
    "search",
    "signal_propagation",
    "ssd",
    "yolo",
)
"""Modules whose examples take seconds: they train a network, or compile a hundred operations."""
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name.endswith(SLOW_EXAMPLES) else name
    for name in MODULES
]
PRINTED, COMPARED = re.compile(r"\d\.\d"), re.compile(r"round\(|[<>] \d+e-")
"""Numbers in examples. Examples that print and compare none are compiled quickly."""


def run_examples(name, of_numbers):
    """Run the examples of a module that have numbers, or those that have none."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(importlib.import_module(name)):
        has_numbers = any(
            PRINTED.search(example.want) or COMPARED.search(example.source)
            for example in test.examples
        )
        if has_numbers == of_numbers:
            runner.run(test)
    assert not runner.summarize(verbose=False).failed


@pytest.mark.parametrize("name", NAMES)
def test_examples_with_numbers_run(name):
    run_examples(name, of_numbers=True)


@pytest.mark.quick_compilation
@pytest.mark.parametrize("name", NAMES)
def test_examples_without_numbers_run(name):
    run_examples(name, of_numbers=False)


def test_tables_of_the_depth_study_have_the_columns_that_the_command_prints():
    header = (RESULTS / "depth-digits/table.md").read_text().splitlines()[0]
    shown = [
        line
        for page in (README, RESULTS / "depth-digits/README.md")
        for line in page.read_text().splitlines()
        if line.startswith("| family |")
    ]
    assert shown
    assert set(shown) == {header}


def test_the_hours_of_the_paper_preset_follow_from_the_benchmark():
    """A run is 64,000 steps of 128 images."""
    from experiments import depth

    with (README.parent / "experiments/results/benchmark/table.csv").open() as file:
        speeds = {row["network"]: float(row["images_per_second"]) for row in csv.DictReader(file)}
    hours = [64_000 * 128 / speeds[name] / 3600 for name in ("resnet20", "resnet56")]
    about = depth.__doc__ or ""
    assert f"{hours[0]:.0f} to {hours[1]:.0f} hours a run" in about
    paper = depth.PRESETS["paper"]
    runs = len(paper.depths) * len(paper.families) * paper.num_seeds
    assert f"about {100 * round(runs * sum(hours) / 2 / 100)} hours for its {runs} runs" in about


def test_the_readmes_speeds_are_those_of_the_benchmark():
    with (README.parent / "experiments/results/benchmark/table.csv").open() as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    ours, relative = (
        [cell.strip().replace(",", "") for cell in line.split("|")[2:-1]]
        for line in README.read_text().splitlines()
        if line.startswith(("| jaxcnn |", "| relative to PyTorch"))
    )
    for i, name in enumerate(("lenet5-relu", "resnet20", "resnet56", "vgg11-32")):
        assert float(ours[i]) == round(float(rows[name]["images_per_second"]))
        assert float(relative[i]) == round(float(rows[name]["over_pytorch"]), 2)


@pytest.mark.parametrize("name", [name for name in dir(jaxcnn) if callable(getattr(jaxcnn, name))])
def test_public_names_are_documented(name):
    assert getattr(jaxcnn, name).__doc__


PACKAGES = [
    "jaxcnn",
    *(m.name for m in pkgutil.walk_packages(jaxcnn.__path__, "jaxcnn.") if m.ispkg),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_help_of_a_package_lists_every_public_name(name):
    """`help` of a package does not list imported names by itself."""
    package = importlib.import_module(name)
    init = Path(inspect.getfile(package)).read_text()
    imports = re.findall(r"^from \S+ import \w+ as ([A-Za-z]\w+)$", init, re.M)
    own = {
        key
        for key, value in vars(package).items()
        if getattr(value, "__module__", None) == name and not key.startswith("_")
    }
    names = set(getattr(package, "__all__", [*imports, *own]))
    assert len(names) > (50 if name == "jaxcnn" else 3)
    assert names <= set(re.findall(r"`(\w+)`", package.__doc__ or ""))


def test_help_of_a_class_describes_every_field():
    """`help(jaxcnn.TrainConfig)` shows the class's docstring, and no strings below fields."""
    missing, count = [], 0
    names = [name for name in MODULES if not re.search(r"\._(?!_)", name)]
    for module in map(importlib.import_module, names):
        kinds = [x for x in vars(module).values() if isinstance(x, type)]
        for kind in kinds:
            if kind.__module__ != module.__name__ or kind.__name__.startswith("_"):
                continue
            is_tuple = hasattr(kind, "_fields")
            if issubclass(kind, nn.Module) or not (is_tuple or dataclasses.is_dataclass(kind)):
                continue
            own = kind._fields if is_tuple else vars(kind).get("__annotations__", {})
            # Python 3.13 strips the indentation of docstrings.
            doc = inspect.cleandoc(kind.__doc__ or "")
            described = re.findall(r"^ {2}([\w, ]+):(?: |$)", doc, re.M)
            words = set(re.findall(r"\w+", " ".join(described)))
            missing += [f"{kind.__name__}.{field}" for field in own if field not in words]
            count += 1
    assert count > 60
    assert not missing


@pytest.mark.slow
def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys):
    """As printed."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(code.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    steps = names["config"].num_steps
    assert int(names["state"].step) == steps
    assert jaxcnn.read_metrics("runs/r20")[-1]["step"] == steps
    assert (names["logits"].shape, names["heat"].shape) == ((8, 10), (8, 8, 8))
    assert "67,906" in capsys.readouterr().out


def test_the_readme_is_short():
    """At most 160 lines of 100 columns, but for tables."""
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    prose = [line for line in lines if not line.startswith("|")]
    assert max(map(len, prose)) <= 100


def _named_tests(page):
    return re.findall(r"`(tests/(?:\w+/)*test_\w+\.py)(?:::(\w+))?`", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(README.parent)))
def test_every_test_that_a_page_names_exists(page):
    for file, test in _named_tests(page):
        text = README.parent.joinpath(file).read_text()
        assert f"def {test}(" in text if test else "def test_" in text, f"{file}::{test}"


def test_every_guarantee_has_a_test():
    section = CONTRIBUTING.read_text().split("\n## Guarantees and their tests\n")[1]
    table = re.findall(r"^\|(.+)\|(.+)\|$", section.split("\n## ")[0], re.M)[2:]
    assert len(table) >= 15
    for guarantee, test in table:
        assert re.search(r"`tests/(\w+/)*test_\w+\.py(::\w+)?`", test), guarantee


def _links(page):
    """Return the relative links and images of a page, each as the file and the anchor."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)(?:\s[^)]*)?\)", text)
    return [target.partition("#")[::2] for target in targets if not re.match(r"[a-z]+:", target)]


def _anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(README.parent)))
def test_every_relative_link_points_to_an_existing_file(page):
    for file, anchor in _links(page):
        target = page.parent / file if file else page
        assert target.exists(), file
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{file}#{anchor}"


def _result_folders():
    return {folder.name for folder in RESULTS.iterdir() if folder.is_dir()}


def test_every_folder_of_results_is_in_the_index_once():
    index = (RESULTS / "README.md").read_text()
    rows = re.findall(r"^\| \[([\w-]+)\]\(([\w-]+)/(?:README\.md)?\) \|", index, re.M)
    assert all(name == link for name, link in rows)
    assert sorted(name for name, _ in rows) == sorted(_result_folders())


def test_every_folder_of_results_that_the_readme_links_to_has_a_page():
    linked = {
        Path(file).parts[2]
        for file, _ in _links(README)
        if file.startswith("experiments/results/") and len(Path(file).parts) > 2
    }
    for name in linked & _result_folders():
        assert (RESULTS / name / "README.md").is_file(), name


@pytest.mark.parametrize("name", ["keypoints", "search"])
def test_help_shows_all_that_is_public_but_no_checks_or_constants(name):
    module = importlib.import_module(f"jaxcnn.{name}")
    own = {
        key
        for key, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not key.startswith("_")
    }
    assert own - set(module.__all__) <= {"check_limit", "check_min_affinity", "check_skeleton", "T"}
    text = pydoc.plain(pydoc.render_doc(module))
    assert "check_" not in text
    assert "MAX_NUMBER" not in text
