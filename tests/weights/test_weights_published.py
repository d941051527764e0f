"""Weights of networks for small images as other people's scripts store them, read as they are.

State dicts of their names and shapes are made here, and each network is computed once more by the semantics of PyTorch
(`conv2d` with symmetric padding, [b, c, h, w]) from the arrays of the file alone.
"""

import argparse
import collections
import logging
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from test_weights_strangers import SIX, WRITERS, Call, a_tensor, dumped, refused, torch, write_zip  # noqa: F401

from jaxcnn import OptimizerConfig, TrainConfig, create_optimizer, evaluate, load_dataset, override
from jaxcnn.config import ArgumentError
from jaxcnn.models import create_model
from jaxcnn.state import init_state, with_variables
from jaxcnn.weights import WeightsError, export_weights, load_weights, read_weights
from jaxcnn.weights._networks import trace
from jaxcnn.weights.layouts import layouts

WIDTH, CLASSES = 4, 5


class File(dict):
    """A state dict that is drawn as it is asked for: a network's arrays are those that its forward pass uses."""

    def __init__(self):
        super().__init__()
        self.draw = np.random.default_rng(0)

    def get_array(self, name, shape):
        if name not in self:
            values = self.draw.normal(size=shape) * (
                np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.3
            )
            if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
                values = self.draw.uniform(0.5, 1.5, shape)
            self[name] = values.astype(np.float32)
        assert self[name].shape == shape
        return self[name]


def conv(file, name, x, filters, size=3, stride=1, padding=None, bias=False):
    weight = file.get_array(f"{name}.weight", (filters, x.shape[1], size, size))
    around = size // 2 if padding is None else padding
    y = jax.lax.conv_general_dilated(
        x, weight, (stride, stride), [(around, around)] * 2, precision="highest"
    )
    return np.asarray(y) + (
        file.get_array(f"{name}.bias", (filters,)).reshape(1, -1, 1, 1) if bias else np.float32(0)
    )


def bn(file, name, x):
    scale, bias, mean, var = (
        file.get_array(f"{name}.{leaf}", (x.shape[1],)).reshape(1, -1, 1, 1)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    file[f"{name}.num_batches_tracked"] = np.int64(7) * np.ones((), np.int64)
    return (x - mean) / np.sqrt(var + np.float32(1e-5)) * scale + bias


def dense(file, name, x, features):
    weight, bias = (
        file.get_array(f"{name}.weight", (features, x.shape[1])),
        file.get_array(f"{name}.bias", (features,)),
    )
    return x @ weight.T + bias


def relu(x):
    return np.maximum(x, 0)


def pooled(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).max((3, 5))


def padded(x, filters, where):
    """Shortcut A as the scripts write it: `F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, n, n))`, or zeros concatenated behind."""
    new = filters - x.shape[1]
    before = new // 2 if where == "both" else 0
    return np.pad(x[:, :, ::2, ::2], ((0, 0), (before, new - before), (0, 0), (0, 0)))


def resnet(x, names, kind, project=None, blocks=2):
    """`kind` None is plain, "end" and "both" are shortcut A, "B" projects; `names` gives (layer, stage, block) a name."""
    file = File()
    x = relu(bn(file, names("stem_norm"), conv(file, names("stem"), x, WIDTH)))
    for stage in (1, 2, 3):
        for block in range(blocks):
            filters, stride = WIDTH * 2 ** (stage - 1), 2 if stage > 1 and block == 0 else 1
            y = conv(file, names("conv1", stage, block), x, filters, stride=stride)
            y = relu(bn(file, names("bn1", stage, block), y))
            y = bn(
                file,
                names("bn2", stage, block),
                conv(file, names("conv2", stage, block), y, filters),
            )
            if kind and stride == 1:
                y = y + x
            elif kind == "B":
                name = names(project, stage, block)
                y = y + bn(file, f"{name}.1", conv(file, f"{name}.0", x, filters, 1, 2))
            elif kind:
                y = y + padded(x, filters, kind)
            x = relu(y)
    return file, dense(file, names("head"), x.mean((2, 3)), CLASSES)


def usual(head):
    own = {"stem": "conv1", "stem_norm": "bn1", "head": head}
    return lambda layer, stage=0, block=0: f"layer{stage}.{block}.{layer}" if stage else own[layer]


def stacked(layer, stage=0, block=0):
    """a-martyn/resnet."""
    if not stage:
        return {"stem": "convIn", "stem_norm": "bnIn", "head": "fcOut"}[layer]
    return (
        f"stack1.{block}.{layer}"
        if stage == 1
        else f"stack{stage}{f'b.{block - 1}' if block else 'a'}.{layer}"
    )


def lettered(layer, stage=0, block=0):
    """D-X-Y/ResNeXt-DenseNet."""
    own = {"stem": "conv_1_3x3", "stem_norm": "bn_1", "head": "classifier"}
    letters = {"conv1": "conv_a", "conv2": "conv_b", "bn1": "bn_a", "bn2": "bn_b"}
    return f"stage_{stage}.{block}.{letters[layer]}" if stage else own[layer]


def images(*shape):
    return np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)


