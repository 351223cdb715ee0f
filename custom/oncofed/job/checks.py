"""Problems of a job whose settings are each valid."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from oncofed.algorithms import JobFacts
from oncofed.algorithms.sums import other_integers
from oncofed.data.cases import read_cases
from oncofed.data.contract import doubts
from oncofed.data.manifest import MANIFEST_FILE
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import AnyJob, JobSpec, ProfileJobSpec
from oncofed.messages.secure_aggregation import summed_bytes
from oncofed.models.encoders import unusual_tiles
from oncofed.report.result import read_result


def check_strategy(spec: JobSpec, network: nn.Module) -> None:
    """Refuse a strategy that the network or GPUs rule out.

    Raises:
        SpecError: says what was found and what would fit.
    """
    facts = JobFacts(network=network, network_name=spec.model.network, norm=spec.model.norm, gpus=spec.resources.gpus)
    spec.federation().algorithm().check_job(facts)
    if spec.privacy.secure_aggregation:
        _check_integers(spec)


def _check_integers(spec: JobSpec) -> None:
    """Refuse integers that no rule tells, since masks add up numbers with a fraction alone."""
    others = other_integers([name for name, value in spec.layout.sent.items() if not value.is_floating_point()])
    if others:
        raise SpecError(
            f"the network has integers that training may change ({others[0]}), and secure aggregation adds up numbers "
            "with a fraction: take a network without, or leave privacy.secure_aggregation out"
        )


def check_sites(spec: AnyJob, sites: int) -> None:
    """Refuse a job that needs more sites than there are.

    Raises:
        SpecError: names the setting.
    """
    if isinstance(spec, ProfileJobSpec):
        needed, setting = spec.min_sites or 1, "min_sites"
    else:
        needed, setting = spec.rounds.quorum or 1, "rounds.quorum"
    if sites < needed:
        raise SpecError(f"the job needs {needed} sites ({setting}), found {sites}. Name more sites, or lower it.")
    if isinstance(spec, JobSpec):
        smallest = spec.federation().smallest_roster
        if smallest and sites < smallest:
            raise SpecError(
                f"the job needs {smallest} sites (privacy.secure_aggregation.minimum_sites), found {sites}. Name more "
                "sites: of fewer than three, one would learn the other's update from the sum."
            )
        spec.federation().algorithm().check_sites(sites)


def masks_note(spec: JobSpec) -> str:
    """Return what secure aggregation does in a job and what it costs."""
    federation = spec.federation()
    megabytes = summed_bytes(spec.plan(), federation, spec.layout, federation.bits) / 1e6
    half = " (twice as much in the first)" if federation.bits == 16 else ""
    scores = "; of scores and losses, too" if federation.sums_scores else ""
    return (
        f"the server is given sums of {federation.smallest_sum} sites or more{scores}; {megabytes:.1f} MB up a site "
        f"and round{half}, and some hundred bytes for each other site; four short exchanges more a round"
    )


def encoder_notes(spec: JobSpec) -> list[str]:
    """Return a note where the job's tiles are not those that its encoder was made for."""
    data = spec.data
    encoder = getattr(spec.task, "encoder", None)
    if encoder is None:
        return []
    return unusual_tiles(encoder.network, [(data.patch[0], data.spacing[0] * 1000 if data.spacing else None)])


def dataset_notes(spec: JobSpec, folder: Path) -> list[str]:
    """Return notes on the job's dataset, where one is registered here.

    Test patients from before training ones, and columns that tell the outcome; see ``contract.doubts``.

    Args:
        spec: the job.
        folder: of the dataset.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return []
    plan = spec.plan()
    found = doubts(folder, plan.data, plan.supervision(), spec.seed)
    return [f"dataset {folder.name}: {doubt.kind}: {doubt.what}" for doubt in found]


def training_patients(spec: JobSpec, folder: Path) -> int | None:
    """Return how many patients the job would train on, of the dataset that is registered here; None: not known.

    Args:
        spec: the job.
        folder: of the dataset.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        dealt = read_cases(folder, spec.data.split, spec.seed, spec.plan().supervision(), spec.data.splits)
    except DataError:  # `data check` says why
        return None
    return len({case.patient for case in dealt.train}) or None


def deadline_warning(spec: JobSpec, runs: Path) -> str | None:
    """Return a warning if the deadline is too short.

    The slowest site's round in the job's last run here decides.

    Args:
        spec: the job.
        runs: the workspace's folder of runs.
    """
    deadline = spec.rounds.deadline_s
    if deadline is None:
        return None
    for folder in sorted(runs.glob(f"*-{spec.name}*"), reverse=True) if runs.is_dir() else []:
        try:
            result = read_result(folder)
        except (OSError, DataError):
            continue
        slowest = max(result.timing.train_s_max_per_round, default=0.0)
        if slowest > deadline:
            return (
                f"rounds.deadline_s is {deadline:g}, but the slowest site needed {slowest:.0f} s for a round in "
                f"{folder.name}: its updates would come late"
            )
        return None
    return None
