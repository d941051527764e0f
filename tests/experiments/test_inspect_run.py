"""The page of a run as a reader gets it: whole, alone, right in its numbers, and shown by a browser; mistakes are one line."""

import base64
import csv
import doctest
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scripts import refuses

import jaxcnn as jc
from experiments.inspect_run import __main__ as script
from experiments.inspect_run import context, page, predictions, run_summary
from experiments.inspect_run.context import PageFigure, Section
from jaxcnn import runs
from jaxcnn.metrics import calibration

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.quick_compilation]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CONFIG = jc.ExperimentConfig(
    dataset="digits",
    model="convnet",
    model_kwargs={"width": 4},
    optimizer=jc.OptimizerConfig(learning_rate=0.05, milestones=()),
    train=jc.TrainConfig(num_steps=40, batch_size=64, eval_every=10),
)
WIDE = 66 * 16 - 2 * 20
"""The width of the page's body in pixels: 66 rem but for 1.25 of padding on both sides."""
HOSTILE = '<script>alert("1")</script> & \'"><img src=http://x.example/a.png>'


@pytest.fixture(scope="module")
def small_figures():
    """Write figures at full resolution, whose size is tested here."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small-seed0"
    assert runs.run(CONFIG, jc.load_dataset("digits"), folder) is not None
    return folder


@pytest.fixture(scope="module")
def out(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "small"
    parts = ["heat", "channels", "features", "filters", "errors", "about", "curves"]
    args = [
        "--run",
        str(run),
        "--images",
        "200",
        "--parts",
        *parts,
        "--stages",
        "conv2",
        "--out",
        str(folder),
    ]
    assert script.main(args) == 0
    return folder


@pytest.fixture(scope="module")
def seen(run):
    return context.load_context(context.Options(run=run, images=200))


class Read(HTMLParser):
    """What the tests ask of a page; and that every element that is opened is closed, in its order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.cells = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in self.VOID else [tag]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def read(out):
    return Read((out / "index.html").read_text("utf-8"))


def decoded(image):
    assert image["src"].startswith("data:image/png;base64,")
    return base64.b64decode(image["src"].partition(",")[2], validate=True)


@pytest.mark.slow
def test_every_image_is_in_the_page_and_beside_it(out, read):
    images = read.all("img")
    files = {path.read_bytes(): path for path in out.glob("*.png")}
    assert len(files) == len(images)
    names = {path.stem for path in files.values()}
    assert names > {
        "curves",
        "confusion",
        "mistakes",
        "calibration",
        "filters",
        "features-0",
        "channels",
        "heat-right",
    }
    for image in images:
        assert len(image["alt"]) > 20
        data = decoded(image)
        assert data in files
        width, height = Image.open(io.BytesIO(data)).size
        # 160 dots an inch are shown at the 96 of a page, so that letters of 10 points are letters
        # of 10 points
        assert (int(image["width"]), int(image["height"])) == (
            round(width * 0.6),
            round(height * 0.6),
        )


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_its_anchors_resolve(out, read):
    assert {tag for tag, _ in read.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base"}
    )
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    targets = [a["href"] for a in read.all("a")]
    assert {t[1:] for t in targets if t[0] == "#"} == {s["id"] for s in read.all("section")}
    assert {t for t in targets if t[0] != "#"} == {"https://arxiv.org/abs/1706.04599"}
    text = (out / "index.html").read_text("utf-8")
    assert set(re.findall(r"""https?://[^\s"'<]+""", text)) == {"https://arxiv.org/abs/1706.04599"}
    assert not re.search(r"@import|url\(", text)
    (policy,) = [m["content"] for m in read.all("meta") if "http-equiv" in m]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert read.all("html") == [{"lang": "en"}]
    assert read.open == []


