"""A kit's files for containers, Slurm and Kubernetes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import wait_for
from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import provision
from oncofed.alliance.spec import AllianceSpec
from oncofed.loopback import free_port

SPEC = AllianceSpec(
    name="tiny",
    server="fl.example.org",
    sites=("east", "West_2"),
    relays={"mid": {"host": "relay.example.org", "port": 8003, "sites": ["West_2"]}},
    image="registry.example.org:5000/oncofed:1.2",
)
MACHINES = ("fl.example.org", "mid", "east", "West_2")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    authority = Authority.new("tiny")
    folder = provision(SPEC, tmp_path_factory.mktemp("deploy"), authority)
    for name in SPEC.everybody:
        add_contents(folder / name, SPEC, name, authority)
    return folder


def test_a_persons_kit_has_no_launch_files(kits: Path) -> None:
    assert not (kits / "engineer@oncofed.org" / "deploy").exists()


@pytest.mark.parametrize("name", MACHINES)
def test_the_compose_file_fits_its_schema(kits: Path, name: str) -> None:
    file = kits / name / "deploy" / "compose.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (service,) = yaml.safe_load(file.read_text())["services"].values()
    assert service["image"] == SPEC.image
    assert (service["cap_drop"], service["read_only"]) == (["ALL"], True)
    assert service.get("ports") == {"fl.example.org": ["8002:8002"], "mid": ["8003:8003"]}.get(name)


def test_the_image_supports_gpus(kits: Path) -> None:
    text = (kits / "east" / "deploy" / "Dockerfile").read_text()
    steps = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert all(name in ("FROM", "RUN", "COPY", "ENV", "USER", "ENTRYPOINT") for name, _ in steps)
    installed = next(what for name, what in steps if name == "RUN")
    assert {"gcc", "libc6-dev"} <= set(installed.split()), "torch.compile builds programs in C"
    assert ["ENV", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"] in steps, "nvidia-smi is a utility"


@pytest.mark.parametrize("name", MACHINES)
def test_the_chart_has_every_value_it_uses(kits: Path, name: str) -> None:
    chart = kits / name / "deploy" / "helm"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    templates = "".join(path.read_text() for path in (chart / "templates").iterdir())
    for asked in sorted(set(re.findall(r"\.Values\.([A-Za-z.]+)", templates))):
        found = values
        for part in asked.split("."):
            assert part in found, f"values.yaml has no {asked}"
            found = found[part]
    assert values["image"] == {
        "repository": "registry.example.org:5000/oncofed",
        "tag": "1.2",
        "pullPolicy": "IfNotPresent",
    }
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", values["name"])
    assert (values["rbac"]["create"], values["serviceAccount"]["create"]) == (False, False)
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["apiVersion"] == "v2"


def _program(folder: Path, name: str, does: str) -> Path:
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/log\n{does}\n')
    path.chmod(0o755)
    return path


def test_the_slurm_job_stops_the_site_and_submits_itself_again(kits: Path, tmp_path: Path) -> None:
    script = kits / "east" / "deploy" / "oncofed.slurm"
    directives = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --gres=gpu:1" in directives
    assert not [line for line in directives if not re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line)]
    program = _program(tmp_path, "oncofed", '[ "$2" = start ] && exec sleep 60')
    _program(tmp_path, "scontrol", "true")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "ONCOFED": str(program),
        "SLURM_SUBMIT_DIR": str(kits / "east"),
        "SLURM_JOB_ID": "7",
    }
    with subprocess.Popen(["bash", str(script)], env=environment) as job:
        log = tmp_path / "log"
        while not log.is_file():
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(10) == 0
    folder = f"--folder {kits / 'east'}"
    assert log.read_text().splitlines() == [
        f"oncofed site start {folder}",
        f"oncofed site stop {folder}",
        "scontrol requeue 7",
    ]


def test_the_slurm_job_ends_as_the_site_does(kits: Path, tmp_path: Path) -> None:
    program = _program(tmp_path, "oncofed", "exit 3")
    environment = {"PATH": "/usr/bin:/bin", "ONCOFED": str(program), "SLURM_SUBMIT_DIR": "/x", "SLURM_JOB_ID": "7"}
    script = kits / "east" / "deploy" / "oncofed.slurm"
    assert subprocess.run(["bash", str(script)], env=environment, check=False).returncode == 3


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("name", MACHINES)
def test_systemd_takes_the_unit(kits: Path, tmp_path: Path, name: str) -> None:
    text = (kits / name / "deploy" / "oncofed.service").read_text()
    # systemd looks for the program: this one is there.
    unit = tmp_path / f"oncofed-{name.replace('.', '-')}.service"
    unit.write_text(text.replace("/srv/oncofed/venv/bin/oncofed", "/bin/true").replace("User=oncofed", "User=daemon"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Path]:
    """A cluster of this machine alone, with one GPU that is a plain file; yields its configuration."""
    host, folder, key = socket.gethostname().split(".")[0], tmp_path / "slurm", tmp_path / "munge" / "key"
    for path in (folder / "state", folder / "spool", key.parent):
        path.mkdir(parents=True)
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    (folder / "gpu").touch()
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu\n")
    (folder / "slurm.conf").write_text(
        f"ClusterName=tiny\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\nMpiDefault=none\n"
        f"AuthType=auth/munge\nAuthInfo=socket={key.parent}/socket\nGresTypes=gpu\nReturnToService=2\n"
        f"SlurmctldPort={free_port()}\nSlurmdPort={free_port()}\nStateSaveLocation={folder}/state\n"
        f"SlurmdSpoolDir={folder}/spool\nSlurmctldPidFile={folder}/ctld.pid\nSlurmdPidFile={folder}/d.pid\n"
        f"SlurmctldLogFile={folder}/ctld.log\nSlurmdLogFile={folder}/d.log\nProctrackType=proctrack/linuxproc\n"
        "TaskPlugin=task/none\nSelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=500 Gres=gpu:1\n"
        f"PartitionName=all Nodes={host} Default=YES\n"
    )
    files = {
        name: f"--{name}={key.parent}/{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")
    }
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    silent: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = []
    try:
        for line in (
            ["munged", "--force", "--foreground", f"--key-file={key}", *files.values()],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-N", host],
        ):
            started.append(subprocess.Popen(line, **silent))
            if line[0] == "munged":
                wait_for((key.parent / "socket").exists, "munge is there", 30)
        yield folder / "slurm.conf"
    finally:
        for process in started[::-1]:
            process.terminate()
            process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))) or os.getuid() != 0,
    reason="no Slurm that root may start: make services",
)
def test_a_real_slurm_runs_the_site_stops_it_in_time_and_submits_it_again(
    slurm: Path, kits: Path, tmp_path: Path
) -> None:
    kit = tmp_path / "kit"
    shutil.copytree(kits / "east", kit)
    program = _program(tmp_path, "oncofed", '[ "$2" = start ] && exec sleep 600')
    environment = {**os.environ, "SLURM_CONF": str(slurm), "ONCOFED": str(program)}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=kit, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    wait_for(lambda: "idle" in run("sinfo", "--noheader"), "the node is there", 60)
    # Of what the script asks for only the size is changed to this cluster's.
    number = run("sbatch", "--parsable", "--cpus-per-task=1", "--mem=100", "deploy/oncofed.slurm")
    log = tmp_path / "log"
    wait_for(log.is_file, "the site is started", 60)
    assert "gpu:1" in run("scontrol", "show", "job", number)
    # What Slurm does at the end of the job's time.
    run("scancel", "--batch", "--signal=TERM", number)
    wait_for(lambda: "oncofed site stop" in log.read_text(), "the site is stopped", 60)
    wait_for(lambda: "Restarts=1" in run("scontrol", "show", "job", number), "it is submitted again", 60)
    assert log.read_text().splitlines()[:2] == [f"oncofed site {word} --folder {kit}" for word in ("start", "stop")]
    run("scancel", number)


def test_installed_packages_are_pinned_by_digest(kits: Path) -> None:
    lines = (kits / "east" / "requirements.txt").read_text().splitlines()
    pins = [line.split(" ")[0] for line in lines if re.match(r"[a-z0-9]", line)]
    pinned = set((kits / "east" / "constraints.txt").read_text().split())
    assert {"torch==2.13.0", "monai==1.6.1", "nvflare==2.9.0"} <= set(pins) <= pinned
    assert sum("--hash=sha256:" in line for line in lines) > len(pins)