def store(file, folder, prefix=""):
    save_file(
        {prefix + key: np.ascontiguousarray(value) for key, value in file.items()},
        folder / "x.safetensors",
    )
    return folder / "x.safetensors"


def compare(model, variables, x, want, atol=2e-5):
    got = jax.jit(model.apply)(variables, jnp.asarray(x.transpose(0, 2, 3, 1)))
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


X = images(3, 8, 8)
CASES = {
    "plain, linear": (usual("linear"), None, None, {}),
    "plain, a-martyn": (stacked, None, None, {}),
    "A, a-martyn": (stacked, "end", None, {}),
    "A, lettered": (lettered, "end", None, {}),
    "A, akamaster": (usual("linear"), "both", None, {}),
    "A behind, linear": (usual("linear"), "end", None, {"shortcut_padding": "end"}),
    "A behind, fc": (usual("fc"), "end", None, {"shortcut_padding": "end"}),
    "A on both sides, fc": (usual("fc"), "both", None, {"shortcut_padding": "both"}),
    "B, downsample and fc": (usual("fc"), "B", "downsample", {}),
    "B, shortcut and linear": (usual("linear"), "B", "shortcut", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_networks_of_section_4_2(name, tmp_path):
    names, kind, project, options = CASES[name]
    file, want = resnet(X, names, kind, project)
    model = create_model("resnet14" if kind else "plain14", CLASSES, width=WIDTH)
    model = model.clone(shortcut="B") if kind == "B" else model
    variables = load_weights(model, store(file, tmp_path), **options)
    compare(model, variables, X, want)


def test_networks_as_pytorchcv_names_them(tmp_path):
    file, want = resnet(X, usual("output"), "B", "identity_conv")
    parts = {
        "conv1": "body.conv1.conv",
        "conv2": "body.conv2.conv",
        "bn1": "body.conv1.bn",
        "bn2": "body.conv2.bn",
    }
    parts |= {"identity_conv.0": "identity_conv.conv", "identity_conv.1": "identity_conv.bn"}
    starts = {
        "conv1": "features.init_block.conv",
        "bn1": "features.init_block.bn",
        "output": "output",
    }
    arrays = {}
    for key, value in file.items():
        layer, leaf = key.rsplit(".", 1)
        if layer.startswith("layer"):
            stage, block, part = layer.split(".", 2)
            layer = f"features.stage{stage[-1]}.unit{int(block) + 1}.{parts[part]}"
        arrays[f"{starts.get(layer, layer)}.{leaf}"] = value
    model = create_model("resnet14", CLASSES, width=WIDTH, shortcut="B")
    compare(model, load_weights(model, store(arrays, tmp_path)), X, want)


@pytest.mark.slow
def test_the_side_of_the_zeros_matters(tmp_path):
    """Or else the tests above would prove nothing."""
    file, want = resnet(X, usual("linear"), "both")
    model = create_model("resnet14", CLASSES, width=WIDTH)
    path = store(file, tmp_path)
    wrong = model.apply(
        load_weights(model, path, shortcut_padding="end"), jnp.asarray(X.transpose(0, 2, 3, 1))
    )
    assert np.abs(np.asarray(wrong) - want).max() > 0.05


def test_where_zeros_are_is_asked_or_told(tmp_path, caplog):
    file, _ = resnet(X, usual("fc"), "end")
    model, plain = (
        create_model("resnet14", CLASSES, width=WIDTH),
        create_model("plain14", CLASSES, width=WIDTH),
    )
    path = store(file, tmp_path)
    with pytest.raises(
        WeightsError, match=r"does not say where.*expected shortcut_padding='end'.*or 'both'"
    ):
        load_weights(model, path)
    with pytest.raises(WeightsError, match="expected 'end', 'both' or None"):
        load_weights(model, path, shortcut_padding="left")
    with pytest.raises(WeightsError, match="no shortcut 'A'"):
        load_weights(plain, path, shortcut_padding="end")
    file, _ = resnet(X, usual("linear"), "both")
    with caplog.at_level(logging.WARNING, "jaxcnn.weights"):
        load_weights(model, store(file, tmp_path))
    assert "taken as on both sides" in caplog.text
    assert "write shortcut_padding='end'" in caplog.text


# Activation before weights


def preact(x, stem_norm, project=None, final="bn", head="fc", raw=False, bottleneck=False):
    """`stem_norm` is the name of the first BN. `raw`: the first block's shortcut carries what comes before it."""
    file = File()
    x = conv(file, "conv1", x, WIDTH)
    for stage in (1, 2, 3):
        for block in range(2):
            filters, stride = WIDTH * 2 ** (stage - 1), 2 if stage > 1 and block == 0 else 1
            name, first = f"layer{stage}.{block}", stage == 1 and block == 0
            y = relu(bn(file, stem_norm if first else f"{name}.bn1", x))
            x = y if first and not raw else x
            out = 4 * filters if bottleneck else filters
            if x.shape[1] != out:
                x = (
                    conv(file, f"{name}.{project}", y, out, 1, stride)
                    if project
                    else padded(x if raw else y, out, "end")
                )
            layers = ((1, 1), (3, 1), (1, 4)) if bottleneck else ((3, 1), (3, 1))
            for number, (size, times) in enumerate(layers, 1):
                y = relu(bn(file, f"{name}.bn{number}", y)) if number > 1 else y
                y = conv(
                    file,
                    f"{name}.conv{number}",
                    y,
                    filters * times,
                    size,
                    stride if number == 1 else 1,
                )
            x = x + y
    x = relu(bn(file, final, x)).mean((2, 3))
    return file, dense(file, head, x, CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("there", "options"),
    [
        ({"stem_norm": "bn1", "project": "shortcut.0"}, {}),
        ({"stem_norm": "bn1", "project": "shortcut", "final": "bn2", "head": "linear"}, {}),
        ({"stem_norm": "layer1.0.bn1", "project": "shortcut.0", "raw": True}, {"stem_norm": False}),
        (
            {"stem_norm": "layer1.0.bn1", "project": "shortcut.0", "final": "bn1", "raw": True},
            {"stem_norm": False},
        ),
        ({"stem_norm": "layer1.0.bn1", "project": "downsample.0", "bottleneck": True}, {}),
    ],
)
def test_activation_before_weights(there, options, tmp_path, caplog):
    file, want = preact(X, **there)
    name = "cifar-preresnet20" if there.get("bottleneck") else "cifar-preresnet14"
    model = create_model(name, CLASSES, width=WIDTH, shortcut="B", **options)
    model = model.clone(blocks=(2, 2, 2), bottleneck=bool(there.get("bottleneck")))
    compare(model, load_weights(model, store(file, tmp_path)), X, want)
    assert ("taken as behind" in caplog.text) == ("downsample" in there["project"])


@pytest.mark.slow
def test_shortcut_a_before_weights_on_both_sides(tmp_path):
    """The permutation reaches what acts on the sum: the first BN and kernel of a block, the last BN and the head."""
    file, want = preact(X, "bn1")
    model = create_model("cifar-preresnet14", CLASSES, width=WIDTH)
    variables = load_weights(model, store(file, tmp_path), shortcut_padding="end")
    compare(model, variables, X, want)
    shifted = {"both": File(), "end": file}
    where = {4: np.arange(4), 8: None, 16: None}
    where[8] = np.r_[where[4] + 2, 0, 1, 6, 7]
    where[16] = np.r_[where[8] + 4, 0:4, 12:16]
    for (
        key,
        array,
    ) in (
        file.items()
    ):  # the same network, with each stage's channels where padding on both sides has them
        shifted["both"][key] = array
        if key in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            shifted["both"][key] = array[np.argsort(where[16])]
        if key == "fc.weight":
            shifted["both"][key] = array[:, np.argsort(where[16])]
        if key.startswith("layer"):
            stage, block = int(key[5]), int(key[7])
            before = where[WIDTH * 2 ** (max(stage - 2, 0) if block == 0 else stage - 1)]
            after = where[WIDTH * 2 ** (stage - 1)]
            if ".bn1." in key and array.ndim:
                shifted["both"][key] = array[np.argsort(before)]
            if ".conv1." in key:
                shifted["both"][key] = array[:, np.argsort(before)]
            if ".conv2." in key:
                shifted["both"][key] = array[np.argsort(after)]
    variables = load_weights(model, store(shifted["both"], tmp_path), shortcut_padding="both")
    compare(model, variables, X, want)


def test_the_first_blocks_own_norm_needs_the_switch(tmp_path):
    file, _ = preact(X, "layer1.0.bn1", project="shortcut.0", raw=True)
    model = create_model("cifar-preresnet14", CLASSES, width=WIDTH, shortcut="B")
    with pytest.raises(
        WeightsError, match=r"layer1.0.bn1.weight.*Use create_model\(\.\.\., stem_norm=False\)"
    ):
        load_weights(model, store(file, tmp_path))


# LeNet-5 and VGG


def lenet(x, names, flat):
    file = File()
    for name, filters in zip(names[:2], (6, 16), strict=True):
        x = pooled(relu(conv(file, name, x, filters, 5, padding=0, bias=True)))
    if flat:
        x = relu(dense(file, names[2], x.reshape(len(x), -1), 120))
    else:
        x = relu(conv(file, names[2], x, 120, 5, padding=0, bias=True)).reshape(len(x), -1)
    x = relu(dense(file, names[3], x, 84))
    return file, dense(file, names[4], x, 10)


@pytest.mark.parametrize(
    ("names", "flat"),
    [
        (("conv1", "conv2", "fc1", "fc2", "fc3"), True),
        (("conv1", "conv2", "conv3", "fc1", "fc2"), False),
        (("c1", "c3", "c5", "f6", "output"), False),
        (("0", "3", "7", "9", "11"), True),
        (("features.0", "features.3", "classifier.0", "classifier.2", "classifier.4"), True),
    ],
)
def test_lenet5_by_any_names(names, flat, tmp_path):
    x = images(3, 32, 32)
    file, want = lenet(x, names, flat)
    model = create_model("lenet5-relu", 10)
    compare(model, load_weights(model, store(file, tmp_path), (32, 32, 3)), x, want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "head"), [("features.", "classifier"), ("layers.", "linear"), ("features.", "fc")]
)
def test_vgg_of_32_pixels(start, head, tmp_path):
    """Convolutions numbered as torchvision's, and the layer of logits alone."""
    file, x, at = File(), images(3, 32, 32), 0
    want = x
    for filters, layers in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
        for _ in range(layers):
            want = relu(
                bn(file, f"{start}{at + 1}", conv(file, f"{start}{at}", want, filters, bias=True))
            )
            at += 3
        want, at = pooled(want), at + 1
    want = dense(file, head, want.reshape(len(x), -1), 10)
    model = create_model("vgg11-bn-32", 10)
    compare(model, load_weights(model, store(file, tmp_path)), x, want, atol=1e-4)


@pytest.mark.slow
def test_timms_vgg_is_refused_where_its_dense_layers_slide(tmp_path, monkeypatch):
    model = create_model("vgg11", 5)
    specs = trace(model, (224, 224, 3)).specs
    layout = layouts(model)[1]
    from jaxcnn.weights import load
    from jaxcnn.weights.layouts import locate_leaves

    arrays = {
        leaf.key: np.zeros(leaf.forms()[0], np.float16)
        for leaf in locate_leaves(layout, specs).values()
    }
    monkeypatch.setattr(load, "read_weights", lambda _: (arrays, {}))
    for shape in ((256, 256, 3), (224, 320, 3)):
        with pytest.raises(WeightsError, match=r"timm's VGG.*Use shape=\(224, 224, 3\)"):
            load_weights(model, tmp_path / "x", shape)
    assert load_weights(model, tmp_path / "x", (64, 255, 3))


# Names of the user's own, and anybody's modules


@pytest.mark.parametrize("how", ["mapping", "function"])
def test_names_of_the_users_own(how, tmp_path):
    own = {"stem": "first", "stem_norm": "first_bn", "head": "last"}
    names = lambda layer, stage=0, block=0: f"b{stage}{block}_{layer}" if stage else own[layer]  # noqa: E731
    file, want = resnet(X, names, "both")
    ours = {name: f"{layer}" for layer, name in own.items()}
    for stage in (1, 2, 3):
        for block in range(2):
            there, here = f"b{stage}{block}_", f"stage{stage}_block{block + 1}."
            ours |= {
                f"{there}{a}": f"{here}{b}"
                for a, b in (("conv1", "conv1"), ("conv2", "conv2"), ("bn1", "norm1"))
            }
            ours[f"{there}bn2"] = f"{here}norm2"
    mapped = (
        ours
        if how == "mapping"
        else lambda key: ours[key.rpartition(".")[0]] + "." + key.rpartition(".")[2]
    )
    model = create_model("resnet14", CLASSES, width=WIDTH)
    variables = load_weights(model, store(file, tmp_path), names=mapped, shortcut_padding="both")
    compare(model, variables, X, want)


@pytest.mark.slow
def test_names_for_some_layers_alone(tmp_path):
    """The others keep the names of a known layout; None skips an array."""
    file, want = resnet(X, usual("top"), None)
    model = create_model("plain14", CLASSES, width=WIDTH)
    path = store(file | {"criterion.weight": np.zeros(3, np.float32)}, tmp_path)
    compare(model, load_weights(model, path, names={"top": "head", "criterion": None}), X, want)
    with pytest.raises(
        WeightsError, match=r"names={'criterion': 'head', \.\.\.}|names={'top': 'head', \.\.\.}"
    ):
        load_weights(model, path)
    for names, says in (
        ({"topp": "head"}, "names has 'topp'.*such as 'top'"),
        ({"top": "heat"}, "names maps 'top' to 'heat', no layer.*'head'"),
        ({"top": 3}, "names maps 'top' to 3; expected names"),
        ({"top": "head", "conv1": "head"}, "to two arrays"),
        (lambda key: 3, "names gives 3 for"),
        (3, "names is 3; expected a dict or a function"),
    ):
        with pytest.raises(WeightsError, match=says) as caught:
            load_weights(model, path, names=names)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


class Own(nn.Module):
    """A module whose switch has no default, and whose dense layer takes flattened maps."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(4, (3, 3), padding=1, name="a")(x))
        x = nn.BatchNorm(use_running_average=not train, name="n")(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(CLASSES, name="z")(x.reshape(len(x), -1))


def test_a_module_of_the_users_own(tmp_path):
    """Its dense layer gets PyTorch's order of channels, rows and columns turned into Flax's."""
    file = File()
    y = bn(file, "bn", relu(conv(file, "conv", X, 4, bias=True)))
    want = dense(file, "fc", pooled(y).reshape(len(X), -1), CLASSES)
    names = {"conv": "a", "bn": "n", "fc": "z"}
    variables = load_weights(Own(), store(file, tmp_path), (8, 8, 3), names=names)
    got: Any = Own().apply(variables, jnp.asarray(X.transpose(0, 2, 3, 1)), train=False)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


class Unusual(nn.Module):
    @nn.compact
    def __call__(self, x, temperature):
        return nn.Dense(CLASSES, name="head")(x.reshape(len(x), -1)) / temperature


def test_a_module_that_cannot_be_called_with_images_alone(tmp_path):
    save_file({"head.kernel": np.zeros((4, CLASSES), np.float32)}, tmp_path / "x")
    with pytest.raises(
        ArgumentError, match=r"Unusual.__call__ cannot be called with images alone"
    ) as caught:
        load_weights(Unusual(), tmp_path / "x", (2, 2, 1))
    assert "\n" not in str(caught.value)


class Odd(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = (
            nn.ConvTranspose(4, (3, 3), name="a")(x)
            if x.shape[1] == 8
            else nn.Conv(4, (3, 3), name="a")(x)
        )
        return nn.Dense(CLASSES, name="z")(x[:, : x.shape[1] // 2].reshape(len(x), -1))


def test_modules_whose_arrays_cannot_be_turned_are_refused(tmp_path):
    """Square kernels of as many inputs as outputs, and flattened maps of unknown height: the shapes alone would fit."""
    draw = np.random.default_rng(0)
    arrays = {
        "c.weight": draw.standard_normal((4, 4, 3, 3), np.float32),
        "c.bias": np.zeros(4, np.float32),
    }
    arrays |= {"f.bias": np.zeros(CLASSES, np.float32)}
    for size, says in (
        (8, "transposed convolution for 'a'"),
        (6, "flattened maps of unknown height"),
    ):
        arrays["f.weight"] = np.zeros((CLASSES, 4 * size * (size // 2)), np.float32)
        with pytest.raises(WeightsError, match=says):
            load_weights(
                Odd(), store(arrays, tmp_path), (size, size, 4), names={"c": "a", "f": "z"}
            )


@pytest.mark.slow
def test_own_module_exports_and_reads_back(tmp_path):
    model = Own()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    export_weights(model, variables, tmp_path / "own.safetensors")
    again = flatten_dict(load_weights(model, tmp_path / "own.safetensors", (8, 8, 3)))
    for path, leaf in flatten_dict(dict(variables)).items():
        np.testing.assert_array_equal(again[path], leaf)


# Checkpoints: wrappers, objects next to the weights, prefixes, heads, versions


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "wrap",
    [
        *(
            lambda t, n=n: {n: t, "epoch": 3}
            for n in ("net", "params", "weights", "model_state", "teacher", "module")
        ),
        lambda t: {
            "checkpoint": {"model": t},
            "optimizer": {"state": {0: {"momentum_buffer": t["a"]}}},
        },
        lambda t: {"state_dict": t, "best": t["a"]},
    ],
)
def test_wrappers(wrap, kind, torch, tmp_path, caplog):  # noqa: F811
    tree = {"a": a_tensor(torch, legacy=kind == "legacy")}
    found, _ = read_weights(WRITERS[kind](tmp_path / "x.ckpt", wrap(tree), {"0": SIX.tobytes()}))
    np.testing.assert_array_equal(found["a"], SIX.reshape(2, 3))
    assert not caplog.records


def test_several_sets_of_weights(torch, tmp_path, caplog):  # noqa: F811
    """Which one was taken is said, and the user can choose."""
    plain, ema = {"a": a_tensor(torch)}, {"a": a_tensor(torch, (2,), (1,), 4)}
    for tree in (
        {"state_dict_ema": ema, "state_dict": plain},
        {"state_dict": plain, "state_dict_ema": ema},
    ):
        file = write_zip(tmp_path / "x.pth", tree, {"0": SIX.tobytes()})
        caplog.clear()
        np.testing.assert_array_equal(read_weights(file)[0]["a"], SIX.reshape(2, 3))
        assert "took 'state_dict'; write entry='state_dict_ema' for another" in caplog.text
        caplog.clear()
        np.testing.assert_array_equal(read_weights(file, "state_dict_ema")[0]["a"], [4, 5])
        assert not caplog.records
    with pytest.raises(WeightsError, match=r"no entry 'ema'; expected one of .*'state_dict_ema'"):
        read_weights(file, "ema")


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1, layers=[1, 2]),
    "numpy scalar": np.float64(0.5),
    "numpy array": np.arange(3),
    "set": {1, 2, 3},
    "frozen set": frozenset({1}),
    "counter": collections.Counter({80: 1, 120: 1}),
    "default dict": collections.defaultdict(list, {"loss": [1.0]}),
    "deque": collections.deque([1.0, 2.0], maxlen=9),
    "path": pathlib.PurePosixPath("runs", "x"),
    "bytes": b"abc",
    "complex": 1 + 2j,
    "float keys": {0.1: 1, None: 2, True: 3},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_next_to_the_weights_are_skipped(name, protocol, torch, tmp_path, monkeypatch):  # noqa: F811
    """Python's unpickler would make each of them; here the type is not even looked up."""
    data = dumped({"state_dict": {"a": a_tensor(torch)}, "more": [OBJECTS[name], 1]}, protocol)
    with monkeypatch.context() as patch:
        patch.setattr(argparse, "Namespace", lambda *_: pytest.fail("it was made"))
        patch.setattr(collections, "Counter", lambda *_: pytest.fail("it was made"))
        found, _ = read_weights(write_zip(tmp_path / "x.pth", data, {"0": SIX.tobytes()}))
    np.testing.assert_array_equal(found["a"], SIX.reshape(2, 3))


def test_torchs_own_objects_are_skipped_and_others_refused(torch, tmp_path):  # noqa: F811
    weights = dumped({"state_dict": {"a": a_tensor(torch)}})
    assert weights.endswith(b"s.") or weights.endswith(b".")
    size, device, dtype = (
        "ctorch\nSize\n((I1\nI2\nttR",
        "ctorch\ndevice\n(Vcpu\ntR",
        "ctorch\nfloat32\n",
    )
    for text in (size, device, dtype):
        text = (
            text.replace("I1\n", "K\x01")
            .replace("I2\n", "K\x02")
            .replace("Vcpu\n", "X\x03\0\0\0cpu")
        )
        data = weights[:-1] + b"X\x01\0\0\0x" + text.encode("latin-1") + b"s."
        assert read_weights(write_zip(tmp_path / "x.pth", data, {"0": SIX.tobytes()}))[
            0
        ].keys() == {"a"}
    data = dumped(
        {
            "state_dict": {"a": a_tensor(torch)},
            "args": Call(pathlib.Path.mkdir, (pathlib.Path("x"),)),
        },
        4,
    )
    refused(
        write_zip(tmp_path / "x.pth", data),
        "nothing of it was run",
        "torch.save(model.state_dict(), file)",
    )


def test_a_skipped_object_is_no_weight(torch, tmp_path):  # noqa: F811
    tree = {"state_dict": {"a": a_tensor(torch), "b": argparse.Namespace(x=1)}}
    refused(write_zip(tmp_path / "x.pth", tree, {"0": SIX.tobytes()}), "'b' in it is no tensor")


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["net.", "backbone.encoder.", "module.net."])
@pytest.mark.parametrize("stranger", [False, True])
def test_prefixes_with_and_without_a_stranger(prefix, stranger, tmp_path, caplog):
    file, want = resnet(X, usual("fc"), None)
    arrays = {prefix + key: value for key, value in file.items()}
    arrays |= {"criterion.weight": np.zeros(3, np.float32)} if stranger else {}
    model = create_model("plain14", CLASSES, width=WIDTH)
    compare(model, load_weights(model, store(arrays, tmp_path)), X, want)
    assert ("skipped 1 others ('criterion.weight')" in caplog.text) == stranger


