"""Read pickles that nnU-Net writes without running what they may contain.

A pickle is a program: reading one that somebody else made can do anything. Here a pickle may hold plain values and
numbers of numpy; a name that a caller knows comes back as text, and any other one is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from nnplug.errors import NnplugError
from nnplug.files.plain_values import ALLOWED_GLOBALS, NumberType, arrays_from_stand_ins


def _array(data: bytes | bytearray, number_type: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Stand-in for how protocol 5 writes an array."""
    if not isinstance(number_type, NumberType):
        raise ValueError("malformed numpy value")
    return number_type.decode(data).reshape(shape, order="F" if order == "F" else "C").copy()


_STAND_INS: dict[str, Callable[..., Any]] = {
    **{name: stand_in for stand_in, name in ALLOWED_GLOBALS},
    "numpy.core.numeric._frombuffer": _array,
    "numpy._core.numeric._frombuffer": _array,
}


class _ForeignName(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, names: Collection[str]) -> None:
        super().__init__(file)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self._names:
            return full
        if full not in _STAND_INS:
            raise _ForeignName(full)
        return _uncovered(_STAND_INS[full])


def _uncovered(stand_in: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own each time: a pickle can set attributes of what it is given."""
    return lambda *arguments: stand_in(*arguments)


def read_pickle(path: Path, names: Collection[str] = ()) -> Any:
    """The content of a pickle of plain values.

    Args:
        path: the file.
        names: ``module.function`` of what else it may name; it comes back as this text and is not imported.

    Raises:
        NnplugError: it names anything else, nothing of which was imported or run; no such file, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            return arrays_from_stand_ins(_Unpickler(file, names).load())
    except _ForeignName as foreign:
        raise NnplugError(
            f"{path} would run code when it is read: it names {foreign}, which nnU-Net does not write there. "
            "It was not run. Use a file of nnU-Net's own."
        ) from None
    except OSError as error:
        raise NnplugError(f"{path} could not be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise NnplugError(f"{path} is damaged, or no file of nnU-Net's ({type(error).__name__}: {error}).") from error
