"""``site.yaml``: the few settings that a site's admin may change."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from oncofed.alliance.facts import Kind
from oncofed.flare.runtime.resources import SiteOffer
from oncofed.privacy.time_windows import WINDOW
from oncofed.proxy import parse_proxy
from oncofed.settings import StrictModel, read_yaml, validated

SETTINGS_FILE = "site.yaml"


class SiteSettings(StrictModel):
    """``site.yaml``: what a site's admin may change."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    datasets: dict[str, Path] = Field(
        default_factory=dict, description="name that jobs ask for -> folder of the registered dataset"
    )
    gpus: tuple[int, ...] | None = Field(None, description="numbers of the GPUs that are lent; null: all of them")
    jobs_at_once: int | None = Field(
        1, ge=1, le=64, description="jobs of the alliance; null: as many as there are GPUs for"
    )
    hours: str | None = Field(
        None, pattern=WINDOW, description="from when to when jobs may run, by this machine's clock; null: always"
    )
    proxy: str | None = Field(
        None, description="http://HOST:PORT of the hospital's proxy (HTTP CONNECT) on the way to the server; null: none"
    )
    log_mb: int = Field(20, ge=1, le=10_000, description="size at which a log is put aside; five of each are kept")
    restarts_an_hour: int = Field(10, ge=0, le=1000, description="so often a process that ended is started again")

    @field_validator("proxy")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_proxy(value)
        return value

    @property
    def lending(self) -> SiteOffer:
        """What the site lends to jobs."""
        return SiteOffer(self.gpus, self.jobs_at_once, self.hours)


_PROXY_TEXT = """\
proxy: null             # the way out, where there is one: http://HOST:PORT or http://USER:PASSWORD@HOST:PORT
"""
_SETTINGS_TEXT = """\
# What this {kind} may change. `oncofed site doctor` checks it; `oncofed site start` reads it.
schema: 1
{datasets}{lending}{proxy}log_mb: 20              # size at which a log is put aside; five of each are kept
restarts_an_hour: 10    # so often a process that ended is started again
"""
_LENDING_TEXT = """\
gpus: null              # numbers of the GPUs that are lent, such as [0, 1]; null: all
jobs_at_once: 1         # jobs of the alliance; null: as many as there are GPUs for, each has its own
hours: null             # when jobs may run, by this machine's clock, such as "18:00-07:00"; null: always
"""
_DATASETS_TEXT = """\
datasets: {}            # name that jobs ask for: folder of the registered dataset, such as
                        # {spleen_ct: /data/oncofed/spleen_ct}; see: oncofed data register --help
"""
_OWN_OF_A_SITE = {"datasets": _DATASETS_TEXT, "lending": _LENDING_TEXT, "proxy": _PROXY_TEXT}


def settings_text(kind: Kind) -> str:
    """Return the file as a kit brings it."""
    own = _OWN_OF_A_SITE if kind == "site" else dict.fromkeys(_OWN_OF_A_SITE, "")
    return _SETTINGS_TEXT.format(kind=kind, **own)


def read_settings(folder: Path) -> SiteSettings:
    """Return a site's settings.

    Raises:
        SpecError: the file is not valid; one line for each mistake.
    """
    path = folder / SETTINGS_FILE
    values, lines = read_yaml(path, "datasets: {}")
    return validated(SiteSettings, values, str(path), lines, "settings")
