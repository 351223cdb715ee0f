"""What the parent and the processes that extract say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed.data.tiles import SlideTiles


@dataclass(frozen=True)
class SlideJob:
    """A slide to do.

    Attributes:
        number: of the slide.
        name: of the slide.
        tiles: all of it.
        source: changes with the slide's files; see ``slide_source``.
        alone: nothing else is begun before it is done: it may have ended a process.
    """

    number: int
    name: str
    tiles: SlideTiles
    source: str
    alone: bool = False


@dataclass(frozen=True)
class Ready:
    """The encoder is loaded; the fields are its own."""

    digest: str
    key: str
    size: int


@dataclass(frozen=True)
class Wanted:
    """A slide is asked for: a ``SlideJob`` answers, or None where there is none for now."""


@dataclass(frozen=True)
class Progress:
    """Number of a slide's tiles that are done."""

    number: int
    tiles: int


@dataclass(frozen=True)
class Done:
    """A slide's file is written."""

    number: int


@dataclass(frozen=True)
class SetAside:
    """A slide cannot be used."""

    number: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """The process ends: nothing can be extracted here."""

    reason: str


Message = Ready | Wanted | Progress | Done | SetAside | Failed
