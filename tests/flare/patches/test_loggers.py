"""FLARE's loggers are named as ever, and other stacks stay whole."""

from __future__ import annotations

import inspect
import subprocess
import sys

from nvflare.fuel.utils import log_utils

from oncofed.flare.patches import loggers


def test_loggers_have_the_names_that_flare_gives_them() -> None:
    assert inspect.stack is loggers._callers
    assert log_utils.get_module_logger().name == __name__
    assert log_utils.get_module_logger(name="more").name == f"{__name__}.more"
    script = "from nvflare.fuel.utils.log_utils import get_script_logger; print(get_script_logger().name)"
    for first in ("", "import oncofed.flare; "):
        command = [sys.executable, "-c", f"{first}__file__ = '/tmp/own.py'; {script}"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "custom.own\n"


def test_whoever_else_looks_gets_the_whole_stack() -> None:
    def inner() -> list[inspect.FrameInfo]:
        return inspect.stack()

    frames = inner()
    assert [frame.function for frame in frames[:2]] == ["inner", "test_whoever_else_looks_gets_the_whole_stack"]
    assert len(frames) > 5
    assert frames[0].code_context == ["        return inspect.stack()\n"]
