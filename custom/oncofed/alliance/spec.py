"""``alliance.yaml``: an alliance's participants and their routes to its server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from oncofed.settings import SettingError, StrictModel, read_yaml, validated

# FLARE's rules for names that become subjects of certificates.
SiteName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*$")]
PersonName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}$")]
Organisation = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,63}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
# FLARE's roles of a person.
Role = Literal["project_admin", "org_admin", "lead", "member"]

RECIPIENT = r"^age1[a-z0-9]{50,80}$"


class SiteSpec(StrictModel):
    """An organisation's machine that trains on its own data."""

    organisation: Organisation = Field("oncofed", description="letters, digits and _")
    contact: str | None = Field(None, max_length=200, description="contact at the site, for its guide and `status`")
    recipient: str | None = Field(
        None, pattern=RECIPIENT, description="age recipient (age1...) that its kit is sealed for; null: a password"
    )
    own_key: bool = Field(
        False, description="makes its private key itself: `oncofed site request`; `provision` passes it over"
    )


class PersonSpec(StrictModel):
    """A person who submits jobs, or an administrator."""

    role: Role = Field("lead", description="project_admin, org_admin (of a site), lead (submits jobs), member (looks)")
    organisation: Organisation = Field("oncofed", description="letters, digits and _")
    recipient: str | None = Field(
        None, pattern=RECIPIENT, description="age recipient (age1...) that the kit is sealed for; null: a password"
    )
    own_key: bool = Field(
        False, description="makes its private key itself: `oncofed site request`; `provision` passes it over"
    )


class RelaySpec(StrictModel):
    """A machine that forwards messages between server and sites.

    It sees no more of them than a router.
    """

    host: HostName = Field("localhost", description="host name at which its sites reach it")
    port: Port = Field(description="the one port, for its sites")
    sites: tuple[str, ...] = Field(min_length=1, description="sites that reach the server through it")


class AllianceSpec(StrictModel):
    """An alliance's participants. Names become subjects of certificates."""

    schema_: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    name: str = Field("oncofed", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="lower case, digits, _ and -")
    server: HostName = Field("localhost", description="host name at which sites and people reach the server")
    port: Port = Field(8002, description="the one port, for sites and people")
    organisation: Organisation = Field("oncofed", description="of the server: letters, digits and _")
    recipient: str | None = Field(
        None, pattern=RECIPIENT, description="age recipient that the server's kit is sealed for; null: a password"
    )
    image: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9._/:-]{0,200}$",
        description="container image of servers and sites; null: oncofed with the version as its tag",
    )
    valid_days: int = Field(360, ge=1, le=3650, description="validity of the certificates of sites and people")
    sites: dict[SiteName, SiteSpec] = Field(min_length=1, description="name -> site")
    people: dict[PersonName, PersonSpec] = Field(
        default_factory=lambda: {
            "admin@oncofed.org": PersonSpec(role="project_admin"),
            "engineer@oncofed.org": PersonSpec(role="lead"),
        },
        description="e-mail address -> person",
    )
    routes: dict[str, tuple[str, int]] = Field(
        default_factory=dict,
        description="site -> host and port through which it reaches the server, such as a hospital's proxy",
    )
    relays: dict[SiteName, RelaySpec] = Field(
        default_factory=dict, description="for dozens of sites: name -> relay; each holds the connections of its sites"
    )

    @field_validator("sites", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """Accept ``[east, west]`` and ``east:`` for sites without settings."""
        if isinstance(value, list | tuple):
            odd = next((name for name in value if not isinstance(name, str)), None)
            if odd is not None:
                raise ValueError(f"found {odd!r} among the names; expected texts, such as [east, west]")
            return {name: {} for name in value}
        if isinstance(value, dict):
            return {name: {} if site is None else site for name, site in value.items()}
        return value

    @model_validator(mode="after")
    def _names_are_unique(self) -> AllianceSpec:
        names = self.everybody
        folded = [name.lower() for name in names]
        twice = sorted({name for name in names if folded.count(name.lower()) > 1})
        if twice:
            last = next(name for name in reversed(names) if name in twice)
            section = next(section for section in ("people", "sites", "relays") if last in getattr(self, section))
            raise SettingError(
                f"{', '.join(twice)}: given to two participants; upper and lower case count as one name",
                f"{section}.{last}",
            )
        return self

    @model_validator(mode="after")
    def _relays_serve_sites(self) -> AllianceSpec:
        ways: dict[str, str] = {}
        for site in self.routes:
            if site not in self.sites:
                raise SettingError(f"found {site}, which is no site of the alliance", f"routes.{site}")
            ways[site] = f"routes.{site}"
        for name, relay in self.relays.items():
            place = f"relays.{name}.sites"
            for site in relay.sites:
                if site not in self.sites:
                    raise SettingError(f"found {site}, which is no site of the alliance", place)
                if site in ways:
                    raise SettingError(f"{site}: a site reaches the server by one way, found {ways[site]} too", place)
                ways[site] = place
        return self

    @property
    def everybody(self) -> list[str]:
        """The names of all participants."""
        return [self.server, *self.relays, *self.sites, *self.people]

    def route_of(self, name: str) -> tuple[str, int]:
        """Return the host and port that a participant connects to.

        Those of the server, its relay or its proxy.
        """
        if name in self.routes:
            return self.routes[name]
        for relay in self.relays.values():
            if name in relay.sites:
                return relay.host, relay.port
        return self.server, self.port

    def recipient_of(self, name: str) -> str | None:
        """Return the age recipient of a participant's kit.

        None: a password.
        """
        if name == self.server:
            return self.recipient
        entry = self.sites.get(name) or self.people.get(name)
        return entry.recipient if entry else None

    def makes_own_key(self, name: str) -> bool:
        """Return whether a participant creates its private key."""
        entry = self.sites.get(name) or self.people.get(name)
        return entry.own_key if entry else False

    @property
    def engineer(self) -> str:
        """The first person who submits jobs."""
        return next(name for name, person in self.people.items() if person.role == "lead")


def read_alliance(file: Path) -> AllianceSpec:
    """Read an ``alliance.yaml``.

    Raises:
        SpecError: it is not valid; one line for each mistake.
    """
    values, lines = read_yaml(file, "name: my_alliance")
    return validated(AllianceSpec, values, str(file), lines, "alliance")
