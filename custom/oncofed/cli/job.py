"""``oncofed job``: show, check, export and run jobs."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from oncofed.cli import submitted
from oncofed.cli.common import (
    DEFAULT_WORKSPACE,
    Workspace,
    datasets_folder,
    ended_by_signals,
    keep_caches_in,
    new_run_folder,
    plain_console,
    progress_console,
    require_posix,
    show_result,
    show_table,
)
from oncofed.cli.contribution import contribution
from oncofed.cli.convert import convert
from oncofed.cli.exposure import exposure
from oncofed.cli.pack import pack
from oncofed.cli.run_options import (
    Against,
    Backend,
    EvaluateOnly,
    Model,
    Port,
    Rounds,
    Track,
    named_sites,
    parse_seeds,
    require_model,
)
from oncofed.cli.terminal import echo_json
from oncofed.cli.tracking import track as track_run
from oncofed.cli.tracking import tracked
from oncofed.cli.tune import tune
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.data.planning import PlanFile, Reason
    from oncofed.job.compare import Paired
    from oncofed.job.spec import JobSpec, ProfileJobSpec

app = typer.Typer(
    help="Jobs as data: list, show, check, plan, export, run; submit, watch, stop and fetch those of an alliance.",
    no_args_is_help=True,
)
app.add_typer(submitted.app)  # without a name: its commands are among those of this group

Job = Annotated[str, typer.Argument(help="A job's name, its folder, or its job.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the jobs in ./jobs and those that come with oncofed."""
    from oncofed.job.spec import ProfileJobSpec, list_jobs, parse_any_job

    specs = [(entry, parse_any_job(entry.file)) for entry in list_jobs()]
    datasets = {e.name: s.profile.dataset if isinstance(s, ProfileJobSpec) else s.data.dataset for e, s in specs}
    if json:
        rows = [{"name": e.name, "title": s.title, "dataset": datasets[e.name], "file": str(e.file)} for e, s in specs]
        typer.echo(jsonlib.dumps(rows, indent=2))
        return
    table = Table()
    for heading in ("job", "what it learns", "dataset", "network"):
        table.add_column(heading)
    for entry, spec in specs:
        network = "–" if isinstance(spec, ProfileJobSpec) else spec.model.network
        table.add_row(entry.name, spec.title, datasets[entry.name], network)
    show_table(table)


@app.command()
def networks(json: Json = False) -> None:
    """List networks for jobs."""
    from oncofed.models import list_networks
    from oncofed.plugins import KINDS

    found = list_networks()
    if json:
        rows = [
            {"name": n.name, "kind": n.kind, "dimensions": list(n.dimensions), "channels": list(n.channels)}
            for n in found
        ]
        typer.echo(jsonlib.dumps(rows, indent=2))
        return
    table = Table()
    for heading in ("network", "gives", "images", "sides are multiples of", "its own channels"):
        table.add_column(heading)
    without_grid = {"bag": "tiles of slides", "table": "none"}
    for network in found:
        axes = without_grid.get(network.kind, " and ".join(f"{axes}D" for axes in network.dimensions))
        has_sides = network.kind not in without_grid
        sides = str(network.divisor or 2 ** (len(network.channels) - 1)) if has_sides else "–"
        table.add_row(network.name, KINDS[network.kind], axes, sides, ", ".join(map(str, network.channels)))
    show_table(table)


@app.command()
def show(job: Job, json: Json = False) -> None:
    """Show a job with every default written out."""
    from oncofed.job.spec import read_any_job

    spec = read_any_job(job)
    if json:
        echo_json(spec.model_dump_json(indent=2, by_alias=True))
    else:
        typer.echo(spec.to_yaml().rstrip())
        _show_codes(spec)


