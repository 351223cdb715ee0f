"""An engineer's code in the real sandboxed process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import SiteContext
from oncofed.client.sandboxed import SandboxedTraining
from oncofed.errors import DataError, TrainingError
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.encoders import find_entry, keep_weights, load_encoder
from oncofed.models.weights import layout_of, weights_of
from oncofed.packs.load import load_pack
from oncofed.packs.pack import Pack, make_pack
from oncofed.sandbox import what_is_missing
from oncofed.training import Plan
from stub_driver import build_driver
from synthetic import Voice, make_package

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(what_is_missing() is not None, reason=f"no process can be confined: {what_is_missing()}"),
]

# Each of these is tried when the engineer's code is imported, again in a thread, and noted in its scratch folder.
_ATTACKS = """
import ctypes, json, os, pathlib, signal, socket, subprocess, sys, threading

DATA, OTHER, PORT, PARENT = {data!r}, {other!r}, {port}, os.getppid()
libc = ctypes.CDLL(None, use_errno=True)


def call(*numbers):
    if libc.syscall(*numbers) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


ATTACKS = dict(
    connect=lambda: socket.create_connection(("127.0.0.1", PORT), 2).sendall(b"pixels"),
    datagram=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"pixels", ("127.0.0.1", PORT)),
    unix=lambda: socket.socket(socket.AF_UNIX),
    fork=os.fork,
    spawn=lambda: os.posix_spawn("/bin/true", ["true"], {{}}),
    execute=lambda: os.execv("/bin/true", ["true"]),
    subprocess=lambda: subprocess.run(["true"]),
    read_other_dataset=lambda: next(p.read_bytes() for p in pathlib.Path(OTHER).rglob("*") if p.is_file()),
    list_other_dataset=lambda: os.listdir(OTHER),
    read_passwords=lambda: open("/etc/passwd").read(),
    read_job_process=lambda: open(f"/proc/{{PARENT}}/environ", "rb").read(),
    write_data=lambda: open(DATA + "/dataset.json", "a").write(" "),
    delete_data=lambda: os.unlink(DATA + "/dataset.json"),
    chmod_data=lambda: os.chmod(DATA + "/dataset.json", 0),
    write_elsewhere=lambda: open(OTHER + "/left.txt", "w").write("pixels"),
    write_tmp=lambda: open("/tmp/left-by-a-pack.txt", "w").write("pixels"),
    link_out=lambda: (os.path.lexists("link") or os.symlink("/etc/passwd", "link"), open("link").read()),
    end_job_process=lambda: os.kill(PARENT, signal.SIGKILL),
    trace=lambda: call(101, 16, PARENT, 0, 0),
    unshare=lambda: call(272, 0x10000000),
    io_uring=lambda: call(425, 8, 0),
    rename_data=lambda: os.rename(DATA + "/dataset.json", DATA + "/gone.json"),
)
os.chdir(os.environ["HOME"])


def tried():
    results = {{}}
    for name, attack in ATTACKS.items():
        try:
            attack()
            results[name] = "it worked"
        except BaseException as error:
            results[name] = type(error).__name__
    return results


results = {{"main": tried()}}
thread = threading.Thread(target=lambda: results.update(thread=tried()))
thread.start()
thread.join()
if DATA:
    pathlib.Path("attacks.json").write_text(json.dumps(results))
"""

# Put where Python looks first: a process that computes on the CPU starts the stub's driver where a GPU would be used.
_STARTS_DRIVER = """
import ctypes, importlib.util, sys


class Finder:
    def find_spec(self, name, path, target=None):
        if name != "oncofed.devices":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            chosen = module.training_device

            def training_device(wanted=None):
                code = ctypes.CDLL("libcuda.so.1").cuInit(0)
                if code:
                    raise module.TrainingError(f"cuInit: {code}")
                return chosen("cpu")

            module.training_device = training_device

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""

_USES_DRIVER = """
import ctypes, errno
driver = ctypes.CDLL("libcuda.so.1")
assert driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 0, "not initialised"
assert driver.start_another_thread() == 0, "what it does later is refused"
assert driver.open_elsewhere(b"/proc/devices") == 0
for path in (b"/etc/passwd", b"/etc/hostname", b"/proc/1/environ"):
    assert driver.open_elsewhere(path) == errno.EACCES, "the driver's own thread may open it"
"""


