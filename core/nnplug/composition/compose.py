"""Composition: the terms after ``-tr`` become one config.

Every named trainer is first made flat (what it extends, minus what it unsets, plus its own fields; plans by leaf). Flat
trainers are merged, where two that differ on a field are a conflict. Assignments come last and always win.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from nnplug.composition.component import Component
from nnplug.composition.fields import CODE_FIELDS, FIELDS, PLANS_FIELDS, SETTINGS
from nnplug.composition.layers import Layer, leaves, merge, nested, spell_value
from nnplug.composition.references import FileReference, check_architecture, check_root, describe
from nnplug.composition.resolved import Origin, ResolvedConfig
from nnplug.composition.settings import check_decided
from nnplug.composition.terms import Assignment, NameTerm, canonical_name, normalise_distribution, parse
from nnplug.config import TrainerConfig
from nnplug.discovery.stock_names import BASE, fields_set_by
from nnplug.errors import NnplugError

__all__ = ["Catalogue", "Origin", "Registration", "ResolvedConfig", "resolve", "resolve_config"]


@dataclass(frozen=True)
class Registration:
    """A trainer config and where it came from.

    Attributes:
        config: as it was registered.
        name: how it is spelled in names; with the distribution where the bare name is ambiguous.
        distribution, version: of the plugin, None for a recipe by path, an nnU-Net class or a Python object.
        file, line: of the registration, as shown.
        is_file: it was read from a recipe; its references are followed only to where files may refer.
    """

    config: TrainerConfig
    name: str
    distribution: str | None = None
    version: str | None = None
    file: str | None = None
    line: int | None = None
    is_file: bool = False

    @property
    def typed(self) -> str:
        """What a user types for it: a recipe by path has a name with a hash, which nobody can look up."""
        is_by_path = self.is_file and self.distribution is None
        return self.file if is_by_path and self.file else self.name

    @property
    def where(self) -> str | None:
        """File and line of the registration."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def owner(self) -> str:
        """Distribution and version, or the file."""
        return f"{self.distribution} {self.version}" if self.distribution else (self.where or "Python")


class Catalogue(Protocol):
    """Where names are looked up."""

    def find(self, term: NameTerm) -> Registration:
        """The registration of a name.

        Raises:
            NnplugError: unknown or ambiguous name.
        """

    def distribution_of(self, package: str) -> tuple[str, str] | None:
        """Name and version of the plugin distribution that a top-level package belongs to."""


class _Circle(NnplugError):
    """A trainer that extends itself: said once, without the path of those that extend it."""


def resolve(text: str, catalogue: Catalogue, *, trust_code: bool = False) -> ResolvedConfig:
    """Compose the config that the text after ``-tr`` names.

    Raises:
        NnplugError: malformed text, unknown or ambiguous name, conflict, a name that is too long, a reference in a file
            to where files may not refer.
    """
    names, assignments = parse(text)
    composer = Composer(catalogue, trust_code)
    found = {registration.name: registration for registration in map(catalogue.find, names)}
    layer = composer.compose(list(found.values()), assignments, text)
    if len(found) + len(assignments) > 1:
        # Every trainer builds on this class anyway: naming it would make a second name for the same trainer.
        found.pop(BASE, None)
    spelled = [composer.spell(assignment) for assignment in assignments]
    described = next(iter(found.values())).config if len(found) == 1 and not assignments else None
    return composer.finish(canonical_name(found, spelled, text), layer, described)


def resolve_config(registration: Registration, catalogue: Catalogue, *, trust_code: bool = False) -> ResolvedConfig:
    """Resolve a config that was built in Python."""
    composer = Composer(catalogue, trust_code)
    name = canonical_name([registration.name], [], registration.name)
    return composer.finish(name, composer.flatten(registration), registration.config)


