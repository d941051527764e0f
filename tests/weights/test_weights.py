"""Weights of other people's: parity with PyTorch from stored outputs, there and back, and what is told when they misfit.

The weights are made from their names (`parity/known.py`); what torchvision and timm compute with them is stored
(`parity/make.py` made it), so that nothing here needs PyTorch but the tests marked so.
"""

import logging
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from parity import known
from safetensors.numpy import load_file, save_file

from jaxcnn.models import create_model
from jaxcnn.models.googlenet import AuxiliaryHead
from jaxcnn.weights import (
    WeightsError,
    export_weights,
    load,
    load_weights,
    read_metadata,
    read_weights,
)
from jaxcnn.weights._networks import published_name, trace
from jaxcnn.weights.layouts import Leaf, from_file_layout, layouts, locate_leaves, to_file_layout

STORED = Path(known.__file__).parent
CLASSES = 20
NETWORKS = {
    "alexnet": ("alexnet", {}),
    "vgg11": ("vgg11", {}),
    "vgg11_bn": ("vgg11-bn", {}),
    "vgg16": ("vgg16", {}),
    "timm-vgg11_bn": ("vgg11-bn", {}),
    "googlenet": ("googlenet-bn", {"aux": True}),
    "googlenet-shifted": ("googlenet-bn", {"transform_input": True}),
    "resnet18": ("resnet18", {}),
    "resnet34": ("resnet34", {}),
    "resnet50": ("resnet50-v1.5", {}),
    "resnet101": ("resnet101-v1.5", {}),
    "resnet152": ("resnet152-v1.5", {}),
}
QUICK = [
    "alexnet",
    "vgg11",
    "timm-vgg11_bn",
    "googlenet",
    "googlenet-shifted",
    "resnet18",
    "resnet50",
]
SLOW = [name for name in NETWORKS if name not in QUICK]
"""Their names and shapes are compared always, their numbers where PyTorch is installed (`pip install -e ".[parity]"`)."""


def case(name):
    return known.load(STORED / f"{name}.npz")


def network(name, num_classes=CLASSES, **more):
    ours, options = NETWORKS[name]
    return create_model(ours, num_classes, **(options | more))


def from_file(there, model, folder, monkeypatch):
    """`load_weights` from a file; of AlexNet and VGG, whose files have up to half a gigabyte, the reading is left out."""
    arrays = known.state_dict(there)
    if type(model).__name__ in ("AlexNet", "VGG"):
        monkeypatch.setattr(load, "read_weights", lambda _: (arrays, {}))
    else:
        save_file(arrays, folder / "there.safetensors")
    return load_weights(model, folder / "there.safetensors", there.image[1:])


def compare(name, folder, monkeypatch):
    there, model = case(name), network(name)
    variables = from_file(there, model, folder, monkeypatch)
    run = jax.jit(lambda variables, image: model.apply(variables, image, stages=True))
    logits, stages = run(variables, jnp.asarray(known.image(there.image)))
    np.testing.assert_allclose(logits, there.logits, rtol=0, atol=1e-4)
    assert np.abs(there.logits).max() > 0.5
    if getattr(model, "aux", False):
        stages |= auxiliary(model, variables, stages)
    compared = {
        stage: value
        for stage, value in there.stages.items()
        if "aux" not in stage or stage in stages
    }
    assert compared.keys() == stages.keys()
    for stage, (shape, values) in compared.items():
        assert stages[stage].shape == shape, stage
        np.testing.assert_allclose(
            known.sample(stage, stages[stage]), values, rtol=0, atol=1e-3, err_msg=stage
        )


