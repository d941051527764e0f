"""Weights by name: the network, its weights and its preprocessing come from a hub on loopback, and a mistake is one line."""

import json
import logging
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_server import COMMIT, TOKEN, Repo, environment, serve

import jaxcnn as jc
from jaxcnn.weights import (
    Preprocessing,
    WeightsError,
    create_pretrained,
    export_weights,
    fetch_weights,
    load_preprocessing,
    load_weights,
    read_metadata,
)
from jaxcnn.weights.hub import HubName, parse_hub_name

pytestmark = pytest.mark.quick_compilation

NAME = "timm/resnet18.tv_in1k"
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 5,
    "num_features": 512,
    "pretrained_cfg": {
        "tag": "tv_in1k",
        "input_size": [3, 48, 48],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.2, 0.3],
        "num_classes": 5,
        "first_conv": "conv1",
        "classifier": "fc",
    },
}


def config_bytes(**changes):
    return json.dumps(CONFIG | changes).encode()


def stored(folder, name="resnet18", num_classes=5, width=2):
    """The variables of a small network, and the bytes of its file without a header, as of timm."""
    model = jc.create_model(name, num_classes, width=width)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(len(name))
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), dict(shapes)
    )
    export_weights(model, variables, folder / "x.safetensors")
    from safetensors.numpy import load_file, save

    return variables, save(load_file(folder / "x.safetensors"), {"format": "pt"})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server():
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch, weights):
    server.repos = {NAME: Repo({"config.json": config_bytes(), "model.safetensors": weights[1]})}
    server.requests, server.tokens, server.sent = [], [], {}
    server.truncated, server.status, server.after = False, None, None
    with environment(server, tmp_path / "cache", monkeypatch):
        yield server


