from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console

from oncofed.cli.common import result_table
from oncofed.privacy.gains import gain_numbers
from oncofed.privacy.settings import DifferentialPrivacySpec
from oncofed.privacy.statement import statement_of
from oncofed.report.gains import gains_of
from oncofed.report.html import _slices, write_report
from oncofed.report.remarks import remarks
from oncofed.report.result import Means, Result, SiteResult, SiteTiles, Timing, read_result
from oncofed.tasks.deletion import of_patients
from oncofed.tasks.differences import Part
from oncofed.tasks.pictures import Picture, best_slice
from oncofed.tasks.targets import TargetDetails


def _result() -> Result:
    sites = {
        "east": SiteResult(train_cases=4, validation_cases=1, test_cases=2, alone=0.5, federated=0.7, pooled=0.75),
        "<b>west</b>": SiteResult(train_cases=3, validation_cases=0, test_cases=1, alone=0.6, federated=0.55),
    }
    return Result(
        job="balls",
        title="Two balls & more",
        status="completed",
        backend="federation",
        rounds=2,
        best_round=2,
        seed=1,
        classes=["shell", "core"],
        sites=sites,
        mean=Means(alone=0.55, federated=0.625, pooled=0.75),
        curves={
            "validation": {"0": 0.1, "1": 0.4},
            "validation_by_site": {"0": {"east": 0.1, "<b>west</b>": None}, "1": {"east": 0.4}},
            "loss": {"1": {"east": 0.9}},
        },
        timing=Timing(total_s=12, overhead_s_per_round=0.2),
    )


def _picture(axes: str) -> Picture:
    volume = np.zeros((10, 12, 8), np.uint8)
    volume[2:5, 3:9, 5] = 1
    volume[3, 4:6, 5] = 2
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    image = nib.Nifti1Image(volume, np.diag([1.0, 2.0, 3.0, 1.0])).as_reoriented(turn)
    values = np.asarray(image.dataobj)
    return best_slice(values[..., None], values, values, image.affine)


def test_a_result_reads_back_and_has_the_documented_fields(tmp_path: Path) -> None:
    result = _result()
    values = json.loads(result.write(tmp_path).read_text())
    assert read_result(tmp_path) == result
    assert {"schema", "job", "status", "backend", "rounds", "metric", "sites", "mean", "timing", "bytes"} <= set(values)
    assert {"train_cases", "test_cases", "alone", "federated", "pooled"} <= set(values["sites"]["east"])


def test_tiles_are_in_the_report_where_a_site_told_of_them(tmp_path: Path) -> None:
    result = _result()
    path = write_report(result, {}, tmp_path)
    assert "Tiles of the training slides" not in path.read_text()
    result.sites["east"].tiles = SiteTiles(patients=6, tiles=12_345, pen=0, fold=617)
    page = write_report(result, {}, tmp_path).read_text()
    table = page.partition("Tiles of the training slides")[2].partition("</table>")[0]
    assert all(told in table for told in ("12,345", "0.0 %", "5.0 %", "&lt;b&gt;west"))
    assert table.count("–") == 2 + 6, "flags of too few patients, and a site that told nothing"
    result.write(tmp_path)
    assert read_result(tmp_path) == result


def test_what_sites_keep_is_in_the_report_worst_first(tmp_path: Path) -> None:
    result = _result()
    assert "What each site keeps" not in write_report(result, {}, tmp_path).read_text()
    gains = {"east": (0.031, Part(6, 0.2, 1e-4)), "north": (-0.012, None)}
    told = {site: gain_numbers("mixed", 7, Part(8, over, 1e-4), alone) for site, (over, alone) in gains.items()}
    result.gains = gains_of(told)
    page = write_report(result, {}, tmp_path).read_text()
    table = page.partition("What each site keeps")[2].partition("</table>")[0]
    assert table.index("north") < table.index("east")
    assert all(said in table for said in ("+0.031", "-0.012", "+0.007 to +0.055", "+0.200", "–"))
    assert "Not shown: &lt;b&gt;west&lt;/b&gt;: fewer than" in page
    result.privacy = statement_of(DifferentialPrivacySpec(noise_multiplier=1.2, delta=1e-3, sampling=0.1), 8)
    result.gains = {}
    assert "each site knows what it keeps" in write_report(result, {}, tmp_path).read_text()
    result.write(tmp_path)
    assert read_result(tmp_path) == result


def test_how_alike_updates_are_is_in_the_report_where_all_sites_agreed(tmp_path: Path) -> None:
    result = _result()
    assert "How alike" not in write_report(result, {}, tmp_path).read_text()
    result.contributions = {}
    assert "Not shown: a site's policy" in write_report(result, {}, tmp_path).read_text()
    result.contributions = {"east": 0.123, "<b>west</b>": 0.456}
    table = write_report(result, {}, tmp_path).read_text().partition("How alike")[2].partition("</table>")[0]
    assert all(said in table for said in ("+0.123", "+0.456", "&lt;b&gt;west"))


