"""Documents' statements about GPUs link to checked claims.

Each shows the claim's status.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_checks import table
from gpu_checks.checks import CHECKS
from gpu_checks.claims import CLAIMS
from gpu_checks.results import Header, Line, Run
from oncofed.job.spec import JobSpec

_ABOUT_GPUS = re.compile(r"\b(GPUs?|gpus?|CUDA|NCCL|NVTX|cuDNN)\b|torch\.compile")
# Sentences that name GPUs and claim nothing of them that a check could refute, by words that no other sentence has.
_NO_CLAIMS = (
    "Each hospital's GPUs train a",
    "the CUDA build of torch where there is an NVIDIA GPU",
    "before a GPU hour is spent",
    "no GPU has measured it yet",
    "features of all slides, once, on all GPUs",
    "one process each, with a slide of its own",
    "A small installation without CUDA, or an older driver?",
    "no file but Python's and the GPU driver's",  # the sentence after it has the claim
    "A site lends what `CUDA_VISIBLE_DEVICES` named when it was started",  # tests of lending, with a stand-in's driver
    "a laptop without a GPU: about a minute",
    "a laptop without a GPU: two minutes",
    "a laptop without a GPU: about two minutes",
    "| fits | a laptop without a GPU |",
    "neither the images nor a GPU were available",
    "neither the images nor a GPU were at hand",
    "neither LUNA16 nor a GPU was available",
    "a GPU for these rounds (not confirmed)",
    "divided by the GPUs: let it be as large as memory allows",
    "Nothing here was run: no machine with AMD SEV-SNP",
    "The nonce of a SEV-SNP or GPU token is chosen by",
    "**Anything of GPUs beyond the token**",
    "from AES-256 in counter mode; not from the job's seed, not from a GPU's generator",
    # How benchmarks/README.md says that it measures.
    "measures the CPU of a machine that has a GPU",
    "Other work on GPU or processor is reported",
    "On a GPU the time is that between two CUDA events",
    "On a GPU machine without a network",
    "Copy it to a machine with Python, torch and CUDA",
    "No figure here was taken on a GPU",
    "graphs, changes beside the training) a GPU would show",
    "Every claim about GPUs in the documents is checked",
    "Each is a fork of a process that never touches CUDA",
    "Each line is on the disk before",
    "there is no GPU that torch can use",
    "In the documents a sentence about GPUs ends in a link",
    "A link *not confirmed* marks what no kept run has shown yet",
    "`make gpu` runs them all in ten minutes",
    "## GPU claims",
    "ONNX files and bundles that run without oncofed; several GPUs",
    "by its presets M, L and XL, of which `--gpu-memory` takes the largest",
    "a digest of processor, cores, memory, GPUs and driver",
)


def _module(name: str) -> ast.Module:
    return ast.parse((Path(table.__file__).parent / f"{name}.py").read_text())


def _sentences(text: str) -> Iterator[str]:
    """Yield a document's sentences, headings and table rows.

    Without code and generated parts.
    """
    text = re.sub(r"<!-- (GPU claims|figures): .*?<!-- end of [^>]*-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=[|#-])", text):
        yield from re.split(r"(?<=[.!?])\s+(?=[A-Z*`\[])", " ".join(block.split()))


def _about_gpus() -> list[str]:
    found = [s for path in table.documents() for s in _sentences(path.read_text())]
    return [sentence for sentence in found if _ABOUT_GPUS.search(sentence)]


def test_each_claim_has_a_check_that_gives_a_verdict_on_it() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    assert {claim.check for claim in CLAIMS} == {check.name for check in CHECKS}
    for claim in CLAIMS:
        calls = [node for node in ast.walk(_module(claim.check)) if isinstance(node, ast.Call)]
        verdicts = [c.args[0] for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "claim"]
        assert claim.name in [first.value for first in verdicts if isinstance(first, ast.Constant)], claim.name


def test_each_sentence_about_gpus_leads_to_its_claim() -> None:
    claiming = [s for s in _about_gpus() if not any(words in s for words in _NO_CLAIMS)]
    without = [sentence for sentence in claiming if not table.LINK.search(sentence)]
    assert not without, "link each to a claim of gpu_checks/claims.py, or say in _NO_CLAIMS that it claims nothing"


def test_every_exempt_sentence_exists() -> None:
    sentences = _about_gpus()
    for words in _NO_CLAIMS:
        assert any(words in sentence for sentence in sentences), words


def test_links_lead_to_claims_and_show_their_status() -> None:
    runs = table.read_runs(table.RESULTS)
    for path in table.documents():
        text = path.read_text()
        for _, _, place, name in table.LINK.findall(text):
            assert name in {claim.name for claim in CLAIMS}
            assert not place or (path.parent / place).resolve() == table.TABLE
        new = table.with_statuses(table.with_claims(text, runs) if path == table.TABLE else text, runs)
        assert new == text, "make bench-table"


def _descriptions(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the settings of a job's sections with their descriptions."""
    for section, found in schema["properties"].items():
        model = schema["$defs"].get(str(found.get("$ref", "")).rpartition("/")[2], {})
        for name, setting in model.get("properties", {}).items():
            yield f"{section}.{name}", setting.get("description", "")


def test_each_setting_that_speaks_of_gpus_is_in_a_claim() -> None:
    claimed = {setting for claim in CLAIMS for setting in claim.settings}
    known = dict(_descriptions(JobSpec.model_json_schema()))
    assert claimed <= known.keys()
    assert {name for name, text in known.items() if _ABOUT_GPUS.search(text)} <= claimed


def _run(when: str, *verdicts: tuple[str, str]) -> Run:
    lines = [Line(check="restart", claim=name, verdict=verdict, text="") for name, verdict in verdicts]
    environment = {"gpus": ["H200, 141 GiB"], "torch": "2.13.0"}
    return Run(header=Header(schema=1, started=when, commit="abc", device="cuda", environment=environment), lines=lines)


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        ([("restart", "CONFIRMED")], "confirmed"),
        ([("restart", "CONFIRMED"), ("restart", "REFUTED")], "refuted"),
        ([("restart", "not checked")], "not confirmed"),
        ([("halving", "CONFIRMED")], "not confirmed"),
    ],
)
def test_the_latest_run_that_checked_decides(verdicts: list[tuple[str, str]], word: str) -> None:
    before = _run("2026-01-01T00:00:00+00:00", ("restart", "REFUTED")) if word == "confirmed" else None
    runs = [run for run in (before, _run("2026-01-02T00:00:00+00:00", *verdicts)) if run]
    link = "[on a GPU: not confirmed](x#gpu-restart)"
    assert table.with_statuses(link, runs) == f"[on a GPU: {word}](x#gpu-restart)"
    [row] = [line for line in table.with_claims("", runs).splitlines() if "gpu-restart" in line]
    assert ("H200, 141 GiB, torch 2.13.0, 2026-01-02, commit abc" in row) == (word != "not confirmed")