def same(variables, others):
    assert jax.tree.structure(variables) == jax.tree.structure(others)
    for leaf, other in zip(jax.tree.leaves(variables), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(leaf, other)


def refused(*words, call=lambda: fetch_weights(f"hf:{NAME}")):
    """The call's error, which is one line with the words."""
    with pytest.raises(WeightsError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    for word in words:
        assert word in message, message
    return message


def stored_blobs(tmp_path):
    """Everything in the cache that is or may become content."""
    files = (tmp_path / "cache").rglob("*")
    return [
        file
        for file in files
        if file.is_file() and "blobs" in file.parts and "refs" not in file.parts
    ]


# ---------------------------------------------------------------- what comes of a name


def test_a_name_gives_network_weights_and_preprocessing(hub, weights):
    model, variables, preprocessing = create_pretrained(NAME, width=2)
    assert model == jc.create_model("resnet18", 5, width=2)
    same(variables, weights[0])
    assert preprocessing == Preprocessing(48, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), "bicubic", 0.95)
    # floor(48 / 0.95), as timm rounds
    assert preprocessing.image_options() == {"size": 48, "resize": 50, "interpolation": "bicubic"}
    assert load_preprocessing(f"hf:{NAME}") == preprocessing
    same(load_weights(model, f"hf:{NAME}"), weights[0])
    same(create_pretrained(f"hf:{NAME}@main", width=2).variables, weights[0])


@pytest.mark.slow
def test_predictions_are_those_of_the_network_at_its_own_constants(hub, weights):
    model, variables, preprocessing = create_pretrained(NAME, width=2)
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
    logits = jc.predict(model, variables, images, normalizer=preprocessing.normalizer())
    inputs = (images / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.25, 0.2, 0.3])
    expected: Any = model.apply(weights[0], jnp.float32(inputs), train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_state_starts_from_the_weights_at_their_constants(hub, weights):
    model, variables, preprocessing = create_pretrained(NAME, num_classes=10, width=2)
    rng = np.random.default_rng(0)
    split = jc.Split(
        rng.integers(0, 256, (20, 48, 48, 3)).astype(np.uint8), np.int32(np.arange(20) % 10)
    )
    names = tuple("abcdefghij")
    data = jc.Dataset(
        "own", split, split, split, names, np.zeros((48, 48, 3), "f"), np.ones(3, "f")
    )
    config = jc.TrainConfig(num_steps=1, batch_size=8, **preprocessing.train_options())
    tx = jc.create_optimizer(jc.OptimizerConfig("sgd"))
    state = jc.with_variables(jc.init_state(model, tx, config, data), variables)
    same({"params": state.params, **state.model_state}, variables)
    for leaf, other in zip(state.normalizer, preprocessing.normalizer(), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_other_classes_get_a_layer_of_their_own(hub, weights, caplog):
    model, variables, _ = create_pretrained(NAME, num_classes=3, width=2, seed=7)
    assert model.num_classes == 3  # pyright: ignore[reportAttributeAccessIssue]
    assert variables["params"].pop("head")["kernel"].shape == (16, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "head starts from scratch (seed 7)" in caplog.text
    rest = {name: leaf for name, leaf in weights[0]["params"].items() if name != "head"}
    same(variables["params"], rest)


def test_more_classes_than_memory_has_room_for_are_one_line(hub, caplog):
    """XLA would end the process."""
    refused(
        "head.kernel has the shape [16, 2147483648], more than 268435456 numbers",
        call=lambda: create_pretrained(NAME, num_classes=2**31, width=2),
    )


@pytest.mark.slow
def test_bottlenecks_are_of_the_version_that_the_architecture_has(hub, tmp_path, weights):
    """Both versions have the same arrays, so only the name tells them apart."""
    variables, content = stored(tmp_path, "resnet50-v1.5", 4)
    files = {"config.json": config_bytes(architecture="resnet50", num_classes=4)}
    hub.repos["timm/r50"] = Repo(files | {"model.safetensors": content})
    model, loaded, _ = create_pretrained("timm/r50", width=2)
    assert model == jc.create_model("resnet50-v1.5", 4, width=2)
    same(loaded, variables)
    first = jc.create_model("resnet50", 4, width=2)
    refused(
        "'resnet50-v1.5', which has its strides in the 3x3",
        "the model is 'resnet50'",
        "create_model('resnet50-v1.5', ...)",
        call=lambda: load_weights(first, "hf:timm/r50"),
    )
    refused("leave it out", call=lambda: load_weights(model, "hf:timm/r50", stride_in_3x3=False))


@pytest.mark.slow
def test_safetensors_come_before_pickles_and_a_file_may_be_named(hub, tmp_path, weights):
    other = stored(tmp_path, width=3)
    config = hub.repos[NAME].files["config.json"]
    hub.repos["a/both"] = Repo({"pytorch_model.bin": other[1], "model.safetensors": weights[1]})
    hub.repos["a/bin"] = Repo({"config.json": config, "pytorch_model.bin": weights[1]})
    hub.repos["a/one"] = Repo({"README.md": b"", "deep/r18.pth": weights[1]}, revisions=("v1",))
    narrow, wide = (jc.create_model("resnet18", 5, width=width) for width in (2, 3))
    same(load_weights(narrow, "hf:a/both"), weights[0])
    same(load_weights(wide, "hf:a/both:pytorch_model.bin"), other[0])
    same(create_pretrained("a/bin", width=2).variables, weights[0])
    for name in ("hf:a/one@v1", "hf:a/one@v1:deep/r18.pth", f"hf:a/one@{COMMIT}"):
        same(load_weights(narrow, name), weights[0])


def test_header_and_path_of_a_name_are_those_of_the_file(hub, weights):
    path = fetch_weights(f"hf:{NAME}")
    assert path.read_bytes() == weights[1]
    assert read_metadata(f"hf:{NAME}") == {"format": "pt"}


def test_all_files_are_of_one_commit_when_the_branch_moves_between_downloads(
    hub, weights, tmp_path
):
    """`main` moves after the config was sent, and the weights of both commits fit it."""
    config = CONFIG | {"pretrained_cfg": CONFIG["pretrained_cfg"] | {"crop_pct": 0.5}}
    variables = jax.tree.map(lambda leaf: leaf + np.float32(1), weights[0])
    model, commit = jc.create_model("resnet18", 5, width=2), "f" * 40
    export_weights(model, variables, tmp_path / "x.safetensors")
    moved = {"config.json": json.dumps(config).encode()}
    moved["model.safetensors"] = (tmp_path / "x.safetensors").read_bytes()

    def move(command, path):
        if command == "GET" and path.endswith("config.json"):
            hub.after = None
            hub.repos[NAME].move(commit, moved)

    hub.after = move
    _, first, preprocessing = create_pretrained(NAME, width=2)
    assert hub.after is None
    same(first, weights[0])
    assert preprocessing.crop_fraction == 0.95
    resolved = [path for _, path in hub.requests if path.endswith("model.safetensors")]
    assert f"/{NAME}/resolve/{COMMIT}/model.safetensors" in resolved
    assert not any("/resolve/main/" in path for path in resolved)
    # The next call is of the other commit alone.
    _, second, preprocessing = create_pretrained(NAME, width=2)
    same(second, variables)
    assert preprocessing.crop_fraction == 0.5
    same(create_pretrained(f"hf:{NAME}@{COMMIT}", width=2).variables, weights[0])


def test_a_second_call_downloads_nothing(hub, weights):
    create_pretrained(NAME, width=2)
    sent = len([path for command, path in hub.requests if command == "GET"])
    same(create_pretrained(NAME, width=2).variables, weights[0])
    assert len([path for command, path in hub.requests if command == "GET"]) == sent


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:timm/a.b_c-d", ("timm/a.b_c-d", None, None)),
        ("hf:o/n@main", ("o/n", "main", None)),
        ("hf:o/n@refs/pr/1:sub/x.bin", ("o/n", "refs/pr/1", "sub/x.bin")),
        ("hf:o/n:x.pth", ("o/n", None, "x.pth")),
    ],
)
def test_names_have_up_to_four_parts(text, parts):
    assert parse_hub_name(text) == HubName(*parts)
    assert str(parse_hub_name(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("hf:", "hf:resnet18", "hf:/x", "hf:o/", "hf:o/n/m", "hf:o/..", "hf:../n", "hf:o n/m"),
        *("hf:o/n:../x", "hf:o/n:/etc/x", "hf:o/n@", "hf:o/n:", "hf:o/n:a:b", "hf:o/n@../x"),
        *("hf:o/--", "hf:o/-n", "hf:o/" + "n" * 97),
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_asked(text, hub):
    refused("is no name on the hub", "Write 'hf:timm/", call=lambda: fetch_weights(text))
    assert hub.requests == []


# ---------------------------------------------------------------- preprocessing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_size": [3, 48, 64]}, "48x64"),
        ({"crop_mode": "squash"}, "squash"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
        ({"mean": [0.5]}, "mean has 1 numbers and std 3"),
        ({"mean": [124, 117, 104]}, "Divide them by 255"),
        ({"std": None}, "NoneType"),
        ({"crop_pct": 0}, "crop_fraction is 0"),
        ({"input_size": [1, 48, 48]}, "3 means for 1 channels"),
        ({"input_size": "3"}, "not enough values"),
    ],
)
def test_preprocessing_that_is_not_ours_is_one_line(hub, changes, words):
    fields = CONFIG["pretrained_cfg"] | changes
    hub.repos[NAME].files["config.json"] = config_bytes(pretrained_cfg=fields)
    refused("the preprocessing in config.json", words, call=lambda: create_pretrained(NAME))


def test_older_configs_have_the_preprocessing_at_their_top(hub):
    fields = CONFIG["pretrained_cfg"] | {"architecture": "resnet18"}
    hub.repos[NAME].files["config.json"] = json.dumps(fields).encode()
    model, _, preprocessing = create_pretrained(NAME, width=2)
    assert preprocessing.std == (0.25, 0.2, 0.3)
    assert model.num_classes == 5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"size": 0}, "shape is (0, 0, 3)"),
        ({"mean": (0.5, 0.5)}, "mean is (0.5, 0.5)"),
        ({"std": (0.0, 1.0, 1.0)}, "std is (0.0, 1.0, 1.0); expected a number above 0"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"crop_fraction": 1.5}, "crop_fraction is 1.5"),
        ({"crop_fraction": float("nan")}, "crop_fraction is nan"),
    ],
)
def test_invalid_preprocessing_is_one_line(kwargs, word):
    with pytest.raises(jc.ArgumentError) as caught:
        Preprocessing(**kwargs)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- what goes wrong


