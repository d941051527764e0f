"""Kinds of Flax modules that users write: each trains, is looked at, exported and loaded."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.nnx import bridge

import jaxcnn as jc
from jaxcnn import interpret
from jaxcnn.augment import normalize
from jaxcnn.data.types import assemble
from jaxcnn.models.calling import call
from jaxcnn.models.norm import batch_moments, frozen_batch_norm, layers_over_axis

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (48, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(48, dtype=np.int32) % 4
TRAIN, TEST = jc.Split(IMAGES, LABELS), jc.Split(IMAGES[:21], LABELS[:21])
DATA = assemble("own", TRAIN, TEST, (8, 8, 1), ("a", "b", "c", "d"))
CONFIG = jc.TrainConfig(num_steps=2, batch_size=16, eval_every=2)
ONE = jc.strategy("jit", 1)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Users write modules under JAX's default promotion of dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def flat(x):
    return x.reshape(len(x), -1)


def logits_of(outputs):
    """The logits, wherever `Outputs` has them."""
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs["logits"]


def loss_of_logits(outputs, batch):
    logits = logits_of(outputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return losses, {"error": logits.argmax(-1) != batch.labels}


def loss_of_vae(outputs, batch):
    images, (mean, log_var) = outputs
    kl = -0.5 * (1 + log_var - jnp.square(mean) - jnp.exp(log_var)).sum(-1)
    return jnp.square(images - batch.inputs).sum((1, 2, 3)) + kl, {}


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(flat(nn.relu(nn.Conv(4, (3, 3))(x))))


class Positional(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=None):
        x = nn.BatchNorm()(nn.Conv(4, (3, 3))(x), use_running_average=not is_training)
        return nn.Dense(4)(flat(nn.Dropout(0.3)(x, deterministic=not is_training)))


class KeywordOnly(nn.Module):
    @nn.compact
    def __call__(self, x, *, use_running_average):
        x = nn.BatchNorm(use_running_average)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(4)(flat(nn.Dropout(0.3, deterministic=use_running_average)(x)))


class FieldFlag(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(self.deterministic)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(4)(flat(nn.Dropout(0.5, deterministic=self.deterministic)(x)))


class MergedFlag(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic=None):
        flag = nn.merge_param("deterministic", self.deterministic, deterministic)
        return nn.Dense(4)(flat(nn.Dropout(0.5)(x, deterministic=flag)))


class ReturnsFeatures(nn.Module):
    def setup(self):
        self.encoder, self.head = nn.Dense(6), nn.Dense(4)

    def encode(self, x):
        return self.encoder(flat(x))

    def __call__(self, x, return_features: bool = False, train: bool = False):
        features = self.encode(x)
        return (self.head(features), features) if return_features else self.head(features)


@flax.struct.dataclass
class Struct:
    logits: Any
    features: Any


class Named(NamedTuple):
    logits: Any
    features: Any


TREES: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"logits": a, "features": b},
    "struct": Struct,
    "NamedTuple": Named,
    "nested": lambda a, b: {"logits": a, "more": (b, {"argmax": a.argmax(-1)})},
    "FrozenDict": lambda a, b: FrozenDict({"logits": a, "features": b}),
}


class Outputs(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train=False):
        features = nn.relu(nn.Conv(4, (3, 3))(x))
        return TREES[self.kind](nn.Dense(4)(flat(features)), features)


class VAE(nn.Module):
    latents: int = 3

    def setup(self):
        self.encoder = nn.Dense(2 * self.latents)
        self.decoder = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(64)])

    def __call__(self, x, train=True):
        mean, log_var = jnp.split(self.encoder(flat(x)), 2, -1)
        z = mean
        if train:
            noise = jax.random.normal(self.make_rng("z"), mean.shape)
            z += jnp.exp(0.5 * log_var) * noise
        return self.decoder(z).reshape(x.shape), (mean, log_var)


class Streams(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = flat(x)
        for name in ("z", "noise", "params") if train else ():
            x += 0.1 * jax.random.normal(self.make_rng(name), x.shape)
        return nn.Dense(4)(nn.Dropout(0.5, rng_collection="other")(x, deterministic=not train))


class Sown(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        self.sow("intermediates", "features", x)
        self.sow("losses", "l2", jnp.square(x).mean())
        self.sow("aux", "head", nn.Dense(4, name="auxiliary")(flat(x)))
        return nn.Dense(4)(flat(x))


class Perturbed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(4)(flat(self.perturb("maps", nn.Conv(4, (3, 3))(x))))


class Fields(nn.Module):
    widths: Any = ()
    functions: Any = ()
    dtype: Any = None
    module: Any = None
    options: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        for width in self.widths:
            x = nn.Conv(int(width), (3, 3), dtype=self.dtype)(x)
        x = x if self.module is None else self.module(x)
        for function in self.functions:
            x = function(x)
        return nn.Dense(4)(flat(x))


class Parts(nn.Module):
    parts: Any

    @nn.compact
    def __call__(self, x, train=False):
        parts = self.parts.values() if hasattr(self.parts, "values") else self.parts
        for part in parts:
            x = nn.relu(part(x))
        return nn.Dense(4)(flat(x))


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.WeightNorm(nn.Conv(4, (3, 3)))(x)
        x = nn.SpectralNorm(nn.Conv(4, (3, 3)))(x, update_stats=train)
        for norm in (nn.InstanceNorm, nn.LayerNorm, nn.RMSNorm, functools.partial(nn.GroupNorm, 2)):
            x = norm()(x)
        return nn.Dense(4)(flat(nn.PReLU()(x)))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(*x.shape[:2], -1)
        both: Any = nn.Bidirectional(nn.RNN(nn.GRUCell(3)), nn.RNN(nn.GRUCell(3)))(x)
        states: Any = nn.RNN(nn.LSTMCell(5))(both)
        return nn.Dense(4)(states[:, -1])


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(
            num_heads=2, deterministic=deterministic, dropout_rate=0.1
        )(y, y)
        x += nn.Dropout(0.1)(y, deterministic=deterministic)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (4, 4), strides=(4, 4), padding="VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, 8)
        token = self.param("token", nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x += self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for i in range(2):
            x = EncoderBlock(name=f"block_{i}")(x, deterministic=not train)
        return nn.Dense(4, name="head")(nn.LayerNorm()(x)[:, 0])


class Block(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.BatchNorm(not self.train)(nn.Conv(4, (3, 3))(x)))


class Lifted(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train):
        lift = {"remat": nn.remat, "jit": nn.jit, "both": lambda cls: nn.jit(nn.remat(cls))}
        cls = lift[self.kind](Block)
        x = cls(train=train, name="second")(cls(train=train, name="stem")(x))
        return nn.Dense(4, name="head")(flat(x))


class RematCall(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        @functools.partial(nn.remat, static_argnums=(2,))
        def block(module, x, train):
            return nn.Dropout(0.2, deterministic=not train)(nn.relu(nn.Conv(4, (3, 3))(x)))

        return nn.Dense(4)(flat(block(self, x, train)))


class WholeJit(nn.Module):
    train: bool = False

    @nn.jit
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(not self.train, name="stem_norm")(nn.Conv(4, (3, 3), name="stem")(x))
        return nn.Dense(4, name="head")(flat(nn.relu(x)))


class ScanBlock(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _):
        y = nn.BatchNorm(not self.train)(nn.Conv(x.shape[-1], (3, 3))(x))
        return x + nn.relu(nn.Dropout(0.1, deterministic=not self.train)(y)), None


class Scanned(nn.Module):
    depth: int = 3
    remat: bool = False

    @nn.compact
    def __call__(self, x, train):
        layers = nn.scan(
            nn.remat(ScanBlock) if self.remat else ScanBlock,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        x, _ = layers(train, name="layers")(nn.Conv(4, (3, 3), name="stem")(x), None)
        return nn.Dense(4)(x.mean((1, 2)))


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        shared: Any = None
        members = nn.vmap(
            Plain,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=shared,
            axis_size=3,
        )
        return members()(x).mean(0)


class SharedScope(nn.Module):
    def setup(self):
        self.inner = Plain()
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return self.inner(x)


class Tied(nn.Module):
    def setup(self):
        self.conv, self.head = nn.Conv(1, (3, 3)), nn.Dense(4)

    def __call__(self, x, train=False):
        return self.head(flat(self.conv(nn.relu(self.conv(nn.relu(self.conv(x)))))))


class NameScopes(nn.Module):
    @nn.compact_name_scope
    def up(self, x):
        return nn.Conv(4, (3, 3))(x)

    @nn.compact_name_scope
    def down(self, x):
        return nn.Dense(4)(flat(x))

    def __call__(self, x, train=False):
        return self.down(nn.relu(self.up(x)))


class Boxed(nn.Module):
    logical: bool = False

    @nn.compact
    def __call__(self, x, train):
        box = nn.with_logical_partitioning if self.logical else nn.with_partitioning
        init = nn.initializers.lecun_normal()
        x = nn.Conv(4, (3, 3), kernel_init=box(init, (None, None, None, "model")))(x)
        x = nn.BatchNorm(not train)(x)
        return nn.Dense(4, kernel_init=box(init, (None, "model")), name="head")(flat(nn.relu(x)))


class Dtypes(nn.Module):
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x, train):
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.BatchNorm(not train, dtype=self.dtype)(nn.Conv(4, (3, 3), **dtypes)(x))
        return nn.Dense(4, **dtypes)(flat(x))


class HalfInput(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(4, dtype=jnp.float16)(flat(x.astype(jnp.float16)))


class Buffers(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        order = self.variable("buffers", "order", lambda: jnp.arange(64)[::-1])
        mask = self.variable("masks", "mask", lambda: jnp.arange(64) % 2 == 0)
        temperature = self.param("temperature", nn.initializers.ones, ())
        return nn.Dense(4)(flat(x)[:, order.value] * mask.value) * temperature


class MovingAverage(nn.Module):
    """With names that a parameter has too."""

    @nn.compact
    def __call__(self, x, train):
        x = flat(x)
        mean = self.variable("ema", "mean", jnp.zeros, x.shape[1:])
        count = self.variable("ema", "count", lambda: jnp.int32(0))
        shift = self.param("mean", nn.initializers.normal(), x.shape[1:])
        if train and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
            count.value += 1
        return nn.Dense(4)(x - mean.value + shift)


class Sized(nn.Module):
    image_size: int

    @nn.compact
    def __call__(self, x, train=False):
        assert x.shape[1] == self.image_size
        shape = (1, self.image_size, self.image_size, 1)
        return nn.Dense(4)(flat(x + self.param("position", nn.initializers.normal(), shape)))


class Layers(nn.Module):
    """Layers of Flax that are rare in networks for images."""

    @nn.compact
    def __call__(self, x, **kwargs):
        embedding = nn.Embed(3, 4)(jnp.zeros((len(x),), int))
        x = nn.ConvLocal(2, (2, 2), strides=(4, 4))(nn.ConvTranspose(3, (3, 3), strides=(2, 2))(x))
        x = nn.DenseGeneral((4, 2), axis=(-3, -2, -1))(x).sum(-1)
        return nn.Einsum((4, 4), "bc,cd->bd", use_bias=False)(x) + embedding


class MnistCNN(nn.Module):
    """Of the documentation of Flax, smaller."""

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), strides=(2, 2))
        return nn.Dense(4)(nn.relu(nn.Dense(16)(flat(x))))


class ResNetBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(x)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(self.filters, (3, 3))(y))
        if x.shape != y.shape:
            x = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class FlaxResNet(nn.Module):
    """Of the ImageNet example of Flax, smaller: its BN names the axis of `jax.pmap`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name="batch"
        )
        x = nn.relu(norm(name="bn_init")(conv(4, (7, 7), (2, 2), name="conv_init")(x)))
        x = ResNetBlock(8, conv, norm, (2, 2))(x)
        return jnp.asarray(nn.Dense(4, dtype=self.dtype)(x.mean((1, 2))), self.dtype)


