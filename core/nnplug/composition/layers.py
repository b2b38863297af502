"""Flat trainers: what a name sets, key by key, and how several of them merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from nnplug.composition.component import Component
from nnplug.composition.fields import CODE_FIELDS, FIELDS, PLANS_FIELDS
from nnplug.composition.resolved import Origin, plain
from nnplug.composition.values import format_value
from nnplug.errors import NnplugError


@dataclass
class Layer:
    """Flat fields of one trainer. Keys are fields, and ``plans.a.b`` for the leaves of plans.

    Attributes:
        name: as it is spelled in names.
        typed: as a user types it.
        values: by key.
        origins: by key, and for settings of components that were assigned (``loss_fn.weight``).
        implied: fields that the base trainer decides in its class, with that class; without those in `values`.
        distributions: version by distribution.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    implied: dict[str, str] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    typed: str = ""

    def put(self, key: str, value: Any, origin: Origin) -> None:
        """Set a key; below plans it takes the place of what is above and below it."""
        for other in [name for name in self.values if _overlap(key, name)]:
            self.drop(other)
        self.values[key] = value
        self.origins[key] = origin

    def drop(self, key: str) -> None:
        """Unset a key and everything below it."""
        for table in (self.values, self.origins):
            for name in [name for name in table if _is_at_or_below(name, key)]:
                del table[name]

    def keys_of(self, key: str) -> list[str]:
        """The keys that are set at or below a key; the plan's sizes are fields and below ``plans`` as well."""
        bare = key.removeprefix("plans.")
        wanted = [bare] if bare in PLANS_FIELDS else [key, *(PLANS_FIELDS if key == "plans" else ())]
        return [name for name in self.values if any(_is_at_or_below(name, one) for one in wanted)]

    def fields(self) -> dict[str, Any]:
        """The values by field, the leaves of plans put together."""
        values: dict[str, Any] = {}
        for key, value in self.values.items():
            name, *path = key.split(".")
            values[name] = nested(values.get(name), path, value)
        return values


def merge(layers: Sequence[Layer], decided: Sequence[str], text: str) -> Layer:
    """Put trainers together; their order does not matter.

    Args:
        layers: one a name.
        decided: keys that are assigned afterwards, about which they need not agree.
        text: what the user wrote, for messages.

    Raises:
        NnplugError: two of them set one field to different values.
    """
    ordered = sorted(layers, key=lambda layer: layer.name)
    for one, other in combinations(ordered, 2):
        _check_conflicts(one, other, decided, text)
    merged = Layer(text)
    for layer in ordered:
        for key, value in layer.values.items():
            combine = FIELDS[key].combine if key in FIELDS else None
            if key in merged.values and combine:
                before, value = merged.values[key], combine(merged.values[key], value)
                if value == before:
                    continue
                if isinstance(value, Component):
                    # still the first one's code; only the settings that joined have another origin
                    merged.values[key] = value
                    joined = [name for name in value.kwargs if name not in before.kwargs]
                    merged.origins.update({f"{key}.{name}": layer.origins[key] for name in joined})
                    continue
            elif key in merged.values:
                continue
            merged.put(key, value, layer.origins[key])
        for key, origin in layer.origins.items():
            merged.origins.setdefault(key, origin)
        merged.distributions.update(layer.distributions)
    return merged


def leaves(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Values of nested tables by dotted key."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{prefix}.{key}"
        found.update(leaves(value, path) if isinstance(value, Mapping) and value else {path: value})
    return found


def nested(old: Any, keys: Sequence[str], value: Any) -> Any:
    """A copy of a table with a value below some keys; the value itself where there are none."""
    if not keys:
        return value
    table = dict(old) if isinstance(old, Mapping) else {}
    table[keys[0]] = nested(table.get(keys[0]), keys[1:], value)
    return table


def _is_at_or_below(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _overlap(key: str, other: str) -> bool:
    return _is_at_or_below(key, other) or _is_at_or_below(other, key)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Component) and isinstance(other, Component):
        return bool(plain(one) == plain(other))
    return type(one) is type(other) and bool(one == other)


def _check_conflicts(one: Layer, other: Layer, decided: Sequence[str], text: str) -> None:
    for key, value in other.values.items():
        for known in [name for name in one.values if _overlap(key, name)]:
            combine = FIELDS[key].combine if key in FIELDS else None
            is_same = known == key and _equal(one.values[key], value)
            is_same = is_same or any(_overlap(key, target) and _overlap(known, target) for target in decided)
            if not is_same and not (combine and combine(one.values[key], value)):
                raise _conflict(key, one, other, text)
    # Two names on the same base agree about what it decides, also where one of them goes on to change it.
    if "base_trainer" in decided or (
        "base_trainer" in one.values and _equal(one.values["base_trainer"], other.values.get("base_trainer"))
    ):
        return
    for first, second in ((one, other), (other, one)):
        for key in first.implied:
            if key in second.values and key not in decided:
                raise _conflict(key, one, other, text)


def _conflict(key: str, one: Layer, other: Layer, text: str) -> NnplugError:
    implied = next((layer.implied[key] for layer in (one, other) if key in layer.implied), None)
    reason = f" ({implied} decides it in its class)" if implied else ""
    message = f"'{one.name}' and '{other.name}' both set {key}{reason}; '-tr {text}' can have only one."
    if key == "base_trainer":
        return NnplugError(f"{message} Leave one out, or name parts in place of classes: nnplug trainers")
    if key not in CODE_FIELDS:
        owner = other if key in other.values else one
        return NnplugError(f"{message} To decide: {text}+{key}={spell_value(key, owner.values.get(key))}")
    if implied:
        owner = other if key in other.values else one
        return NnplugError(f"{message} To decide: {text}+{key}=@{owner.typed}")
    parts = [name for name in CODE_FIELDS if name in other.values and name not in one.values]
    if parts:
        return NnplugError(f"{message} To take one part of the other: {one.typed}+{parts[0]}=@{other.typed}")
    return NnplugError(f"{message} To decide: {text}+{key}=@{other.typed}")


def spell_value(key: str, value: Any) -> str:
    """A value as it is written after ``-tr``."""
    if isinstance(value, dict):
        return "VALUE"
    return FIELDS[key].format(value) if key in FIELDS else format_value(value)