def test_another_network_is_refused_before_the_arrays_are_compared(hub):
    refused(
        "is of 'resnet18', and the model is 'resnet34'",
        f"create_pretrained('hf:{NAME}')",
        call=lambda: load_weights(jc.create_model("resnet34", 5, width=2), f"hf:{NAME}"),
    )
    assert not any("model.safetensors" in path for _, path in hub.requests)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            config_bytes(architecture="convnext_tiny"),
            "is of 'convnext_tiny', which no network here",
        ),
        (config_bytes(model_args={"block": 1}), "changed by model_args {'block': 1}"),
        (b'{"architectures": ["ResNetForImageClassification"]}', "names no architecture"),
        (b"[1]", "config.json of hf:timm/resnet18.tv_in1k is [1]"),
        (b"{", "cannot be read: Expecting property name"),
        (b"\xff", "cannot be read"),
        (None, "has no config.json, which names the architecture"),
        (config_bytes(num_classes="5", pretrained_cfg={}), "no 'input_size'"),
        (
            config_bytes(
                num_classes=1, pretrained_cfg=CONFIG["pretrained_cfg"] | {"num_classes": 0}
            ),
            "num_classes",
        ),
    ],
)
def test_networks_that_this_library_lacks_are_one_line(hub, config, words):
    hub.repos[NAME].files["config.json"] = config
    if config is None:
        del hub.repos[NAME].files["config.json"]
    refused(words, call=lambda: create_pretrained(NAME))
    assert not any("model.safetensors" in path for _, path in hub.requests)