def test_the_slice_is_axial_however_the_file_is_stored() -> None:
    expected = _picture("RAS")
    assert expected.image.shape == (10, 12)
    assert expected.aspect == 2.0
    for axes in ("LPS", "PSR", "ASL"):
        picture = _picture(axes)
        assert picture.aspect == expected.aspect
        np.testing.assert_array_equal(picture.reference, expected.reference)
        np.testing.assert_array_equal(picture.image, expected.image)


def test_the_report_is_one_file_that_needs_no_network_and_escapes_names(tmp_path: Path) -> None:
    html = write_report(_result(), {"east": _picture("ASL")}, tmp_path).read_text()
    assert "Two balls &amp; more" in html
    assert "<b>west</b>" not in html
    assert html.count("<svg") == 2
    assert "+0.200" in html
    assert "-0.050" in html
    for source in ("<script", "<link", "src=", "@import"):
        assert source not in html


def test_the_report_tells_whether_answers_rest_on_what_was_attended_to(tmp_path: Path) -> None:
    curves = np.array([[0.4, 0.5], [0.1, 0.2], [0.0, 0.1]]).repeat(3, axis=1)
    result = _result()
    found = of_patients({f"{number}": [curves] for number in range(6)})
    assert found is not None
    result.attention = found.model_copy(update={"interval": (0.2, 0.4)})
    html = write_report(result, {}, tmp_path).read_text()
    assert "6 test patients" in html
    assert "<b>+0.300</b>" in html
    assert "as many random ones (95 % interval" in " ".join(html.split())
    assert html.count("<svg") == 2
    assert "Does the answer rest" not in write_report(_result(), {}, tmp_path).read_text()


def _few() -> Result:
    """Return a run of survival of whose patients no site told a number."""
    result = _result()
    result.metric_name, result.classes = "concordance", ["survival"]
    result.sites = {
        name: SiteResult(train_cases=11, validation_cases=3, test_cases=4, alone=0.3, pooled=0.6, patients={"test": 4})
        for name in ("east", "west")
    }
    result.mean = Means(alone=0.3, pooled=0.6)
    result.best_round = 1
    result.targets = {
        "survival": TargetDetails(
            kind="survival", asks="risk", metric="concordance", metric_name="concordance", members=[], figures={}
        )
    }
    result.curves = {
        "validation": {},
        "validation_by_site": {"0": {"east": None}, "1": {"east": None, "west": None}},
        "loss": {"1": {"east": 0.9}},
    }
    return result


def test_a_federated_number_that_nobody_told_is_missed_and_explained(tmp_path: Path) -> None:
    result = _few()
    html = write_report(result, {}, tmp_path).read_text()
    shown = io.StringIO()
    Console(file=shown, width=200).print(result_table(result))
    assert '<th class="n">Federated</th>' in html
    assert "federated" in shown.getvalue()
    said = " ".join(remarks(result))
    assert "no concordance of east (4 test patients), west (4 test patients)" in said
    assert "Alone and pooled: computed on this machine" in said
    assert "survival: no survival curves" in said
    assert all(remark.partition("'")[0] in html for remark in remarks(result))


def test_no_score_of_validation_patients_chose_no_round(tmp_path: Path) -> None:
    html = write_report(_few(), {}, tmp_path).read_text()
    assert "did best on the validation patients" not in html
    assert "no round had a score on validation patients" in html
    assert "Global model on each site" not in html
    assert "Training loss" in html
    assert "did best on the validation patients" in write_report(_result(), {}, tmp_path).read_text()


def test_few_patients_scores_and_an_attention_test_that_was_left_out_are_said() -> None:
    result = _result()
    assert any("east (2 test patients)" in one and "model card" in one for one in remarks(result))
    assert not any("attention" in one for one in remarks(result))
    result.attention_left_out = "there are fewer than 5 test patients"
    assert any("attention" in one and "fewer than 5 test patients" in one for one in remarks(result))


def test_a_slide_is_no_volume_and_dice_by_class_is_shown(tmp_path: Path) -> None:
    result = _result()
    flat = replace(_picture("RAS"), downwards=True)
    html = write_report(result, {"east": flat}, tmp_path).read_text()
    assert "axial slice" not in html
    assert "axial slice" in write_report(result, {"east": _picture("RAS")}, tmp_path).read_text()
    assert any("No Dice by class" in one for one in remarks(result))
    result.sites["east"].by_class = {"federated": {"shell": 0.871, "core": 0.534}}
    html = write_report(result, {}, tmp_path).read_text()
    assert '<td class="name">core</td>' in html
    assert "0.534" in html
    assert not any("by class" in one for one in remarks(result))


def test_captions_of_the_grid_do_not_overlap() -> None:
    caption = "overall_survival, model: probability of an event within five years 0.512\nlump, model: present"
    image = np.random.default_rng(1).random((32, 32))
    figure = _slices({f"site-{n}": Picture(image, caption=caption) for n in range(4)})
    figure.canvas.draw()
    spans = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(spans))
    assert "\nlump, model: present" in figure.axes[0].title.get_text()
    plt.close(figure)
