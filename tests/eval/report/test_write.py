import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

import eval_ijbc
from eval.ijb.compare import main as ijb_compare
from eval.pairs import __main__ as pairs_command
from eval.report import write as report_module
from eval.report.write import PairScores, Section, Table, Tile, write_report
from eval.roc import roc
from eval.search import __main__ as search_command
from paths import ROOT
from tools.screenshot import find_chromium, run_chromium, screenshot

VOID = {"meta", "img", "br", "link", "hr", "input", "source"}
needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium here: install it, or name it in CHROMIUM"
)


class Page(HTMLParser):
    """Reads a page strictly: every tag closed in order; collects attributes, images and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.references, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not any(name.startswith("on") for name in values)
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def face(number):
    """A face-like drawing whose colours come from the number."""
    rng = np.random.default_rng(number)
    image = np.full((112, 112, 3), rng.integers(60, 200, 3), np.uint8)
    skin = tuple(int(v) for v in rng.integers(90, 230, 3))
    cv2.ellipse(image, (56, 62), (36, 46), 0, 0, 360, skin, -1)
    for x in (38, 74):
        cv2.circle(image, (x, 52), 5, (30, 20, 20), -1)
    cv2.ellipse(image, (56, 90), (16, 6), 0, 0, 180, (120, 30, 40), 3)
    return image


def pair_scores(n=2500, seed=0, image_of=face, **more):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int64)
    labels[:2] = 0, 1
    scores = np.clip(rng.normal(0.05 + 0.5 * labels, 0.13), -1, 1)
    first, second = rng.integers(1, 900, (2, n))
    return PairScores(roc(labels, scores), scores, labels, first, second, image_of, **more)


def ijb_like(**more):
    identification = Table("Identification, 1:N", ("Gallery", "Rank 1"), [("G1", "93.1 %")], "Mixed probes.")
    return Section(
        "IJBC",
        mode="flip added; feature norm used",
        pairs=pair_scores(**more),
        headline=[Tile("Images, an uncommonly wide tile", "469,375 and not a few more")],
        tables=[identification],
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    files = write_report(
        folder / "job.html",
        "IJB-C, first try",
        [ijb_like()],
        {"Model": "model.pt", "Hash": "ab12"},
        printed="| a | b |",
    )
    return files, Page(files[0].read_text())


def test_files(report):
    files, _ = report
    kinds = ["roc", "det", "scores", "false_accepts", "false_rejects"]
    assert [file.name for file in files] == ["job.html", *(f"job_{kind}.png" for kind in kinds)]
    assert sorted(files[0].parent.iterdir()) == sorted(files)  # no half file is left
    for file in files[1:]:
        image = cv2.imread(str(file))
        assert image is not None
        assert min(image.shape[:2]) > 300
        assert image.std() > 5


def test_page_needs_nothing_else(report):
    files, page = report
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in page.references)
    text = files[0].read_text()
    assert "Content-Security-Policy" in text
    assert re.findall(r"https?://|url\(|@import", text) == []


def test_every_picture_decodes_and_has_words(report):
    _, page = report
    assert len(page.images) == 3 + 12 + 12
    for image in page.images:
        png = base64.b64decode(image["src"].partition("base64,")[2], validate=True)
        assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).std() > 5
        assert len(image["alt"]) > 15
    assert "TAR" not in page.images[0]["alt"] or "FAR" in page.images[0]["alt"]


def test_numbers_on_the_page_are_the_evaluations(report):
    _, page = report
    pairs = pair_scores()
    words = page.words()
    for far, name in ((1e-3, "1e-3"), (1e-2, "1e-2"), (1e-1, "1e-1")):
        assert f"TAR at FAR {name} {100 * pairs.curve.tar_at(far):.2f} %" in words
    assert "TAR at FAR 1e-4" not in words  # not resolved: in the table alone
    assert f"Not resolved: FAR 1e-6, 1e-5, 1e-4. Each is less than one of the {pairs.curve.impostor:,}" in words
    for part in ("flip added; feature norm used", "tile 469,375 and", "G1 93.1 %", "Mixed probes.", "| a | b |"):
        assert part in words
    for part in ("Model model.pt", "Hash ab12", "numpy " + np.__version__):
        assert part in words


def test_worst_pairs_are_shown_with_score_ids_and_verdict(report):
    _, page = report
    pairs = pair_scores()
    words = page.words()
    threshold = np.sort(pairs.scores[pairs.labels == 0])[-1 - round(1e-3 * pairs.curve.impostor)]
    assert f"At FAR 1e-3 (threshold {threshold:.4f})" in words
    for kind, best, verdict in ((0, np.argmax, "accepted"), (1, np.argmin, "refused")):
        rows = np.flatnonzero(pairs.labels == kind)
        row = rows[best(pairs.scores[rows])]
        ids = f"templates {pairs.first[row]} and {pairs.second[row]}"
        assert f"{pairs.scores[row]:.4f} {verdict} {ids}" in words
        shown = next(image for image in page.images if image["alt"] == f"Faces of {ids}")
        png = base64.b64decode(shown["src"].partition("base64,")[2])
        image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(image[:, :112], face(int(pairs.first[row])))
        np.testing.assert_array_equal(image[:, -112:], face(int(pairs.second[row])))


def test_names_from_outside_cannot_become_markup(tmp_path):
    evil = '<script>alert("x")</script>&"\'>'
    section = Section(
        evil,
        mode=evil,
        pairs=pair_scores(200, id_word=evil),
        headline=[Tile(evil, evil)],
        tables=[Table(evil, (evil,), [(evil,)], evil)],
        notes=[evil],
    )
    files = write_report(tmp_path / "a.html", evil, [section], {evil: evil}, printed=evil, worst=1)
    page = Page(files[0].read_text())
    assert "script" not in page.tags
    assert page.words().count(evil) >= 12


def test_several_sets_and_one_without_pairs(tmp_path):
    only_1n = Section("IJBC 1:N", tables=[Table("Identification", ("Gallery", "Rank 1"), [("G1", "90 %")])])
    sets = [Section("lfw", pairs=pair_scores(300, id_word="image")), Section("cfp_fp", pairs=pair_scores(300, 1))]
    files = write_report(tmp_path / "all.html", "Sets", [*sets, only_1n], {}, worst=2)
    names = {file.name for file in files}
    assert len(files) == len(names) == 11
    assert {"all_lfw_roc.png", "all_cfp_fp_false_rejects.png"} <= names
    page = Page(files[0].read_text())
    assert [value for value in page.references if value.startswith("#")] == ["#set-0", "#set-1", "#set-2"]
    assert "image" in page.words()
    with pytest.raises(ValueError, match="different names"):
        write_report(tmp_path / "b.html", "Sets", [sets[0], sets[0]], {})
    with pytest.raises(ValueError, match="found \\[\\]"):
        write_report(tmp_path / "b.html", "Sets", [], {})
    assert not (tmp_path / "b.html").exists()


@pytest.mark.parametrize(
    ("genuine", "impostor"),
    [([1.0], [1.0]), ([0.9], [0.1]), ([0.1], [0.9]), ([0.5] * 30, [0.5] * 30), ([1.0, 1.0], [-1.0] * 50)],
    ids=["one of each, equal", "perfect", "inverted", "constant", "far apart"],
)
def test_scores_without_a_spread(tmp_path, genuine, impostor):
    scores = np.array(genuine + impostor)
    labels = np.array([1] * len(genuine) + [0] * len(impostor))
    ids = np.arange(len(scores))
    section = Section("odd", pairs=PairScores(roc(labels, scores), scores, labels, ids, ids + 1, face))
    files = write_report(tmp_path / "odd.html", "Odd", [section], {})
    assert len(Page(files[0].read_text()).images) == 3 + min(12, len(genuine)) + min(12, len(impostor))


@pytest.fixture
def no_charts(monkeypatch):
    """Drawing takes most of the time, and some tests look elsewhere."""
    monkeypatch.setattr(report_module, "_charts", lambda *_: [])


def test_a_face_that_cannot_be_read_does_not_lose_the_report(tmp_path, no_charts):
    def broken(_):
        raise FileNotFoundError("gone")

    files = write_report(
        tmp_path / "a.html", "Gone", [Section("a", pairs=pair_scores(200, image_of=broken))], {}, worst=2
    )
    assert len(Page(files[0].read_text()).images) == 4
    files = write_report(tmp_path / "a.html", "None", [Section("a", pairs=pair_scores(200, image_of=None))], {})
    assert [file.name for file in files] == ["a.html"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError):
        write_report(tmp_path / "no" / "a.html", "x", [Section("a", pairs=pair_scores(50))], {}, worst=0)


def test_the_point_asked_for_decides_what_is_wrong(tmp_path, no_charts):
    files = write_report(
        tmp_path / "a.html", "x", [Section("a", pairs=pair_scores())], {}, worst=3, worst_at_far=0.05
    )
    pairs = pair_scores()
    words = Page(files[0].read_text()).words()
    accepted = round(float(pairs.curve.far[np.abs(pairs.curve.far - 0.05).argmin()]) * pairs.curve.impostor)
    assert f"{accepted} of {pairs.curve.impostor:,} impostor pairs are accepted" in words
    assert "At FAR 5e-2" in words


PROBE = """<script>
window.addEventListener("load", () => {
  const images = [...document.images];
  document.body.dataset.images = images.length;
  document.body.dataset.broken = images.filter(i => !i.complete || i.naturalWidth === 0).length;
  const over = element => element.scrollWidth - element.clientWidth;
  document.body.dataset.over = over(document.documentElement);
  document.body.dataset.tiles = Math.max(...[...document.querySelectorAll(".tiles li")].map(over));
});
</script></body>"""


@needs_chromium
@pytest.mark.parametrize("width", [1280, 600])
def test_a_browser_shows_every_picture_and_nothing_runs_over_the_edge(report, tmp_path, width):
    text = report[0][0].read_text()
    probed = tmp_path / "probed.html"
    # The page forbids scripts; the copy that is probed has to admit one.
    probed.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", text).replace("</body>", PROBE))
    dom = run_chromium(probed, [f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"])
    body = re.search(r"<body[^>]*>", dom)[0]
    assert 'data-images="27"' in body
    assert 'data-broken="0"' in body
    assert 'data-over="0"' in body
    assert 'data-tiles="0"' in body


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_screenshot(report, tmp_path, dark):
    out = tmp_path / "shot.png"
    screenshot(report[0][0], out, 1280, 1500, dark)
    image = cv2.imread(str(out))
    assert image.shape == (1500, 1280, 3)
    assert (np.median(image) < 60) == dark
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 200
    blocks = image[:1500].reshape(10, 150, 1280, 3)
    assert all(block.std() > 1 for block in blocks)  # no band of the page is empty
    curve = image[:, :, 0].astype(int) - image[:, :, 2]  # blue against red
    assert (np.abs(curve) > 60).sum() > 500


def test_docs_name_the_files_and_the_real_options(capsys):
    text = (ROOT / "docs" / "evaluation.md").read_text()
    for kind in ("roc", "det", "scores", "false_accepts", "false_rejects"):
        assert f"`JOB_{kind}.png`" in text
    known = set()
    for parse in (
        eval_ijbc.parse_arguments,
        pairs_command.parse_arguments,
        search_command.parse_arguments,
        ijb_compare,
    ):
        with pytest.raises(SystemExit):
            parse(["--help"])
        known |= set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out))
    named = set(re.findall(r"--[a-z][a-z0-9_-]+[a-z0-9]", text)) - {"--nproc_per_node"}  # torchrun's
    assert named <= known
    assert {"--flip", "--norm-score", "--detector-score", "--protocol", "--no-cache", "--no-report"} <= named
