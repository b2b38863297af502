"""Composition: the terms after ``-tr`` become one config.

Every named trainer is first made flat (what it extends, minus what it unsets, plus its own fields; plans by leaf). Flat
trainers are merged, where two that differ on a field are a conflict. Assignments come last and always win.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from nnplug.component import Component
from nnplug.config import TrainerConfig
from nnplug.errors import NnplugError
from nnplug.fields import CODE_FIELDS, FIELDS, PLANS_FIELDS, SETTINGS
from nnplug.references import FileReference, check_architecture, check_root
from nnplug.resolved import Origin, ResolvedConfig, plain
from nnplug.stock_names import BASE, fields_set_by
from nnplug.terms import Assignment, NameTerm, canonical_name, normalise_distribution, parse
from nnplug.values import format_value

__all__ = ["Catalogue", "Origin", "Registration", "ResolvedConfig", "resolve", "resolve_config"]


@dataclass(frozen=True)
class Registration:
    """A trainer config and where it came from.

    Attributes:
        config: as it was registered.
        distribution, version: of the plugin, None for a recipe by path, an nnU-Net class or a Python object.
        file, line: of the registration, as shown.
        is_file: it was read from a recipe; its references are followed only to where files may refer.
        name: how it is spelled in names; with the distribution where the bare name is ambiguous.
    """

    config: TrainerConfig
    name: str
    distribution: str | None = None
    version: str | None = None
    file: str | None = None
    line: int | None = None
    is_file: bool = False

    @property
    def where(self) -> str:
        """File and line of the registration."""
        return f"{self.file}:{self.line}" if self.line else (self.file or "Python")

    @property
    def owner(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}" if self.distribution else self.where


class Catalogue(Protocol):
    """Where names are looked up."""

    def find(self, term: NameTerm) -> Registration:
        """The registration of a name.

        Raises:
            NnplugError: unknown or ambiguous name.
        """


@dataclass
class Layer:
    """Flat fields of one or several terms. Keys are fields, and ``plans.a.b`` for the leaves of plans.

    Attributes:
        values: by key.
        origins: by key.
        implied: fields that the base trainer decides, with the class that does.
        distributions: version by distribution.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    implied: dict[str, str] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, origin: Origin) -> None:
        """Set a key; below plans it takes the place of what is above and below it."""
        for other in [name for name in self.values if _overlap(key, name)]:
            self.drop(other)
        self.values[key] = value
        self.origins[key] = origin

    def drop(self, key: str) -> None:
        """Unset a key and everything below it."""
        for name in [name for name in self.values if name == key or name.startswith(f"{key}.")]:
            del self.values[name]
        for name in [name for name in self.origins if name == key or name.startswith(f"{key}.")]:
            del self.origins[name]


def resolve(text: str, catalogue: Catalogue, *, trust_code: bool = False) -> ResolvedConfig:
    """Compose the config that the text after ``-tr`` names.

    Raises:
        NnplugError: malformed text, unknown or ambiguous name, conflict, a name that is too long, a reference in a file
            to where files may not refer.
    """
    names, assignments = parse(text)
    registrations = [catalogue.find(name) for name in names]
    described = registrations[0].config if len(registrations) == 1 and not assignments else None
    layer, parts = _compose(registrations, assignments, catalogue, text, (), trust_code)
    spelled = [registration.name for registration in registrations]
    if len(set(spelled)) + len(assignments) > 1:
        # It is what every trainer builds on anyway, so it would only be a second name for the same trainer.
        spelled = [name for name in spelled if name != BASE]
    settings = [assignment.spell(part) for assignment, part in zip(assignments, parts, strict=True)]
    name = canonical_name(set(spelled), settings, text)
    return _finish(name, layer, described, trust_code)


def resolve_config(registration: Registration, catalogue: Catalogue, *, trust_code: bool = False) -> ResolvedConfig:
    """Resolve a config that was built in Python."""
    layer = _flatten(registration, catalogue, (), trust_code)
    return _finish(canonical_name([registration.name], [], registration.name), layer, registration.config, trust_code)


def _compose(
    registrations: list[Registration],
    assignments: list[Assignment],
    catalogue: Catalogue,
    text: str,
    ancestors: tuple[str, ...],
    trust_code: bool,
) -> tuple[Layer, list[str | None]]:
    """Merge what the names set, then assign. Also gives the canonical spelling of the assignments' parts."""
    composed = Layer()
    owners: dict[str, str] = {}
    for registration in registrations:
        layer = _flatten(registration, catalogue, ancestors, trust_code)
        _merge(composed, owners, layer, registration.name, text)
    parts: list[str | None] = []
    # A whole field first: a setting of a component belongs to the component that was assigned with it.
    for assignment in sorted(assignments, key=lambda assignment: "." in assignment.target):
        _assign(composed, assignment, catalogue, ancestors, trust_code)
    for assignment in assignments:
        parts.append(catalogue.find(assignment.part).name if assignment.part else None)
    return composed, parts


