"""Every optimiser of the table: its steps against loops in NumPy, and what all of them have in common."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn.config import ArgumentError, ExperimentConfig, OptimizerConfig
from jaxcnn.optim import OPTIMIZERS, SCHEDULES, create_optimizer, eval_params
from jaxcnn.optim.optimizers import optimizer_options
from jaxcnn.state import eval_state, init_state
from jaxcnn.training import epoch_order, make_train_step

ARRAY = np.ndarray


class Bowl:
    """f(w) = 1/2 sum c w^2 over a kernel and a bias of one flat float64 vector, and the same for JAX over a tree."""

    def __init__(self, shape: tuple[int, ...] = (2, 3), decay: float = 0.3):
        rng, self.shape, self.decay = np.random.default_rng(5), shape, decay
        size, out = math.prod(shape), shape[-1]
        self.curve = rng.uniform(0.3, 3.0, size + out)
        self.begin = rng.choice([-1, 1], size + out) * rng.uniform(0.5, 3.0, size + out)
        self.decayed = decay * (np.arange(size + out) < size)
        self.parts = slice(0, size), slice(size, size + out)

    def grad(self, w: ARRAY) -> ARRAY:
        return self.curve * w

    def loss(self, w: ARRAY) -> float:
        return float((self.curve * w**2).sum() / 2)

    def coupled(self, w: ARRAY) -> ARRAY:
        """The gradient of the loss with its L2 penalty."""
        return self.grad(w) + self.decayed * w

    def tree(self, flat: ARRAY) -> dict[str, jax.Array]:
        kernel, bias = (jnp.asarray(flat[part], jnp.float32) for part in self.parts)
        return {"kernel": kernel.reshape(self.shape), "bias": bias}

    def flat(self, tree: Any) -> ARRAY:
        return np.concatenate([np.ravel(tree["kernel"]), np.ravel(tree["bias"])])

    def value(self, tree: Any) -> Any:
        return sum((c * tree[name] ** 2).sum() / 2 for name, c in self.tree(self.curve).items())


def stepper(bowl: Bowl, tx: optax.GradientTransformationExtraArgs) -> Any:
    """`step(params, state, worth, tilt)`, given what `make_train_step` gives: the loss times `worth`, the second gradient times
    `tilt`. It gives its memory away, as `train` does, which no two arrays of a state may share."""
    return compiled(tx.update, bowl.shape, bowl.decay)


@lru_cache
def compiled(update: Any, shape: tuple[int, ...], decay: float) -> Any:
    bowl = Bowl(shape, decay)

    def step(params, state, worth, tilt):
        loss, grads = jax.value_and_grad(bowl.value)(params)
        again = lambda tree, _: jax.tree.map(lambda g: tilt * g, jax.grad(bowl.value)(tree))  # noqa: E731
        with jax.numpy_dtype_promotion("standard"):  # as make_step does
            updates, state = update(
                grads, state, params, value=worth * loss, error=loss * 0, grad_fn=again
            )
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def walk(
    bowl: Bowl, tx: optax.GradientTransformationExtraArgs, steps: int, worth=1.0, tilt=1.0
) -> Iterator[tuple[Any, Any]]:
    """(parameters, optimiser's state) after each step of the optimiser on the bowl."""
    params, step = bowl.tree(bowl.begin), stepper(bowl, tx)
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state, jnp.float32(worth), jnp.float32(tilt))
        yield jax.tree.map(np.array, (params, state))


# The methods from their papers, in float64: (bowl, w, rates, **options) -> the parameters after
# each step. Where a loop
# departs from its paper, it follows the released code (or optax), and the comment says so.


def sgd(f, w, rates, eta=0.0):
    for lr in rates:
        yield (w := w - lr * f.coupled(w))


def momentum(f, w, rates):
    v = 0 * w
    for lr in rates:
        v = 0.8 * v + f.coupled(w)
        yield (w := w - lr * v)


def caffe(f, w, rates):
    v = 0 * w
    for lr in rates:
        v = 0.8 * v + lr * f.coupled(w)
        yield (w := w - v)


def nesterov(f, w, rates):
    v = 0 * w
    for lr in rates:
        g = f.coupled(w)
        v = 0.8 * v + g
        yield (w := w - lr * (g + 0.8 * v))


def sign(f, w, rates):
    for lr in rates:
        yield (w := w - lr * np.sign(f.coupled(w)))


def polyak(f, w, rates, f_min=0.0):
    for (
        lr
    ) in rates:  # SPS_max; the value is the loss without its L2 penalty, as the step reports it
        g = f.coupled(w)
        yield (w := w - min((f.loss(w) - f_min) / (g @ g), lr) * g)