@pytest.mark.slow
def test_the_parts_stand_in_the_pages_order_whatever_was_asked(read):
    names = [section["id"] for section in read.all("section")]
    assert names[:4] == [
        "1-the-network-layer-by-layer",
        "2-learning-curves",
        "3-errors",
        "4-first-filters",
    ]
    assert names[4:] == ["5-feature-maps", "6-what-channels-look-for", "7-where-the-network-looks"]


@pytest.mark.slow
def test_the_numbers_are_the_networks(run, out, capsys):
    data = jc.load_dataset("digits")
    found = runs.load_trained_model(run, data=data)
    logits = jc.predict(found.model, found.last, data.test.images[:200]).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = data.test.labels[:200]
    with (out / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["run"], row["n"], row["step"], row["split"]) == ("small-seed0", "200", "40", "test")
    assert float(row["error"]) == pytest.approx(100 * np.mean(logits.argmax(1) != labels), rel=1e-5)
    assert float(row["confidence"]) == pytest.approx(100 * shares.max(1).mean(), rel=1e-5)
    expected = 100 * calibration(shares, labels, bins=10).expected_calibration_error
    assert float(row["calibration_error"]) == pytest.approx(expected, rel=1e-5)


def test_the_table_of_mistakes_is_numpys(seen):
    made = predictions.errors_section(seen)
    wrong = np.flatnonzero(seen.probabilities.argmax(1) != seen.labels)
    assert len(wrong) > 10
    order = sorted(wrong, key=lambda i: -seen.probabilities[i].max())[:10]
    assert [row["image"] for row in made.table] == order
    for i, row in zip(order, made.table, strict=True):
        said = seen.probabilities[i].argmax()
        assert (row["taken for"], row["true class"]) == (str(said), str(seen.labels[i]))
        assert row["with probability (%)"] == f"{100 * seen.probabilities[i, said]:.1f}"
        assert row["its probability (%)"] == f"{100 * seen.probabilities[i, seen.labels[i]]:.1f}"
    assert f"{len(wrong)} of the first 200 test images are wrong" in made.text
    assert [drawn.name for drawn in made.figures] == ["confusion", "mistakes", "calibration"]


def test_no_mistakes_are_told(seen):
    right = np.flatnonzero(seen.is_correct)[:30]
    perfect = seen._replace(
        images=seen.images[right],
        labels=seen.labels[right],
        probabilities=seen.probabilities[right],
    )
    made = predictions.errors_section(perfect)
    assert "There are no mistakes to show: all 30 images are right" in made.text
    assert list(made.table) == []
    assert [drawn.name for drawn in made.figures] == ["confusion", "calibration"]


def test_chance_gives_the_calibration_error_that_it_gives():
    """One bin with all n images: |mean of n draws - p|, whose mean is about sqrt(2 p (1 - p) / (pi n))."""
    mean, most = predictions.chance_calibration_error(np.tile([0.75, 0.25], (1000, 1)))
    expected = np.sqrt(0.75 * 0.25 / 1000)
    assert mean == pytest.approx(expected * np.sqrt(2 / np.pi), rel=0.1)
    assert most == pytest.approx(expected * 1.96, rel=0.1)


def rows(losses, train=None):
    train = train or [0.1] * len(losses)
    pairs = enumerate(zip(losses, train, strict=True), 1)
    return [
        {"step": i, "eval_loss": a, "train_loss": b, "eval_error": 5.0, "train_error": 1.0}
        for i, (a, b) in pairs
    ]


def marks(seen, found):
    made = run_summary.curves_section(seen._replace(run=seen.run._replace(rows=found)))
    loss = made.figures[0].figure.axes[0]
    across = [np.asarray(line.get_xdata()).tolist() for line in loss.lines]
    return made, [x[0] for x in across if len(x) == 2 and x[0] == x[1]]