def _flatten(registration: Registration, catalogue: Catalogue, ancestors: tuple[str, ...], trust_code: bool) -> Layer:
    config = registration.config
    if registration.name in ancestors:
        raise NnplugError(f"'{registration.name}' extends itself: {' -> '.join([*ancestors, registration.name])}.")
    layer = Layer()
    if config.extends:
        names, assignments = parse(config.extends)
        parents = [catalogue.find(name) for name in names]
        path = (*ancestors, registration.name)
        layer, _ = _compose(parents, assignments, catalogue, config.extends, path, trust_code)
    for key in config.unset:
        if not any(name == key or name.startswith(f"{key}.") for name in layer.values):
            raise NnplugError(f"trainer '{registration.name}': unset: '{config.extends}' does not set '{key}'.")
        layer.drop(key)
    origin = Origin(registration.name, registration.distribution, registration.version, registration.where)
    if registration.distribution and registration.version:
        layer.distributions[registration.distribution] = registration.version
    own = _own_values(registration, trust_code)
    for key, value in own.items():
        layer.put(key, value, origin)
    if "base_trainer" in layer.values:
        implied = fields_set_by(layer.values["base_trainer"].target)
        layer.implied = {name: owner for name, owner in implied.items() if name not in layer.values}
    else:
        layer.implied = {}
    return layer


def _own_values(registration: Registration, trust_code: bool) -> dict[str, Any]:
    """The fields that a config sets itself, flat. References of a file are marked as such, unless they are trusted."""
    values = {name: getattr(registration.config, name) for name in SETTINGS}
    values = {name: value for name, value in values.items() if value is not None}
    for key, value in _leaves(values.pop("plans", {}), "plans").items():
        bare = key.partition(".")[2]
        if bare in PLANS_FIELDS:
            values[bare] = FIELDS[bare].check(value)
        else:
            values[key] = value
    if registration.is_file and not trust_code:
        _restrict(values, registration)
    return values


def _restrict(values: dict[str, Any], registration: Registration) -> None:
    for key, value in values.items():
        if isinstance(value, Component) and isinstance(value.target, str):
            try:
                check_root(value.target)
            except NnplugError as error:
                raise NnplugError(f"{registration.file}: {key}: {error}") from None
            values[key] = Component(FileReference(value.target), **value.kwargs)
            if key == "network_builder":
                check_architecture(dict(value.kwargs), f"{registration.file}: {key}")
        elif key.startswith("plans.architecture."):
            nested: Any = value
            for name in reversed(key.split(".")[2:]):
                nested = {name: nested}
            check_architecture(nested, f"{registration.file}: plans.architecture")