def test_two_networks_in_one_file(tmp_path, caplog):
    file, want = resnet(X, usual("fc"), None)
    other = {f"ema.{key}": value * 2 for key, value in file.items()}
    arrays = other | {f"online.{key}": value for key, value in file.items()}
    model, path = create_model("plain14", CLASSES, width=WIDTH), store(arrays, tmp_path)
    compare(model, load_weights(model, path), X, want)
    assert "took 'online'; write entry='ema' for another" in caplog.text
    doubled = load_weights(model, path, entry="ema")
    np.testing.assert_array_equal(doubled["params"]["head"]["bias"], 2 * file["fc.bias"])
    with pytest.raises(WeightsError, match="no entry 'emma'; expected one of 'ema', 'online'"):
        load_weights(model, path, entry="emma")


def test_a_file_without_a_head(tmp_path, caplog):
    file, _ = resnet(X, usual("fc"), None)
    body = {key: value for key, value in file.items() if not key.startswith("fc.")}
    model = create_model("plain14", CLASSES, width=WIDTH)
    found = load_weights(model, store(body, tmp_path), seed=3)
    assert "has no layer of logits: head starts from scratch (seed 3)" in caplog.text
    assert found["params"]["head"]["kernel"].shape == (4 * WIDTH, CLASSES)
    assert np.abs(found["params"]["head"]["kernel"]).max() > 0
    np.testing.assert_array_equal(found["params"]["stem_norm"]["scale"], file["bn1.weight"])
    for stray in ({"other.weight": np.zeros((CLASSES, 4 * WIDTH), np.float32)}, None):
        short = (
            body | stray
            if stray
            else {key: value for key, value in body.items() if key != "bn1.bias"}
        )
        with pytest.raises(WeightsError, match=r"missing"):
            load_weights(model, store(short, tmp_path))