def test_a_turn_is_marked_where_there_is_one_and_not_invented(seen):
    made, at = marks(seen, rows([2.0, 1.0, 0.5, 0.9, 1.1, 1.2], [2.0, 1.0, 0.5, 0.3, 0.2, 0.1]))
    assert at == [3]
    assert "The test loss turns at step 3, from 0.5 there to 1.2 at the end" in made.text
    assert "from 0.5 to 0.1, which is overfitting" in made.text
    made, at = marks(seen, rows([2.0, 1.0, 0.5, 0.9, 1.1, 1.2], [2.0, 1.0, 0.5, 0.7, 0.9, 1.1]))
    assert at == [3]
    assert "so it is not overfitting" in made.text
    made, at = marks(seen, rows([2.0, 1.0, 0.5, 0.4, 0.35, 0.3]))
    assert at == []
    assert (
        marks(seen, rows([2.0, 1.0, 0.5, 0.4, 0.3, 0.31]))[1] == []
    )  # higher by less than the rule's 5%
    assert (
        "The test loss does not turn: over 6 rows its lowest is 0.3 and its last 0.3" in made.text
    )


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([], "The run wrote no rows."),
        ([{"step": 1}, {"step": 2}], "No row has a test loss"),
        (
            [{"step": 5, "eval_loss": 2.0}, {"step": 9, "eval_loss": None, "diverged": "loss nan"}],
            "diverged at step 9: loss nan",
        ),
    ],
)
def test_rows_that_lack_things_are_borne(seen, found, says):
    run = seen.run._replace(rows=found, folder=seen.run.folder / "elsewhere")
    assert says in run_summary.curves_section(seen._replace(run=run)).text
    assert "the machine was not noted" in run_summary.run_facts(seen._replace(run=run))["Took"]


def test_the_curves_name_the_split_of_the_rows(seen):
    config = jc.override(seen.run.config, eval_split="validation", num_validation=5)
    made = run_summary.curves_section(
        seen._replace(run=seen.run._replace(config=config, rows=rows([2.0, 1.0])))
    )
    (drawn,) = made.figures
    labels = [text.get_text() for legend in drawn.figure.legends for text in legend.get_texts()]
    words = [made.text, drawn.alt, drawn.caption, *labels]
    assert "validation" in labels
    assert "test" not in " ".join(words).split()


def blank(name):
    figure = Figure(figsize=(1, 1))
    return PageFigure(name, figure, HOSTILE, HOSTILE)


def test_words_from_files_stay_words():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 10)).save(buffer, "png")
    section = Section(
        HOSTILE, f"{HOSTILE}\n\nSee arXiv:1512.03385.", [{HOSTILE: HOSTILE, "n": 3}], [blank("a")]
    )
    text = page.render_page(HOSTILE, {HOSTILE: HOSTILE}, [section], {"a": buffer.getvalue()})
    read = Read(text)
    assert [image["alt"] for image in read.all("img")] == [HOSTILE]
    assert not read.all("script")
    # Title, heading, contents; facts twice; section, paragraph, column, cell, caption
    assert "".join(read.text).count(HOSTILE) == 10
    assert [a["href"] for a in read.all("a")][1:] == ["https://arxiv.org/abs/1512.03385"]
    assert read.all("img")[0]["width"] == "10"


def test_numbers_stand_on_the_right_and_long_tables_scroll():
    rows = [{"layer": "a", "count": "1,204", "share": 0.5, "none": None}] * 25
    read = Read(page.table_html(rows, "layers"))
    assert [th.get("class") for th in read.all("th")] == [None, "number", "number", "number"]
    assert read.cells[4:8] == ["a", "1,204", "0.5", "–"]
    assert read.all("div")[0]["class"] == "box long"
    assert Read(page.table_html(rows[:24], "layers")).all("div")[0]["class"] == "box"