def clipped(f, w, rates, norm=1.0):
    v = 0 * w
    for lr in rates:
        g = f.coupled(w)
        v = 0.8 * v + g * min(1, norm / np.sqrt(g @ g))
        yield (w := w - lr * v)


def adagrad(f, w, rates):
    total = 0.1  # the paper begins at 0 with the constant outside the root; this is TensorFlow's and optax's form
    for lr in rates:
        g = f.coupled(w)
        total = total + g**2
        yield (w := w - lr * g / np.sqrt(total + 1e-7))


def rmsprop(f, w, rates, decay=0.9):
    s = 0
    for lr in rates:
        g = f.coupled(w)
        s = decay * s + (1 - decay) * g**2
        yield (w := w - lr * g / np.sqrt(s + 1e-8))


def sent(b1, b2):
    """A function of each gradient in turn: Adam's first moment, both moments corrected, and the count."""
    m: Any = 0.0
    v: Any = 0.0
    t = 0

    def send(g):
        nonlocal m, v, t
        m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, t + 1
        return m, m / (1 - b1**t), v / (1 - b2**t), t

    return send


def adam(f, w, rates, b1=0.9, b2=0.999):
    send = sent(b1, b2)
    for lr in rates:
        _, m, v, _ = send(f.coupled(w))
        yield (w := w - lr * m / (np.sqrt(v) + 1e-8))


def adamw(f, w, rates, b1=0.9, b2=0.999):
    send = sent(b1, b2)
    for lr in rates:
        _, m, v, _ = send(f.grad(w))
        yield (w := w - lr * (m / (np.sqrt(v) + 1e-8) + f.decayed * w))


def dozat(m, g, t, b1):
    """Nadam's numerator: the momentum of the step to come, each term with its own correction."""
    return b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)


def nadam(f, w, rates, b1=0.9, b2=0.999):
    send = sent(b1, b2)
    for lr in rates:
        g = f.coupled(w)
        m, _, v, t = send(g)
        yield (w := w - lr * dozat(m, g, t, b1) / (np.sqrt(v) + 1e-8))


def amsgrad(f, w, rates, b1=0.9, b2=0.999):
    send, largest = sent(b1, b2), 0 * w
    for lr in (
        rates
    ):  # the paper corrects neither moment; optax both, and takes the largest corrected one
        _, m, v, _ = send(f.coupled(w))
        largest = np.maximum(largest, v)
        yield (w := w - lr * m / (np.sqrt(largest) + 1e-8))


def radam(f, w, rates, b1=0.9, b2=0.999):
    send, longest = sent(b1, b2), 2 / (1 - b2) - 1
    for lr in rates:
        _, m, v, t = send(f.coupled(w))
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length >= 5:  # the paper says > 4, the authors' code >= 5
            r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            m = m * np.sqrt(r) / (np.sqrt(v) + 1e-8)
        yield (w := w - lr * m)


def lion(f, w, rates, b1=0.9, b2=0.99):
    m = 0 * w
    for lr in rates:
        g = f.grad(w)
        w = w - lr * (np.sign(b1 * m + (1 - b1) * g) + f.decayed * w)
        m = b2 * m + (1 - b2) * g
        yield w


def lars(f, w, rates, trust=0.001):
    v, kernel = 0 * w, f.parts[0]
    for lr in rates:
        g = f.coupled(w)
        g[kernel] *= trust * np.linalg.norm(w[kernel]) / np.linalg.norm(g[kernel])
        v = 0.8 * v + lr * g
        yield (w := w - v)


def lamb(f, w, rates, b1=0.9, b2=0.999):
    send = sent(b1, b2)
    for lr in rates:
        _, m, v, _ = send(f.grad(w))
        u = m / (np.sqrt(v) + 1e-6) + f.decayed * w
        for part in f.parts:
            u[part] *= np.linalg.norm(w[part]) / np.linalg.norm(u[part])
        yield (w := w - lr * u)


def sam(f, w, rates, rho=0.05):
    v = 0 * w
    for lr in rates:  # the climb follows the loss alone; the penalty is that of the parameters left
        g = f.grad(w)
        v = 0.8 * v + f.grad(w + rho * g / np.sqrt(g @ g)) + f.decayed * w
        yield (w := w - lr * v)


def lookahead(f, w, rates, period=5, share=0.5):
    slow, v = w, 0 * w
    for t, lr in enumerate(rates, 1):
        v = 0.8 * v + f.coupled(w)  # which is kept when the parameters are reset
        w = w - lr * v
        if t % period == 0:
            slow = w = slow + share * (w - slow)
        yield w, slow