@pytest.mark.slow
def test_version_1_in_a_file_that_does_not_say(tmp_path):
    old, new = create_model("resnet50", 5, width=4), create_model("resnet50-v1.5", 5, width=4)
    specs = trace(new, (32, 32, 3)).specs
    from jaxcnn.weights.layouts import locate_leaves

    arrays = {
        leaf.key: np.ones(leaf.forms()[0], np.float32)
        for leaf in locate_leaves(layouts(new)[0], specs).values()
    }
    path = store(arrays, tmp_path)
    with pytest.raises(
        WeightsError,
        match=r"does not say where.*write 'resnet50-v1.5', or stride_in_3x3=False here",
    ):
        load_weights(old, path)
    assert load_weights(old, path, stride_in_3x3=False)
    with pytest.raises(WeightsError, match=r"write 'resnet50'$"):
        load_weights(new, path, stride_in_3x3=False)
    with pytest.raises(WeightsError, match="no bottlenecks"):
        load_weights(create_model("resnet18", 5, width=4), path, (32, 32, 3), stride_in_3x3=True)
    save_file(arrays, path, {"model": "resnet50-v1.5"})
    with pytest.raises(WeightsError, match=r"says that it is of 'resnet50-v1.5'"):
        load_weights(old, path, stride_in_3x3=False)


