"""``dataset.json`` for a raw data set that has images and labels but no description. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnplug.conversion.target import check_description
from nnplug.errors import NnplugError
from nnplug.files.json_files import write_json
from nnplug.inventory.patterns import find_files
from nnplug.problems import raise_problems


def describe_raw_folder(
    folder: Path,
    channels: Sequence[str],
    labels: Mapping[str, int | list[int]],
    ending: str,
    *,
    regions_class_order: Sequence[int] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write ``dataset.json`` into a folder with ``imagesTr`` and ``labelsTr``.

    Args:
        folder: ``DatasetXXX_NAME``.
        channels: names, one for each four-digit number in the files' names.
        labels: name to value, or values of a region.
        ending: of every file.
        regions_class_order: where there are regions.
        overwrite: replace one that is there.
        dry_run: only check.

    Returns:
        What is written.

    Raises:
        NnplugError: one is there already; cases lack files; channels or labels can not be used.
    """
    path = folder / "dataset.json"
    if path.exists() and not overwrite:
        raise NnplugError(f"{path} is there already. Give --overwrite to replace it.")
    names = [f"{index:04d}" for index in range(len(channels))]
    found = find_files(folder, [f"imagesTr/{{case}}_{name}{ending}" for name in names], f"labelsTr/{{case}}{ending}")
    raise_problems(folder, found.problems)
    more = sorted((folder / "imagesTr").glob(f"*_{len(channels):04d}{ending}"))
    if more:
        raise NnplugError(f"{more[0]}: there are more channels than the {len(channels)} named. Name them all.")
    content: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": len(found.images),
        "file_ending": ending,
    }
    if regions_class_order is not None:
        content["regions_class_order"] = list(regions_class_order)
    check_description(folder, content)
    if not dry_run:
        write_json(path, content)
    return content


def parse_regions(words: Sequence[str]) -> dict[str, int | list[int]]:
    """Name to value or values of ``background tumor``, ``tumor=1`` or ``whole=1,2,3``.

    Raises:
        NnplugError: a name is there twice, or a value is no integer.
    """
    labels: dict[str, int | list[int]] = {}
    for index, word in enumerate(words):
        name, assigned, text = word.partition("=")
        values = text.split(",") if assigned else [str(index)]
        if not name or name in labels or not all(value.isdecimal() for value in values):
            example = "--labels background=0 whole=1,2 core=2"
            raise NnplugError(
                f"--labels: '{word}' is no new name with an integer, or several with commas, as {example}."
            )
        numbers = [int(value) for value in values]
        labels[name] = numbers if len(numbers) > 1 else numbers[0]
    return labels