class NnxNet(nnx.Module):
    """Without a flag: its layers have the mode as an attribute."""

    def __init__(self, width, rngs):
        self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(64 * width, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(flat(nnx.relu(self.norm(self.conv(x))))))


class NnxFlag(NnxNet):
    def __call__(self, x, train):
        x = self.norm(self.conv(x), use_running_average=not train)
        return self.head(self.dropout(flat(nnx.relu(x)), deterministic=not train))


CLASSES = [Plain, Positional, KeywordOnly, FieldFlag, MergedFlag, ReturnsFeatures, VAE, Streams]
CLASSES += [Sown, Perturbed, Recurrent, ViT, RematCall, WholeJit, Scanned, Ensemble, SharedScope]
CLASSES += [Tied, NameScopes, Boxed, HalfInput, Buffers, MovingAverage, Layers, MnistCNN]
CLASSES += [FlaxResNet, Norms]
MODELS: dict[str, Callable[[], Any]] = {cls.__name__: cls for cls in CLASSES}
MODELS |= {f"Outputs {kind}": functools.partial(Outputs, kind) for kind in TREES}
MODELS |= {f"Lifted {kind}": functools.partial(Lifted, kind) for kind in ("remat", "jit", "both")}
MODELS |= {
    f"Dtypes {a} {b}": functools.partial(Dtypes, jnp.dtype(a), jnp.dtype(b))
    for a, b in (("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"))
}
MODELS |= {
    "Fields": lambda: Fields([3, 4], [nn.relu], jnp.bfloat16, nn.Conv(2, (1, 1)), {"a": [1]}),
    "Fields of other kinds": lambda: Fields(
        np.array([3]),
        [functools.partial(nn.leaky_relu, negative_slope=0.2), lambda x: 2 * x],
        module=nn.Sequential([nn.Conv(2, (1, 1))]),
        options={1, 2},
    ),
    "Parts list": lambda: Parts([nn.Conv(3, (3, 3)), nn.Conv(4, (3, 3))]),
    "Parts dict": lambda: Parts({"a": nn.Conv(3, (3, 3)), "b": nn.Conv(4, (3, 3))}),
    "Scanned deep": lambda: Scanned(60, remat=True),
    "Boxed logical": lambda: Boxed(True),
    "Sized": lambda: Sized(8),
    "Sequential": lambda: nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, flat, nn.Dense(4)]),
    "jit of a class": lambda: nn.jit(Plain)(),
    "remat of a class": lambda: nn.remat(Plain)(),
    "nnx": lambda: bridge.to_linen(NnxNet, 3),
    "nnx flag": lambda: bridge.to_linen(NnxFlag, 3),
}
LOSSES = {f"Outputs {kind}": loss_of_logits for kind in TREES} | {"VAE": loss_of_vae}