def _leaves(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{prefix}.{key}"
        found.update(_leaves(value, path) if isinstance(value, Mapping) and value else {path: value})
    return found


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _merge(composed: Layer, owners: dict[str, str], layer: Layer, name: str, text: str) -> None:
    same_base = _equal(composed.values.get("base_trainer"), layer.values.get("base_trainer"))
    for key, value in layer.values.items():
        for other in [known for known in composed.values if _overlap(key, known)]:
            if other != key or not _equal(composed.values[key], value):
                raise _conflict(key, owners[other], name, composed, layer, text)
        if key in composed.implied and not same_base:
            raise _conflict(key, owners["base_trainer"], name, composed, layer, text)
    for key in layer.implied:
        if key in composed.values and not same_base:
            raise _conflict(key, owners[key], name, composed, layer, text)
    for key, value in layer.values.items():
        composed.values.setdefault(key, value)
        composed.origins.setdefault(key, layer.origins[key])
        owners.setdefault(key, name)
    composed.implied.update(layer.implied)
    composed.distributions.update(layer.distributions)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if one is None or other is None:
        return False
    if isinstance(one, Component) and isinstance(other, Component):
        return plain(one) == plain(other)
    return type(one) is type(other) and bool(one == other)


def _conflict(key: str, owner: str, name: str, composed: Layer, layer: Layer, text: str) -> NnplugError:
    first, second = sorted((owner, name))
    reasons = [
        f" ({implied[key]} decides it in its class)"
        for implied, values in ((composed.implied, composed.values), (layer.implied, layer.values))
        if key in implied and key not in values
    ]
    message = f"'{first}' and '{second}' both set {key}{reasons[0] if reasons else ''}; '-tr {text}' can have only one."
    field_name = key.partition(".")[0]
    if field_name not in CODE_FIELDS:
        return NnplugError(f"{message} To decide: {text}+{key}={_spell(key, layer.values.get(key))}")
    mine, theirs = (composed, layer) if second == name else (layer, composed)
    others = [other for other in CODE_FIELDS if other in theirs.values and other not in mine.values and other != key]
    part = others[0] if others else key
    start = first if others else text
    return NnplugError(f"{message} To take one part of the other: {start}+{part}=@{second}")


def _spell(key: str, value: Any) -> str:
    if value is None or isinstance(value, (dict, Component)):
        return "VALUE"
    return FIELDS[key].format(value) if key in FIELDS else format_value(value)


def _assign(
    composed: Layer, assignment: Assignment, catalogue: Catalogue, ancestors: tuple[str, ...], trust_code: bool
) -> None:
    target = assignment.target
    origin = Origin(assignment.spell())
    if assignment.part is not None:
        _take_part(composed, assignment, catalogue, ancestors, trust_code)
    elif target.startswith("plans."):
        value = list(assignment.value) if isinstance(assignment.value, tuple) else assignment.value
        composed.put(target, value, origin)
    elif "." in target:
        composed.values[assignment.field] = _with_setting(composed.values.get(assignment.field), assignment)
        composed.origins[target] = origin
    else:
        composed.put(target, assignment.value, origin)
    if "." not in target:
        composed.implied.pop(target, None)


def _take_part(
    composed: Layer, assignment: Assignment, catalogue: Catalogue, ancestors: tuple[str, ...], trust_code: bool
) -> None:
    assert assignment.part is not None
    part = catalogue.find(assignment.part)
    layer = _flatten(part, catalogue, ancestors, trust_code)
    target = assignment.target
    keys = [key for key in layer.values if key == target or key.startswith(f"{target}.")]
    if not keys:
        known = ", ".join(dict.fromkeys(key.partition(".")[0] for key in layer.values)) or "nothing"
        reason = (
            f" ({layer.implied[target]} decides it in its class, which can not be taken alone)"
            if target in layer.implied
            else ""
        )
        raise NnplugError(
            f"{assignment.spell(part.name)}: '{part.name}' does not set {target}{reason}. It sets: {known}."
        )
    composed.drop(target)
    for key in keys:
        composed.put(key, layer.values[key], layer.origins[key])
        for below in [name for name in layer.origins if name.startswith(f"{key}.")]:
            composed.origins[below] = layer.origins[below]
    if target == "base_trainer":
        composed.implied = {key: owner for key, owner in layer.implied.items() if key not in composed.values}
    composed.distributions.update(layer.distributions)


def _with_setting(component: Any, assignment: Assignment) -> Component:
    spelled = assignment.spell()
    if component is None:
        raise NnplugError(
            f"{spelled}: none of the names sets {assignment.field}. Add one that does: {assignment.field}=@NAME"
        )
    if not isinstance(component, Component):
        raise NnplugError(
            f"{spelled}: {assignment.field} is a finished object; its settings can not be changed by name."
        )
    first, *below = assignment.target.split(".")[1:]
    if first == "use":
        raise NnplugError(f"{spelled}: 'use' is the reference itself. Write {assignment.field}=@NAME.")
    arguments = dict(component.kwargs)
    arguments[first] = _nested(arguments.get(first), below, assignment.value)
    return Component(component.target, **arguments)


def _nested(old: Any, keys: list[str], value: Any) -> Any:
    if not keys:
        return value
    table = dict(old) if isinstance(old, Mapping) else {}
    table[keys[0]] = _nested(table.get(keys[0]), keys[1:], value)
    return table


def _finish(name: str, layer: Layer, described: TrainerConfig | None, trust_code: bool) -> ResolvedConfig:
    values: dict[str, Any] = {}
    for key, value in layer.values.items():
        field_name, *path = key.split(".")
        values[field_name] = _nested(values.get(field_name), path, value)
    config = TrainerConfig(
        name="composed",
        description=described.description if described else None,
        source=described.source if described else None,
        **values,
    )
    # The composed name has characters that the name of a single config may not have.
    object.__setattr__(config, "name", name)
    distributions = {normalise_distribution(dist): version for dist, version in sorted(layer.distributions.items())}
    return ResolvedConfig(name, config, dict(layer.origins), distributions, trust_code)


def for_class(registration: Registration, name: str) -> Registration:
    """The same registration under another spelling of its name."""
    return replace(registration, name=name)