class Composer:
    """Makes layers of names and assignments.

    Args:
        catalogue: where names are looked up.
        trust_code: leave references in files as they are.
    """

    def __init__(self, catalogue: Catalogue, trust_code: bool) -> None:
        self.catalogue = catalogue
        self.trust_code = trust_code

    def compose(
        self,
        registrations: list[Registration],
        assignments: list[Assignment],
        text: str,
        ancestors: tuple[str, ...] = (),
    ) -> Layer:
        """Merge what the names set, then assign. `ancestors` are the names that extend these."""
        decided = [one.target for one in assignments if "." not in one.target or one.field == "plans"]
        layer = merge([self.flatten(registration, ancestors) for registration in registrations], decided, text)
        # A whole field first: a setting of a component belongs to the component that was assigned with it.
        for assignment in sorted(assignments, key=lambda assignment: ("." in assignment.target, assignment.target)):
            self._assign(layer, assignment, ancestors)
        if any(assignment.target == "base_trainer" for assignment in assignments):
            _check_assigned_base(layer)
        return layer

    def spell(self, assignment: Assignment) -> str:
        """The canonical text of an assignment."""
        return assignment.spell(self.catalogue.find(assignment.part).name if assignment.part else None)

    def flatten(self, registration: Registration, ancestors: tuple[str, ...] = ()) -> Layer:
        """What one trainer sets, with everything that it extends."""
        config = registration.config
        layer = self._inherited(registration, ancestors) if config.extends else Layer(registration.name)
        layer.typed = registration.typed
        for key in config.unset:
            known = layer.keys_of(key)
            if not known:
                raise NnplugError(
                    f"trainer '{registration.name}': unset: '{config.extends}' does not set '{key}'. Remove it."
                )
            for name in known:
                layer.drop(name)
        origin = Origin(registration.name, registration.distribution, registration.version, registration.where)
        if registration.distribution and registration.version:
            layer.distributions[normalise_distribution(registration.distribution)] = registration.version
        for key, value in self._own_values(registration).items():
            layer.put(key, value, origin)
        base = layer.values.get("base_trainer")
        implied = fields_set_by(base.target) if base else {}
        layer.implied = {name: owner for name, owner in implied.items() if name not in layer.values}
        return layer

    def finish(self, name: str, layer: Layer, described: TrainerConfig | None) -> ResolvedConfig:
        """Make the resolved config of a layer; `described` is the config whose description it takes over."""
        config = TrainerConfig(
            name="composed",
            description=described.description if described else None,
            source=described.source if described else None,
            **layer.fields(),
        )
        _check_schedule(config, name)
        check_decided(config, name)
        # The composed name has characters that the name of a single config may not have.
        object.__setattr__(config, "name", name)
        distributions = dict(layer.distributions)
        for value in layer.values.values():
            if isinstance(value, Component) or callable(value):
                code = value.target if isinstance(value, Component) else value
                owner = self.catalogue.distribution_of(describe(code).partition(":")[0].partition(".")[0])
                distributions.update([owner] if owner else [])
        return ResolvedConfig(name, config, layer.origins, dict(sorted(distributions.items())), self.trust_code)

    def _inherited(self, registration: Registration, ancestors: tuple[str, ...]) -> Layer:
        text = registration.config.extends
        assert text is not None
        path = (*ancestors, registration.name)
        if registration.name in ancestors:
            raise _Circle(f"trainer '{registration.name}' extends itself: {' -> '.join(path)}.")
        try:
            names, assignments = parse(text)
            for name in names + [assignment.part for assignment in assignments if assignment.part]:
                if name.path:
                    raise NnplugError(f"'{name.path}' is a file. A trainer can extend registered trainers only.")
            if registration.is_file and not self.trust_code:
                _restrict_assignments(assignments)
            layer = self.compose([self.catalogue.find(name) for name in names], assignments, text, path)
        except _Circle:
            raise
        except NnplugError as error:
            raise NnplugError(f"{registration.where or registration.name}: extends: {error}") from None
        layer.name = registration.name
        return layer

    def _own_values(self, registration: Registration) -> dict[str, Any]:
        """The fields that a config sets itself, flat. References of a file are marked, unless they are trusted."""
        values = {name: getattr(registration.config, name) for name in SETTINGS}
        values = {name: value for name, value in values.items() if value is not None}
        for key, value in leaves(values.pop("plans", {}), "plans").items():
            bare = key.partition(".")[2]
            values[bare if bare in PLANS_FIELDS else key] = FIELDS[bare].check(value) if bare in PLANS_FIELDS else value
        if registration.is_file and not self.trust_code:
            for key, value in values.items():
                try:
                    values[key] = _restrict(key, value)
                except NnplugError as error:
                    raise NnplugError(f"{registration.file}: {key}: {error}") from None
        return values

    def _assign(self, layer: Layer, assignment: Assignment, ancestors: tuple[str, ...]) -> None:
        target, value = assignment.target, assignment.value
        origin = Origin(assignment.spell())
        if assignment.part is not None:
            self._take_part(layer, assignment, ancestors)
        elif "." in target and assignment.field != "plans":
            layer.values[assignment.field] = _with_setting(layer.values.get(assignment.field), assignment)
            layer.origins[target] = origin
        else:
            is_list = isinstance(value, tuple) and assignment.field == "plans"
            layer.put(target, list(value) if is_list else value, origin)

    def _take_part(self, layer: Layer, assignment: Assignment, ancestors: tuple[str, ...]) -> None:
        assert assignment.part is not None
        target = assignment.target
        part = self.flatten(self.catalogue.find(assignment.part), ancestors)
        keys = part.keys_of(target)
        if not keys:
            known = ", ".join(dict.fromkeys(key.partition(".")[0] for key in part.values)) or "nothing"
            owner = part.implied.get(target)
            reason = f" ({owner} decides it in its class, which can not be taken alone)" if owner else ""
            raise NnplugError(
                f"{assignment.spell(part.name)}: '{part.name}' does not set {target}{reason}. It sets: {known}."
            )
        layer.drop(target)
        for key in keys:
            # The user chose it: it is the assignment's, though the value is the part's.
            layer.put(key, part.values[key], replace(part.origins[key], term=assignment.spell(part.name)))
        layer.distributions.update(part.distributions)