def fit(model, config=CONFIG, strategy=ONE, loss: Any = "cross-entropy", **kwargs):
    run = jc.train(model, optax.sgd(0.05), DATA, config, strategy=strategy, loss=loss, **kwargs)
    return list(run)[-1]


def started(model, loss: Any = "cross-entropy", **kwargs):
    return jc.init_state(model, optax.sgd(0.05), jc.override(CONFIG, **kwargs), DATA, loss=loss)


def check_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("name", MODELS)
def test_a_kind_of_module_does_all_that_a_module_does(name, tmp_path):
    make, loss = MODELS[name], LOSSES.get(name, "cross-entropy")
    state, row = fit(make(), loss=loss, run_dir=tmp_path / "run")
    assert row is not None
    assert np.isfinite(row["eval_loss"])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
    # Another object of the same module finds its run, and its state in it.
    again, _ = fit(make(), loss=loss, run_dir=tmp_path / "run")
    check_equal(state, again)
    model = make()
    found = jc.evaluate(model, state, TEST, loss=loss, strategy=ONE)
    assert found.mean_loss == pytest.approx(row["eval_loss"], rel=1e-5)
    # The outputs have the tree of the module's own call, and no batch matters.
    variables = {"params": state.params, **state.model_state}
    inputs = normalize(IMAGES[:5], state.normalizer)
    outputs = jax.eval_shape(lambda x: call(model, variables, x, train=False), inputs)
    predicted = jc.predict(model, state, IMAGES[:5], batch_size=3)
    assert jax.tree.structure(predicted) == jax.tree.structure(outputs)
    assert all(leaf.shape[0] == 5 for leaf in jax.tree.leaves(predicted))
    # A summary has each trained value once.
    table = interpret.summary(model, (8, 8, 1))
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert table.params == size == jc.count_parameters(model, (8, 8, 1))
    assert table.fixed == sum(leaf.size for leaf in jax.tree.leaves(state.model_state))
    # Twice: `nn.jit` remembers a call, and calls no module again.
    stages = interpret.stage_shapes(model, (8, 8, 1))
    assert stages == interpret.stage_shapes(make(), (8, 8, 1))
    # What is exported gives a fresh module the same predictions.
    jc.export_weights(model, state, tmp_path / "weights.safetensors")
    loaded = jc.load_weights(make(), tmp_path / "weights.safetensors", (8, 8, 1))
    fresh = jc.with_variables(started(make(), loss, seed=3), loaded)
    check_equal(jc.predict(make(), fresh, IMAGES[:5], batch_size=3), predicted)


