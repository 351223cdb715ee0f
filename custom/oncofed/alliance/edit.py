"""One more participant in an ``alliance.yaml``, whose comments and order stay as its author wrote them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from oncofed.alliance.spec import AllianceSpec, read_alliance
from oncofed.atomic import write_whole
from oncofed.errors import SpecError

_WIDTH = 120


def add_participant(
    file: Path, group: Literal["sites", "people"], name: str, values: Mapping[str, str | bool | None]
) -> AllianceSpec:
    """Add a site or a person to the file, and return the alliance as it is then.

    Args:
        file: the ``alliance.yaml``.
        group: where the name goes.
        name: of the participant.
        values: of its entry; what is None is left out.

    Raises:
        SpecError: the name is taken, or the file would not be valid; it is as it was then.
    """
    if name in read_alliance(file).everybody:
        raise SpecError(f"{file} has {name} already; nothing was changed")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    content = yaml.load(file.read_text(encoding="utf-8"))
    present = content.get(group)
    if not isinstance(present, CommentedMap):
        # A list of names alone; or the default people, who would be gone with the first that is named.
        names = present if isinstance(present, list) else []
        content[group] = CommentedMap(dict.fromkeys(names))
        if present is None and group == "people":
            content[group].update({n: dict(p) for n, p in _default_people().items()})
    entry = CommentedMap({key: value for key, value in values.items() if value is not None})
    entry.fa.set_flow_style()
    _append(content[group], name, entry)
    text = io.StringIO()
    yaml.dump(content, text)
    # Beside the file, so that a mistake is told with the lines of what was meant to be written, and nothing is.
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        tried = Path(temporary) / file.name
        tried.write_text(text.getvalue(), encoding="utf-8")
        try:
            spec = read_alliance(tried)
        except SpecError as error:
            raise SpecError(f"{file} is left as it was: {str(error).replace(str(tried), 'with it')}") from None
    write_whole(file, text.getvalue().encode(), file.stat().st_mode & 0o777)
    return spec


def _append(group: CommentedMap, name: str, entry: CommentedMap) -> None:
    """Append an entry. Comments that follow the last one stay with it, up to an empty line: what comes then is moved.

    ruamel.yaml keeps both as one comment, after the last value.
    """
    last = next(reversed(group), None)
    group[name] = entry
    if last is None:
        return
    for items, key in _last_of(group, last):
        after = items.ca.items.pop(key, None)
        if after and after[2] and "\n\n" in after[2].value:
            kept, _, moved = after[2].value.partition("\n\n")
            after[2].value = kept + "\n"
            items.ca.items[key] = after
            group.yaml_set_comment_before_after_key(name)
            group.ca.items[name] = [None, None, type(after[2])("\n\n" + moved, after[2].start_mark, None), None]
        elif after:
            items.ca.items[key] = after


def _last_of(group: CommentedMap, key: str) -> list[tuple[CommentedMap, str]]:
    found = [(group, key)]
    value = group[key]
    while isinstance(value, CommentedMap) and value and not value.fa.flow_style():
        key = next(reversed(value))
        found.append((value, key))
        value = value[key]
    return found


def _default_people() -> dict[str, dict[str, str]]:
    people = AllianceSpec(sites={"nobody": {}}).people
    return {name: {"role": person.role} for name, person in people.items()}
