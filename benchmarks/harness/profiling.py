"""Profiles programs: Perfetto traces, tables of kernels and gaps."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_ROWS = 10


@dataclass(frozen=True)
class Span:
    """A GPU kernel or copy, or an outermost CPU operation.

    Attributes:
        name: of the kernel or operation.
        start: microseconds.
        end: microseconds.
    """

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Gap:
    """A time in which nothing ran.

    Attributes:
        after: name of the span before it.
        before: name of the span after it.
        microseconds: duration.
    """

    after: str
    before: str
    microseconds: float


def write_profile(program: Callable[[], object], device: torch.device, folder: Path, name: str) -> str:
    """Profile a program with torch; return the text of ``NAME.txt``.

    Also writes ``NAME.trace.json``, which opens in https://ui.perfetto.dev or chrome://tracing.

    Args:
        program: warmed up.
        device: of the program.
        folder: for the files.
        name: of the files; characters unfit for file names become dashes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True) as profiled:
        program()
        if cuda:
            torch.cuda.synchronize(device)
    profiled.export_chrome_trace(str(folder / f"{base}.trace.json"))
    events = profiled.events() or []
    text = table(spans_of(events, cuda), "GPU" if cuda else "CPU", named_parts(events))
    (folder / f"{base}.txt").write_text(text + "\n", encoding="utf-8")
    return text


def busy_share(program: Callable[[], object], device: torch.device) -> float:
    """Return the share of time that the GPU works."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        program()
        torch.cuda.synchronize(device)
    spans = spans_of(profiled.events() or [], cuda=True)
    return busy(spans) / (spans[-1].end - spans[0].start) if spans else 0.0


def spans_of(events: Iterable[Any], cuda: bool) -> list[Span]:
    """Return spans by start.

    Of a GPU, or of a CPU's busiest thread.
    """
    # Ranges that name a part of the program contain other events: they are not work.
    if cuda:
        chosen = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
    else:
        plain = [event for event in events if event.device_type.name == "CPU" and not event.is_user_annotation]
        outermost = [event for event in plain if event.cpu_parent is None or event.cpu_parent.is_user_annotation]
        by_thread: dict[int, list[Any]] = defaultdict(list)
        for event in outermost:
            by_thread[event.thread].append(event)
        chosen = max(by_thread.values(), key=lambda group: sum(e.time_range.elapsed_us() for e in group), default=[])
    spans = [Span(event.name, event.time_range.start, event.time_range.end) for event in chosen]
    return sorted(spans, key=lambda span: span.start)


def named_parts(events: Iterable[Any]) -> dict[str, float]:
    """Return CPU microseconds of each named part (``profile_ranges``)."""
    sums: dict[str, float] = defaultdict(float)
    for event in events:
        # The profiler adds ranges itself, such as an optimizer's step.
        if event.is_user_annotation and event.device_type.name == "CPU" and event.name.isidentifier():
            sums[event.name] += event.time_range.elapsed_us()
    return dict(sums)


def busy(spans: Sequence[Span]) -> float:
    """Return the microseconds covered by sorted spans."""
    covered, end = 0.0, float("-inf")
    for span in spans:
        covered += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return covered


def gaps(spans: Sequence[Span]) -> list[Gap]:
    """Return gaps between spans sorted by start, longest first."""
    found = []
    latest = spans[0] if spans else None
    for span in spans[1:]:
        assert latest is not None
        if span.start > latest.end:
            found.append(Gap(latest.name, span.name, span.start - latest.end))
        if span.end > latest.end:
            latest = span
    return sorted(found, key=lambda gap: -gap.microseconds)


def table(spans: Sequence[Span], where: str, parts: Mapping[str, float] | None = None) -> str:
    """Return the ten longest kernels and gaps as text.

    Kernels are summed by name.

    Args:
        spans: sorted by start.
        where: "GPU" or "CPU".
        parts: microseconds by named part of the program, listed first.
    """
    if not spans:
        return f"nothing ran on the {where}"
    whole = spans[-1].end - spans[0].start
    whole = max(whole, max(span.end for span in spans) - spans[0].start)
    working = busy(spans)
    sums: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        sums[span.name].append(span.end - span.start)
    largest = sorted(sums.items(), key=lambda item: -sum(item[1]))[:_ROWS]
    lines = [f"{whole / 1000:.1f} ms, in {working / whole:.1%} of which the {where} works", ""]
    if parts:
        lines.append(f"{'ms':>9}  {'share':>6}  part, as the CPU sees it")
        lines += [f"{us / 1000:9.2f}  {us / whole:6.1%}  {name}" for name, us in parts.items()]
        lines.append("")
    lines += [
        f"{'ms':>9}  {'share':>6}  {'calls':>6}  {'kernel' if where == 'GPU' else 'operation'}",
    ]
    for name, times in largest:
        lines.append(f"{sum(times) / 1000:9.2f}  {sum(times) / whole:6.1%}  {len(times):6}  {_short(name)}")
    lines += ["", f"{'gap, ms':>9}  {'share':>6}  between"]
    for gap in gaps(spans)[:_ROWS]:
        share = gap.microseconds / whole
        lines.append(f"{gap.microseconds / 1000:9.2f}  {share:6.1%}  {_short(gap.after)}  →  {_short(gap.before)}")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= 90 else f"{name[:87]}…"