def _show_codes(spec: JobSpec | ProfileJobSpec) -> None:
    """Print DICOM's coded terms of a segmentation's classes, as comments."""
    from oncofed.job.spec import ProfileJobSpec
    from oncofed.prediction.dicom.codes import segment_codes

    if isinstance(spec, ProfileJobSpec) or spec.task.type != "segmentation":
        return
    task = spec.task

    typer.echo("# In DICOM (codes):")
    for value, code in segment_codes(task.classes, getattr(task, "codes", {})).items():
        private = "  (private: name a code in task, codes)" if code.is_private else ""
        typer.echo(f"#   {value} {task.classes[value]}: {code.text}{private}")


@app.command()
def check(
    job: Job,
    sites: Annotated[
        int | None, typer.Option(min=1, help="Number of the alliance's sites, to check against quorum and strategy.")
    ] = None,
    json: Json = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Check a job.yaml: settings, values, and that its network can train on a patch of the job's size.

    A dataset of the job's name that is registered here is looked at, too: test dates before training ones, and columns
    that tell the outcome.
    """
    from oncofed.job.checks import (
        check_sites,
        check_strategy,
        dataset_notes,
        deadline_warning,
        encoder_notes,
        masks_note,
        training_patients,
    )
    from oncofed.job.private import privacy_costs, privacy_notes
    from oncofed.job.spec import ProfileJobSpec, find_job, read_any_job
    from oncofed.models.weights import weights_of
    from oncofed.tasks.targets.details import details_of

    spec = read_any_job(job, with_code=True)
    if isinstance(spec, ProfileJobSpec):
        if json:
            typer.echo(jsonlib.dumps({"job": spec.name, "ok": True}))
        else:
            typer.echo(
                f"{find_job(job)}: ok. It trains nothing; fewest patients behind a number: "
                f"{spec.profile.minimum_count}."
            )
        return
    network = spec.plan().try_network()
    check_strategy(spec, network)
    if sites:
        check_sites(spec, sites)
    warning = deadline_warning(spec, workspace / "runs")
    datasets = datasets_folder(workspace) / spec.data.dataset
    notes = [*encoder_notes(spec), *privacy_notes(spec), *dataset_notes(spec, datasets)]
    costs = privacy_costs(spec, network, training_patients(spec, datasets))
    parameters = sum(p.numel() for p in network.parameters())
    megabytes = sum(v.numel() * v.element_size() for v in weights_of(network).values()) / 1e6
    if json:
        found = {"job": spec.name, "ok": True, "parameters": parameters, "exchange_mb": megabytes, "warning": warning}
        typer.echo(jsonlib.dumps({**found, "privacy": costs.facts if costs else None, "notes": notes}))
        return
    steps = spec.plan().total_steps
    if spec.model.bundle:
        _show_bundle(spec)
    typer.echo(
        f"{find_job(job)}: ok. {spec.model.network} with {parameters:,} parameters, {megabytes:.1f} MB each way a "
        f"round, {spec.rounds.number} rounds of {spec.strategy.name}, {steps} steps at each site."
    )
    for line in costs.lines() if costs else ():
        typer.echo(line)
    if spec.privacy.secure_aggregation:
        typer.echo(f"secure aggregation: {masks_note(spec)}")
    for name, target in details_of(spec.task).items():
        typer.echo(f"target {name} ({target.kind}): {target.asks}; judged by {target.metric_name}")
    if warning:
        typer.echo(f"warning: {warning}")
    for note in notes:
        typer.echo(f"note: {note}")


def _show_bundle(spec: JobSpec) -> None:
    """Print a bundle's digest and how its preprocessing differs."""
    from oncofed.models.foreign import read_bundle

    bundle = read_bundle(str(spec.model.bundle))
    typer.echo(f"bundle {bundle.folder}: {bundle.network['_target_']}; to pin it: bundle_digest: {bundle.digest}")
    for name, value in bundle.preprocessing.items():
        own = getattr(spec.data, name)
        mine = list(own) if isinstance(own, tuple) else own
        if mine != value:
            typer.echo(f"  its input has {name} {value}, the job's data.{name} is {mine}")


@app.command()
def export(
    job: Job,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; its name becomes FLARE's job name.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a job folder exported before.")] = False,
    model: Model = None,
    evaluate_only: EvaluateOnly = False,
    against: Against = None,
) -> None:
    """Write a job as a plain FLARE job folder: JSON only, for `nvflare job submit`."""
    from oncofed.job.flare import export_job
    from oncofed.job.spec import read_any_job

    require_model(model, evaluate_only, against)
    folder = export_job(read_any_job(job, with_code=True), out, force, model, evaluate_only, against)
    typer.echo(f"{folder}: written. Submit it with: nvflare job submit -j {folder}")


app.command("pack")(pack)
app.command("convert")(convert)
app.command("exposure")(exposure)
app.command("tune")(tune)
app.command("contribution")(contribution)
app.command("track")(track_run)


@app.command()
def run(
    job: Job,
    site: Annotated[
        list[str],
        typer.Option(
            "--site",
            help="NAME=DATASET, once for each site: a registered dataset's name, or a folder with dataset.json.",
        ),
    ],
    backend: Backend = "federation",
    rounds: Rounds = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default a new one in the workspace.")] = None,
    port: Port = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also train each site alone, and all data pooled.")
    ] = True,
    max_bad_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of a site's cases that may be set aside; by default the job's."),
    ] = None,
    gpu_memory: Annotated[
        float, typer.Option(min=0.1, help="federated_profile: GiB of the smallest GPU, for the plan.")
    ] = 8.0,
    residual: Annotated[
        bool,
        typer.Option("--residual", help="federated_profile: plan a residual encoder, nnU-Net's preset of that size."),
    ] = False,
    model: Model = None,
    evaluate_only: EvaluateOnly = False,
    against: Against = None,
    track: Track = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep startup kits and FLARE's files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print result.json to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Run a job on this machine, with one folder a site."""
    keep_caches_in(workspace)
    from oncofed.job.checks import check_sites
    from oncofed.job.profile import ProfileRun
    from oncofed.job.run import Run
    from oncofed.job.spec import ProfileJobSpec, read_any_job

    require_posix()
    spec = read_any_job(job, with_code=True)
    require_model(model, evaluate_only, against)
    if isinstance(spec, ProfileJobSpec):
        if rounds or max_bad_share is not None or model:
            raise SpecError(f"{spec.name} trains nothing: leave --rounds, --max-bad-share and --model away.")
    else:
        if residual:
            raise SpecError(f"{spec.name} plans nothing: leave --residual away; its network is named in model.network.")
        spec = spec.with_rounds(rounds) if rounds else spec
        if max_bad_share is not None:
            spec = spec.changed({"data": {"max_bad_share": max_bad_share}})
    sites = named_sites(site, workspace)
    check_sites(spec, len(sites))
    folder = out or new_run_folder(workspace, spec.name)
    if folder.exists() and any(folder.iterdir()):
        raise SpecError(f"{folder} is not empty. Name a new folder with --out, or leave --out away.")
    with ended_by_signals():
        console = progress_console(json)
        if isinstance(spec, ProfileJobSpec):
            plan = ProfileRun(
                spec=spec,
                sites=sites,
                backend=backend,
                folder=folder,
                console=console,
                port=port,
                keep=keep,
                gpu_gib=gpu_memory,
                residual=residual,
            ).execute()
            _show_plan(plan, folder / "plan.json", json)
            return
        with tracked(track, folder, spec.name, console) as trackers:
            result = Run(
                spec=spec,
                sites=sites,
                backend=backend,
                folder=folder,
                console=console,
                port=port,
                keep=keep,
                baselines=baselines,
                model=model,
                evaluate_only=evaluate_only,
                against=against,
                trackers=trackers,
            ).execute()
    show_result(result, folder, json)