def auxiliary(model, variables, stages):
    """The heads of GoogLeNet run in training only; here they are applied alone, outside it."""
    found = {}
    for name, on in (("aux1", "inception4a"), ("aux2", "inception4d")):
        head = AuxiliaryHead(model._make(), nn.Dense, CLASSES, None)
        own = {kind: tree[name] for kind, tree in variables.items()}
        _, sown = jax.jit(
            lambda own, maps, head=head: head.apply(own, maps, False, mutable=["aux"])
        )(own, stages[on])
        (found[name],) = sown["aux"]["logits"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_parity_with_pytorch(name, tmp_path, monkeypatch):
    """Logits within 1e-4 and every stage within 1e-3, in float32, with weights in torchvision's or timm's layout."""
    compare(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", SLOW)
def test_parity_with_pytorch_of_the_others(name, tmp_path, monkeypatch):
    pytest.importorskip(
        "torch", reason="takes a minute; runs where the extra `parity` is installed"
    )
    compare(name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_those_of_pytorch(name):
    """Key for key and shape for shape, in the layout of the file."""
    there, model = case(name), network(name)
    specs, *_ = trace(model, there.image[1:])
    shapes = {
        key: shape for key, shape in there.shapes.items() if not key.endswith("num_batches_tracked")
    }
    if not getattr(model, "aux", True):
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("aux")}
    layout = layouts(model)[1 if name == "timm-vgg11_bn" else 0]
    found = {leaf.key: leaf.forms() for leaf in locate_leaves(layout, specs).values()}
    assert found.keys() == shapes.keys()
    assert all(shapes[key] in forms for key, forms in found.items())
    assert len({leaf.key for leaf in locate_leaves(layout, specs).values()}) == len(specs)


def test_timm_names_its_resnets_as_torchvision_does():
    """They are other people's code, and compute the same from the same file."""
    for name in ("resnet18", "resnet50"):
        torchvision, timm = case(name), case(f"timm-{name}")
        assert torchvision.shapes == timm.shapes
        np.testing.assert_allclose(timm.logits, torchvision.logits, rtol=0, atol=1e-5)


# The order of axes, on arrays that one can think about


def test_a_dense_layer_after_maps_takes_them_in_our_order():
    """Applied to the same maps, in torch's order channel, row, column and in ours, it gives the same."""
    maps, weight = (
        np.random.default_rng(0).normal(size=(5, 3, 4)),
        np.random.default_rng(1).normal(size=(2, 60)),
    )
    leaf = Leaf("x.weight", (60, 2), (3, 4))
    for form in (weight, weight.reshape(2, 5, 3, 4)):
        np.testing.assert_allclose(
            maps.transpose(1, 2, 0).ravel() @ from_file_layout(form, leaf), weight @ maps.ravel()
        )
    np.testing.assert_array_equal(to_file_layout(from_file_layout(weight, leaf), leaf), weight)


def test_a_kernel_in_groups_keeps_its_axes():
    weight = np.arange(2 * 3 * 5 * 7).reshape(7, 5, 2, 3)  # out, in / groups, h, w
    leaf = Leaf("x.weight", (2, 3, 5, 7))
    assert from_file_layout(weight, leaf)[1, 2, 4, 6] == weight[6, 4, 1, 2]
    np.testing.assert_array_equal(to_file_layout(from_file_layout(weight, leaf), leaf), weight)


# There and back


def random_variables(model, shape, seed=0):
    """Variables of the right shapes, filled without initialising anything."""
    specs, *_ = trace(model, shape)
    draw = np.random.default_rng(seed)
    return unflatten_dict(
        {path: draw.standard_normal(spec.shape, np.float32) for path, spec in specs.items()}
    )


def same(a: Any, b: Any):
    a, b = flatten_dict(a), flatten_dict(b)
    assert a.keys() == b.keys()
    for path in a:
        assert np.asarray(b[path]).dtype == np.float32, path
        np.testing.assert_array_equal(a[path], b[path], err_msg=str(path))


OWN = [
    "preresnet18",
    "plain18",
    "resnet20",
    "lenet5",
    "unet",
    "pspnet",
    "perceptron",
    "resnet50",
    "resnet50-v1.5",
    "googlenet",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_export_and_back(name, tmp_path):
    """Every network, in torchvision's layout or in our own; the header keeps what one writes, and v1 apart from v1.5."""
    options = {"width": 4} if any(part in name for part in ("resnet", "plain", "psp")) else {}
    model, shape = (
        create_model(name, 5, **options),
        (28, 28, 1) if name in ("lenet5", "perceptron") else (32, 32, 3),
    )
    variables = random_variables(model, shape)
    export_weights(model, variables, tmp_path / "out.safetensors", {"note": "three words here"})
    same(variables, load_weights(model, tmp_path / "out.safetensors", shape))
    said = read_metadata(tmp_path / "out.safetensors")
    assert said["note"] == "three words here"
    assert said.get("model") == published_name(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_what_is_exported_is_what_was_read(name, tmp_path, monkeypatch):
    """Torch's names, all of them, with torch's arrays: `load_state_dict(strict=True)` asks for no more."""
    there, model = case(name), network(name)
    variables = from_file(there, model, tmp_path, monkeypatch)
    export_weights(model, variables, tmp_path / "back.safetensors")
    back, arrays = load_file(tmp_path / "back.safetensors"), known.state_dict(there)
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    assert read_metadata(tmp_path / "back.safetensors") == {
        "model": published_name(model),
        "format": "pt",
    }


def test_an_export_that_cannot_be_written(tmp_path):
    model = create_model("perceptron", 3)
    variables = random_variables(model, (2, 2, 1))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (
        "out.safetensors",
        "out.safetensors.part",
    ):  # links are replaced, never written through
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(victim)
    export_weights(model, variables, tmp_path / "out.safetensors")
    same(variables, load_weights(model, tmp_path / "out.safetensors", (2, 2, 1)))
    assert victim.read_text() == "mine"
    assert not (tmp_path / "out.safetensors").is_symlink()
    names = ["out.safetensors", "out.safetensors.part", "victim"]  # no temporary file stays
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with pytest.raises(WeightsError, match=r"cannot write .*No such file"):
        export_weights(model, variables, tmp_path / "nowhere/out.safetensors")
    with pytest.raises(WeightsError, match="is no text"):
        export_weights(model, variables, tmp_path / "x", {"classes": 3})  # type: ignore[dict-item]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "width", "problem"),
    [("resnet18", 64, "missing"), ("plain8", 8, "misshapen"), ("resnet14", 4, "missing")],
)
def test_variables_of_another_network_are_not_exported(other, width, problem, tmp_path):
    variables = random_variables(create_model("plain8", 10, width=4), (8, 8, 1))
    with pytest.raises(WeightsError, match="variables are not of") as error:
        export_weights(create_model(other, 10, width=width), variables, tmp_path / "x")
    assert getattr(error.value, problem)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    export_weights(create_model("plain8", 10, width=4), variables, tmp_path / "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet5-1998", "cnn", "autoencoder"])
def test_variables_for_images_of_any_shape_are_exported(name, tmp_path):
    shape = (28, 28, 1) if "lenet" in name else (16, 16, 2)
    model = create_model(name, 10)
    export_weights(model, random_variables(model, shape), tmp_path / "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "mlp"])
def test_images_of_another_shape_are_named_and_the_advice_works(name, tmp_path):
    model = create_model(name, 10, width=4) if name == "resnet8" else create_model(name, 10)
    variables, file = random_variables(model, (8, 8, 1)), tmp_path / "x.safetensors"
    export_weights(model, variables, file)
    with pytest.raises(WeightsError, match=r"Use shape=\(\d+, \d+, 1\)\.$") as error:
        load_weights(model, file)
    shape = tuple(map(int, re.findall(r"\d+", str(error.value).rpartition("shape=")[2])))
    same(variables, load_weights(model, file, shape))


def test_a_layer_is_no_entry(tmp_path):
    model, file = create_model("resnet8", 10, width=4), tmp_path / "x.safetensors"
    variables = random_variables(model, (8, 8, 3))
    export_weights(model, variables, file)
    with pytest.raises(WeightsError, match=r"entry is 'head', .* Use entry=None\.$"):
        load_weights(model, file, entry="head")
    with pytest.raises(WeightsError, match=r"entry is 'model', .* no entries.* Use entry=None\.$"):
        load_weights(model, file, entry="model")
    same(variables, load_weights(model, file, entry=None))


# What is told when a file and a network do not fit


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A ResNet-18 of width 4 and 5 classes, and its arrays as torch has them."""
    model, file = (
        create_model("resnet18", 5, width=4),
        tmp_path_factory.mktemp("narrow") / "r.safetensors",
    )
    export_weights(model, random_variables(model, (32, 32, 3)), file)
    return model, load_file(file)


def refusal(model, arrays, folder, metadata=None):
    save_file(arrays, folder / "x.safetensors", metadata)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, folder / "x.safetensors", (32, 32, 3))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return caught.value


@pytest.mark.slow
def test_all_that_does_not_fit_is_told_at_once(narrow, tmp_path):
    model, arrays = narrow
    wrong = {
        key: array
        for key, array in arrays.items()
        if key not in ("bn1.bias", "layer4.1.bn2.running_var")
    }
    wrong |= {
        "extra.weight": np.zeros(3, np.float32),
        "conv1.weight": np.zeros((4, 1, 7, 7), np.float32),
    }
    error = refusal(model, wrong | {"bn1.weight": np.zeros(4, np.int64)}, tmp_path)
    assert set(error.missing) == {"bn1.bias", "layer4.1.bn2.running_var"}
    assert error.unexpected == ("extra.weight",)
    assert set(error.misshapen) == {
        "conv1.weight is float32[4, 1, 7, 7], expected [4, 3, 7, 7]",
        "bn1.weight is int64[4], expected [4]",
    }
    assert "is not of resnet18: 2 missing (layer4.1.bn2.running_var, bn1.bias); " in str(error)
    assert "1 unexpected (extra.weight); 2 misshapen (" in str(error)


def test_a_file_of_another_network(narrow, tmp_path):
    """Hundreds of names: the line has the first few and how many, the error all."""
    _, arrays = narrow
    error = refusal(create_model("resnet34", 5, width=4), arrays, tmp_path)
    assert (
        len(error.missing) == 2 * (34 - 18) * 5 // 2
    )  # a layer more is a kernel and four arrays of its BN
    assert re.search(r"80 missing \((\S+, ){2}\S+ and 77 more\)", str(error))
    error = refusal(create_model("vgg11-32", 5), arrays, tmp_path)
    assert len(error.unexpected) == 100  # all but "fc", which is a usual name for a head
    assert "and 97 more)" in str(error)
    assert "it looks like ResNet-18: create_model('resnet18', 5, width=4)" in str(error)


@pytest.mark.slow
def test_another_number_of_classes_begins_the_head_anew(narrow, tmp_path, caplog):
    model, arrays = narrow
    save_file(arrays, tmp_path / "x.safetensors")
    wider = create_model("resnet18", 7, width=4)
    with caplog.at_level(logging.WARNING, "jaxcnn.weights"):
        found = [
            load_weights(wider, tmp_path / "x.safetensors", (32, 32, 3), seed=seed)
            for seed in (0, 0, 1)
        ]
    assert "number of classes: head starts from scratch (seed 0)" in caplog.text
    heads = [variables["params"].pop("head") for variables in found]
    for other in found[1:]:
        same(found[0], other)
    assert heads[0]["kernel"].shape == (32, 7)
    np.testing.assert_array_equal(heads[0]["kernel"], heads[1]["kernel"])
    assert np.abs(heads[0]["kernel"] - heads[2]["kernel"]).max() > 0.1
    assert heads[0]["kernel"].std() == pytest.approx(
        np.sqrt(2 / 32), rel=0.2
    )  # "he", the network's own
    assert not heads[0]["bias"].any()
    whole = load_weights(model, tmp_path / "x.safetensors", (32, 32, 3))
    whole["params"].pop("head")
    same(whole, found[0])
    caplog.clear()
    load_weights(model, tmp_path / "x.safetensors", (32, 32, 3))
    assert not caplog.records


@pytest.mark.slow
def test_heads_of_another_depth_are_misshapen(narrow, tmp_path):
    """Only the number of classes may differ."""
    model, arrays = narrow
    error = refusal(model, arrays | {"fc.weight": np.zeros((5, 16), np.float32)}, tmp_path)
    assert error.misshapen == ("fc.weight is float32[5, 16], expected [5, 32]",)


@pytest.mark.slow
def test_auxiliary_heads_of_googlenet(tmp_path, monkeypatch, caplog):
    """Passed over where the model has none; with another number of classes their own logits start from scratch too."""
    there = case("googlenet")
    without = from_file(there, network("googlenet", aux=False), tmp_path, monkeypatch)
    assert "aux1" not in without["params"]
    both = load_weights(
        network("googlenet", num_classes=3), tmp_path / "there.safetensors", (64, 64, 3)
    )
    assert "aux1.head, aux2.head, head starts from scratch" in caplog.text
    assert both["params"]["aux1"]["head"]["kernel"].shape == (1024, 3)
    assert both["params"]["aux1"]["dense"]["kernel"].shape == (2048, 1024)
    arrays = {
        key: array for key, array in known.state_dict(there).items() if not key.startswith("aux")
    }
    error = refusal(network("googlenet"), arrays, tmp_path)
    assert len(error.missing) == 2 * 9


@pytest.mark.slow
def test_bottlenecks_of_the_other_version_are_refused(tmp_path):
    """The names and shapes of v1 and v1.5 are the same; what they compute is not."""
    old, new = create_model("resnet50", 5, width=4), create_model("resnet50-v1.5", 5, width=4)
    export_weights(new, random_variables(new, (32, 32, 3)), tmp_path / "new.safetensors")
    arrays = load_file(tmp_path / "new.safetensors")
    assert "resnet50 would compute something else with it; write 'resnet50-v1.5'" in str(
        refusal(old, arrays, tmp_path)
    )
    assert "write 'resnet50-v1.5'" in str(
        refusal(old, arrays, tmp_path, {"model": "resnet50-v1.5"})
    )
    assert "write 'resnet50'" in str(refusal(new, arrays, tmp_path, {"model": "resnet50"}))
    load_weights(new, tmp_path / "new.safetensors", (32, 32, 3))
    with pytest.raises(WeightsError, match="leave it out"):
        export_weights(
            old, random_variables(old, (32, 32, 3)), tmp_path / "x", {"model": "resnet50-v1.5"}
        )


def test_half_precision_is_widened_exactly(narrow, tmp_path):
    model, arrays = narrow
    for dtype in (np.float16, jnp.bfloat16):
        short = {key: array.astype(dtype) if array.ndim else array for key, array in arrays.items()}
        save_file(short, tmp_path / "x.safetensors")
        found = load_weights(model, tmp_path / "x.safetensors", (32, 32, 3))
        assert found["params"]["stem"]["kernel"].dtype == np.float32
        np.testing.assert_array_equal(
            found["params"]["stem"]["kernel"],
            short["conv1.weight"].transpose(2, 3, 1, 0).astype(np.float32),
        )


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module."])
def test_prefixes_that_all_names_have(prefix, narrow, tmp_path):
    _, arrays = narrow
    save_file({prefix + key: array for key, array in arrays.items()}, tmp_path / "x.safetensors")
    assert read_weights(tmp_path / "x.safetensors")[0].keys() == arrays.keys()


# PyTorch's own files


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_files_of_torch(kind):
    """Written by PyTorch 2.15: strides, a part of a storage, half precisions, a Parameter, a scalar, nothing at all."""
    found, metadata = read_weights(STORED / f"tiny-{kind}.pth")
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "whole": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "scalar": np.float32(2.5),
        "parameter": base[3],
    }
    expected |= {"half": base[0].astype(np.float16), "brain": base[0].astype(jnp.bfloat16)}
    expected |= {"empty": np.zeros((0, 3), np.float32), "bn.num_batches_tracked": np.int64(7)}
    assert metadata == {}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=False, err_msg=name)


# Against PyTorch itself


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "googlenet", "resnet18", "resnet50"])
def test_torchvision_loads_what_is_exported(name, tmp_path, monkeypatch):
    """With `strict=True`, and computes the same; PyTorch's own files, in both formats, are read to the same arrays."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(STORED)
    make = pytest.importorskip("make", reason="needs torchvision and timm")
    there, model = case(name), network(name)
    arrays = {key: torch.from_numpy(array) for key, array in known.state_dict(there).items()}
    for new in (False, True):
        torch.save(
            {"state_dict": arrays}, tmp_path / f"{new}.pth", _use_new_zipfile_serialization=new
        )
    variables = load_weights(model, tmp_path / "True.pth", there.image[1:])
    same(variables, load_weights(model, tmp_path / "False.pth", there.image[1:]))
    export_weights(model, variables, tmp_path / "back.safetensors")
    network_there, _, _ = make.networks(name)
    back = {
        key: torch.from_numpy(array)
        for key, array in load_file(tmp_path / "back.safetensors").items()
    }
    network_there.load_state_dict(back, strict=True)
    with torch.no_grad():
        logits = network_there.eval()(
            torch.from_numpy(known.image(there.image).transpose(0, 3, 1, 2).copy())
        )
    np.testing.assert_allclose(logits.numpy(), there.logits, rtol=0, atol=1e-5)


def test_the_stored_outputs_are_pytorchs(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(STORED)
    make = pytest.importorskip("make", reason="needs torchvision and timm")
    for name in ("timm:resnet18", "googlenet-shifted"):
        now, stored = make.case(name), case(name.replace(":", "-"))
        np.testing.assert_allclose(now.logits, stored.logits, rtol=0, atol=1e-5)
