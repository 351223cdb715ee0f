"""Add a participant to ``alliance.yaml``, keeping its comments and order."""

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
    """Add a site or a person; return the changed alliance.

    Args:
        file: the ``alliance.yaml``.
        group: section of the new entry.
        name: of the participant.
        values: of its entry; None values are left out.

    Raises:
        SpecError: the name is taken, or the file would not be valid; the file is unchanged.
    """
    if name in read_alliance(file).everybody:
        raise SpecError(f"{file} has {name} already; nothing was changed")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    content = yaml.load(file.read_text(encoding="utf-8"))
    present = content.get(group)
    if not isinstance(present, CommentedMap):
        # A plain list of names; or the default people, who would be lost with the first explicit entry.
        names = present if isinstance(present, list) else []
        content[group] = CommentedMap(dict.fromkeys(names))
        if present is None and group == "people":
            content[group].update({n: dict(p) for n, p in _default_people().items()})
    entry = CommentedMap({key: value for key, value in values.items() if value is not None})
    entry.fa.set_flow_style()
    _append(content[group], name, entry)
    text = io.StringIO()
    yaml.dump(content, text)
    # Validated as a temporary file first, so that an error names the lines of the new text and nothing is written.
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        draft = Path(temporary) / file.name
        draft.write_text(text.getvalue(), encoding="utf-8")
        try:
            spec = read_alliance(draft)
        except SpecError as error:
            raise SpecError(f"{file} is left as it was: {str(error).replace(str(draft), 'with it')}") from None
    write_whole(file, text.getvalue().encode(), file.stat().st_mode & 0o777)
    return spec


def _append(group: CommentedMap, name: str, entry: CommentedMap) -> None:
    """Append an entry, keeping the comments around it in place.

    ruamel.yaml attaches all comments after a section to its last value. Up to an empty line they stay with that value;
    the rest belongs to the next section, so it moves behind the new entry.
    """
    last = next(reversed(group), None)
    group[name] = entry
    if last is None:
        return
    for items, key in _last_values(group, last):
        after = items.ca.items.pop(key, None)
        if after and after[2] and "\n\n" in after[2].value:
            kept, _, moved = after[2].value.partition("\n\n")
            after[2].value = kept + "\n"
            items.ca.items[key] = after
            group.yaml_set_comment_before_after_key(name)
            group.ca.items[name] = [None, None, type(after[2])("\n\n" + moved, after[2].start_mark, None), None]
        elif after:
            items.ca.items[key] = after


def _last_values(group: CommentedMap, key: str) -> list[tuple[CommentedMap, str]]:
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