def paint(path, size=(40, 20)):
    """Red on the left, white in the middle square, blue on the right."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, :10], pixels[:, 10:30], pixels[:, 30:] = (255, 0, 0), (200, 100, 50), (0, 0, 255)
    Image.fromarray(pixels).save(path)
    return path


def test_an_own_image_is_cut_and_turned_grey_by_luminance(tmp_path):
    path = paint(tmp_path / "own.png")
    grey = context.load_user_image(path, (8, 8, 1))
    assert (grey.shape, grey.dtype) == ((8, 8, 1), np.uint8)
    assert np.unique(grey[:, 2:6]).tolist() == [
        round(0.2126 * 200 + 0.7152 * 100 + 0.0722 * 50)
    ]  # ITU-R BT.709
    same = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(same).save(tmp_path / "same.png")
    np.testing.assert_array_equal(context.load_user_image(tmp_path / "same.png", (8, 8, 3)), same)
    colour = context.load_user_image(path, (8, 8, 3))
    assert np.unique(colour[:, 2:6].reshape(-1, 3), axis=0).tolist() == [[200, 100, 50]]


def test_an_own_image_comes_first_with_its_probabilities(run, tmp_path):
    seen = context.load_context(context.Options(run=run, image=paint(tmp_path / "own.png")))
    made = predictions.user_image_section(seen)
    assert made is not None
    assert seen.user_image is not None
    logits = jc.predict(seen.run.model, seen.run.last, seen.user_image[None])[0].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-shares)
    assert [row["class"] for row in made.table] == [str(c) for c in best]
    assert [row["probability (%)"] for row in made.table] == [
        f"{100 * shares[c]:.1f}" for c in best
    ]
    assert len(seen.labels) == 360
    assert "These are far apart" not in made.text
    dark = predictions.user_image_section(
        seen._replace(user_image=np.full((8, 8, 1), 250, np.uint8))
    )
    assert dark is not None
    assert (
        "Its mean brightness is 98%, that of the training images 31%. These are far apart"
        in dark.text
    )
    args = [
        "--run",
        str(run),
        "--image",
        str(tmp_path / "own.png"),
        "--parts",
        "about",
        "--out",
        str(tmp_path / "page"),
    ]
    assert script.main(args) == 0
    ids = [
        section["id"]
        for section in Read((tmp_path / "page" / "index.html").read_text()).all("section")
    ]
    assert ids == ["1-your-image", "2-the-network-layer-by-layer"]


MISTAKES = [
    (["--images", "9", "--image", "x.png"], "--images and --image exclude each other"),
    (["--images", "0"], "--images is 0; expected a whole number of 1 to 10000000"),
    (["--images", "361"], "images is 361, but the test split has 360: write --images 360"),
    (["--image", "nowhere.png"], "nowhere.png (no such file)"),
    (["--stages", "conv9"], "stage is 'conv9'; expected one of "),
    (
        ["--parts", "heart"],
        "part is 'heart'; expected one of about, channels, curves, errors, features, filters, "
        "heat; did you",
    ),
    (["--parts"], "parts is empty"),
    (["--run", "nowhere"], "nowhere holds no run"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES)
def test_mistakes_are_one_line(args, says, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jc, "predict", lambda *a, **k: pytest.fail("it compiled"))
    refuses(
        script.main,
        ["--run", str(run), "--out", str(tmp_path / "page"), *args],
        says,
        capsys,
        monkeypatch,
    )
    assert not (tmp_path / "page").exists()


def test_more_mistakes_are_one_line(run, tmp_path, capsys, monkeypatch):
    def told(args, says):
        refuses(script.main, [*args, "--out", str(tmp_path / "page")], says, capsys, monkeypatch)

    (tmp_path / "broken.png").write_bytes(paint(tmp_path / "own.png").read_bytes()[:60])
    told(
        ["--run", str(run), "--image", str(tmp_path / "broken.png")],
        "1 file is not an image that can be read",
    )
    (tmp_path / "words.txt").write_text("words")
    told(["--run", str(run), "--image", str(tmp_path / "words.txt")], "none of JPEG, PNG")
    monkeypatch.chdir(tmp_path)
    told([], "runs/depth/resnet20-seed0 is not there: make it with python -m experiments.depth")
    for i, config in enumerate(
        (
            jc.ExperimentConfig(model="unet"),
            jc.ExperimentConfig(model="autoencoder", loss="reconstruction"),
        )
    ):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "config.json").write_text(config.to_json())
        told(["--run", str(tmp_path / str(i))], "does not sort images into classes")
    (tmp_path / "page").write_text("a file")
    told(["--run", str(run)], "page is a file; write --out with a folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "table.csv").write_text("a,b")
    refuses(
        script.main,
        ["--run", str(run), "--out", str(tmp_path / "other")],
        "something else",
        capsys,
        monkeypatch,
    )


def test_a_network_of_nan_is_told(seen, monkeypatch):
    monkeypatch.setattr(jc, "predict", lambda *a, **k: np.full((2, 10), np.nan, np.float32))
    with pytest.raises(jc.ArgumentError, match="gives nan or infinity"):
        context.probabilities(seen.run, seen.images[:2])


def test_a_network_without_maps_has_a_page_too(seen):
    model = jc.create_model("mlp", 10)
    assert context.choose_stages(model, (8, 8, 1), ()) == ()
    with pytest.raises(jc.ArgumentError, match="MLP keeps no maps"):
        context.choose_stages(model, (8, 8, 1), ("hidden1",))
    assert context.choose_stages(jc.create_model("resnet8", 10), (8, 8, 1), ("stage2", "stem")) == (
        "stem",
        "stage2",
    )


@pytest.mark.parametrize(
    "module", [predictions, context, page, run_summary], ids=lambda module: module.__name__
)
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


def shown(path, to, size):
    """A screenshot of a page by a browser without a window, float [h, w, 3]."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={to.parent / 'browser'}",
    ]
    flags += [f"--screenshot={to}", f"--window-size={size[0]},{size[1]}", path.as_uri()]
    subprocess.run(
        [str(BROWSER), *flags],
        capture_output=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(to.parent)},
    )
    return np.asarray(Image.open(to).convert("RGB")).astype(float)


