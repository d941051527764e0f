"""A run of a user's own pieces is one run: its code and constants may not change, its process may."""

import importlib.util
import json
import linecache
import os
import subprocess
import sys
import types
from typing import Any

import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import provenance
from jaxcnn.code_digest import code_digest

pytestmark = pytest.mark.quick_compilation

SOURCE = '''
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

SCALE = 0.5
TABLE = np.arange(3.0)


def helper(x):
    """Scale."""
    return jnp.sin(x) * SCALE + TABLE[0]


class Slope:
    power = 2.0
    calls = 0

    def __init__(self, slope):
        self.slope = slope
        self.cache = {}

    def __call__(self, x):
        self.calls += 1
        self.cache[self.calls] = 1
        return x * self.slope


class Base(nn.Module):
    def pool(self, x):
        return x.mean((1, 2))


class Block(Base):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return helper(nn.Conv(self.width, (3, 3))(x))


class Net(Base):
    activation: object = nn.relu
    options: object = None

    @nn.compact
    def __call__(self, x, train=False):
        # A comment.
        return nn.Dense(10)(self.activation(self.pool(nn.remat(Block)()(x))))


def weighted(weight):
    table = np.full(10, weight)

    def loss(outputs, batch):
        return (table * jnp.square(outputs)).sum(-1), {}

    return loss


def optimizer(rate=0.1):
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -rate * g, updates), state

    return optax.chain(
        optax.clip(1.0), optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    )


model, tx, loss = Net(), optimizer(), weighted(1.0)
'''
LIBRARY = jc.create_model("mlp", 10)