def test_several_files_of_weights_are_listed(hub):
    hub.repos["a/two"] = Repo({"a.pth": b"", "b.safetensors": b"", "README.md": b""})
    hub.repos["a/none"] = Repo({"README.md": b""})
    message = refused(
        "has no model.safetensors or pytorch_model.bin, and 2 files of weights",
        "a.pth, b.safetensors; expected one. Write 'hf:a/two:a.pth'.",
        call=lambda: fetch_weights("hf:a/two"),
    )
    assert "README" not in message
    refused("no file of weights (it has README.md)", call=lambda: fetch_weights("hf:a/none"))


def test_missing_repositories_revisions_and_files_are_one_line(hub, tmp_path):
    refused(
        f"hf:timm/resnet81 is not on {hub.address}, or is private",
        f"Open {hub.address}/timm/resnet81",
        call=lambda: fetch_weights("hf:timm/resnet81"),
    )
    refused("has no revision 'v9'", call=lambda: fetch_weights(f"hf:{NAME}@v9"))
    refused(
        f"hf:{NAME} has no file 'model.bin'",
        f"Write 'hf:{NAME}:model.safetensors'.",
        call=lambda: fetch_weights(f"hf:{NAME}:model.bin"),
    )
    assert stored_blobs(tmp_path) == []


def test_gated_repositories_name_the_page_and_the_token_opens_them(hub, weights, monkeypatch):
    hub.repos[NAME].gated = True
    refused("is gated", f"Accept them at {hub.address}/{NAME}, and set HF_TOKEN.")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    same(create_pretrained(NAME, width=2).variables, weights[0])
    assert f"Bearer {TOKEN}" in hub.tokens


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("call", ["fetch", "create", "file"])
def test_refusals_without_a_reason_are_one_line(hub, status, call, tmp_path):
    hub.status = status
    calls = {
        "fetch": lambda: fetch_weights(f"hf:{NAME}"),
        "create": lambda: create_pretrained(NAME),
        "file": lambda: fetch_weights(f"hf:{NAME}:model.safetensors"),
    }
    message = refused(
        f"is refused by {hub.address} (HTTP {status}); expected a token that may read it. "
        f"Set HF_TOKEN, and see {hub.address}/{NAME}.",
        call=calls[call],
    )
    assert message.startswith(f"hf:{NAME}")
    # It is neither a fault of the connection nor of the cache.
    assert "cannot be reached" not in message
    assert "cache" not in message
    assert stored_blobs(tmp_path) == []


def test_damaged_content_is_removed_and_fetched_again(hub, weights, tmp_path):
    """The cache would hand it out for good: it compares the size alone."""
    damaged = bytearray(weights[1])
    damaged[-1] ^= 1
    hub.sent["model.safetensors"] = bytes(damaged)
    refused("model.safetensors of hf:timm/", "is damaged", "run the same again")
    assert stored_blobs(tmp_path) == []
    hub.sent.clear()
    same(create_pretrained(NAME, width=2).variables, weights[0])


def test_a_file_that_is_no_file_of_weights_is_one_line(hub):
    hub.repos[NAME].files["model.safetensors"] = b"<html>sign in</html>"
    model = jc.create_model("resnet18", 5, width=2)
    refused("it looks like a web page", call=lambda: load_weights(model, f"hf:{NAME}"))


@pytest.mark.parametrize("kind", ["closed", "short"])
def test_a_download_that_ends_early_leaves_nothing(hub, weights, tmp_path, monkeypatch, kind):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    if kind == "closed":
        hub.truncated = True
    else:
        hub.sent["model.safetensors"] = weights[1][:1000]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        refused("the download of model.safetensors failed", "nothing was stored. Try again")
    finally:
        logging.getLogger("huggingface_hub").setLevel(logging.NOTSET)
    assert stored_blobs(tmp_path) == []
    hub.truncated, hub.sent = False, {}
    assert fetch_weights(f"hf:{NAME}").read_bytes() == weights[1]


