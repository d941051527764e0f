"""The summary: published counts to their last digit, every layer in its place, and nothing computed."""

import gc

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxcnn as jc
from jaxcnn.interpret import LayerSummary, summary
from jaxcnn.models import count_parameters
from jaxcnn.models.layers import adaptive_average, local_response_norm, max_pool


def kinds(found):
    return [(row.name, row.kind) for row in found.rows[1:]]


@pytest.fixture
def compiled():
    """What JAX lowers or compiles during the test."""
    seen = []

    def note(event, duration_secs, **kwargs):
        if "jaxpr_to_mlir" in event or "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


# He et al. 2015, section 4.2, convolutions and the dense layer; shortcut A multiplies nothing.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 40.55), (32, 68.86), (44, 97.17), (56, 125.49), (110, 252.89)]
)
def test_multiply_adds_of_the_cifar_networks(depth, millions):
    blocks = (depth - 2) // 6
    widths, pixels = (16, 32, 64), (1024, 256, 64)
    expected = 9 * 3 * 16 * 1024 + 640
    for stage, (width, size) in enumerate(zip(widths, pixels, strict=True)):
        expected += (
            9 * size * width * (2 * blocks * width - (width // 2 if stage else 0))
        )  # the first sees half as many
    for name in (f"resnet{depth}", f"plain{depth}"):
        found = summary(jc.create_model(name, 10), (32, 32, 3))
        assert found.macs == expected == pytest.approx(1e6 * millions, abs=5e3)
        if depth > 20:
            break


# torchvision's "GFLOPS" of each network (docs.pytorch.org/vision/stable/models.html), which are
# multiply-adds.
PUBLISHED = {
    "alexnet": 0.714, "vgg11": 7.609, "vgg13": 11.308, "vgg16": 15.470, "vgg19": 19.632, "vgg16-bn": 15.470,
    "googlenet-bn": 1.498, "resnet18": 1.814, "resnet34": 3.664, "resnet50-v1.5": 4.089, "resnet101-v1.5": 7.801,
    "resnet152-v1.5": 11.514,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_the_published_ones(name, compiled):
    """Resnet152 takes 1.1 s on one core of an Intel Xeon, resnet1202 at 32x32 takes 9 s, nearly all of it in flax's tracing."""
    model = jc.create_model(name, 1000)
    found = summary(model, (224, 224, 3))
    assert not compiled
    assert round(found.macs / 1e9, 3) == PUBLISHED[name]
    assert (
        found.params
        == count_parameters(model, (224, 224, 3))
        == sum(row.params for row in found.rows)
    )


@pytest.mark.slow
def test_the_residual_papers_table_1():
    """3.8 G for 50 layers, cut and not rounded. With the stride in the 3x3 they have 4.1."""
    assert summary(jc.create_model("resnet50", 1000), (224, 224, 3)).macs == 3_857_973_248


SMALL = "perceptron mlp cnn convnet lenet5 lenet5-relu lenet5-1998 autoencoder unet pspnet deeplabv3plus vgg11-bn-32 cifar-preresnet20 plain20"


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL.split())
def test_every_small_network_has_a_summary(name):
    model, shape = jc.create_model(name, 10), (32, 32, 1)
    found = summary(model, shape)
    assert (found.params, found.macs) == (
        count_parameters(model, shape),
        sum(row.macs for row in found.rows),
    )
    assert all(row.shape or row.kind == "not used in test mode" for row in found.rows)
    assert len({row.name for row in found.rows}) == len(found.rows)


def test_every_layer_of_a_residual_network():
    found = summary(jc.create_model("resnet8", 10, shortcut="B", width=4), (16, 8, 3))
    first = [
        ("stem", "Conv 3x3", (16, 8, 4), 108, 0, 13824),
        ("stem_norm", "BatchNorm", (16, 8, 4), 8, 8, 0),
    ]
    assert found.rows[:4] == (
        LayerSummary("image", "Input", (16, 8, 3), 0, 0, 0),
        *(LayerSummary(*row) for row in first),
        LayerSummary("relu", "ReLU", (16, 8, 4), 0, 0, 0),
    )
    assert [row for row in found.rows if row.name.startswith("stage2")] == [
        LayerSummary("stage2_block1/conv1", "Conv 3x3 /2", (8, 4, 8), 288, 0, 9216),
        LayerSummary("stage2_block1/norm1", "BatchNorm", (8, 4, 8), 16, 16, 0),
        LayerSummary("stage2_block1/relu", "ReLU", (8, 4, 8), 0, 0, 0),
        LayerSummary("stage2_block1/conv2", "Conv 3x3", (8, 4, 8), 576, 0, 18432),
        LayerSummary("stage2_block1/norm2", "BatchNorm", (8, 4, 8), 16, 16, 0),
        LayerSummary("stage2_block1/project", "Conv 1x1 /2", (8, 4, 8), 32, 0, 1024),
        LayerSummary("stage2_block1/project_norm", "BatchNorm", (8, 4, 8), 16, 16, 0),
        LayerSummary("stage2_block1/add", "Add", (8, 4, 8), 0, 0, 0),
        LayerSummary("stage2_block1/relu_2", "ReLU", (8, 4, 8), 0, 0, 0),
    ]
    assert found.rows[-2:] == (
        LayerSummary("average_pool", "Global average pooling", (16,), 0, 0, 0),
        LayerSummary("head", "Dense", (10,), 170, 0, 160),
    )
    assert found.bytes == 4 * (found.params + found.fixed)


def test_shortcut_a_and_a_plain_network():
    residual, plain = (
        kinds(summary(jc.create_model(name, 10), (32, 32, 3))) for name in ("resnet8", "plain8")
    )
    more = [("pick", "Pixels picked /2"), ("padding", "Padding"), ("add", "Add")]
    here = [(f"stage2_block1/{name}", kind) for name, kind in more]
    assert [row for row in residual if row not in plain] == [
        ("stage1_block1/add", "Add"), *here, *((name.replace("2_", "3_"), kind) for name, kind in here),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape", "between"),
    [
        (
            "lenet5",
            (28, 28, 1),
            "Padding, Tanh, Average pooling 2x2, Tanh, Average pooling 2x2, Tanh, Flatten, Tanh",
        ),
        ("convnet", (28, 28, 1), "ReLU, Max pooling 2x2, ReLU, Max pooling 2x2, Flatten, ReLU"),
        (
            "alexnet",
            (224, 224, 3),
            "Padding, "
            + "ReLU, Max pooling 3x3 /2, " * 2
            + "ReLU, " * 3
            + "Max pooling 3x3 /2, Flatten, ReLU, ReLU",
        ),
        (
            "autoencoder",
            (28, 28, 1),
            "ReLU, ReLU, Flatten, ReLU, Upsampling 2x2, ReLU, Upsampling 2x2, ReLU",
        ),
    ],
)
def test_what_lies_between_the_layers(name, shape, between):
    rows = summary(jc.create_model(name, 10), shape).rows[1:]
    layers = ("Conv", "Dense", "Dropout", "BatchNorm")
    assert ", ".join(row.kind for row in rows if not row.kind.startswith(layers)) == between


def test_groups_and_local_response_norm():
    rows = {
        row.name: row
        for row in summary(jc.create_model("alexnet-groups", 1000), (227, 227, 3)).rows
    }
    assert (rows["conv2"].kind, rows["conv2"].macs) == (
        "Conv 5x5, 2 groups",
        27 * 27 * 256 * 25 * 48,
    )
    assert [name for name, row in rows.items() if row.kind == "Local response norm"] == [
        "lrn",
        "lrn_2",
    ]


@pytest.mark.slow
def test_branches_and_auxiliary_heads():
    without = summary(jc.create_model("googlenet", 1000), (224, 224, 3))
    with_heads = summary(jc.create_model("googlenet", 1000, aux=True), (224, 224, 3))
    heads = [
        128 * (channels + 1) + 1024 * (2048 + 1) + 1000 * (1024 + 1) for channels in (512, 528)
    ]
    assert [row for row in with_heads.rows if row not in without.rows] == [
        LayerSummary(f"aux{i}", "not used in test mode", (), params, 0, 0)
        for i, params in enumerate(heads, 1)
    ]
    assert (with_heads.params, with_heads.macs) == (13_378_280, without.macs)
    rows = dict(kinds(without))
    assert rows["inception3a/concatenate"] == "Concatenate"
    assert rows["inception3a/max_pool"] == "Max pooling 3x3 /1"


class Gated(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Conv(8, (3, 3), feature_group_count=8)(x)
        y = nn.Conv(8, (3, 3), kernel_dilation=2)(nn.gelu(y))
        gate = nn.sigmoid(nn.Dense(8)(x.mean((1, 2))))
        return x + y * gate[:, None, None]


class Mine(nn.Module):
    """A network as a user may write it: `setup`, a method, a rematerialised block, weights used twice."""

    def setup(self):
        self.first, self.block, self.shared = nn.Conv(8, (3, 3)), nn.remat(Gated)(), nn.Dense(12)
        self.up, self.drop = nn.ConvTranspose(4, (4, 4), (2, 2)), nn.Dropout(0.5)

    def again(self, x):
        return self.shared(x)

    def __call__(self, x, train=False):
        x = self.block(local_response_norm(self.first(x)))
        x = adaptive_average(max_pool(x, 3, 2, ceil=True), 5)
        x = nn.silu(nn.leaky_relu(jax.image.resize(x, (1, 6, 6, 8), "bilinear")))
        x = self.up(jnp.repeat(x, 2, 1))
        x = self.drop(x, deterministic=not train).reshape(1, -1)[:, :12]
        return nn.softmax(self.again(self.again(x)))


MINE = """first Conv 3x3|lrn Local response norm|block/Conv_0 Depthwise conv 3x3|block/tanh Tanh
block/Conv_1 Conv 3x3, dilation 2|block/average_pool Global average pooling|block/Dense_0 Dense|block/sigmoid Sigmoid
block/multiply Multiply|block/add Add|max_pool Max pooling 3x3 /2|average_pool Adaptive average pooling
upsample Resize to 6x6|leaky_relu Leaky ReLU|silu SiLU|upsample_2 Upsampling 2x1|up Transposed conv 4x4 x2|drop Dropout
flatten Flatten|shared Dense|shared_2 Dense|softmax Softmax"""


def test_a_model_of_the_users_own(compiled):
    found = summary(Mine(), (20, 20, 3))
    assert [f"{name} {kind}" for name, kind in kinds(found)] == MINE.replace("\n", "|").split("|")
    rows = {row.name: row for row in found.rows}
    assert (rows["shared"].params, rows["shared_2"].params) == (
        156,
        0,
    )  # weights that are used twice
    assert rows["shared"].macs == rows["shared_2"].macs == 144
    assert rows["up"].macs == 12 * 6 * 16 * 8 * 4  # the kernel at every pixel of the input
    assert rows["block/Conv_0"].macs == 400 * 9 * 8
    assert rows["max_pool"].shape == (10, 10, 8)
    assert not compiled
    assert found.params == count_parameters(Mine(), (20, 20, 3))


class Bare(nn.Module):
    """Parameters of the network itself, a loop, and a part that only `init` runs."""

    @nn.compact
    def __call__(self, x, train=False):
        kernel, bias = (
            self.param("kernel", nn.initializers.ones, (3, 3, 3, 4)),
            self.param("b", nn.initializers.ones, (4,)),
        )
        layout = ("NHWC", "HWIO", "NHWC")
        x = (
            jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
            + bias[None, None, None]
        )
        if self.is_initializing():
            nn.Dense(3, name="aux")(x)
        x = jnp.maximum(x, 0.0).max((1, 2))
        step = self.param("step", nn.initializers.ones, (4, 4))
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ step), None), x, None, length=5)[0]