def schedule_free(f, w, rates, b1=0.9):
    z = x = w
    total = largest = 0.0
    for lr in rates:
        y = (1 - b1) * z + b1 * x
        z = z - lr * f.coupled(y)
        largest = max(
            largest, lr
        )  # the weights of the authors' code: the largest rate so far, squared
        total += largest**2
        x = x + largest**2 / total * (z - x)
        yield (1 - b1) * z + b1 * x, x


def prodigy(f, w, rates, d0=1e-6):
    d, r, s, m, v, first = d0, 0.0, 0 * w, 0 * w, 0 * w, w
    b1, b2, b3 = 0.9, 0.999, math.sqrt(0.999)
    for t, lr in enumerate(rates, 1):
        g, lr = f.grad(w), lr * math.sqrt(1 - b2**t) / (1 - b1**t)
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * d**2 * g**2
        r = b3 * r + lr * d**2 / d0 * (g @ (first - w))  # the authors divide both sums by d0
        s = b3 * s + lr * d**2 / d0 * g
        step, d = lr * d, max(d, r / np.abs(s).sum())
        yield (w := w - step * (m / (np.sqrt(v) + d * 1e-8) + f.decayed * w))


def newton_schulz(x: ARRAY) -> ARRAY:
    """Jordan et al. 2024: five rounds of the quintic whose coefficients they publish."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon(f, w, rates, beta=0.95):
    (kernel, bias), out, m, nadams = f.parts, f.shape[-1], 0, sent(0.9, 0.999)
    for t, lr in enumerate(rates, 1):
        g, w = f.grad(w), w.copy()
        m = beta * m + (1 - beta) * g[kernel]
        # Jordan et al. add beta m + (1 - beta) g; optax corrects both terms as Nadam does, which
        # fades in 1/(1 - beta) steps.
        x = newton_schulz(dozat(m, g[kernel], t, beta).reshape(-1, out))
        u = 0.2 * np.sqrt(max(x.shape)) * x.ravel()  # Liu et al. 2025, eq. 4
        w[kernel] -= lr * (u + f.decayed[kernel] * w[kernel])
        n, _, v, _ = nadams(g[bias])
        w[bias] -= lr * dozat(n, g[bias], t, 0.9) / (np.sqrt(v) + 1e-8)
        yield w


WINDOW = (3, 3, 2, 4)
CASES: list[tuple[str, Any, float, dict[str, Any], tuple[int, ...]]] = [
    ("sgd", sgd, 0.1, {}, (2, 3)),
    ("momentum", momentum, 0.1, {}, (2, 3)),
    ("caffe", caffe, 0.1, {}, (2, 3)),
    ("nesterov", nesterov, 0.1, {}, (2, 3)),
    ("noisy", sgd, 0.1, {"eta": 0.0}, (2, 3)),
    ("sign", sign, 0.03, {}, (2, 3)),
    ("polyak", polyak, 1.0, {}, (2, 3)),  # below its largest step,
    ("polyak", polyak, 0.1, {"f_min": 2.0}, (2, 3)),  # and at it
    ("clipped", clipped, 0.3, {}, (2, 3)),
    ("clipped", clipped, 0.1, {"norm": 5.0}, (2, 3)),
    ("adagrad", adagrad, 0.1, {}, (2, 3)),
    ("rmsprop", rmsprop, 0.03, {}, (2, 3)),
    ("rmsprop", rmsprop, 0.03, {"decay": 0.5}, (2, 3)),
    # In float32, 1 - 0.999^t is known to 5e-5 at the first step, as is the step: it is made small
    # beside 1e-6.
    ("adam", adam, 0.003, {}, (2, 3)),
    ("adam", adam, 0.03, {"b1": 0.5, "b2": 0.9}, (2, 3)),
    ("adamw", adamw, 0.003, {}, (2, 3)),
    ("adamw", adamw, 0.03, {"b1": 0.5, "b2": 0.9}, (2, 3)),
    ("nadam", nadam, 0.003, {}, (2, 3)),
    ("nadam", nadam, 0.03, {"b1": 0.5, "b2": 0.9}, (2, 3)),
    ("amsgrad", amsgrad, 0.1, {"b2": 0.5}, (2, 3)),
    ("radam", radam, 0.03, {"b2": 0.9}, (2, 3)),
    ("lion", lion, 0.03, {}, (2, 3)),
    ("lars", lars, 0.3, {"trust": 0.3}, (2, 3)),
    ("lars", lars, 0.3, {"trust": 0.1}, WINDOW),
    ("lamb", lamb, 0.003, {}, (2, 3)),
    ("lamb", lamb, 0.03, {"b2": 0.9}, WINDOW),
    ("sam", sam, 0.1, {"rho": 0.5}, (2, 3)),
    ("lookahead", lookahead, 0.1, {}, (2, 3)),
    ("lookahead", lookahead, 0.1, {"period": 3, "share": 0.8}, (2, 3)),
    ("schedule-free", schedule_free, 0.1, {}, (2, 3)),
    ("schedule-free", schedule_free, 0.1, {"b1": 0.5}, (2, 3)),
    ("prodigy", prodigy, 0.3, {"d0": 0.01}, (2, 3)),
    ("muon", muon, 0.003, {}, (2, 3)),
    ("muon", muon, 0.003, {"beta": 0.5}, WINDOW),
]


def test_every_method_is_compared():
    assert {name for name, *_ in CASES} == set(OPTIMIZERS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loop", "lr", "given", "shape"), CASES)
def test_twelve_steps_with_drops_and_decay_are_those_of_a_loop_in_numpy(
    name, loop, lr, given, shape
):
    bowl = Bowl(shape)
    config = OptimizerConfig(
        name,
        optimizer_kwargs=given,
        learning_rate=lr,
        milestones=(4, 9),
        gamma=0.3,
        momentum=0.8,
        weight_decay=bowl.decay,
    )
    rates = [lr * 0.3 ** ((step >= 4) + (step >= 9)) for step in range(12)]
    moved = bowl.begin
    for (params, state), expected in zip(
        walk(bowl, create_optimizer(config), 12),
        loop(bowl, bowl.begin, rates, **given),
        strict=True,
    ):
        expected, judged = expected if isinstance(expected, tuple) else (expected, expected)
        tolerance = 1e-6 * max(
            1, np.abs(expected).max(), np.abs(judged).max()
        )  # float32 rounds in proportion to the value
        np.testing.assert_allclose(bowl.flat(params), expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(
            bowl.flat(eval_params(state, params)), judged, rtol=0, atol=tolerance
        )
        moved = judged
    assert np.abs(moved - bowl.begin).min() > 1e-3  # each parameter went far beyond the tolerance


@pytest.mark.parametrize("b2", [0.999, 0.9])
def test_radam_goes_by_momentum_until_it_knows_the_variance(b2):
    """Liu et al. 2020, section 4: the first steps are not divided by the root, so they scale with the gradient."""
    bowl = Bowl(decay=0.0)
    config = OptimizerConfig(
        "radam",
        optimizer_kwargs={"b2": b2},
        learning_rate=0.001,
        milestones=(),
        weight_decay=0.0,
    )
    states = [
        bowl.begin,
        *(bowl.flat(params) for params, _ in walk(bowl, create_optimizer(config), 9)),
    ]
    sizes, longest = np.abs(np.diff(states, axis=0)) / 0.001, 2 / (1 - b2) - 1
    np.testing.assert_allclose(
        sizes[:4], np.broadcast_to(np.abs(bowl.grad(bowl.begin)), (4, 9)), rtol=0.05
    )
    for t in (7, 8, 9):  # then all go equally far, whatever their gradient
        length = longest - 2 * t * b2**t / (1 - b2**t)
        r = math.sqrt(
            (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        )
        np.testing.assert_allclose(sizes[t - 1], r, rtol=0.05)


def test_schedule_free_weighs_where_it_went_by_the_square_of_the_rate():
    """Defazio et al. 2024, section 4: steps of a warm-up count for less."""
    bowl = Bowl()
    config = OptimizerConfig(
        "schedule-free",
        learning_rate=0.1,
        schedule="warmup",
        weight_decay=bowl.decay,
    )
    walked, rates = (
        list(walk(bowl, create_optimizer(config, num_steps=60), 9))[1:],
        0.1 * np.minimum(np.arange(1, 9) / 6, 1),
    )  # after a first rate of 0
    for (params, state), (at, judged) in zip(
        walked, schedule_free(bowl, bowl.begin, rates), strict=True
    ):
        np.testing.assert_allclose(bowl.flat(params), at, rtol=0, atol=1e-6)
        np.testing.assert_allclose(bowl.flat(eval_params(state, params)), judged, rtol=0, atol=1e-6)


# Muon.


def test_muon_steps_are_nearly_orthogonal_matrices_of_windows_by_channels():
    ragged = np.random.default_rng(0).normal(size=(3, 3, 8, 16)) * np.linspace(0.2, 1, 16)
    grads = {"kernel": jnp.asarray(ragged, jnp.float32)}
    params = jax.tree.map(jnp.ones_like, grads)
    tx = create_optimizer(OptimizerConfig("muon", learning_rate=0.02, weight_decay=0.0))
    updates: Any
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(grads, tx.init(params), params)
    matrix = np.asarray(updates["kernel"], np.float64).reshape(72, 16)
    singular = np.linalg.svd(matrix / (0.02 * 0.2 * np.sqrt(72)), compute_uv=False)
    assert 0.6 < singular.min() < singular.max() < 1.3
    assert np.linalg.cond(ragged.reshape(72, 16)) > 5  # which the gradient is not
    assert np.sqrt((matrix**2).mean()) == pytest.approx(
        0.2 * 0.02, rel=0.3
    )  # as large as AdamW's, whatever the shape


# Noise.


def noise(seed: int, n=20_000, steps=4, **given) -> ARRAY:
    """The first steps of "noisy" at rate 1 without a gradient."""
    params = {"kernel": jnp.zeros(n)}
    config = OptimizerConfig("noisy", learning_rate=1.0, weight_decay=0.0, optimizer_kwargs=given)
    tx, grads = create_optimizer(config, seed=seed), params
    state, taken = tx.init(params), []
    updates: Any
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(grads, state, params)
        taken.append(np.asarray(updates["kernel"], np.float64))
    return np.array(taken)


def test_noise_has_the_papers_variance_and_is_new_at_every_step():
    """Neelakantan et al. 2015, eq. 2: the variance at step t is eta / (1 + t)^gamma."""
    taken = noise(0, eta=0.3, gamma=0.7)
    # The deviation of 20,000 numbers is known to 1 / sqrt(40,000) = 0.5%, their mean and
    # correlations to 0.7%.
    np.testing.assert_allclose(
        taken.std(axis=1), np.sqrt(0.3 / (1 + np.arange(4)) ** 0.7), rtol=0.02
    )
    np.testing.assert_allclose(taken.mean(axis=1) / taken.std(axis=1), 0, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(taken), np.eye(4), atol=0.03)


def test_noise_belongs_to_the_seed():
    np.testing.assert_array_equal(noise(1), noise(1))
    assert abs(np.corrcoef(noise(1)[0], noise(2)[0])[0, 1]) < 0.03


# The table.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_entry_has_a_source_and_five_rates_half_a_decade_apart(name):
    method = OPTIMIZERS[name]
    assert method.source
    assert len(method.grid) == 5
    ratios = np.diff(np.log10(method.grid))
    assert ((ratios > 0.45) & (ratios < 0.55)).all()  # 1, 3, 10: 0.477 and 0.523
    assert set(method.needs) <= {"value", "key", "gradient", "test parameters"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_method_uses_what_it_says_it_needs_and_nothing_else(name):
    bowl, needs = Bowl(decay=0.0), OPTIMIZERS[name].needs
    config = OptimizerConfig(
        name,
        learning_rate=OPTIMIZERS[name].grid[2],
        milestones=(),
        weight_decay=0.0,
    )

    tx, other = create_optimizer(config), create_optimizer(config, seed=7)

    def end(tx=tx, **given):
        *_, (params, state) = walk(bowl, tx, 3, **given)
        return bowl.flat(params), bowl.flat(eval_params(state, params))

    plain, judged = end()
    assert other.update is tx.update
    # Values this small take Polyak's step below its largest.
    for need, again in (
        ("value", end(worth=1e-3)),
        ("gradient", end(tilt=0.5)),
        ("key", end(other)),
    ):
        same = np.array_equal(plain, again[0])
        assert same == (need not in needs), need
    assert np.array_equal(plain, judged) == ("test parameters" not in needs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rates_of_the_grid_lower_the_loss_of_a_bowl(name):
    bowl = Bowl(decay=0.0)
    if name == "lars":  # its biases take the bare rate, up to 30: they stay at their minimum here
        bowl.begin[bowl.parts[1]] = 0
    config = OptimizerConfig(name, milestones=(), weight_decay=0.0)
    txs = [create_optimizer(jc.override(config, learning_rate=lr)) for lr in OPTIMIZERS[name].grid]
    assert len({tx.update for tx in txs}) == 1
    ends = []
    for tx in txs:
        *_, (params, state) = walk(bowl, tx, 60)
        ends.append(bowl.loss(bowl.flat(eval_params(state, params))) / bowl.loss(bowl.begin))
    assert ends[2] < 0.96
    assert min(ends) < 0.7


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("name", [name for name, method in OPTIMIZERS.items() if method.decays])
def test_methods_that_decay_by_themselves_decay_these_leaves_only(name):
    shapes = {
        "conv": {"kernel": (3, 3, 2, 2), "bias": (2,)},
        "dense": {"kernel": (2, 4), "bias": (4,)},
    }
    rng = np.random.default_rng(1)
    params, grads = (
        {
            at: {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in part.items()}
            for at, part in shapes.items()
        }
        for _ in range(2)
    )

    def update(decay, on):
        tx = create_optimizer(OptimizerConfig(name, weight_decay=decay, decay_mask=on))
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(grads, tx.init(params), params, grad_fn=lambda *_: grads)[0]

    kernels = {"conv.kernel", "dense.kernel"}
    expected = {
        "convs": {"conv.kernel"},
        "kernels": kernels,
        "all": kernels | {"conv.bias", "dense.bias"},
    }
    for on, leaves in expected.items():
        same = jax.tree.map(lambda a, b: bool((a == b).all()), update(0.0, on), update(0.5, on))
        assert {
            f"{at}.{k}" for at, part in same.items() for k, unmoved in part.items() if not unmoved
        } == leaves


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prodigy", "sam", "muon", "lamb", "schedule-free"])
def test_quotients_without_a_gradient_or_a_rate_are_no_nan(name):
    bowl = Bowl()
    config = OptimizerConfig(
        name,
        schedule="warmup",
        learning_rate=OPTIMIZERS[name].grid[2],
    )  # whose first rate is 0
    states = [
        bowl.flat(params) for params, _ in walk(bowl, create_optimizer(config, num_steps=20), 4)
    ]
    np.testing.assert_allclose(states[0], bowl.begin, rtol=1e-6)
    assert np.isfinite(states).all()
    assert np.abs(states[-1] - bowl.begin).min() > 0
    bowl.begin = 0 * bowl.begin
    assert not any(
        bowl.flat(params).any()
        for params, _ in walk(bowl, create_optimizer(jc.override(config, schedule="constant")), 2)
    )


# Through the step, on digits.


class Small(nn.Module):
    """A layer of 16 units; it counts its traces."""

    axis_name: str | None = None
    traces = 0

    @nn.compact
    def __call__(self, x, train=False):
        Small.traces += 1
        x = nn.tanh(nn.Dense(16)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


MODEL = Small()
DIGITS = ExperimentConfig(
    dataset="digits",
    optimizer=OptimizerConfig(milestones=()),
    train=jc.TrainConfig(batch_size=64, num_steps=40, eval_every=10),
)


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


@pytest.fixture(scope="module")
def strategy():
    return jc.strategy("jit", devices=1)


def config_of(name: str, **changes: Any) -> ExperimentConfig:
    return jc.override(DIGITS, optimizer=name, learning_rate=OPTIMIZERS[name].grid[2], **changes)


def optimizer_of(config: ExperimentConfig) -> optax.GradientTransformationExtraArgs:
    return create_optimizer(config.optimizer, config.train.num_steps, seed=config.train.seed)


def fit(config: ExperimentConfig, data, strategy, **more: Any) -> list[Any]:
    return list(
        jc.train(
            MODEL,
            optimizer_of(config),
            data,
            config.train,
            strategy=strategy,
            **more,
        )
    )


@pytest.fixture(scope="module", params=OPTIMIZERS)
def ran(request, data, strategy):
    config = config_of(request.param)
    return config, fit(config, data, strategy)


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_the_loss_falls_over_forty_steps_at_the_middle_rate(ran):
    first, *_, last = (row for _, row in ran[1])
    assert last["train_loss"] < first["train_loss"] - 0.05
    assert last["eval_loss"] < first["eval_loss"] - 0.05
    assert last["rate"] == ran[0].optimizer.learning_rate


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_another_rate_or_seed_compiles_nothing(ran, data, strategy):
    # Twice, so that all are among the programs that are kept: at their bound one may drop another.
    for _ in range(2):
        fit(jc.override(ran[0], num_steps=3, eval_every=2), data, strategy)
    other = jc.override(
        ran[0], learning_rate=ran[0].optimizer.learning_rate / 7, seed=5, num_steps=3, eval_every=2
    )
    before = Small.traces
    init_state(MODEL, optimizer_of(other), other.train, data)
    # Newer Flax traces the initialization of a user's model twice.
    initialization = Small.traces - before
    before = Small.traces
    fit(other, data, strategy)
    assert Small.traces == before + initialization


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_a_run_saved_and_resumed_has_the_same_bits(ran, data, strategy, tmp_path):
    config, (whole, row) = (
        ran[0],
        ran[1][0],
    )  # at step 10, where every method has done all that it does
    with jc.Checkpoints(tmp_path) as saved:
        ((half, none),) = fit(config, data, strategy, should_stop=lambda step: step == 3)
        assert (int(half.step), none) == (3, None)
        saved.save(half)
    with jc.Checkpoints(tmp_path) as saved:
        again, same = next(
            jc.train(
                MODEL,
                optimizer_of(config),
                data,
                config.train,
                strategy=strategy,
                resume=saved.restore,
            )
        )
    assert same is not None
    pairs = zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(again), strict=True)
    for (path, a), b in pairs:
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes()), jax.tree_util.keystr(path)
    assert row["eval_loss"] == same["eval_loss"]


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_states_are_plain_arrays(ran):
    for leaf in jax.tree.leaves(ran[1][-1][0].opt_state):
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype in (np.float32, np.int32, np.uint32, np.bool_)


# d0 so large that Prodigy moves at once. Noise comes after the average over devices, with one key
# for all.
SHARED = {
    "sam": {},
    "polyak": {},
    "noisy": {},
    "lookahead": {"period": 2},
    "schedule-free": {},
    "prodigy": {"d0": 0.01},
}
SHARED |= {"muon": {}}


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("name", SHARED)
def test_two_devices_take_the_steps_of_one(name, data, strategy):
    config = config_of(name, num_steps=3, eval_every=3, optimizer_kwargs=SHARED[name])
    ((one, _),), ((two, _),) = (
        fit(config, data, strategy),
        fit(config, data, jc.strategy("pmap", 2)),
    )
    begun = init_state(MODEL, optimizer_of(config), config.train, data)
    for a, b, c in zip(
        *(jax.tree.leaves(eval_state(state).params) for state in (one, two, begun)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        assert np.abs(a - c).max() > 1e-3


def logits(params: Any, data) -> ARRAY:
    x = (data.test.images / 255 - data.mean).reshape(360, -1)
    first, second = params["Dense_0"], params["Dense_1"]
    return np.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


def judged_by(params: Any, measured: Any, data, strategy) -> None:
    """`predict`, `evaluate` and the row are those of `params`, in NumPy."""
    (state, row), expected = measured, logits(params, data)
    np.testing.assert_allclose(jc.predict(MODEL, state, data.test.images), expected, atol=2e-5)
    shifted = expected - expected.max(1, keepdims=True)
    loss = (np.log(np.exp(shifted).sum(1)) - shifted[np.arange(360), data.test.labels]).mean()
    assert jc.evaluate(MODEL, state, data.test, strategy=strategy).mean_loss == pytest.approx(
        loss, rel=1e-5
    )
    assert row["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert np.abs(logits(state.params, data) - expected).max() > 0.01  # not those it trains at


@pytest.mark.slow
def test_lookahead_is_judged_at_its_slow_parameters(data, strategy):
    config = config_of("lookahead", num_steps=6, eval_every=1)
    states = fit(config, data, strategy)
    begun = init_state(MODEL, optimizer_of(config), config.train, data)
    judged_by(begun.params, states[3], data, strategy)  # it has not looked yet
    judged_by(states[4][0].params, states[5], data, strategy)  # at the fifth step both met


def test_schedule_free_is_judged_at_the_mean_of_where_sgd_went(data, strategy):
    states = fit(config_of("schedule-free", num_steps=5, eval_every=1), data, strategy)
    went = [optax.tree.get(state.opt_state, "z") for state, _ in states]
    judged_by(jax.tree.map(lambda *z: np.mean(z, axis=0), *went), states[-1], data, strategy)


def test_clean_training_figures_are_of_the_parameters_judged(data, strategy):
    config = config_of("schedule-free", num_steps=5, eval_every=5, train_metrics="clean")
    ((state, row),) = fit(config, data, strategy)
    assert (
        row["train_loss"]
        == jc.evaluate(MODEL, eval_state(state), data.train, strategy=strategy).mean_loss
    )
    assert (
        row["train_loss"]
        != jc.evaluate(MODEL, state._replace(opt_state=()), data.train, strategy=strategy).mean_loss
    )


@pytest.mark.slow
def test_sam_takes_its_second_gradient_on_the_same_batch(data):
    """One step of SAM from two calls of jax.grad on the batch of that step."""
    config = config_of("sam", weight_decay=0.0, optimizer_kwargs={"rho": 0.5})
    tx = optimizer_of(config)
    state = init_state(MODEL, tx, config.train, data)
    index = epoch_order(state.rng, 0, 1, 64, len(data.train.labels))[0]
    images = jnp.asarray(data.train.images[index] / 255 - data.mean, jnp.float32)

    @jax.jit
    @jax.grad
    def grad(params):
        out: Any = MODEL.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(out, data.train.labels[index]).mean()

    first = grad(state.params)
    norm = np.sqrt(
        sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(first))
    )
    second = grad(jax.tree.map(lambda w, g: w + np.float32(0.5 / norm) * g, state.params, first))
    after = jax.jit(make_train_step(MODEL, tx, augment=jc.AugmentConfig()))(
        state, data.train, index
    )
    for w, a, b, new in zip(
        *map(jax.tree.leaves, (state.params, first, second, after.params)), strict=True
    ):
        np.testing.assert_allclose(new, w - config.optimizer.learning_rate * b, rtol=0, atol=1e-6)
        assert np.abs(config.optimizer.learning_rate * (a - b)).max() > 1e-4


# What is refused, in one line.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"name": "adamm"},
            "optimizer is 'adamm'; expected one of adagrad, adam, .*did you mean 'adam'",
        ),
        ({"name": "prodigi"}, "did you mean 'prodigy'"),
        (
            {"schedule": "cosin"},
            "schedule is 'cosin'; expected one of constant, cosine, .*did you mean 'cosine'",
        ),
        (
            {"name": "adam", "optimizer_kwargs": {"b3": 0.9}},
            "optimizer_kwargs of adam is 'b3'; expected one of b1, b2; did you mean 'b2'",
        ),
        (
            {"name": "sgd", "optimizer_kwargs": {"b1": 0.9}},
            "optimizer_kwargs of sgd has 'b1'; expected none, since it has no numbers of its own",
        ),
        (
            {"name": "adam", "optimizer_kwargs": {"b1": "0.9"}},
            "b1 in optimizer_kwargs is '0.9'; expected a number .*: write 0.9$",
        ),
        (
            {"name": "adam", "optimizer_kwargs": {"b1": True}},
            "b1 in optimizer_kwargs is True; expected a number",
        ),
        (
            {"name": "adam", "optimizer_kwargs": {"b1": None}},
            "b1 in optimizer_kwargs is None; expected a number",
        ),
        (
            {"name": "adam", "optimizer_kwargs": {"b1": [0.9]}},
            r"b1 in optimizer_kwargs is \[0.9\]; expected a number",
        ),
        (
            {"name": "adam", "optimizer_kwargs": {"b2": 1}},
            "b2 in optimizer_kwargs is 1; expected a number of at least 0 and below 1",
        ),
        (
            {"name": "rmsprop", "optimizer_kwargs": {"decay": -0.1}},
            "decay in optimizer_kwargs is -0.1; expected a number of at least 0",
        ),
        (
            {"name": "lookahead", "optimizer_kwargs": {"period": 2.5}},
            "period in optimizer_kwargs is 2.5; expected a whole number of at least 1",
        ),
        (
            {"name": "lookahead", "optimizer_kwargs": {"period": 0}},
            "period in optimizer_kwargs is 0; expected a whole number .*: write 5$",
        ),
        (
            {"name": "lookahead", "optimizer_kwargs": {"share": 0}},
            "share in optimizer_kwargs is 0; expected a number above 0",
        ),
        (
            {"name": "schedule-free", "optimizer_kwargs": {"b1": 0}},
            "b1 in optimizer_kwargs is 0; expected a number above 0 and below 1",
        ),
        (
            {"name": "clipped", "optimizer_kwargs": {"norm": 0.0}},
            "norm in optimizer_kwargs is 0.0; expected a number above 0",
        ),
        (
            {"name": "prodigy", "optimizer_kwargs": {"d0": 0}},
            "d0 in optimizer_kwargs is 0; expected a number above 0: write 1e-06",
        ),
        (
            {"optimizer_kwargs": {"b1": math.nan}},
            "optimizer_kwargs is {'b1': nan}; expected plain values by name",
        ),
        (
            {"optimizer_kwargs": 0.9},
            "optimizer_kwargs is 0.9; expected plain values by name: write",
        ),
        ({"learning_rate": math.nan}, "learning_rate is nan; expected a finite number above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf; expected a finite number above 0"),
        ({"learning_rate": 0}, "learning_rate is 0; expected a finite number above 0"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1; expected a finite number above 0"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_in_one_line(change, says):
    with pytest.raises(ArgumentError, match=says) as error:
        create_optimizer(jc.override(OptimizerConfig(), **change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_at_their_defaults_change_nothing_and_survive_json(name):
    config = OptimizerConfig(
        name,
        optimizer_kwargs=optimizer_options(name),
        schedule=[*SCHEDULES][len(name) % 8],
    )
    again = OptimizerConfig.from_json(config.to_json())
    assert again == config
    assert create_optimizer(again, 60).update is create_optimizer(config, 60).update
    plain, bowl = jc.override(config, optimizer_kwargs={}), Bowl()
    same = [
        jax.tree.leaves(create_optimizer(each, 60).init(bowl.tree(bowl.begin)))
        for each in (plain, again)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*same, strict=True))
