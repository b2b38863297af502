"""The fields of a trainer config: what each may hold, and what nnU-Net does where it is not set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nnplug.composition.checks import (
    Invalid,
    Refused,
    axes,
    boolean,
    check_name,
    did_you_mean,
    dimensions,
    plain_copy,
    real,
    size,
    text,
    whole,
)
from nnplug.composition.component import Component, factory, factory_or_finished
from nnplug.composition.references import describe
from nnplug.composition.values import format_value, parse_number, parse_value
from nnplug.errors import NnplugError

# What preprocessing read: other values would not fit the preprocessed images.
_PREPROCESSING_KEYS = (
    "data_identifier",
    "inherits_from",
    "normalization_schemes",
    "preprocessor_name",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
    "spacing",
    "use_mask_for_norm",
)
_TRAINING_KEYS = (
    "architecture",
    "batch_dice",
    "batch_size",
    "patch_size",
    "resampling_fn_probabilities",
    "resampling_fn_probabilities_kwargs",
)
# Keys of plans that are fields of a config as well.
PLANS_FIELDS = ("batch_size", "patch_size")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a config.

    Attributes:
        check: returns the value in its normal form or raises `Invalid`.
        stock: what nnU-Net does where the field is not set.
        is_code: holds a component: a class, factory or finished object.
        is_of_file: belongs to the config as it is written: its name, its text, what it builds on.
        combine: how values of two composed trainers become one; empty means that they exclude each other. Without it
            two different values are a conflict.
    """

    check: Callable[[Any], Any]
    stock: str = ""
    is_code: bool = False
    is_of_file: bool = False
    combine: Callable[[Any, Any], Any] | None = None

    def parse(self, text: str, where: str) -> Any:
        """Read the text of an assignment; `NnplugError` where it is no value or not one of this field."""
        try:
            return self.check(self._read(text, where))
        except Invalid as error:
            raise NnplugError(f"{where}: {error.explain(repr(text))}") from None

    def _read(self, text: str, where: str) -> Any:
        if parse_number(text) is not None and self.check in _TUPLES:
            return (parse_number(text),)
        value = parse_value(text, where)
        return () if value is None and self.check in _TUPLES else value

    def format(self, value: Any) -> str:
        """Spell a value of this field in a name."""
        if self.check in _TUPLES and len(value) == 1:
            return format_value(value[0])
        return format_value(value)


_TUPLES = (dimensions, axes, size)