@pytest.mark.parametrize("kind", TREES)
def test_predictions_are_trees(kind):
    model = Outputs(kind)
    state = started(model, loss_of_logits)
    predicted = jc.predict(model, state, IMAGES[:7], batch_size=4)
    logits = jc.predict(jc.select_output(model, logits_of), state, IMAGES[:7])
    np.testing.assert_allclose(logits_of(predicted), logits, rtol=1e-5, atol=1e-6)
    assert type(predicted) is type(TREES[kind](jnp.zeros((1, 4)), 0))
    kernel, bias = (state.params["Dense_0"][name] for name in ("kernel", "bias"))
    if kind != "nested":
        features = predicted[1] if kind in ("tuple", "list") else None
        features = getattr(predicted, "features", features)
        features = predicted["features"] if features is None else features
        np.testing.assert_allclose(logits, flat(features) @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_a_selected_output_is_looked_at_with_the_same_state():
    model = Outputs("dict")
    state = started(model, loss_of_logits)
    selected = jc.select_output(model, "logits")
    heat = interpret.gradcam(selected, state, IMAGES[:3], stage="Conv_0")
    single = interpret.gradcam(Plain(), state, IMAGES[:3], stage="Conv_0")
    np.testing.assert_allclose(heat, single, atol=1e-6)
    assert jc.count_parameters(selected, (8, 8, 1)) == jc.count_parameters(Plain(), (8, 8, 1))
    assert list(interpret.stage_shapes(selected, (8, 8, 1))) == ["Conv_0", "Dense_0"]
    with pytest.raises(jc.ArgumentError, match=r"output is 'logit', and the model gives .*logits"):
        jc.predict(jc.select_output(model, "logit"), state, IMAGES[:3])
    with pytest.raises(jc.ArgumentError, match="output is 'values'"):  # no method of the dict
        jc.predict(jc.select_output(model, "values"), state, IMAGES[:3])
    with pytest.raises(jc.ArgumentError, match="select_output"):
        interpret.gradcam(model, state, IMAGES[:3])


class Refused(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4)(flat(x))
        if self.kind == "complex":
            init = nn.initializers.normal(dtype=jnp.complex64)
            x += jnp.abs(self.param("c", init, (4,)))
        if self.kind == "integer":
            x *= self.param("n", lambda _: jnp.int32(3))
        if self.kind == "contrastive":
            return {"similarity": x @ x.T}
        if self.kind == "scalar":
            return x, jnp.square(x).mean()
        if self.kind == "branch" and x.mean() > 0:
            x += 1.0
        if self.kind == "object":
            return nn.relu
        return x


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("complex", r"\['c'\] of complex64; expected floating numbers\. Make its real"),
        ("integer", r"\['n'\] of int32; expected floating numbers\. Write self\.variable"),
        ("branch", r"needs a value that is not known while JAX traces it .*Write jnp\.where"),
        ("object", r"returns a \w+; expected arrays"),
    ],
)
def test_what_cannot_be_trained_is_one_line(kind, words):
    with pytest.raises(jc.ArgumentError, match=words) as error:
        fit(Refused(kind))
    assert "\n" not in str(error.value)