@pytest.mark.parametrize(
    ("name", "model", "says"),
    [
        (
            "resnet14",
            "resnet20",
            "a network of 14 layers for 32x32 images: create_model('resnet14', 5, width=4)",
        ),
        ("plain14", "lenet5", "create_model('plain14', 5, width=4)"),
    ],
)
def test_what_a_file_looks_like(name, model, says, tmp_path):
    file, _ = resnet(X, usual("fc"), None if name.startswith("plain") else "end")
    with pytest.raises(WeightsError) as caught:
        load_weights(create_model(model, CLASSES), store(file, tmp_path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"\x89HDF\r\n", "Keras"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs", "Git LFS"),
    ],
)
def test_files_that_look_like_something_else(start, says, tmp_path):
    (tmp_path / "x.bin").write_bytes(start + bytes(50))
    refused(tmp_path / "x.bin", says)


# With the constants that it was trained with


@pytest.mark.slow
def test_evaluation_with_the_constants_of_others(tmp_path):
    """The config's own mean and standard deviation reach the inputs of weights that were read."""
    data, model = load_dataset("digits"), create_model("plain8", 10, width=2)
    tx = create_optimizer(OptimizerConfig())
    config = TrainConfig(subtract_mean=(0.3,), divide_std=(0.4,))
    state = init_state(model, tx, config, data)
    export_weights(model, {"params": state.params, **state.model_state}, tmp_path / "x.safetensors")
    state = with_variables(state, load_weights(model, tmp_path / "x.safetensors", (8, 8, 1)))
    inputs = (data.test.images.astype(np.float32) / 255 - 0.3) / 0.4
    logits = model.apply({"params": state.params, **state.model_state}, jnp.asarray(inputs))
    wrong = int((np.argmax(np.asarray(logits), 1) != data.test.labels).sum())
    assert int(evaluate(model, state, data.test).num_wrong) == wrong
    with pytest.raises(
        ArgumentError, match="subtract_mean has 3 numbers, but images have 1 channel"
    ):
        init_state(model, tx, override(config, subtract_mean=(0.3, 0.3, 0.3)), data)
