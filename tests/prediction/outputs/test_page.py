"""The page with pictures of what was found."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dicoms import make_series
from oncofed.data.case import Case
from oncofed.data.images import LoadedImage
from oncofed.prediction.model import load_model
from oncofed.prediction.outputs.page import write_page
from oncofed.prediction.predictions import Predictions
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from oncofed.report.planes import Drawing, _places, _volume
from synthetic import make_site, make_slides, make_textures
from trained import CLASSIFIER, FLAT, SLIDES, make_run


def page_of(tmp_path: Path, inputs: Path, text: str | None = None, options: Options | None = None) -> str:
    model = load_model(make_run(tmp_path / "run", text) if text else make_run(tmp_path / "run"))
    out = tmp_path / "out"
    sources = gather([inputs], out, model.job, tmp_path / "datasets", workers=1)
    found = predict(model, sources, out, torch.device("cpu"), options)
    html = write_page(found, sources, model, out, workers=1).read_text(encoding="utf-8")
    _Balanced().feed(html)
    return html


class _Balanced(HTMLParser):
    """Raises if a closed block tag is not open."""

    def __init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in {"section", "div", "table", "ul", "svg", "tbody", "thead"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"section", "div", "table", "ul", "svg", "tbody", "thead"}:
            assert self._open.pop() == tag


def test_a_volume_is_seen_in_three_planes_with_contour_letters_scale_and_figures(tmp_path: Path) -> None:
    images = make_site(tmp_path / "site", 2) / "imagesTr"
    (images / "bad<b>.nii").write_bytes(b"")
    html = page_of(tmp_path, images)
    assert html.count("<section") == 2
    assert html.count('class="contour"') >= 6
    for plane in ("axial", "coronal", "sagittal"):
        assert f'aria-label="{plane} plane of case_0"' in html
    assert '<text class="end" x="10.0"' in html
    assert html.count('class="bar"') == 6
    assert "10 mm" in html or "5 mm" in html
    assert re.findall(r"<th[^>]*>([^<]*)</th>", html)[:3] == ["class", "volume ml", "longest mm"]
    assert "Research only" in html
    assert "It stays at the site" in html
    assert "bad&lt;b&gt;" in html
    assert "bad<b>" not in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_a_series_is_drawn_from_the_hidden_folder(tmp_path: Path) -> None:
    make_series(tmp_path / "pacs")
    html = page_of(tmp_path, tmp_path / "pacs")
    assert html.count("<svg") >= 3
    assert re.search(r'<p class="facts">series \d+, [^<]+\.dcm', html)
    assert "cannot be shown" not in html


def test_flat_images_and_classes_are_drawn_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (21, 35, 3), np.uint8)
    (tmp_path / "flat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "flat" / "a.png")
    assert "area px" in page_of(tmp_path / "one", tmp_path / "flat", FLAT)
    html = page_of(tmp_path / "two", make_textures(tmp_path / "in", ["broad", "narrow"], 2, colours=1), CLASSIFIER)
    assert html.count("<section") == html.count("<image ") == 4
    assert "probability" in html


def test_a_slide_is_drawn_small_with_its_tiles(tmp_path: Path) -> None:
    make_slides(tmp_path / "in", 1, 1024)
    (tmp_path / "in" / "labels.csv").unlink()
    html = page_of(tmp_path, tmp_path / "in", SLIDES)
    assert "tiles that show tissue" in html
    assert html.count('class="tiles"') == 1
    assert "probability" in html


def test_the_least_trustworthy_comes_first_with_its_reasons(tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run"))
    out = tmp_path / "out"
    sources = gather([make_site(tmp_path / "site", 3)], out, model.job, tmp_path / "datasets", workers=1)
    found = predict(model, sources, out, torch.device("cpu"))
    found.done[0]["trust"] = found.done[1]["trust"] = None
    found.done[2]["trust"] = {
        "verdict": "outside",
        "reasons": ["its voxels are larger than any of the training"],
    }
    html = write_page(found, sources, model, out, workers=1).read_text(encoding="utf-8")
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["case_2", "case_0", "case_1"]
    assert "its voxels are larger than any" in html


def test_a_page_of_nothing_is_written(tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run"))
    found = Predictions(tmp_path)
    html = write_page(found, gather([make_site(tmp_path / "site", 2)], tmp_path, model.job, tmp_path), model, tmp_path)
    assert "0 cases predicted" in html.read_text(encoding="utf-8")


def test_evidence_has_caption_legend_and_its_images_size(tmp_path: Path) -> None:
    html = page_of(tmp_path, make_textures(tmp_path / "in", ["broad"], 1, colours=1), CLASSIFIER)
    assert "1 case predicted; 1 shown" in html
    assert re.search(r"<figcaption>what spoke for (broad|narrow) \(Grad-CAM\)<br><span class=\"heat\"", html)
    assert "linear-gradient(to right, #" in html
    assert "<figcaption>the image</figcaption>" in html
    assert 'width="480" alt="evidence"' in html


def test_verdicts_are_in_words_and_common_reasons_come_first(tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run"))
    out = tmp_path / "out"
    sources = gather([make_site(tmp_path / "site", 3)], out, model.job, tmp_path / "datasets", workers=1)
    found = predict(model, sources, out, torch.device("cpu"))
    for record in found.done:
        record["trust"] = {"verdict": "look", "reasons": ["the network is unsure (entropy 0.55 of 1)"]}
    found.done[0]["trust"] = {"verdict": "outside", "reasons": ["it has 3 channels"]}
    html = write_page(found, sources, model, out, workers=1).read_text(encoding="utf-8")
    assert html.count("<b>look closely</b>") == 2
    assert "<b>not like what the model was trained on</b>: it has 3 channels" in html
    assert "look closely: 2 of 3 cases: the network is unsure" in html


def test_pictures_written_by_outputs_are_shown(tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run", CLASSIFIER))
    out = tmp_path / "out"
    folder = make_textures(tmp_path / "in", ["broad"], 1, colours=1)
    sources = gather([folder], out, model.job, tmp_path / "datasets", workers=1)
    found = predict(model, sources, out, torch.device("cpu"))
    name = found.done[0]["name"]
    Image.new("L", (3, 3)).save(out / "cases" / name / "map.png")
    found.done[0]["files"]["saliency"] = ["map.png"]
    html = write_page(found, sources, model, out, workers=1).read_text(encoding="utf-8")
    assert 'alt="saliency"' in html
    assert json.loads((out / "predictions.json").read_text())["cases"][0]["name"] == name


def test_planes_are_those_that_show_most() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[2, 2:7, 3] = 1
    labels[2:7, 5, 3] = 1
    labels[2, 2, 3:6] = 1
    body = np.zeros((9, 9, 9), np.float32)
    body[1:8, 1:8, 1:8] = 1
    assert _places(body, labels, True) == (2, 5, 3)
    assert _places(np.zeros((4, 6, 8)), None, True) == (2, 3, 4)


def test_planes_without_a_label_go_through_the_body() -> None:
    body = np.zeros((9, 12, 9), np.float32)
    body[6:9, 0:3, 2:7] = 100
    for labels in (None, np.zeros(body.shape, np.uint8)):
        assert _places(body, labels, True) == _places(body, labels, False) == (7, 1, 4)


def test_findings_in_air_do_not_choose_the_plane() -> None:
    body, labels = np.zeros((9, 12, 9), np.float32), np.zeros((9, 12, 9), np.uint8)
    body[6:9, 0:3, 2:7] = 100
    labels[7, 1, 4] = 1
    labels[2, 8:, :2] = 1
    assert _places(body, labels, True) == (7, 1, 4)
    labels[7, 1, 4] = 0
    assert _places(body, labels, True) == (2, 8, 0)


def test_each_plane_is_scaled_by_its_values() -> None:
    """A bright plane does not darken the others."""
    values = np.random.default_rng(0).integers(50, 100, (20, 20, 20)).astype(np.float32)
    values[:5, :5, 9:12] *= 4
    image = LoadedImage(values[..., None], np.eye(4), "float32")
    planes = _volume(image, None, Drawing(Case("a", "a", Path("a"), 0)))
    assert np.median(planes[0].pixels) < 50
    assert all(np.median(plane.pixels) > 100 for plane in planes[1:])