def common_dimensions(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions in which both trainers work."""
    return tuple(dim for dim in one if dim in other)


def joint_settings(one: Component, other: Component) -> Component | None:
    """The same code with the settings of both trainers; None for other code, or where they differ about a setting."""
    settings = {**one.kwargs, **other.kwargs}
    if describe(one.target) != describe(other.target) or settings != {**other.kwargs, **one.kwargs}:
        return None
    return Component(one.target, **settings)


def names(value: Any) -> tuple[str, ...]:
    """Accept a list of field names."""
    expected = "a list of field names"
    if isinstance(value, (str, Mapping)) or not hasattr(value, "__iter__"):
        raise Invalid(expected, value)
    found = tuple(value)
    for name in found:
        if not isinstance(name, str):
            raise Invalid(expected, value)
        root, _, rest = name.partition(".")
        if root not in FIELDS or FIELDS[root].is_of_file or (rest and root != "plans"):
            raise Invalid(f"names of fields to drop{did_you_mean(root, FIELDS)}", name)
    return found


def plans(value: Any) -> dict[str, Any]:
    """Accept a mapping of plain values that leaves alone what the preprocessed data depend on."""
    copied = plain_copy(value, "")
    if not isinstance(copied, dict):
        raise Invalid("a table with keys of the plan's configuration", value)
    for key in copied:
        if key in _PREPROCESSING_KEYS:
            raise Refused(
                "can not be changed: the data were preprocessed with the plan's. Derive a plans file with another name "
                "and preprocess with it.",
                copied[key],
                key,
            )
        if key not in _TRAINING_KEYS and (hint := did_you_mean(key, _TRAINING_KEYS)):
            raise Invalid(f"a key of the plan's configuration{hint}", copied[key], key)
    architecture = copied.get("architecture", {})
    if not isinstance(architecture, dict):
        raise Invalid("a table", architecture, "architecture")
    if "network_class_name" in architecture:
        reason = "can not be set here. Name the network in the field network_builder."
        raise Refused(reason, None, "architecture.network_class_name")
    for key in PLANS_FIELDS:
        if key in copied:
            try:
                checked = FIELDS[key].check(copied[key])
            except Invalid as error:
                raise Invalid(error.expected, error.value, key) from None
            copied[key] = list(checked) if isinstance(checked, tuple) else checked
    return copied


_POSITIVE = real("a number > 0", lambda number: number > 0)
_NOT_NEGATIVE = real("a number >= 0", lambda number: number >= 0)
_SHARE = real("a number from 0 to 1", lambda number: 0 <= number <= 1)
_COUNT = whole(1)


FIELDS: dict[str, Field] = {
    "name": Field(check=check_name, is_of_file=True),
    "description": Field(check=text, is_of_file=True),
    "source": Field(check=text, is_of_file=True),
    "extends": Field(check=text, is_of_file=True),
    "unset": Field(check=names, is_of_file=True),
    "base_trainer": Field(check=factory, stock="nnUNetTrainer", is_code=True),
    "network_builder": Field(check=factory, stock="the plan's U-Net", is_code=True),
    "enable_deep_supervision": Field(check=boolean, stock="true"),
    "spatial_dims": Field(check=dimensions, stock="2x3", combine=common_dimensions),
    "loss_fn": Field(check=factory_or_finished, stock="Dice + cross-entropy", is_code=True),
    "sampler": Field(check=factory, stock="nnUNetDataLoader", is_code=True, combine=joint_settings),
    "training_transforms": Field(check=factory, stock="nnU-Net's augmentation", is_code=True),
    "mirror_axes": Field(check=axes, stock="every axis of the patch"),
    "optimizer": Field(check=factory, stock="SGD, Nesterov momentum 0.99", is_code=True),
    "lr_scheduler": Field(check=factory, stock="polynomial decay, exponent 0.9", is_code=True),
    "initial_lr": Field(check=_POSITIVE, stock="0.01"),
    "weight_decay": Field(check=_NOT_NEGATIVE, stock="3e-5"),
    "num_epochs": Field(check=_COUNT, stock="1000"),
    "num_iterations_per_epoch": Field(check=_COUNT, stock="250"),
    "num_val_iterations_per_epoch": Field(check=_COUNT, stock="50"),
    "batch_size": Field(check=_COUNT, stock="the plan's"),
    "patch_size": Field(check=size, stock="the plan's"),
    "oversample_foreground_percent": Field(check=_SHARE, stock="0.33"),
    "probabilistic_oversampling": Field(check=boolean, stock="false"),
    "save_every": Field(check=_COUNT, stock="50"),
    "compile": Field(check=boolean, stock="true on CUDA"),
    "amp": Field(check=boolean, stock="true on CUDA"),
    "seed": Field(check=whole(0, 2**32 - 1), stock="none: every run is different"),
    "plans": Field(check=plans, stock="as planned"),
}
CODE_FIELDS = tuple(name for name, field in FIELDS.items() if field.is_code)
# The fields that make a training what it is, in the order in which they are shown.
SETTINGS = tuple(name for name, field in FIELDS.items() if not field.is_of_file)


def check_fields(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check fields and bring their values into the normal form.

    Args:
        given: name to value; None stands for "not set".
        where: what holds the fields, a file or a trainer, for messages.

    Returns:
        The fields that are set.

    Raises:
        NnplugError: with the path to the first value that is wrong.
    """
    checked = {}
    for name, value in given.items():
        if name not in FIELDS:
            raise NnplugError(f"{where}: {name}: no such field{did_you_mean(name, FIELDS)}.")
        if value is None:
            continue
        try:
            checked[name] = FIELDS[name].check(value)
        except Invalid as error:
            path = f"{name}.{error.key}" if error.key else name
            raise NnplugError(f"{where}: {path}: {error.explain()}") from None
    _check_together(checked, where)
    return checked


def _check_together(checked: Mapping[str, Any], where: str) -> None:
    if "name" not in checked:
        raise NnplugError(f"{where}: name: missing. Every trainer config needs one.")
    unset = checked.get("unset", ())
    if unset and "extends" not in checked:
        raise NnplugError(f"{where}: unset: nothing to drop without extends. Remove unset or name what this extends.")
    for name in unset:
        if name in checked:
            raise NnplugError(f"{where}: unset: '{name}' is also set here. Remove one of the two.")
    for name in PLANS_FIELDS:
        planned = checked.get("plans", {}).get(name)
        if planned is not None and name in checked and FIELDS[name].check(planned) != checked[name]:
            raise NnplugError(f"{where}: plans.{name}: differs from the field {name}. Set one of the two.")
