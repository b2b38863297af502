"""What a checkpoint may hold, and how numpy values become that and come back.

``to_plain`` is the way in. For the way back, stock nnU-Net's checkpoints hold numpy scalars, pickled as calls of numpy
functions. Allowing these functions would hand a hostile file numpy's own unpickling, which trusts its input; so
``ALLOWED_GLOBALS`` puts small stand-ins under their names (those of numpy 1 and of numpy 2) that only decode numbers.
"""

from __future__ import annotations

import re
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from nnplug.errors import NnplugError

_KEPT_TYPES = frozenset((bool, int, float, complex, str, bytearray, torch.device, torch.dtype, torch.Size))
_NUMBER_KINDS = "biufc"
_NUMBER_CODE = re.compile(r"[<>|=]?(b1|i[1248]|u[1248]|f[248]|c8|c16)")


def to_plain(obj: Any) -> Any:
    """Turn ``obj`` recursively into what ``torch.load(weights_only=True)`` accepts.

    numpy scalars become Python numbers, numpy arrays of numbers nested lists, paths text, bytes a bytearray;
    subclasses of tuple, list, dict, str, int, float and Tensor become their plain parent. Tensors keep their storage
    (tied weights stay tied) and lose their gradients.

    Raises:
        NnplugError: any other value; the message names where it is.
    """
    return convert(obj, lambda tensor: tensor)