def test_what_is_no_module_keeps_its_parameters():
    assert summary(Bare(), (20, 20, 3)).rows[1:] == (
        LayerSummary("conv", "Conv 3x3", (20, 20, 4), 112, 0, 400 * 27 * 4),
        LayerSummary("relu", "ReLU", (20, 20, 4), 0, 0, 0),
        LayerSummary("max_pool", "Global max pooling", (4,), 0, 0, 0),
        LayerSummary("dense", "Dense", (4,), 16, 0, 5 * 16),
        LayerSummary("tanh", "Tanh", (4,), 0, 0, 0),
        LayerSummary("aux", "not used in test mode", (), 15, 0, 0),
    )


def test_the_printed_table():
    found = summary(jc.create_model("resnet8", 10), (32, 32, 3))
    lines = str(found).splitlines()
    table = lines[: 3 + len(found.rows)]
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert {len(line) for line in table} == {len(lines[0])}  # numbers end in one column
    assert (
        "stage1_block1/conv1    Conv 3x3                32x32x16       2,304      2,359,296"
        in lines
    )
    assert lines[-4:] == [
        "parameters, trainable       75,290",
        "not trainable (averages)    480",
        "memory of both              296.0 KiB",
        "multiply-adds of one image  12,239,488 (12.24 M)",
    ]


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 0), (32, 32.0, 3), "abc"])
def test_a_shape_that_is_none(shape, compiled):
    with pytest.raises(
        jc.ArgumentError,
        match=r"shape is .*; expected the height, width and channels .*Write \(32, 32, 3\)",
    ):
        summary(jc.create_model("resnet8", 10), shape)
    assert not compiled
    with pytest.raises(jc.ArgumentError, match="LeNet-5 got images of 20x20 pixels"):
        summary(jc.create_model("lenet5", 10), (20, 20, 1))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_paused_while_it_traces_and_then_as_before(enabled):
    seen = []

    class Net(nn.Module):
        fails: bool = False

        @nn.compact
        def __call__(self, x):
            seen.append(gc.isenabled())
            if self.fails:
                raise RuntimeError
            return nn.Dense(2)(x)

    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        summary(Net(), (2, 2, 1))
        assert gc.isenabled() == enabled
        with pytest.raises(RuntimeError):
            summary(Net(fails=True), (2, 2, 1))
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
    assert seen
    assert not any(seen)