@app.command()
def compare(
    job: Job,
    strategies: Annotated[str, typer.Option(help="Comma-separated names, such as fedavg,fedprox,scaffold.")] = "",
    fusions: Annotated[
        str,
        typer.Option(
            help="Instead: ways to use the table (data.covariates), such as none,concat,film,table; each is compared "
            "with the first on the same patients."
        ),
    ] = "",
    site: Annotated[
        list[str] | None,
        typer.Option("--site", help="NAME=DATASET, once for each site; else the job's registered dataset is split."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="A dataset's folder, whose patients are split into four sites of uneven size.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated; each strategy runs once with each.")] = "",
    rounds: Rounds = None,
    backend: Backend = "federation",
    out: Annotated[
        Path | None, typer.Option(help="Folder; complete runs in it are not repeated. By default a new one.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also train each site alone, and all data pooled.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print comparison.json to stdout, progress to stderr.")] = False,
    workspace: Workspace = DEFAULT_WORKSPACE,
) -> None:
    """Run a job with several strategies or fusions over the same sites and seeds: one table and one plot."""
    keep_caches_in(workspace)
    from oncofed.job.compare import Compare, with_fusions, with_strategies
    from oncofed.job.spec import read_job

    require_posix()
    spec = read_job(job, with_code=True)
    spec = spec.with_rounds(rounds) if rounds else spec
    if bool(strategies) == bool(fusions):
        raise SpecError("expected either --strategies, such as fedavg,fedprox, or --fusions, such as none,concat,table")
    names = [name.strip() for name in (strategies or fusions).split(",") if name.strip()]
    specs = with_strategies(spec, names) if strategies else with_fusions(spec, names)
    numbers = parse_seeds(seeds) or [spec.seed]
    folder = out or new_run_folder(workspace, f"{spec.name}-comparison")
    console = progress_console(json)
    with ended_by_signals():
        sites = _compared_sites(spec, site or [], data_root, folder, workspace)
        found = Compare(
            specs=specs,
            sites=sites,
            seeds=numbers,
            backend=backend,
            folder=folder,
            console=console,
            baselines=baselines,
            paired=bool(fusions),
        ).execute()
    if json:
        echo_json(found.model_dump_json(indent=2))
        return
    table = Table(title=f"{spec.title}: {found.metric_name} on held-out patients", title_justify="left")
    table.add_column("strategy" if strategies else "fusion", no_wrap=True)
    for heading in ("mean", "worst site", "spread", "s a round", *([] if strategies else [f"less {names[0]}"])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        if row.mean is None or row.worst is None or row.spread is None or row.rounds_s is None:
            table.add_row(row.strategy, "–", style="red")
            console.print(f"{row.strategy} failed: {row.failed}", markup=False)
            continue
        worst = min(row.sites, key=lambda name: row.sites[name])
        columns = (f"{row.mean:.3f}", f"{row.worst:.3f} {worst}", f"{row.spread:.3f}", f"{row.rounds_s:.1f}")
        table.add_row(row.strategy, *columns, *([] if strategies else [_paired(row.paired)]))
    show_table(table)
    if found.alone is not None and found.pooled is not None:
        console.print(f"alone {found.alone:.3f}, pooled {found.pooled:.3f}")
    console.print(f"Figures: {folder / 'comparison.json'}\nPlot:    {folder / 'comparison.svg'}", soft_wrap=True)


def _paired(found: Paired | None) -> str:
    """Return a difference on the same patients, with its interval, in words."""
    if found is None or found.difference is None:
        return "–"
    ends = f" ({found.interval[0]:+.3f} to {found.interval[1]:+.3f})" if found.interval else ""
    return f"{found.difference:+.3f}{ends}, {found.patients} patients"


def _compared_sites(
    spec: JobSpec, site: list[str], data_root: Path | None, folder: Path, workspace: Path
) -> dict[str, Path]:
    from oncofed.cli.demo import SHARES
    from oncofed.data.partition import deal_to_sites

    if site:
        return named_sites(site, workspace)
    source = data_root or datasets_folder(workspace) / spec.data.dataset
    if not source.is_dir():
        raise SpecError(
            f"no sites: there is no registered dataset {spec.data.dataset!r}. Name sites with --site NAME=DATASET, or "
            "a dataset that is dealt to four sites with --data-root FOLDER, or register one: oncofed data register "
            f"FOLDER --dataset {spec.data.dataset}"
        )
    return deal_to_sites(source, folder / "data", SHARES, spec.seed)


@app.command()
def plan(
    job: Job,
    plan_file: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="plan.json of a federated profile.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The job.yaml to write; it must not exist.", show_default=False)
    ] = None,
    from_nnunet: Annotated[
        Path | None, typer.Option(metavar="PLANS", help="Instead of PLAN: nnUNetPlans.json of nnU-Net.")
    ] = None,
    configuration: Annotated[str, typer.Option(help="Of nnU-Net's plan: 3d_fullres, 3d_lowres or 2d.")] = "3d_fullres",
    json: Json = False,
) -> None:
    """Write a job with a federated profile's settings: spacing, patch, batch size, network.

    The rules are nnU-Net's. With --from-nnunet the settings are those of a plan that nnU-Net itself made: the same
    network, patch, spacing and batch.
    """
    from oncofed.data.planning import PlanFile
    from oncofed.job.nnunet import read_nnunet_plan
    from oncofed.job.spec import read_job

    if (plan_file is None) == (from_nnunet is None):
        raise typer.BadParameter("expected either PLAN, a profile's plan.json, or --from-nnunet nnUNetPlans.json.")
    if out is None:
        raise typer.BadParameter("expected the job.yaml to write: --out NEW.yaml")
    spec = read_job(job)
    if out.exists():
        raise SpecError(f"{out} exists. Name another file with --out.")
    made = read_nnunet_plan(from_nnunet, configuration) if from_nnunet else _profile_plan(plan_file or Path())
    if made.dimensions != spec.data.dimensions:
        raise SpecError(f"the plan is for images of {made.dimensions} axes, the job's have {spec.data.dimensions}")
    if not isinstance(made, PlanFile) and made.channels != len(spec.data.channels):
        raise SpecError(
            f"the plan is for images of {made.channels} channels, the job's have {len(spec.data.channels)} "
            "(data.channels)"
        )
    settings = dict(made.settings)
    remarks = list(made.remarks) if not isinstance(made, PlanFile) else []
    if spec.model.kind != "dense":
        del settings["model"]
        remarks.append(f"the plan's network gives values for each voxel; {spec.model.network} stays as it is")
    changed = spec.changed(settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(changed.to_yaml(), encoding="utf-8")
    if isinstance(made, PlanFile):
        _show_plan(made, out, json, remarks)
    elif json:
        values = {"settings": settings, "remarks": remarks, "reasons": [r.model_dump() for r in made.reasons]}
        typer.echo(jsonlib.dumps({**values, "written": str(out)}, indent=2))
    else:
        _show_reasons(f"from {from_nnunet}", made.reasons, remarks, out)


def _profile_plan(path: Path) -> PlanFile:
    from pydantic import ValidationError

    from oncofed.data.planning import PlanFile

    try:
        return PlanFile.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file. Make one with: oncofed job run federated_profile ...") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{path}: no plan ({str(error).splitlines()[0]}). Expected plan.json of a profile; nnU-Net's plans "
            "go with --from-nnunet."
        ) from None


def _show_plan(plan: PlanFile, path: Path, json: bool, remarks: Sequence[str] = ()) -> None:
    if json:
        echo_json(plan.model_dump_json(indent=2, by_alias=True))
        return
    title = f"from {sum(plan.patients.values())} patients of {len(plan.patients)} sites"
    _show_reasons(title, plan.reasons, remarks, path)


def _show_reasons(title: str, reasons: Sequence[Reason], remarks: Sequence[str], path: Path) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("setting", "value", "because", "statistic"):
        table.add_column(heading, overflow="fold")
    for reason in reasons:
        table.add_row(reason.setting, str(reason.value), reason.because, reason.statistic)
    console = plain_console()
    show_table(table, console)
    for remark in remarks:
        console.print(f"Note: {remark}.", soft_wrap=True)
    console.print(f"Written: {path}", soft_wrap=True)
    if path.suffix == ".json":
        console.print(f"Next:    oncofed job plan JOB {path} --out NEW.yaml", soft_wrap=True)
