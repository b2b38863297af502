"""What nnU-Net needs of labels, channels, case names and files, as far as the description alone tells. No torch."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnplug.datasets import as_values, has_regions
from nnplug.problems import Problem

_LABEL_EXAMPLE = 'for example {"background": 0, "tumor": 1}'
_MAX_NAME_BYTES = 200


# --- labels ----------------------------------------------------------------------------------------------------------


def check_labels(labels: Any, regions_class_order: Any = None) -> list[Problem]:
    """Check ``labels`` (name to integer, or list of integers for a region) and ``regions_class_order``."""
    if not isinstance(labels, Mapping) or not labels:
        return [Problem(f"labels is {labels!r}", f"It has to map names to integers, {_LABEL_EXAMPLE}.")]
    problems = []
    for name, value in labels.items():
        if not (_is_whole(value) or (isinstance(value, list) and value and all(map(_is_whole, value)))):
            problems.append(
                Problem(f"label '{name}' is {value!r}", "Give an integer from 0 on, or a list of them for a region.")
            )
    if labels.get("background", 0) != 0 or "background" not in labels:
        found = f"label 'background' is {labels['background']!r}" if "background" in labels else "no label 'background'"
        problems.append(Problem(found, 'nnU-Net needs "background": 0.'))
    return problems or _check_values(labels) + _check_regions(labels, regions_class_order)


def label_values(labels: Mapping[str, Any]) -> list[int]:
    """Every value that a label image may hold, sorted, the ignore label included; without what is no label value."""
    values = [value for item in labels.values() for value in as_values(item)]
    return sorted({value for value in values if _is_whole(value)})


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_values(labels: Mapping[str, Any]) -> list[Problem]:
    problems = []
    values = label_values(labels)
    ignore = labels.get("ignore")
    if isinstance(ignore, list):
        return [Problem(f"label 'ignore' is the list {ignore}", "It has to be one integer.")]
    others = label_values({name: value for name, value in labels.items() if name != "ignore"})
    if ignore is not None and ignore <= others[-1]:
        problems.append(
            Problem(f"label 'ignore' is {ignore}, others go up to {others[-1]}", f"Make it {others[-1] + 1}.")
        )
    missing = sorted(set(range(values[-1])) - set(values))
    if missing:
        problems.append(
            Problem(
                f"the labels are {_listed(values)}: {_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing",
                f"nnU-Net needs consecutive integers: renumber them, also in the images, to 0 to {len(values) - 1}.",
            )
        )
    if len(others) < 2:
        problems.append(Problem("there is no label but the background", "Add what is to be segmented."))
    if not has_regions(labels):
        problems += _check_twice(labels)
    return problems


def _check_twice(labels: Mapping[str, Any]) -> list[Problem]:
    names: dict[int, list[str]] = {}
    for name, item in labels.items():
        names.setdefault(as_values(item)[0], []).append(name)
    return [
        Problem(f"labels {' and '.join(same)} are both {value}", "Each label needs a value of its own.")
        for value, same in names.items()
        if len(same) > 1
    ]


def _check_regions(labels: Mapping[str, Any], order: Any) -> list[Problem]:
    if not has_regions(labels):
        return []
    regions = [name for name, item in labels.items() if name != "ignore" and set(as_values(item)) != {0}]
    advice = (
        f"Give the label value to write for each of {', '.join(regions)}; later ones are written over earlier ones."
    )
    if order is None:
        return [Problem("labels has regions, and there is no regions_class_order", advice)]
    if not isinstance(order, list) or not all(map(_is_whole, order)) or len(order) != len(regions):
        return [Problem(f"regions_class_order is {order!r}, and there are {len(regions)} regions", advice)]
    allowed = set(label_values({name: value for name, value in labels.items() if name != "ignore"})) - {0}
    if set(order) - allowed or len(set(order)) != len(order):
        return [Problem(f"regions_class_order is {order!r}, and the labels are {_listed(sorted(allowed))}", advice)]
    return []


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


# --- channels --------------------------------------------------------------------------------------------------------


def check_channels(channels: Any) -> list[Problem]:
    """Check ``channel_names``: ``{"0": name, "1": name}`` without gaps."""
    example = 'It has to map "0", "1", ... to names, for example {"0": "T1", "1": "FLAIR"}.'
    if not isinstance(channels, Mapping) or not channels:
        return [Problem(f"channel_names is {channels!r}", example)]
    problems = [
        Problem(f"channel {key!r} is named {name!r}", "Give a text that is not empty.")
        for key, name in channels.items()
        if not isinstance(name, str) or not name.strip()
    ]
    if set(channels) != {str(index) for index in range(len(channels))}:
        problems.append(Problem(f"channel_names has the keys {', '.join(map(repr, channels))}", example))
    return problems


def check_channel_order(images: Mapping[str, Sequence[Path]], channel_names: Sequence[str]) -> list[Problem]:
    """What tells one channel's file from another's: in the same order in every case, and in that of the names."""
    problems = []
    named = [name.casefold() for name in channel_names]
    orders: dict[frozenset[str], tuple[str, tuple[str, ...]]] = {}
    for case, files in images.items():
        tokens = channel_tokens(files)
        if len(set(tokens)) < 2:
            continue
        first_case, first = orders.setdefault(frozenset(tokens), (case, tokens))
        if set(tokens) == {f"{index:04d}" for index in range(len(tokens))}:
            wrong = list(tokens) != sorted(tokens)
            expected = "the numbers have to rise"
        elif set(tokens) == set(named):
            wrong = list(tokens) != named
            expected = f"channel_names has {', '.join(channel_names)}"
        else:
            wrong = tokens != first
            expected = f"case {first_case} has {', '.join(first)}"
        if wrong:
            found = f"the channels are in the order {', '.join(tokens)}, and {expected}"
            problems.append(Problem(found, "Put the images of every case in the order of channel_names.", case))
    return problems


def channel_tokens(files: Sequence[Path]) -> tuple[str, ...]:
    """What differs between the paths of a case's files: ``0000``, ``0001`` or ``t1w``, ``flair``; lower case."""
    stems = [re.sub(r"(\.nii)?\.[^.]+$", "", file.as_posix()).casefold() for file in files]
    words = [re.split(r"(?<=[^a-z0-9])|(?=[^a-z0-9])", stem) for stem in stems]
    start = _common_length(words)
    end = min(_common_length([one[::-1] for one in words]), min(map(len, words)) - start)
    return tuple("".join(one[start : len(one) - end]) for one in words)