@pytest.fixture
def pieces(tmp_path):
    """A function that imports a source, always as the same module."""

    def load(source):
        number = len(list(tmp_path.iterdir()))
        file = tmp_path / str(number) / "pieces.py"
        file.parent.mkdir()
        file.write_text(source)
        spec: Any = importlib.util.spec_from_file_location("pieces", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules["pieces"] = module
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("pieces", None)


def facts(module):
    found = {
        "model": provenance.model_facts(module.model),
        "optimizer": provenance.optimizer_facts(module.tx),
        "loss": provenance.loss_facts(module.loss),
        "code": provenance.code_facts(module.model, module.tx, module.loss),
    }
    # As a file has them.
    return json.loads(json.dumps(found, default=str))


CHANGES = {
    "code of a method": ("self.activation(self.pool(", "self.pool(self.activation("),
    "code of a base class": ("x.mean((1, 2))", "x.max((1, 2))"),
    "code of a function": ("jnp.sin(x)", "jnp.cos(x)"),
    "code of a wrapped module": ("return helper(", "return -helper("),
    "a default": ("width: int = 4", "width: int = 5"),
    "a global number": ("SCALE = 0.5", "SCALE = -0.5"),
    "a global array": ("np.arange(3.0)", "np.arange(3.0) + 1"),
    "a field's lambda": ("model, tx, loss = Net(),", "model, tx, loss = Net(lambda x: x),"),
    "a partial": ("= Net(),", "= Net(functools.partial(nn.leaky_relu, negative_slope=0.3)),"),
    "an object's number": ("= Net(),", "= Net(Slope(0.2)),"),
    "a namespace": ("= Net(),", "= Net(options=types.SimpleNamespace(a=1)),"),
    "an array": ("= Net(),", "= Net(options=jnp.arange(3)),"),
    "a sign of zero": ("= Net(),", "= Net(options=-0.0),"),
    "an array in a closure": ("weighted(1.0)", "weighted(2.0)"),
    "code of a loss": ("jnp.square(outputs)", "jnp.abs(outputs)"),
    "code of an optimizer": ("-rate * g", "-rate * jnp.sign(g)"),
    "a number of an optimizer": ("rate=0.1", "rate=0.2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_code_or_constant_is_a_difference_with_both_values(pieces, change):
    before, after = CHANGES[change]
    assert SOURCE.count(before) == 1
    old, new = facts(pieces(SOURCE)), facts(pieces(SOURCE.replace(before, after)))
    messages = provenance.differences(old, new)
    assert messages
    assert all(" there and " in message and "\n" not in message for message in messages)
    assert len("; ".join(messages)) < 1000


PAIRS = {
    "lambdas": ("Net(lambda x: 2 * x)", "Net(lambda x: 3 * x)"),
    "operators of lambdas": ("Net(lambda x: x * x)", "Net(lambda x: x + x)"),
    "slopes": ("Net(Slope(0.1))", "Net(Slope(0.2))"),
    "namespaces": (
        "Net(options=types.SimpleNamespace(a=1))",
        "Net(options=types.SimpleNamespace(a=2))",
    ),
    "zeros": ("Net(options=0.0)", "Net(options=-0.0)"),
    "long lists": ("Net(options=list(range(9999)))", "Net(options=list(range(9998)))"),
    "methods": ("Net(Slope(0.1).__call__)", "Net(Slope(0.2).__call__)"),
    "nested": ("Net(options={'a': [Slope(1)]})", "Net(options={'a': [Slope(2)]})"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_values_of_a_field_are_told_apart(pieces, pair):
    found = []
    for text in (*PAIRS[pair], PAIRS[pair][0]):
        source = SOURCE.replace("model, tx, loss = Net(),", f"model, tx, loss = {text},")
        found.append(facts(pieces(source)))
    assert provenance.differences(found[0], found[1])
    assert not provenance.differences(found[0], found[2])


SAME = {
    "a comment": ("# A comment.", "# Another, longer one.\n"),
    "a docstring": ('"""Scale."""', '"""Scale\n\n    in other words.\n    """'),
    "a type": ("width: int = 4", "width: float = 4"),
    "layout": ("jnp.sin(x) * SCALE + TABLE[0]", "(\n        jnp.sin(x) * SCALE\n        + TABLE[0]\n    )"),
    "what nothing uses": ("SCALE = 0.5", "SCALE = 0.5\nOTHER = 3"),
    "the order of a dict": ("= Net(),", "= Net(options={'b': 1, 'a': 2}),"),
    "nan": ("= Net(),", "= Net(options=float('nan')),"),
}  # fmt: skip


@pytest.mark.parametrize("change", SAME)
def test_what_changes_no_number_is_no_difference(pieces, change):
    before, after = SAME[change]
    assert SOURCE.count(before) == 1
    source, other = SOURCE, SOURCE.replace(before, after)
    if change in ("nan", "the order of a dict"):
        source = other.replace("{'b': 1, 'a': 2}", "{'a': 2, 'b': 1}")
    assert not provenance.differences(facts(pieces(source)), facts(pieces(other)))


def test_a_decorator_counts(pieces):
    other = SOURCE.replace("def helper(x):", "@jax.jit\ndef helper(x):")
    static = SOURCE.replace(
        "def helper(x):", "@functools.partial(jax.jit, inline=True)\ndef helper(x):"
    )
    digests = [code_digest(pieces(source).helper) for source in (SOURCE, other, static, SOURCE)]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_counters_that_code_assigns_do_not_count(pieces):
    module = pieces(SOURCE)
    slope = module.Slope(0.1)
    before = code_digest(slope)
    slope(3.0)
    assert slope.calls == 1
    assert code_digest(slope) == before
    slope.slope = 0.2
    assert code_digest(slope) != before


CLOSURES = """
CALLS = 0


def count():
    global CALLS
    CALLS += 1


def make(steps, slope):
    history, memory, number = [], {}, 0

    def bump():
        nonlocal number
        number += 1

    def schedule(step):
        nonlocal steps
        steps = float(steps)
        history.append(step)
        memory[step] = True
        bump()
        count()
        return slope * step / steps + 0 * (number + CALLS)

    return schedule, lambda step: number + step
"""


def test_variables_that_calls_assign_do_not_count(pieces):
    module = pieces(CLOSURES)
    functions = module.make(60, 0.1)
    pieces_with_code = [*functions, optax.sgd(functions[0])]
    before = [code_digest(piece) for piece in pieces_with_code]
    assert None not in before
    for function in functions:
        function(3)
    assert (module.CALLS, functions[1](0)) == (1, 1)
    assert [code_digest(piece) for piece in pieces_with_code] == before
    assert code_digest(module.make(60, 0.2)[0]) != before[0]


SCOPES = """
import optax

RATE = 0.1


def set_rate(value):
    global RATE
    RATE = value


def schedule(step):
    return RATE * step


def wrap(inner):
    def init(params):
        return inner.init(params)

    def update(gradients, state, params=None):
        return inner.update(gradients, state, params)

    return optax.GradientTransformation(init, update)


def weighted(weights):
    def loss(outputs):
        return outputs * weights["a"]

    def other(x):
        weights = {}
        weights["b"] = x
        return weights

    return loss


def table(size):
    squares = {}
    for i in range(size):
        squares[i] = i * i
    return lambda i: squares[i]


def inner(factor):
    return optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (factor * g, s))
"""


def test_constants_of_a_closure_count_where_others_have_names_like_theirs(pieces):
    module = pieces(SCOPES)
    pairs = [
        (module.wrap(module.inner(2.0)).update, module.wrap(module.inner(3.0)).update),
        (module.weighted({"a": 1.0}), module.weighted({"a": 2.0})),
        (module.table(3), module.table(4)),
    ]
    for one, other in pairs:
        assert code_digest(one) not in (None, code_digest(other))
    before = code_digest(module.schedule)
    module.set_rate(0.2)
    assert code_digest(module.schedule) != before


def test_the_text_of_a_config_in_a_record_has_all_fields():
    """A change of a default must be a difference, and the text of old runs stays theirs."""
    augment = jc.augment.from_config(jc.AugmentConfig(padding=1))
    assert provenance.augmentation_facts(augment) == (
        "from_config(config=AugmentConfig(padding=1, flip=False, pad_value='mean', crop='pad', "
        "min_area=None))"
    )


def test_code_of_packages_has_no_digest():
    for piece in (LIBRARY, optax.adam(0.1), np.mean, jc.create_loss("cross-entropy"), dict, 3):
        assert code_digest(piece) is None


def test_digests_are_those_of_every_python(pieces):
    """The constants are of Python 3.11; the suite runs on the newest one too."""
    module = pieces(SOURCE)
    source = SOURCE.replace("= Net(),", "= Net(options={nn.relu, Slope, helper, 'a', 'b'}),")
    assert provenance.code_facts(module.model, module.tx, module.loss) == DIGESTS
    assert code_digest(pieces(source).model) == DIGEST_OF_SET


DIGESTS = {"model": "fd22dcc01608f88b", "optimizer": "3cbd4b4189eb7a40", "loss": "1b0c5685635a7c3a"}
DIGEST_OF_SET = "f2f8e8f1b372a159"


def test_a_class_redefined_in_a_notebook_is_another():
    """Cells have no file, but Python's `linecache` has their source."""
    found = []
    for number, body in enumerate(("x + 1", "x + 2", "x + 1")):
        source = f"class Cell:\n    def __call__(self, x):\n        return {body}\n"
        name = f"<ipython-input-{number}>"
        lines = [str(line) for line in source.splitlines(keepends=True)]
        linecache.cache[name] = (len(source), None, lines, name)
        main = types.ModuleType("__main__")
        saved, sys.modules["__main__"] = sys.modules["__main__"], main
        try:
            exec(compile(source, name, "exec"), vars(main))
            found.append(code_digest(main.Cell()))
        finally:
            sys.modules["__main__"] = saved
    assert None not in found
    assert found[0] == found[2] != found[1]


# Whole runs.

RUN = """
import sys

import jaxcnn as jc
import pieces

data = jc.load_dataset("digits")
model = pieces.Net(pieces.Slope(0.1), {"b", "a", "c", pieces.Slope, pieces.helper, (1, "x")})
config = jc.TrainConfig(num_steps=int(sys.argv[2]), batch_size=64, eval_every=1)
try:
    for state, row in jc.train(
        model, pieces.tx, data, config, run_dir=sys.argv[1], loss=pieces.loss
    ):
        print(int(state.step), float(abs(state.params["Dense_0"]["kernel"]).sum()).hex())
except jc.ArgumentError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_fresh_process_takes_its_own_run_for_its_own(tmp_path):
    """With other hashes of texts and addresses, and more steps; its own edited code it refuses."""
    (tmp_path / "pieces.py").write_text(SOURCE)
    (tmp_path / "run.py").write_text(RUN)

    def run(folder, num_steps, seed, python=sys.executable):
        # A user has neither the strictness of the tests nor their devices.
        skipped = ("JAX_NUMPY", "XLA_FLAGS")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(skipped)}
        environment["PYTHONHASHSEED"] = str(seed)
        root = str(os.path.dirname(os.path.dirname(os.path.abspath(jc.__file__))))
        environment["PYTHONPATH"] = root
        command = [python, str(tmp_path / "run.py"), str(tmp_path / folder), str(num_steps)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    whole = run("whole", 2, 1)
    assert run("parts", 1, 2) == whole[:1]
    assert run("parts", 2, 3) == whole[1:]
    record = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert record["num_steps"] == [{"before": 1, "after": 2}]
    assert set(record["code"]) == {"model", "optimizer", "loss"}
    (tmp_path / "pieces.py").write_text(SOURCE.replace("jnp.sin(x)", "jnp.cos(x)"))
    (line,) = run("parts", 2, 3)
    assert "holds another run: the model's code or constants have the digest" in line


@pytest.mark.slow
def test_more_steps_are_recorded_and_nothing_else_may_change(tmp_path):
    data, config = jc.load_dataset("digits"), jc.TrainConfig(num_steps=1, eval_every=1)

    def run(**changes):
        tx = changes.pop("tx", optax.sgd(0.1))
        one = jc.strategy("jit", 1)
        options = jc.override(config, **changes)
        return list(jc.train(LIBRARY, tx, data, options, run_dir=tmp_path / "run", strategy=one))

    def read(name):
        return json.loads((tmp_path / "run" / name).read_text())

    run()
    assert read("result.json")["step"] == 1
    for changes, words in (
        ({"num_steps": 2, "tx": optax.sgd(0.2)}, "step_size=-0.1.* there and .*step_size=-0.2"),
        ({"num_steps": 2, "seed": 1}, "seed \\(0 there, 1 here\\)"),
    ):
        with pytest.raises(jc.ArgumentError, match=words):
            run(**changes)
        # A refused run changes nothing.
        assert (read("config.json")["train"]["num_steps"], read("result.json")["step"]) == (1, 1)
    assert [int(state.step) for state, _ in run(num_steps=3)] == [2, 3]
    assert read("config.json")["train"]["num_steps"] == read("result.json")["step"] == 3
    run(num_steps=4)
    pairs = [(1, 3), (3, 4)]
    assert read("run.json")["num_steps"] == [{"before": a, "after": b} for a, b in pairs]
    with pytest.raises(jc.ArgumentError, match=r"num_steps \(4 there, 2 here\)"):
        run(num_steps=2)
    assert [row["step"] for row in jc.read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