@pytest.mark.slow
@pytest.mark.skipif(
    BROWSER is None, reason="needs chromium, chromium-browser or google-chrome on PATH"
)
def test_a_browser_shows_every_figure(out, read, tmp_path):
    """The pixels of every file, shrunk as the page shrinks them, are in the screenshot, in their order from above."""
    page = shown(out / "index.html", tmp_path / "page.png", (1200, 9000))
    assert page.shape == (9000, 1200, 3)
    ink = np.flatnonzero((page < 128).any((1, 2)))
    assert 1000 < ink[-1] < 8900  # it has an end, and that is on the image
    top = 0
    for image in read.all("img"):
        width, height = int(image["width"]), int(image["height"])
        width, height = (width, height) if width <= WIDE else (WIDE, round(height * WIDE / width))
        small = (
            Image.open(io.BytesIO(decoded(image)))
            .convert("RGB")
            .resize((width, height), Image.Resampling.BOX)
        )
        top = found(page, np.asarray(small).astype(float), top) + height


def found(page, figure, top):
    """The row of the page, from `top` on, at which `figure` stands: found by the darkness of its rows, told by its pixels."""
    left = (page.shape[1] - WIDE) // 2
    width, rows = figure.shape[1], figure.mean((1, 2))
    dark = page[:, left : left + width].mean((1, 2))
    away = [
        np.abs(dark[y : y + len(rows)] - rows).mean() for y in range(top, len(dark) - len(rows))
    ]
    best = top + int(np.argmin(away))
    there = page[best : best + len(rows), left : left + width]
    off, mirrored = (np.abs(there - shown).mean() for shown in (figure, figure[:, ::-1]))
    assert off < 5, (
        f"nothing below {top} is like the figure of {figure.shape}: {off:.1f} of 255 away"
    )
    assert off < mirrored / 3
    return best