def test_a_flag_that_is_traced_is_one_line():
    with pytest.raises(jc.ArgumentError, match="make it a field of the module"):
        fit(nn.jit(MappedNet)())


@pytest.mark.parametrize("kind", ["contrastive", "scalar"])
def test_outputs_of_a_whole_batch_are_not_predicted(kind):
    def loss(outputs, batch):
        return jnp.zeros(len(batch.labels)), {}

    with pytest.raises(jc.ArgumentError, match=r"for 2 images and .* for 3; expected the images"):
        jc.predict(Refused(kind), started(Refused(kind), loss), IMAGES[:3])


# nn.jit calls a module once, and what intercepts calls must see each.


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_layers_are_intercepted_inside_a_jitted_module_each_time():
    model = WholeJit()
    variables = model.init(jax.random.key(0), jnp.ones((4, 8, 8, 1)))
    x = jnp.asarray(RNG.standard_normal((4, 8, 8, 1)), jnp.float32)

    def moved():
        collections = call(model, variables, x, train=True, mutable=["batch_stats"])[1]
        return collections["batch_stats"]["stem_norm"]["mean"]

    free = moved()
    with frozen_batch_norm(lambda name: name.startswith("stem")):
        np.testing.assert_array_equal(moved(), 0)
    with batch_moments():
        np.testing.assert_allclose(moved() * 0.01, free, rtol=1e-4)
    np.testing.assert_array_equal(moved(), free)


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("kind", ["remat", "jit", "both"])
def test_responses_inside_lifted_modules_are_those_of_plain_ones(kind):
    model = Lifted(kind)
    x = jnp.asarray(RNG.standard_normal((4, 8, 8, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), x, False)
    for train in (False, True):
        found = interpret.responses(model, variables, x, train=train)
        assert list(found) == ["stem/Conv_0", "second/Conv_0", "head"]
        # By hand: the responses are those of BN, which takes the convolution's.
        kernel = {"params": variables["params"]["stem"]["Conv_0"]}
        convolved: Any = nn.Conv(4, (3, 3)).apply(kernel, x)
        if train:
            expected = (convolved - convolved.mean((0, 1, 2))) / np.sqrt(
                convolved.var((0, 1, 2)) + 1e-5
            )
        else:
            expected = convolved / np.sqrt(1 + 1e-5)
        np.testing.assert_allclose(found["stem/Conv_0"], expected, atol=1e-4)


# Flax's layers over a mapped axis.


class MappedNet(nn.Module):
    """Without a field for the axis."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(not train, momentum=0.9)(nn.Conv(4, (3, 3))(x))
        x = nn.Dropout(0.4, broadcast_dims=(-1,))(nn.relu(x), deterministic=not train)
        return nn.Dense(4)(nn.Dropout(0.3)(flat(x), deterministic=not train))


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("make", [MappedNet, FlaxResNet, lambda: Lifted("jit"), Plain])
def test_pmap_gives_one_devices_numbers_without_an_axis_in_the_module(make):
    config = jc.override(CONFIG, num_steps=3, recompute_batch_stats=16 * (make is not Plain))
    one, row = fit(make(), config)
    state, mapped_row = fit(make(), config, jc.strategy("pmap", 4))
    for a, b in zip(
        jax.tree.leaves((one.params, one.model_state)),
        jax.tree.leaves((state.params, state.model_state)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    if make is not Plain:
        assert row is not None
        assert mapped_row is not None
        expected = pytest.approx(row["precise_eval_loss"], rel=1e-4)
        assert mapped_row["precise_eval_loss"] == expected


@pytest.mark.quick_compilation
@pytest.mark.parametrize("dims", [(1,), (-1,), (-3, -1), (-4,)])
def test_pmap_drops_what_one_device_drops(dims):
    """Axes that share their draws may be counted from the end. Axis -4 is that of the images."""
    x = jnp.asarray(RNG.uniform(1, 2, (8, 3, 5, 4)), jnp.float32)
    drop = nn.Dropout(0.5, broadcast_dims=dims, deterministic=False)
    rngs = {"dropout": jax.random.key(3)}
    alone = drop.apply({}, x, rngs=rngs)

    def part(x):
        with layers_over_axis("batch", len(x)):
            return drop.apply({}, x, rngs=rngs)

    parts = jax.pmap(part, "batch", devices=jax.devices()[:4])(x.reshape(4, 2, 3, 5, 4))
    np.testing.assert_array_equal(parts.reshape(x.shape), alone)
    dropped = np.asarray(alone) == 0
    assert 0 < dropped.sum() < dropped.size
    for axis in dims:
        first = dropped.take([0], axis)
        assert (dropped == first).all()


def test_pmap_refuses_statistics_of_its_own_kind_in_a_module_without_an_axis():
    with pytest.raises(jc.ArgumentError, match=r"no field `axis_name`, and ema\.\w+ is not"):
        jc.train(MovingAverage(), optax.sgd(0.1), DATA, CONFIG, strategy=jc.strategy("pmap", 2))


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("name", ["WholeJit", "Scanned", "Boxed", "FlaxResNet", "Lifted both"])
def test_frozen_stages_stay(name):
    model: Any = MODELS[name]()
    stage = "conv_init" if name == "FlaxResNet" else sorted(started(model).params)[-1]
    stages = (stage,) if name != "WholeJit" else ("stem", "stem_norm")
    before = started(MODELS[name]())
    after, _ = fit(model, jc.override(CONFIG, freeze=stages))
    for tree, other in (
        (before.params, after.params),
        *zip(before.model_state.values(), after.model_state.values(), strict=True),
    ):
        for part in stages:
            if part in tree:
                check_equal(tree[part], other[part])
        rest = [part for part in tree if part not in stages]
        pairs = [(jax.tree.leaves(tree[part]), jax.tree.leaves(other[part])) for part in rest]
        moved = [(a != b).any() for old, new in pairs for a, b in zip(old, new, strict=True)]
        assert any(moved) or not rest


# Random streams.


class Draws(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        scale = self.param("scale", nn.initializers.zeros, ())
        names = ("z", "z", "noise", "dropout", "params")
        draws = [jax.random.normal(self.make_rng(name), (len(x), 4)) for name in names * train]
        return scale + (jnp.stack(draws, 1) if train else jnp.zeros((len(x), 5, 4)))


def test_streams_of_any_name_differ():
    x = jnp.zeros((8, 8, 8, 1))
    variables = Draws().init(jax.random.key(0), x, False)
    first, again, other = (
        call(Draws(), variables, x, train=True, key=jax.random.PRNGKey(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    draws = np.concatenate([first, other], 1).transpose(1, 0, 2).reshape(10, -1)
    assert np.abs(np.corrcoef(draws) - np.eye(10)).max() < 0.9
    assert len({row.tobytes() for row in draws}) == 10


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_streams_are_equal_on_one_and_several_devices():
    states = [fit(Streams(), strategy=jc.strategy("jit", n))[0] for n in (1, 8)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