@pytest.fixture
def voice() -> Voice:
    return Voice()


@pytest.fixture
def context(two_sites: dict[str, Path], tmp_path: Path) -> SiteContext:
    """A site whose images are links to another folder."""
    (tmp_path / "store").mkdir()
    for image in sorted((two_sites["east"] / "imagesTr").iterdir()):
        image.symlink_to(image.rename(tmp_path / "store" / image.name))
    return SiteContext(site="east", data=two_sites["east"], state=tmp_path / "state")


def _plan(spec: JobSpec, pack: Pack, **settings: Any) -> Plan:
    """Return a plan with the pack's network."""
    load_pack(pack)
    model = {"code": pack.digest, "network": "wide_net"}
    return Plan.model_validate(spec.plan().model_dump() | {"model": model, **settings}).declared()


def _sandboxed(plan: Plan, context: SiteContext, voice: Voice, pack: Pack) -> SandboxedTraining:
    return SandboxedTraining(plan=plan, federation=FederationPlan(), context=context, reporter=voice, pack=pack)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def test_sandboxed_training_gives_the_same_model(
    spec: JobSpec, context: SiteContext, voice: Voice, tmp_path: Path
) -> None:
    pack = make_pack(make_package(tmp_path / "wide_net"), None)
    plan = _plan(spec, pack)
    federation = FederationPlan.model_validate({"strategy": {"name": "scaffold"}})
    bare = Plan.model_validate({**plan.model_dump(), "model": {"code": pack.digest, "network": "wide_net"}})
    weights = bare.initial_weights()
    extra = {f"control.{name}": torch.zeros_like(value) for name, value in weights.items()}
    train = TrainRequest(weights=weights, round=1, extra=extra)
    test = EvaluateRequest(weights=weights, round=1, split="test")
    training = SandboxedTraining(plan=plan, federation=federation, context=context, reporter=voice, pack=pack)
    assert training.prepare()["train"] == 5
    answer = training.train(train, lambda: False)
    numbers = training.validate(test, lambda: False).numbers
    training.close()
    own_context = SiteContext(site="east", data=context.data, state=tmp_path / "own")
    own = InProcessTraining(plan=bare, federation=federation, context=own_context, reporter=Voice())
    own.prepare()
    expected = own.train(train, lambda: False)
    assert (answer.cases, answer.steps, answer.turn_key) == (expected.cases, expected.steps, expected.turn_key)
    assert answer.numbers["loss"] == expected.numbers["loss"]
    for found, wanted in ((answer.delta, expected.delta), (answer.extra, expected.extra)):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert numbers["evaluation"] == own.validate(test, lambda: False).numbers["evaluation"]
    own.close()
    assert {told["phase"] for told in voice.told} == {
        "checking data",
        "loading data",
        "validating",
        "training",
        "testing",
    }
    assert (context.state / "test_cases.csv").is_file()


