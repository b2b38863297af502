"""What can be set in a configuration of plans: ``--set KEY=VALUE``, read and checked."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

from nnplug.errors import NnplugError
from nnplug.planning.classes import find_class

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]|_(?!_))*(?<!_)")


def _numbers(text: str, kind: type, least: float, expected: str) -> list[Any]:
    try:
        values = [kind(part) for part in re.split(r"[,x]", text)]
    except ValueError:
        values = []
    if not values or not all(value >= least and math.isfinite(value) for value in values):
        raise NnplugError(expected)
    return values


def _patch_size(text: str, base: Mapping[str, Any]) -> list[int]:
    dims = len(base["patch_size"])
    values = _numbers(text, int, 1, f"expected {dims} integers above 0, as in {_example(base['patch_size'])}")
    if len(values) != dims:
        raise NnplugError(f"expected {dims} integers above 0, as in {_example(base['patch_size'])}")
    return values


def _spacing(text: str, base: Mapping[str, Any]) -> list[float]:
    dims = len(base["spacing"])
    expected = f"expected {dims} numbers of millimetres above 0, as in {_example(base['spacing'])}"
    values = _numbers(text, float, 1e-9, expected)
    if len(values) != dims:
        raise NnplugError(expected)
    return values


def _batch_size(text: str, _base: Mapping[str, Any]) -> int:
    values = _numbers(text, int, 1, "expected an integer above 0")
    if len(values) != 1:
        raise NnplugError("expected an integer above 0")
    return values[0]


def _boolean(text: str, _base: Mapping[str, Any] = {}) -> bool:
    if text.lower() not in ("true", "false"):
        raise NnplugError("expected true or false")
    return text.lower() == "true"


def _by_channel(text: str, base: Mapping[str, Any]) -> list[str]:
    values, wanted = text.split(","), len(base["normalization_schemes"])
    if len(values) != wanted:
        raise NnplugError(f"expected one for each of {wanted} channels, separated by commas")
    return values


def _normalization(text: str, base: Mapping[str, Any]) -> list[str]:
    values = _by_channel(text, base)
    for name in values:
        find_class(name, ImageNormalization, "preprocessing.normalization")
    return values


def _masks(text: str, base: Mapping[str, Any]) -> list[bool]:
    return [_boolean(value) for value in _by_channel(text, base)]


def _preprocessor(text: str, _base: Mapping[str, Any]) -> str:
    find_class(text, DefaultPreprocessor, "preprocessing")
    return text


def _resampling(text: str, _base: Mapping[str, Any]) -> str:
    find_resampling(text)
    return text


def _keywords(text: str, _base: Mapping[str, Any]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise NnplugError('expected a JSON object, as in {"order": 1}')
    return value


def _identifier(text: str, _base: Mapping[str, Any]) -> str:
    check_name(text)
    return text


SETTINGS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "batch_size": _batch_size,
    "patch_size": _patch_size,
    "spacing": _spacing,
    "batch_dice": _boolean,
    "normalization_schemes": _normalization,
    "use_mask_for_norm": _masks,
    "preprocessor_name": _preprocessor,
    "resampling_fn_data": _resampling,
    "resampling_fn_data_kwargs": _keywords,
    "resampling_fn_seg": _resampling,
    "resampling_fn_seg_kwargs": _keywords,
    "resampling_fn_probabilities": _resampling,
    "resampling_fn_probabilities_kwargs": _keywords,
    "data_identifier": _identifier,
}


def parse_settings(assignments: Sequence[str], base: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` texts.

    Args:
        assignments: texts.
        base: the configuration that they change, inherited entries included.

    Returns:
        Values as plans hold them.

    Raises:
        NnplugError: an unknown key, a key given twice, a value out of its range.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise NnplugError(f"--set {assignment}: expected KEY=VALUE, as in batch_size=2.")
        if key not in SETTINGS:
            near = get_close_matches(key, SETTINGS, n=1)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            raise NnplugError(f"--set {assignment}: unknown key '{key}'.{meant} Known are {', '.join(SETTINGS)}.")
        if key in values:
            raise NnplugError(f"--set {key} is given twice. Give it once.")
        try:
            values[key] = SETTINGS[key](text, base)
        except NnplugError as error:
            raise NnplugError(f"--set {assignment}: {str(error).rstrip('.')}.") from None
    _check_resampling({**base, **values}, values)
    return values


def check_name(name: str) -> None:
    """Refuse what can not be a part of the folder names that nnU-Net makes and splits."""
    if not _NAME.fullmatch(name):
        raise NnplugError(
            f"The name '{name}' can not be used: expected letters, digits, '_', '-' and '.', beginning with a letter "
            "or digit, without '__' and without '_' at the end (nnU-Net splits folder names there)."
        )


def find_resampling(name: str) -> Callable[..., Any]:
    """nnU-Net's resampling function of this name. Raises NnplugError where there is none."""
    try:
        return recursive_find_resampling_fn_by_name(name)
    except RuntimeError:
        raise NnplugError(f"nnU-Net has no resampling function '{name}'.") from None


def _check_resampling(settings: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """A function has to take the arguments that stand beside it in the plans."""
    for key in ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"):
        arguments = settings[f"{key}_kwargs"]
        if key not in changed and f"{key}_kwargs" not in changed:
            continue
        parameters = inspect.signature(find_resampling(settings[key])).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        unknown = [name for name in arguments if name not in parameters]
        if unknown:
            raise NnplugError(
                f"{key} {settings[key]} has no argument '{unknown[0]}'. Give the right ones with "
                f"--set {key}_kwargs=JSON."
            )


def _example(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
