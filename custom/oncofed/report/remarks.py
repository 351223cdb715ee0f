"""What a run's numbers leave out, and why, in sentences for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oncofed.data.grouping import counted
from oncofed.report.result import Result, SiteResult
from oncofed.suppression import LEAST_PATIENTS

_FEWEST = f"fewer than {LEAST_PATIENTS} patients"


def remarks(result: Result) -> list[str]:
    """Return sentences on what is missing from a run's numbers, and on who may see the rest.

    Args:
        result: of a run that ended well.
    """
    if result.best_round is None:
        return []
    parts = (
        _silent_sites,
        _fewer_targets,
        _lacking_targets,
        _few_patients,
        _no_classes,
        _no_groups,
        _attention,
        _noise_of_others,
    )
    return [sentence for part in parts for sentence in part(result)]


def _noise_of_others(result: Result) -> Iterator[str]:
    others = [
        name.replace("_", " ").capitalize() for name in result.mean.known if name not in ("federated", "personal")
    ]
    if result.baselines_have_noise and others:
        yield (
            f"{_listed(others)}: trained with the job's noise, too, which a hospital does not need that keeps its "
            "model to itself: without noise they might do better than is shown."
        )


def selection(result: Result) -> str:
    """Return why the model is of its round."""
    if result.select == "last":
        return "the last one"
    if not result.rounds or result.curves.get("validation"):
        return "which did best on the validation patients"
    return (
        "the last one: no round had a score on validation patients to choose by, too few of them or none that can be "
        "compared"
    )


def untold_gains(result: Result) -> str:
    """Return which sites' gains are not told, and why; empty: all are, or none was asked for."""
    if result.gains is None or result.best_round is None:
        return ""
    if result.privacy:
        return "each site knows what it keeps, and what that gains, which its training patients have no noise in"
    if result.scores_of_all:
        return "each site knows what it keeps; a gain is a score of its own, and scores left under masks"
    silent = sorted(result.sites.keys() - result.gains.keys())
    few = f"{_FEWEST} (or than its policy asks) chose or tested there, or its models could not be compared"
    return f"{_listed(silent)}: {few}" if silent else ""


def _silent_sites(result: Result) -> Iterator[str]:
    silent = {name: site for name, site in result.sites.items() if site.federated is None}
    if result.scores_of_all:
        yield (
            "Federated: the mean over the sites alone is known, as their scores left under masks "
            "(privacy.secure_aggregation.scores: summed)."
        )
    elif silent:
        yield (
            f"Federated: no {result.metric_name} of {_with_patients(silent)}. A site tells no number that rests on "
            f"{_FEWEST} (or on fewer than its policy asks) or whose parts do, such as the steps of a FROC curve, nor "
            "one that its patients do not have, such as of nobody with an event."
        )
    shown = [name for name in result.mean.known if name != "federated"]
    few = {name: site for name, site in result.sites.items() if _tested(site) < LEAST_PATIENTS}
    if shown and few:
        models = _listed([name.replace("_", " ") for name in shown])
        yield (
            f"{models[0].upper()}{models[1:]}: computed on this machine, which holds the patients, so they are shown "
            f"for {_FEWEST}, too. None of it left a site."
        )


def _fewer_targets(result: Result) -> Iterator[str]:
    said = {name: site.in_mean for name, site in result.sites.items() if site.in_mean is not None}
    fewer = {name: of for name, of in said.items() if set(of) != set(result.targets)}
    if not fewer:
        return
    means = "; ".join(f"at {name} over {_listed(of) if of else 'none'}" for name, of in sorted(fewer.items()))
    sentence = (
        f"{result.metric_name[0].upper()}{result.metric_name[1:]}: {means}. A target counts in a site's mean where "
        f"each model here has a figure for it; of {_FEWEST} no figure leaves a site, nor where few lack the target."
    )
    if not result.is_of_same_targets:
        sentence += " Sites of other targets do not compare with each other: a worst one is not named."
    yield sentence


def _lacking_targets(result: Result) -> Iterator[str]:
    """Yield targets of which nothing is known of a site that tells of others."""
    known = {name: site.by_class["federated"] for name, site in result.sites.items() if site.by_class.get("federated")}
    for target in result.targets:
        lacking = sorted(
            name for name, figures in known.items() if not any(_is_of(target, figure) for figure in figures)
        )
        if lacking:
            yield (
                f"{target}: no figure of {_listed(lacking)}. No patient tested there states it, or {_FEWEST} do (or "
                "fewer than a policy asks)."
            )


def _is_of(target: str, figure: str) -> bool:
    return figure == target or figure.startswith(f"{target}.")


def _few_patients(result: Result) -> Iterator[str]:
    few = {name: s for name, s in result.sites.items() if s.federated is not None and _tested(s) < LEAST_PATIENTS}
    if few:
        yield (
            f"Of {_with_patients(few)} the scores here rest on {_FEWEST}: they are for whoever ran the job. The model "
            "card, which goes with the model, leaves them out."
        )


def _no_classes(result: Result) -> Iterator[str]:
    told = any(site.by_class.get("federated") for site in result.sites.values())
    scored = any(site.federated is not None for site in result.sites.values())
    if scored and not told and len(result.classes) > 1 and not result.targets:
        yield f"No {result.metric_name} by class: at no site does a class's rest on {LEAST_PATIENTS} patients or more."


def _no_groups(result: Result) -> Iterator[str]:
    told = result.pooled_test.targets if result.pooled_test else {}
    for name, target in result.targets.items():
        if target.kind == "survival" and "logrank_p" not in (told[name].figures if name in told else {}):
            yield (
                f"{name}: no survival curves of groups of risk, as groups would be of {_FEWEST}, or no sums were told."
            )


def _attention(result: Result) -> Iterator[str]:
    if result.attention is None and result.attention_left_out:
        yield f"Whether answers rest on what attention shows was not tested: {result.attention_left_out}."


def _tested(site: SiteResult) -> int:
    return site.patients.get("test", site.test_cases)


def _with_patients(sites: dict[str, SiteResult]) -> str:
    return ", ".join(f"{name} ({counted(_tested(site), 'test patient')})" for name, site in sorted(sites.items()))


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
