"""Answers to findings: the options of ``oncofed data resolve``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAVE_OUT, KEEP_ONE, SAME_PATIENT = "leave-out", "keep-one", "same-patient"
NOTHING_THERE = "nothing-there"
MOVE_TO_TRAINING, KEEP_IN_TEST = "move-to-training", "keep-in-test"
# These only stop the finding from being reported.
ACCEPT, REVIEWED, KEEP_ALL = "accept", "reviewed", "keep-all"
_OUT = "leave those cases out"


@dataclass(frozen=True)
class Answer:
    """A decision that is possible about some kinds of findings.

    Attributes:
        finding: name of the option.
        kinds: of findings that it answers.
        actions: possible action, the usual one first -> what it does.
    """

    finding: str
    kinds: tuple[str, ...]
    actions: Mapping[str, str]

    def command(self, dataset: str, job: str | None = None, more: Sequence[str] = ()) -> str:
        """Return the command line of the usual decision.

        Args:
            dataset: its name or its folder.
            job: whose check found it; None: no job's.
            more: further arguments, such as the workspace.
        """
        of_job = ["--job", job] if job and self.finding in _OF_A_JOB else []
        words = [f"--{self.finding}", next(iter(self.actions))]
        return shlex.join(["oncofed", "data", "resolve", dataset, *words, *of_job, *more])


# Applied in this order: a decision about copies may put a patient on both sides of the split.
ANSWERS: tuple[Answer, ...] = (
    Answer(
        "conflicting",
        ("copies with conflicting labels",),
        {
            LEAVE_OUT: "leave out all copies of an image whose labels contradict",
            KEEP_ONE: "keep one of each, as copies keep-one does with others: its label may be the wrong one",
        },
    ),
    Answer(
        "copies",
        ("duplicate image (checksum)", "duplicate image (perceptual)"),
        {
            KEEP_ONE: "keep one of each group of copies, a labelled one before others, then one of the test list; "
            "groups whose labels contradict stay open",
            SAME_PATIENT: "they are of one patient: all images of those patients stay on one side of the split",
            KEEP_ALL: "they only look alike and are other images (never so for the same file)",
        },
    ),
    Answer(
        "patients",
        ("same patient in two splits",),
        {
            KEEP_IN_TEST: "keep the images that are in the test list (else in the validation list), leave out the rest",
            MOVE_TO_TRAINING: "move all images of those patients to the training list",
            LEAVE_OUT: "leave those patients out",
        },
    ),
    Answer("modality", ("wrong modality",), {LEAVE_OUT: _OUT, ACCEPT: "use them all the same"}),
    Answer("spacing", ("outlier spacing", "implausible spacing"), {LEAVE_OUT: _OUT, ACCEPT: "they are right"}),
    Answer("intensity", ("outlier intensity",), {LEAVE_OUT: _OUT, ACCEPT: "they are right"}),
    Answer("constant", ("constant image",), {LEAVE_OUT: "go on without them"}),
    Answer(
        "empty-label",
        ("empty label",),
        {
            LEAVE_OUT: "go on without them",
            NOTHING_THERE: "somebody looked for every class that the dataset names, and there is none: the mask is "
            "background alone",
        },
    ),
    Answer("set-aside", ("set aside",), {LEAVE_OUT: "go on without them, whatever the reason"}),
    Answer("burned-in", ("burned-in annotation",), {REVIEWED: "somebody looked: it names nobody", LEAVE_OUT: _OUT}),
    Answer("path-names", ("name in path",), {REVIEWED: "somebody looked: they name nobody", LEAVE_OUT: _OUT}),
    Answer("header-text", ("text in header",), {REVIEWED: "somebody looked: it names nobody", LEAVE_OUT: _OUT}),
    Answer("faces", ("faces",), {REVIEWED: "they may stay as they are", LEAVE_OUT: _OUT}),
    Answer("loose-slices", ("slices without a place",), {REVIEWED: "flat images are what is meant", LEAVE_OUT: _OUT}),
)
_OF_A_JOB = {"modality", "constant", "empty-label", "set-aside"}
SET_ASIDE_KINDS = ("constant image", "empty label", "set aside")
_BY_KIND = {kind: answer for answer in ANSWERS for kind in answer.kinds}


def answer_to(kind: str) -> Answer | None:
    """Return the answer to a kind of finding, if any."""
    return _BY_KIND.get(kind)


def kind_of_reason(reason: str) -> str:
    """Return the kind of finding of a case's reason."""
    if ";" not in reason and "image is constant" in reason:
        return "constant image"
    if ";" not in reason and "label is empty" in reason:
        return "empty label"
    return "set aside"
