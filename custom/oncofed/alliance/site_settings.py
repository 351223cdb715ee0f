"""``site.yaml``: the settings of a site's admin."""

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
    """The settings in ``site.yaml``."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    datasets: dict[str, Path] = Field(
        default_factory=dict, description="name that jobs ask for -> folder of the registered dataset"
    )
    gpus: tuple[int, ...] | None = Field(None, description="numbers of the GPUs for jobs; null: all of them")
    jobs_at_once: int | None = Field(
        1, ge=1, le=64, description="jobs of the alliance; null: as many as the GPUs allow"
    )
    hours: str | None = Field(
        None, pattern=WINDOW, description="hours in which jobs may run, by this machine's clock; null: always"
    )
    proxy: str | None = Field(
        None, description="http://HOST:PORT of the hospital's proxy (HTTP CONNECT) to the server; null: none"
    )
    log_mb: int = Field(20, ge=1, le=10_000, description="size at which a log is rotated; five of each are kept")
    restarts_an_hour: int = Field(10, ge=0, le=1000, description="how often a process that ended is restarted")

    @field_validator("proxy")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_proxy(value)
        return value

    @property
    def offer(self) -> SiteOffer:
        """The resources that the site offers to jobs."""
        return SiteOffer(self.gpus, self.jobs_at_once, self.hours)


_PROXY_TEXT = """\
proxy: null             # proxy to the server, if any: http://HOST:PORT or http://USER:PASSWORD@HOST:PORT
"""
_SETTINGS_TEXT = """\
# What this {kind} may change. `oncofed site doctor` checks it; `oncofed site start` reads it.
schema: 1
{datasets}{offer}{proxy}log_mb: 20              # size at which a log is rotated; five of each are kept
restarts_an_hour: 10    # how often a process that ended is restarted
"""
_OFFER_TEXT = """\
gpus: null              # numbers of the GPUs for jobs, such as [0, 1]; null: all
jobs_at_once: 1         # jobs of the alliance; null: as many as the GPUs allow, each with its own
hours: null             # hours in which jobs may run, by this machine's clock, such as "18:00-07:00"; null: always
"""
_DATASETS_TEXT = """\
datasets: {}            # name that jobs ask for: folder of the registered dataset, such as
                        # {spleen_ct: /data/oncofed/spleen_ct}; see: oncofed data register --help
"""
_SITE_ONLY = {"datasets": _DATASETS_TEXT, "offer": _OFFER_TEXT, "proxy": _PROXY_TEXT}


def settings_text(kind: Kind) -> str:
    """Return the initial ``site.yaml`` of a kit."""
    sections = _SITE_ONLY if kind == "site" else dict.fromkeys(_SITE_ONLY, "")
    return _SETTINGS_TEXT.format(kind=kind, **sections)


def read_settings(folder: Path) -> SiteSettings:
    """Read a site's settings.

    Raises:
        SpecError: the file is not valid; one line for each mistake.
    """
    path = folder / SETTINGS_FILE
    values, lines = read_yaml(path, "datasets: {}")
    return validated(SiteSettings, values, str(path), lines, "settings")