def test_a_hub_that_fails_is_one_line(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.status = 500
    refused(
        "cannot be reached (HTTP 500)",
        f"download {hub.address}/{NAME}/resolve/main/model.safetensors",
    )
    assert stored_blobs(tmp_path) == []


# ---------------------------------------------------------------- offline


@pytest.mark.parametrize("by", ["variable", "constant"])
def test_offline_takes_the_cache_and_asks_nobody(hub, weights, monkeypatch, by):
    from huggingface_hub import constants

    create_pretrained(NAME, width=2)
    hub.requests.clear()
    if by == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    same(create_pretrained(NAME, width=2).variables, weights[0])
    same(load_weights(jc.create_model("resnet18", 5, width=2), f"hf:{NAME}"), weights[0])
    refused(
        "hf:timm/resnet34.tv_in1k is not in the cache, and HF_HUB_OFFLINE is set",
        f"{hub.address}/timm/resnet34.tv_in1k/resolve/main/model.safetensors",
        call=lambda: fetch_weights("hf:timm/resnet34.tv_in1k"),
    )
    refused(
        "is not in the cache, and HF_HUB_OFFLINE is set",
        call=lambda: fetch_weights(f"hf:{NAME}:other.bin"),
    )
    refused(
        "hf:timm/resnet34.tv_in1k is not in the cache",
        call=lambda: create_pretrained("timm/resnet34.tv_in1k"),
    )
    assert hub.requests == []


@pytest.mark.parametrize("failure", ["no connection", "no service"])
def test_without_a_connection_the_cache_is_used_too(hub, weights, monkeypatch, failure):
    """The variable is not set. Files that the repository never had are no errors either."""
    hub.repos["a/bin"] = Repo({"pytorch_model.bin": weights[1]})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    model = jc.create_model("resnet18", 5, width=2)
    create_pretrained(NAME, width=2)
    same(load_weights(model, "hf:a/bin"), weights[0])
    fetch_weights("hf:a/bin")
    if failure == "no service":
        hub.status = 503
    else:
        # Nothing listens there.
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    same(create_pretrained(NAME, width=2).variables, weights[0])
    same(load_weights(model, "hf:a/bin"), weights[0])
    assert fetch_weights("hf:a/bin").name == "pytorch_model.bin"
    refused(
        f"other.bin of hf:{NAME} is not in the cache, and",
        "cannot be reached",
        "set HF_HUB_OFFLINE=1 to use the files in the cache alone",
        call=lambda: fetch_weights(f"hf:{NAME}:other.bin"),
    )
    message = refused(
        "model.safetensors of hf:timm/resnet34.tv_in1k is not in the cache, and",
        call=lambda: fetch_weights("hf:timm/resnet34.tv_in1k"),
    )
    # Nothing of it is in the cache, so the variable would not help.
    assert "HF_HUB_OFFLINE" not in message


def test_weights_without_a_config_in_the_cache_need_the_variable(hub, weights, monkeypatch):
    fetch_weights(f"hf:{NAME}")
    hub.status = 503
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    model = jc.create_model("resnet18", 5, width=2)
    refused(
        "config.json of hf:timm/resnet18.tv_in1k is not in the cache",
        "set HF_HUB_OFFLINE=1",
        call=lambda: load_weights(model, f"hf:{NAME}"),
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    same(load_weights(model, f"hf:{NAME}"), weights[0])


def test_weights_in_the_cache_do_without_a_config(hub, weights, monkeypatch):
    """Of a file alone the architecture is unknown, so only its arrays are compared."""
    fetch_weights(f"hf:{NAME}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    same(load_weights(jc.create_model("resnet18", 5, width=2), f"hf:{NAME}"), weights[0])


def test_without_the_extra_the_line_has_the_command_and_the_address(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: create_pretrained(NAME),
        lambda: load_weights(jc.create_model("resnet18", 5), f"hf:{NAME}"),
        lambda: read_metadata(f"hf:{NAME}"),
    ):
        refused(
            'Run pip install "jaxcnn[hub]"',
            f"download {hub.address}/{NAME}/resolve/main/model.safetensors",
            call=call,
        )


def test_create_model_names_the_function_that_returns_weights():
    with pytest.raises(jc.ArgumentError) as caught:
        jc.create_model("resnet18", 3, pretrained=NAME)
    assert "jaxcnn.create_pretrained(" in str(caught.value)
