"""The text after ``-tr``: names and assignments joined with ``+``, read into terms.

name                      a registered trainer, a class of nnU-Net
name@distribution         one of two plugins that use the name
./folder/my.toml          a recipe in a file
field=value               a field
component.setting=value   an argument of a code field, or a key below plans
field=@name               that field of another trainer
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nnplug.composition.checks import Invalid, check_name, did_you_mean
from nnplug.composition.fields import CODE_FIELDS, FIELDS, PLANS_FIELDS, SETTINGS
from nnplug.composition.values import format_value, parse_value
from nnplug.errors import NnplugError

# nnU-Net's ensembles put two names into one folder name, and 255 bytes is the limit of file systems.
MAX_NAME_BYTES = 90
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)=(.*)\Z", re.DOTALL)
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")


@dataclass(frozen=True)
class NameTerm:
    """A trainer by name, or a recipe by file (`path`)."""

    name: str
    distribution: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        return self.path or self.name + (f"@{self.distribution}" if self.distribution else "")


@dataclass(frozen=True)
class Assignment:
    """``target=value`` or, with a `part`, ``target=@part``. `value` is checked and in normal form."""

    target: str
    value: Any = None
    part: NameTerm | None = None

    @property
    def field(self) -> str:
        """The config field that is changed."""
        return self.target.partition(".")[0]

    def spell(self, part_name: str | None = None) -> str:
        """The canonical text."""
        if self.part is not None:
            return f"{self.target}=@{part_name or self.part}"
        field = FIELDS.get(self.target)
        return f"{self.target}={field.format(self.value) if field else format_value(self.value)}"


def parse(text: str) -> tuple[list[NameTerm], list[Assignment]]:
    """Read the text after ``-tr``.

    Returns:
        Names and assignments, each once.

    Raises:
        NnplugError: malformed, no such field, a value that the field does not take, one field assigned twice.
    """
    if not text or not text.strip():
        raise NnplugError("The trainer name is empty. List the trainers with: nnplug trainers")
    if text.endswith(".toml") and Path(text).is_file():
        return [NameTerm(text, path=text)], []  # also where the path has a '+' or '=' in it
    names: list[NameTerm] = []
    assignments: list[Assignment] = []
    for term in split(text):
        match = _ASSIGNMENT.match(term)
        if match:
            assignments.append(_assignment(match[1], match[2], text))
        else:
            names.append(parse_name(term, text))
    _check_twice(assignments)
    return list(dict.fromkeys(names)), _unique(assignments)


def split(text: str) -> list[str]:
    """The terms between the plus signs."""
    terms = [term.strip() for term in text.split("+")]
    for before, term in pairwise(terms):
        if re.search(r"=-?[0-9.]+e\Z", before, re.IGNORECASE) and term.isdigit():
            raise NnplugError(f"'{before}+{term}': '+' separates terms. Write {before}{term}.")
    if "" in terms:
        raise NnplugError(f"'{text}': a name or an assignment is missing next to a '+'.")
    return terms


def parse_name(term: str, text: str) -> NameTerm:
    """Read a term that is a trainer's name or a recipe's path; `text` is what it is part of."""
    if term.endswith(".toml"):
        return NameTerm(name=term, path=term)
    name, at, distribution = term.partition("@")
    if "=" in name:
        raise NnplugError(f"'{text}': '{term}' is not an assignment. Write field=value, for example num_epochs=100.")
    try:
        check_name(name)
    except Invalid as error:
        raise NnplugError(f"'{text}': '{name}' is not a trainer name: expected {error.expected}.") from None
    if at and not _DISTRIBUTION.match(distribution):
        raise NnplugError(f"'{text}': '{distribution}' is not the name of a distribution. Write name@distribution.")
    return NameTerm(name, normalise_distribution(distribution) if at else None)


def normalise_distribution(name: str) -> str:
    """One spelling for a distribution's name, as package installers compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def canonical_name(names: Iterable[str], assignments: Iterable[str], text: str) -> str:
    """Join spelled terms in canonical order: names sorted, then assignments sorted.

    Raises:
        NnplugError: the name can not be that of a folder of nnU-Net.
    """
    joined = "+".join([*sorted(names), *sorted(assignments)])
    num_bytes = len(joined.encode())
    if num_bytes > MAX_NAME_BYTES:
        raise NnplugError(
            f"'{joined}' is {num_bytes} bytes long; {MAX_NAME_BYTES} fit (nnU-Net puts two into one folder name). "
            f'Write a recipe, a file my_name.toml with: name = "my_name" and extends = "{text}"'
        )
    if "__" in joined or joined.endswith("_"):
        raise NnplugError(f"'{joined}' has '__' or ends with '_', where nnU-Net splits folder names. Write a recipe.")
    return joined


def _assignment(target: str, value: str, text: str) -> Assignment:
    field = target.partition(".")[0]
    if field not in FIELDS or FIELDS[field].is_of_file:
        is_code = value.startswith("@") or "." in target
        likely = [name for name in SETTINGS if FIELDS[name].is_code == is_code]
        hint = did_you_mean(field, likely) or did_you_mean(field, SETTINGS)
        raise NnplugError(
            f"'{text}': no field '{field}' can be set{hint}. See the fields with: nnplug show nnUNetTrainer --all"
        )
    if target.startswith("plans.") and target.partition(".")[2] in PLANS_FIELDS:
        target = field = target.partition(".")[2]
    if not value:
        raise NnplugError(f"'{text}': {target}= has no value.")
    if value.startswith("@"):
        if target != field:
            raise NnplugError(f"'{text}': a part replaces a whole field. Write {field}={value}.")
        return Assignment(target, part=parse_name(value[1:], text))
    if target == field:
        return Assignment(target, _field_value(field, value, text))
    if field not in (*CODE_FIELDS, "plans"):
        raise NnplugError(f"'{text}': {field} is a value and has no settings. Write {field}={value}.")
    parsed = parse_value(value, target)
    if field == "plans":
        _check_plans(target, parsed, value)
    return Assignment(target, parsed)


def _field_value(field: str, value: str, text: str) -> Any:
    if field in CODE_FIELDS:
        raise NnplugError(
            f"'{text}': {field} is code and takes it from a trainer by name: {field}=@{value}, not {field}={value}."
        )
    if field == "plans":
        raise NnplugError(
            f"'{text}': plans is a table. Set one of its keys: plans.KEY={value}, or take it: plans=@NAME."
        )
    return FIELDS[field].parse(value, field)


def _check_plans(target: str, parsed: Any, value: str) -> None:
    nested: Any = parsed
    for key in reversed(target.split(".")[1:]):
        nested = {key: nested}
    try:
        FIELDS["plans"].check(nested)
    except Invalid as error:
        raise NnplugError(f"{target}: {error.explain(repr(value))}") from None


def _check_twice(assignments: list[Assignment]) -> None:
    seen: dict[str, Assignment] = {}
    for assignment in assignments:
        other = seen.setdefault(assignment.target, assignment)
        if other.spell() != assignment.spell():
            raise NnplugError(
                f"{assignment.target} is assigned twice: {other.spell()} and {assignment.spell()}. Keep one."
            )
    for target in seen:
        above = next((name for name in seen if "." in name and target.startswith(f"{name}.")), None)
        if above:
            raise NnplugError(
                f"{above} is assigned a value and a table: {seen[above].spell()} and {seen[target].spell()}."
            )


def _unique(assignments: list[Assignment]) -> list[Assignment]:
    return list({assignment.spell(): assignment for assignment in assignments}.values())