@pytest.mark.attack(
    "approved code opens a socket, forks, runs programs, reads another dataset or process, writes outside its scratch",
    by="Landlock and a filter of system calls",
    logged="the site's log, as what the code prints",
)
def test_sandboxed_code_cannot_leave_its_sandbox(
    spec: JobSpec,
    context: SiteContext,
    voice: Voice,
    two_sites: dict[str, Path],
    listener: socket.socket,
    tmp_path: Path,
) -> None:
    harmless = make_pack(make_package(tmp_path / "wide_net"), None)
    port = listener.getsockname()[1]
    attacks = _ATTACKS.format(data=str(context.data), other=str(two_sites["west"]), port=port)
    pack = make_pack(make_package(tmp_path / "evil" / "wide_net", attacks), None)
    declared = _plan(spec, harmless).model_dump()
    plan = Plan.model_validate({**declared, "model": {**declared["model"], "code": pack.digest}})
    before = {path: path.read_bytes() for folder in two_sites.values() for path in folder.rglob("*") if path.is_file()}
    training = _sandboxed(plan, context, voice, pack)
    assert training.prepare()["train"] == 5
    training.close()
    results = json.loads((context.state / "scratch" / "attacks.json").read_text())
    assert set(results) == {"main", "thread"}
    for where, tried in results.items():
        others = {name: result for name, result in tried.items() if result not in ("PermissionError", "StopIteration")}
        assert not others, where
    with pytest.raises(BlockingIOError):
        listener.accept()
    after = {path: path.read_bytes() for folder in two_sites.values() for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert not Path("/tmp/left-by-a-pack.txt").exists()


_READS = """
import sys
from pathlib import Path
import torch
from oncofed.client.sandboxed_process import accessible_paths
from oncofed.sandbox import restrict_files

folder, weights = map(Path, sys.argv[1:])
restrict_files(*accessible_paths(folder / "data", folder / "state", [weights]))
from oncofed.tasks.encoder import Encoder, EncoderSpec  # as a site's process does: libraries start threads

print(Encoder(EncoderSpec(network="resnet18"), torch.device("cpu")).digest)
try:
    print((folder / "encoders" / "uni.safetensors").read_bytes())
except PermissionError:
    print("refused")
"""


def test_a_confined_process_reads_the_weights_of_its_jobs_encoder_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONCOFED_ENCODERS", str(tmp_path / "encoders"))
    monkeypatch.setenv("USER", "somebody")  # MONAI looks the user up, where nothing says it
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 9, 2, (64, 64)), 1)
    save_file({n: v.contiguous() for n, v in weights_of(network).items()}, tmp_path / "model.safetensors")
    entry = find_entry("resnet18")
    loaded = load_encoder(entry, tmp_path / "model.safetensors")
    kept = keep_weights(entry, loaded)
    kept.with_name("uni.safetensors").write_bytes(b"under another licence")
    for name in ("data", "state"):
        (tmp_path / name).mkdir()
    done = subprocess.run([sys.executable, "-c", _READS, tmp_path, kept], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [f"resnet18 {loaded.digest}", "refused"]


@pytest.mark.attack(
    "approved code raises an error, or writes progress, whose words hold pixels",
    by="the job's process, which lets words of the code stay at the site",
    logged="the site's log, on one line",
)
def test_texts_of_the_code_stay_at_the_site(spec: JobSpec, context: SiteContext, voice: Voice, tmp_path: Path) -> None:
    harmless = make_pack(make_package(tmp_path / "wide_net"), None)
    words = 'raise type("Pixels255_0_1", (Exception,), {})("patient 7\\nforged line\\x1b[2J")\n'
    pack = make_pack(make_package(tmp_path / "evil" / "wide_net", words), None)
    declared = _plan(spec, harmless).model_dump()
    plan = Plan.model_validate({**declared, "model": {**declared["model"], "code": pack.digest}})
    training = _sandboxed(plan, context, voice, pack)
    with pytest.raises(TrainingError) as told:
        training.prepare()
    assert str(told.value) == "its process of the pack wide_net ended in a SpecError; its own log says more"
    (note,) = voice.notes
    assert "patient 7 forged line" in note
    assert "\n" not in note
    assert "\x1b" not in note


@pytest.mark.thorough
@pytest.mark.attack(
    "a pack of other code than the job names, or a network with other tensors than it declares",
    by="the confined process, before the code is used",
    logged="the site's log",
)
def test_code_that_does_not_match_the_job_is_refused(
    spec: JobSpec, context: SiteContext, voice: Voice, tmp_path: Path
) -> None:
    pack = make_pack(make_package(tmp_path / "wide_net"), None)
    plan = _plan(spec, pack)
    other = make_pack(make_package(tmp_path / "evil" / "wide_net", "X = 1\n"), None)
    with pytest.raises(TrainingError, match="PolicyError"):
        _sandboxed(plan, context, voice, other).prepare()
    values = plan.model_dump()
    values["model"]["declared"]["tensors"]["pixels"] = {
        "dtype": "float32",
        "shape": (512, 512),
        "travels": True,
        "trained": True,
    }
    with pytest.raises(TrainingError, match="SpecError"):
        _sandboxed(Plan.model_validate(values), context, voice, pack).prepare()
    assert layout_of(
        Plan.model_validate({**values, "model": {"network": "wide_net", "code": pack.digest}}).build_network()
    )


@pytest.mark.thorough
def test_data_errors_are_reported_and_a_killed_process_is_replaced(
    spec: JobSpec, context: SiteContext, voice: Voice, tmp_path: Path
) -> None:
    pack = make_pack(make_package(tmp_path / "wide_net"), None)
    plan = _plan(spec, pack)
    nowhere = SiteContext(site="east", data=tmp_path / "nowhere", state=context.state)
    with pytest.raises(DataError):
        _sandboxed(plan, nowhere, voice, pack).prepare()
    training = _sandboxed(plan, context, voice, pack)
    training.prepare()
    assert training._process
    os.kill(training._process.pid, 9)
    weights = Plan.model_validate(
        {**plan.model_dump(), "model": {"code": pack.digest, "network": "wide_net"}}
    ).initial_weights()
    with pytest.raises(TrainingError, match="the process of the pack wide_net ended"):
        training.train(TrainRequest(weights=weights, round=1), lambda: False)
    training.prepare()
    stopped = training.train(TrainRequest(weights=weights, round=1), lambda: True)
    assert stopped.steps <= spec.training.steps_per_round
    training.close()


@pytest.mark.attack(
    "approved code has a thread of the GPU's driver, which was there before the code, open files for it",
    by="Landlock, which binds the process before the driver is begun",
    logged="the site's log, as what the code prints",
)
def test_the_gpu_driver_starts_before_the_code_and_is_confined(
    spec: JobSpec,
    context: SiteContext,
    voice: Voice,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build_driver(tmp_path / "driver")))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(_STARTS_DRIVER)
    paths = [str(tmp_path / "first"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    harmless = make_pack(make_package(tmp_path / "wide_net"), None)
    pack = make_pack(make_package(tmp_path / "uses" / "wide_net", _USES_DRIVER), None)
    declared = _plan(spec, harmless).model_dump()
    plan = Plan.model_validate({**declared, "model": {**declared["model"], "code": pack.digest}})
    training = _sandboxed(plan, context, voice, pack)
    assert training.prepare()["train"] == 5, voice.notes
    assert training._process
    begun = f"DRIVER {training._process.pid} cuInit"
    training.close()
    assert begun in capfd.readouterr().err


def test_an_unusable_gpu_is_reported_without_cpu_training(
    spec: JobSpec, context: SiteContext, voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    pack = make_pack(make_package(tmp_path / "wide_net"), None)
    with pytest.raises(TrainingError, match=r"^the GPU cannot be used: .* Install "):
        _sandboxed(_plan(spec, pack), context, voice, pack).prepare()
    assert "the GPU cannot be used" in voice.notes[0]


@pytest.mark.attack(
    "approved code raises an error of ours whose words hold pixels",
    by="the job's process, which passes on words from before the code was loaded alone",
    logged="the site's log, on one line",
)
def test_the_code_cannot_imitate_the_trusted_process(
    spec: JobSpec, context: SiteContext, voice: Voice, tmp_path: Path
) -> None:
    harmless = make_pack(make_package(tmp_path / "wide_net"), None)
    words = (
        "from oncofed.errors import TrainingError\nimport oncofed.client.sandbox_worker as c\n"
        "def tell(events, error):\n    events.send('failed', {'type': 'TrainingError', 'text': 'patient 7'})\n"
        "c._send_failure = tell\nraise TrainingError('patient 7')\n"
    )
    pack = make_pack(make_package(tmp_path / "evil" / "wide_net", words), None)
    declared = _plan(spec, harmless).model_dump()
    plan = Plan.model_validate({**declared, "model": {**declared["model"], "code": pack.digest}})
    with pytest.raises(TrainingError) as told:
        _sandboxed(plan, context, voice, pack).prepare()
    assert str(told.value) == "its process of the pack wide_net ended in a TrainingError; its own log says more"
    assert "patient 7" in voice.notes[0]