def convert(obj: Any, convert_tensor: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``to_plain`` with a function for the tensors."""
    return _Converter(convert_tensor).value(obj, ())


class _Converter:
    def __init__(self, convert_tensor: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._convert_tensor = convert_tensor
        self._open: set[int] = set()

    def value(self, obj: Any, path: tuple[str, ...]) -> Any:
        if obj is None or type(obj) in _KEPT_TYPES:
            return obj
        if isinstance(obj, torch.Tensor):
            return self._tensor(obj)
        if isinstance(obj, np.ndarray | np.generic):
            return _from_numpy(obj, path)
        if isinstance(obj, Mapping | list | tuple | set | frozenset):
            return self._container(obj, path)
        if isinstance(obj, str | PurePath):
            return str(obj)
        if isinstance(obj, bytes | bytearray):  # empty bytes are pickled as a call that torch does not allow
            return bytearray(obj)
        if isinstance(obj, int | float):
            return int(obj) if isinstance(obj, int) else float(obj)
        raise _refused(obj, path)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        if type(plain) is not torch.Tensor:
            plain = plain.as_subclass(torch.Tensor)
        return self._convert_tensor(plain)

    def _container(self, obj: Any, path: tuple[str, ...]) -> Any:
        if id(obj) in self._open:
            raise NnplugError(f"Checkpoint entry {_show(path)} contains itself and can not be stored.")
        self._open.add(id(obj))
        try:
            if isinstance(obj, Mapping):
                return self._mapping(obj, path)
            values = [self.value(value, (*path, str(index))) for index, value in enumerate(obj)]
        finally:
            self._open.discard(id(obj))
        if isinstance(obj, tuple):
            return tuple(values)
        return set(values) if isinstance(obj, set | frozenset) else values

    def _mapping(self, obj: Mapping[Any, Any], path: tuple[str, ...]) -> dict[Any, Any]:
        plain: dict[Any, Any] = OrderedDict() if isinstance(obj, OrderedDict) else {}
        for key, value in obj.items():
            plain[self._key(key, path)] = self.value(value, (*path, str(key)))
        metadata = getattr(obj, "_metadata", None)  # versions of a state dict's modules
        if metadata is not None and isinstance(plain, OrderedDict):
            plain._metadata = self.value(metadata, (*path, "_metadata"))  # type: ignore[attr-defined]
        return plain

    def _key(self, key: Any, path: tuple[str, ...]) -> Any:
        plain = self.value(key, (*path, f"key {key!r}"))
        try:
            hash(plain)
        except TypeError:
            raise _refused(key, (*path, f"key {key!r}")) from None
        return plain


def _from_numpy(obj: np.ndarray | np.generic, path: tuple[str, ...]) -> Any:
    if isinstance(obj, str | bytes):  # numpy.str_, numpy.bytes_
        return str(obj) if isinstance(obj, str) else bytearray(obj)
    if obj.dtype.kind not in _NUMBER_KINDS:
        raise _refused(obj, path, f"an array of {obj.dtype}")
    plain = obj.tolist()
    if isinstance(plain, np.generic):  # long double has no Python type
        plain = complex(plain) if obj.dtype.kind == "c" else float(plain)
    return plain


def _show(path: tuple[str, ...]) -> str:
    return "'" + " -> ".join(path) + "'" if path else "(the whole)"


def _refused(obj: Any, path: tuple[str, ...], what: str | None = None) -> NnplugError:
    kind = what or f"a {type(obj).__module__}.{type(obj).__qualname__}"
    return NnplugError(
        f"Checkpoint entry {_show(path)} is {kind}, which can not be stored: "
        "use numbers, text, lists, dictionaries, tensors."
    )


class NotANumberError(ValueError):
    """A pickled numpy value that is no number (objects, records, dates)."""


class NumberType:
    """Stand-in for ``numpy.dtype`` in a pickle: a number type, nothing else."""

    def __init__(self, code: str, *_flags: Any) -> None:
        if not isinstance(code, str) or not _NUMBER_CODE.fullmatch(code):
            raise NotANumberError(f"numpy values of type {reprlib.repr(code)}")
        self.code = code.lstrip("<>|=")
        self.byte_order = code[0] if code[0] in "<>" else "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.byte_order = state[1]

    def decode(self, data: bytes | bytearray | str) -> np.ndarray:
        raw = data.encode("latin-1") if isinstance(data, str) else bytes(data)
        return np.frombuffer(raw, dtype=np.dtype(self.byte_order + self.code))


def number(number_type: NumberType, data: bytes | str = b"") -> Any:
    """Stand-in for numpy's scalar constructor in a pickle; gives a Python number."""
    return _checked(number_type).decode(data)[0].item()


class NumberArray:
    """Stand-in for ``numpy.ndarray`` in a pickle; ``arrays_from_stand_ins`` makes the array."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, number_type, is_fortran, data = state
        self.array = _checked(number_type).decode(data).reshape(shape, order="F" if is_fortran else "C").copy()


def new_array(_type: Any, _shape: Any = (0,), _code: Any = b"b") -> NumberArray:
    """Stand-in for numpy's ``_reconstruct`` in a pickle."""
    return NumberArray()


def empty_bytes() -> bytes:
    """Stand-in for ``bytes`` in a pickle, which is called for an empty array only."""
    return b""


def _checked(number_type: Any) -> NumberType:
    if not isinstance(number_type, NumberType):
        raise ValueError("malformed numpy value")
    return number_type


def arrays_from_stand_ins(content: Any) -> Any:
    """Put numpy arrays where ``content`` (as loaded) holds their stand-ins; dictionaries and lists change in place."""
    return _with_arrays(content, {})


def _with_arrays(content: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """``done``: old and new values by the old one's id. Few bytes can make lists that hold each other 2^40 times."""
    if isinstance(content, NumberArray):
        return content.array
    if id(content) in done:
        return done[id(content)][1]
    if isinstance(content, dict):
        done[id(content)] = content, content
        for key, value in content.items():
            content[key] = _with_arrays(value, done)
    elif isinstance(content, list):
        done[id(content)] = content, content
        content[:] = [_with_arrays(value, done) for value in content]
    elif type(content) is tuple:
        new = tuple(_with_arrays(value, done) for value in content)
        done[id(content)] = content, new
        return new
    return content


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1 and 2

ALLOWED_GLOBALS: list[Any] = [
    *((number, f"{module}.scalar") for module in _MULTIARRAY),
    *((new_array, f"{module}._reconstruct") for module in _MULTIARRAY),
    (NumberType, "numpy.dtype"),
    (empty_bytes, "builtins.bytes"),
    (NumberArray, "numpy.ndarray"),
]
"""For ``torch.serialization.safe_globals``: what stock checkpoints hold besides torch's own."""