def _check_assigned_base(layer: Layer) -> None:
    """Refuse a part that sets what an assigned base trainer decides: merging knew nothing of that base."""
    origin = layer.origins["base_trainer"]
    for key, owner in fields_set_by(layer.values["base_trainer"].target).items():
        part = layer.origins.get(key)
        if part is not None and "=" not in part.term:
            cure = f"@{part.term}" if key in CODE_FIELDS else spell_value(key, layer.values[key])
            raise NnplugError(
                f"'{origin.term}' and '{part.term}' both set {key} ({owner} decides it in its class); "
                f"'-tr {layer.name}' can have only one. To decide: {layer.name}+{key}={cure}"
            )


def _check_schedule(config: TrainerConfig, name: str) -> None:
    """A class that makes the optimiser makes its schedule too: a new optimiser would silently lose that."""
    if config.base_trainer is None or config.optimizer is None or config.lr_scheduler is not None:
        return
    owner = fields_set_by(config.base_trainer.target).get("lr_scheduler")
    if owner is not None:
        raise NnplugError(
            f"'{name}' sets optimizer, and {owner} decides optimizer and lr_scheduler together in its class. Say which "
            "schedule the new optimizer gets: lr_scheduler=@NAME"
        )


def _restrict(key: str, value: Any) -> Any:
    """Mark a reference that was read from a file; refuse one that leads to where files may not refer."""
    if isinstance(value, Component) and isinstance(value.target, str):
        check_root(value.target)
        if key == "network_builder":
            check_architecture(value.kwargs)
        return Component(FileReference(value.target), **value.kwargs)
    if key.startswith("plans.architecture."):
        check_architecture(nested(None, key.split(".")[2:], value))
    return value


def _restrict_assignments(assignments: list[Assignment]) -> None:
    for assignment in assignments:
        if assignment.target.startswith(("network_builder.", "plans.architecture.")):
            check_architecture(nested(None, assignment.target.split(".")[1:], assignment.value))


def _with_setting(component: Any, assignment: Assignment) -> Component:
    spelled, name = assignment.spell(), assignment.field
    if component is None:
        cure = f"Add one that does: {name}=@NAME; list them with: nnplug trainers"
        raise NnplugError(f"{spelled}: none of the names sets {name}. {cure}")
    if not isinstance(component, Component):
        raise NnplugError(f"{spelled}: {name} is a finished object; its settings can not be changed by name.")
    first, *below = assignment.target.split(".")[1:]
    if first == "use":
        raise NnplugError(f"{spelled}: 'use' is the reference itself. Write {name}=@NAME.")
    arguments = dict(component.kwargs)
    arguments[first] = nested(arguments.get(first), below, assignment.value)
    return Component(component.target, **arguments)