def _common_length(lists: Sequence[Sequence[str]]) -> int:
    """How many first items all lists share."""
    shared = itertools.takewhile(lambda items: len(set(items)) == 1, zip(*lists, strict=False))
    return sum(1 for _ in shared)


# --- cases -----------------------------------------------------------------------------------------------------------


def check_case_name(name: str) -> list[Problem]:
    """Case names become file names."""
    found = None
    if not name or name != name.strip() or name.startswith("."):
        found = "the name is empty, or begins with a dot, or begins or ends with a space"
    elif re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
        found = "the name has a character that a file name can not have on every system"
    elif name.endswith("_seg"):
        found = "the name ends with _seg, which nnU-Net takes for the segmentation of another case"
    elif len(name.encode()) > _MAX_NAME_BYTES:
        found = f"the name has more than {_MAX_NAME_BYTES} bytes"
    return [Problem(found, "Rename the case.", name)] if found else []


def check_duplicates(
    files: Sequence[tuple[str, str, Path]], states: Sequence[os.stat_result | OSError]
) -> list[Problem]:
    """A file may be used once. Takes (case, what it is there, path), and what the system says of each file.

    Images are compared as files, so that two links to one are found; labels by their paths only, since tools that store
    equal files once let the empty labels of several cases be one file.
    """
    problems = []
    used: dict[Any, tuple[str, str]] = {}
    for (case, role, path), state in zip(files, states, strict=True):
        keys: list[Any] = [path]
        if role != "label" and isinstance(state, os.stat_result):
            keys.append((state.st_dev, state.st_ino))
        other_case, other_role = next((used[key] for key in keys if key in used), (case, role))
        used.update(dict.fromkeys(keys, (other_case, other_role)))
        if (other_case, other_role) != (case, role):
            where = f"case {other_case} as {other_role}" if other_case != case else f"the same case as {other_role}"
            advice = "Each file belongs to one case and one channel."
            problems.append(Problem(f"used as {role}, and by {where}", advice, case, path))
    return problems
