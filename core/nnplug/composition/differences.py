"""What differs between two nested settings, said in one line each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MOST = 12
_LONGEST_VALUE = 60
_MISSING = object()


def list_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines like ``num_epochs: 100 in the folder, 200 now``; nested keys joined by ``->``.

    Args:
        old: JSON values (dict, list, str, numbers, bool, None) of the folder.
        new: those of now.

    Returns:
        At most 12 lines, and one that counts the rest; empty exactly if the two are equal.
    """
    found = list(_walk("", old, new))
    if len(found) > _MOST:
        return [*found[:_MOST], f"and {len(found) - _MOST} more differences"]
    return found


def _walk(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _walk(_join(path, key), old.get(key, _MISSING), new.get(key, _MISSING))
    elif isinstance(old, list) and isinstance(new, list) and not _is_short(old, new):
        if len(old) != len(new):
            yield f"{path}: {len(old)} entries in the folder, {len(new)} now"
        else:
            for index, (one, other) in enumerate(zip(old, new, strict=True)):
                yield from _walk(_join(path, str(index)), one, other)
    elif not _equal(old, new):
        shown_old, shown_new = _show(old), _show(new)
        if shown_old == shown_new:
            shown_old, shown_new = _show_from_difference(json.dumps(old), json.dumps(new))
        yield f"{path}: {shown_old} in the folder, {shown_new} now"


def _equal(old: Any, new: Any) -> bool:
    if old is _MISSING or new is _MISSING:
        return old is new
    return json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)  # tells 1 from True and NaN from 0


def _is_short(old: Any, new: Any) -> bool:
    return max(len(json.dumps(old)), len(json.dumps(new))) <= _LONGEST_VALUE


def _join(path: str, key: str) -> str:
    return f"{path} -> {key}" if path else key


def _show_from_difference(old: str, new: str) -> tuple[str, str]:
    first = next((i for i, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), 0)
    start = max(0, first - 10)
    return tuple(f"...{text[start : start + _LONGEST_VALUE - 6]}..." for text in (old, new))  # type: ignore[return-value]


def _show(value: Any) -> str:
    if value is _MISSING:
        return "not set"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
