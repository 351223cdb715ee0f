"""Tests of the GPU checks' command.

Checks that hang, die, or refute a claim.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from commands import wait_for
from gpu_checks import data, determinism
from gpu_checks.checks import CHECKS, chosen
from gpu_checks.claims import claim_named
from gpu_checks.context import Context
from gpu_checks.forks import Fork
from gpu_checks.results import Header, Line, NoGPUError, Report, Run, append, exit_status, read_run, read_runs, summary
from gpu_checks.runner import Runner
from gpu_checks.table import status
from oncofed.errors import SpecError

_ROOT = Path(__file__).parents[2]
_HEADER = Header(schema=1, started="2026-01-01T00:00:00+00:00", commit="abc", device="cuda", environment={})


def _command(*arguments: str | Path) -> subprocess.Popen[str]:
    folders = (_ROOT / "custom", _ROOT / "benchmarks", _ROOT / "benchmarks" / "lab", _ROOT / "tests")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    words = [sys.executable, "-m", "gpu_checks", *map(str, arguments)]
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    file = tmp_path / "run.jsonl"
    append(file, _HEADER)
    return Runner(file, tmp_path, "cpu", time.monotonic() + 60)


def _lines(runner: Runner, check: Callable[[Context], None], seconds: float = 30) -> list[Line]:
    runner.run_one("restart", lambda: check, seconds)
    return read_run(runner.file).lines


def test_a_hanging_check_is_killed_with_its_processes_and_reported(runner: Runner) -> None:
    def hangs(context: Context) -> None:
        child = subprocess.Popen(["sleep", "317"])
        context.report.figure("before", child=child.pid)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)

    before, told = _lines(runner, hangs, seconds=2)
    assert before.text == "before"
    assert (told.verdict, told.error) == ("FAILED", "not done after 2 s: killed")
    child = before.numbers["child"]
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", "no child is left", 60)


def test_a_dying_check_is_reported_with_its_signal_and_lines(runner: Runner) -> None:
    def dies(context: Context) -> None:
        context.report.claim("restart", True)
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does for want of memory

    before, told = _lines(runner, dies)
    assert (before.verdict, told.verdict, told.error) == ("walked", "FAILED", "ended by signal SIGKILL")


def test_a_check_that_exits_or_raises_is_reported(runner: Runner) -> None:
    def exits(context: Context) -> None:
        os._exit(5)

    def raises(context: Context) -> None:
        raise torch.OutOfMemoryError("tried to allocate\n2 GiB")

    exited, raised = (_lines(runner, check)[-1] for check in (exits, raises))
    assert exited.error == "ended with exit status 5 and said nothing"
    assert raised.error == "OutOfMemoryError: tried to allocate 2 GiB"


def test_an_exception_refutes_the_claim_and_the_check_goes_on(runner: Runner) -> None:
    def tries(context: Context) -> None:
        with context.report.attempt("restart", "the first job"):
            raise RuntimeError("CUDA error: unspecified launch failure")
        context.report.claim("restart", True, "the second job")

    first, second = _lines(runner, tries)
    assert (first.verdict, second.verdict) == ("REFUTED", "walked")
    assert first.error == "RuntimeError: CUDA error: unspecified launch failure"
    assert exit_status(read_run(runner.file)) == 1


def test_a_fork_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    note = tmp_path / "inner"

    def starts() -> None:
        inner = Fork(lambda: time.sleep(300))
        note.write_text(str(inner.pid))
        time.sleep(300)

    outer = Fork(starts, own_group=True)
    wait_for(lambda: note.is_file() and note.read_text(), "the inner fork runs", 60)
    os.kill(outer.pid, signal.SIGKILL)
    inner = int(note.read_text())
    wait_for(lambda: not psutil.pid_exists(inner) or psutil.Process(inner).status() == "zombie", "it ended", 60)
    outer.end()


def test_a_cpu_decides_only_claims_that_it_can_refute(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    append(file, _HEADER)
    for device in ("cpu", "cuda"):
        Report(file, "step", device).claim("step-limit", False, "a step", times=3.0)
        Report(file, "memory", device).claim("halving", False)
    assert [line.verdict for line in read_run(file).lines] == ["figure", "REFUTED", "REFUTED", "REFUTED"]
    with pytest.raises(ValueError, match="the claim halving is of the check memory, found in step"):
        Report(file, "step", "cpu").claim("halving", True)


def test_what_holds_on_a_cpu_is_walked_and_confirms_nothing(tmp_path: Path) -> None:
    file = tmp_path / "cpu-lines.jsonl"
    append(file, _HEADER.model_copy(update={"device": "cpu"}))
    report = Report(file, "facts", "cpu")
    report.claim("precision", True)
    report.claim("first", True)
    Report(file, "restart", "cpu").claim("restart", False)
    run = read_run(file)
    words = {line.claim: line.verdict for line in run.lines}
    assert words == {"precision": "walked", "first": "figure", "restart": "REFUTED"}
    assert run.verdict(claim_named("precision")) == "walked"
    assert status(claim_named("precision"), [run]) == ("not confirmed", None)
    told = summary(run)
    assert "walked      precision" in told
    assert "REFUTED     restart" in told
    assert "CONFIRMED" not in file.read_text() + told


def test_a_nondeterministic_operation_of_our_network_refutes_determinism(tmp_path: Path) -> None:
    class Telling:
        def train(self, steps: int) -> None:
            logging.getLogger("oncofed.training.determinism").warning("training.deterministic: there is no form of x")

        def weights(self) -> dict[str, torch.Tensor]:
            return {"w": torch.ones(2)}

    file = tmp_path / "lines"
    append(file, _HEADER)
    context = Context(torch.device("cpu"), tmp_path, Report(file, "determinism", "cuda"))
    determinism._twice(context, "densenet121", Telling, "densenet121")  # type: ignore[arg-type]
    [line] = read_run(file).lines
    assert (line.verdict, line.numbers["differing"]) == ("REFUTED", [])
    assert line.numbers["told"] == "training.deterministic: there is no form of x"
    assert not determinism.MAY_ALERT.intersection(network for network, _, _ in determinism.NETWORKS)


def test_infinite_numbers_are_kept_as_words(tmp_path: Path) -> None:
    append(tmp_path / "lines", _HEADER)
    Report(tmp_path / "lines", "step", "cuda").figure("steps", pays_from=float("inf"), device=torch.device("cpu"))
    assert read_run(tmp_path / "lines").lines[0].numbers == {"pays_from": "Infinity", "device": "cpu"}


def test_a_claim_is_confirmed_only_without_refutation() -> None:
    def exit_of(*verdicts: str) -> int:
        lines = [Line(check="restart", claim="restart", verdict=verdict, text="") for verdict in verdicts]
        return exit_status(Run(header=_HEADER, lines=lines))

    assert [exit_of("CONFIRMED", "figure"), exit_of("not checked"), exit_of("CONFIRMED", "REFUTED")] == [0, 0, 1]
    assert exit_of("CONFIRMED", "FAILED") == 1


def test_a_line_that_was_cut_off_is_left_out_and_another_file_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    append(file, _HEADER)
    append(file, Line(check="step", verdict="figure", text="whole"))
    file.write_text(file.read_text() + '{"check": "step", "verd')
    assert [line.text for line in read_run(file).lines] == ["whole"]
    (tmp_path / "cpu-b.jsonl").write_text("of a walk on a CPU, which is not read\n")
    assert len(read_runs(tmp_path)) == 1
    (tmp_path / "c.jsonl").write_text('{"schema": 7}\n')
    with pytest.raises(SpecError, match="Expected a file that `make gpu` wrote"):
        read_runs(tmp_path)


def test_checks_without_time_left_are_reported(runner: Runner) -> None:
    Runner(runner.file, runner.folder, "cpu", time.monotonic() + 1).run(chosen("restart,step"))
    lines = read_run(runner.file).lines
    assert {line.verdict for line in lines} == {"not checked"}
    assert {"restart", "step-limit", "step-loop"} <= {line.claim for line in lines}


def test_the_jobs_trained_on_a_gpu_are_consistent(tmp_path: Path) -> None:
    context = Context(torch.device("cuda"), tmp_path, Report(tmp_path / "lines", "determinism", "cuda"))
    for job in data.JOBS:
        assert data.plan_of(context, job).data.patch != data.SMALL[job]["data"]["patch"] or job == data.SLIDES
        data.plan_of(context, job, small=True)
    for network, job, changes in determinism.NETWORKS:
        assert data.plan_of(context, job, determinism.with_network(network, changes)).model.network == network


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gets_advice(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "run.jsonl", tmp_path, "cuda", time.monotonic() + 60)
    with pytest.raises(NoGPUError, match=r"no GPU can be used here: .* make gpu DEVICE=cpu walks all checks") as caught:
        runner.begin("abc")
    assert caught.value.exit_code == 3
    assert not runner.file.exists()


def test_they_are_listed_and_a_wrong_name_is_refused() -> None:
    listed, wrong = _command("--list"), _command("--only", "restart,restrat")
    output, errors = listed.communicate(timeout=300)[0], wrong.communicate(timeout=300)[1]
    assert [line.split()[0] for line in output.splitlines()] == [check.name for check in CHECKS]
    assert (
        "restart      A process is killed, and another goes on from its checkpoint to the same bits (restart;" in output
    )
    assert (listed.returncode, wrong.returncode) == (0, 2)
    assert "no check 'restrat'; expected some of: facts, training, restart" in errors


@pytest.mark.thorough
@pytest.mark.slow
def test_ctrl_c_keeps_the_lines_and_leaves_nothing_running(tmp_path: Path) -> None:
    process = _command("--device", "cpu", "--only", "training", "--out", tmp_path)
    wait_for(lambda: any("walked" in file.read_text() for file in tmp_path.glob("*.jsonl")), "a line is kept")
    members = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "stopped; nothing that was started is left running" in errors
    assert "Traceback" not in errors
    [file] = tmp_path.glob("cpu-*.jsonl")
    assert str(file) in output
    assert read_run(file).header.environment["cores"] == os.cpu_count()
    wait_for(lambda: not any(member.is_running() for member in members), "nothing is left running", 60)
