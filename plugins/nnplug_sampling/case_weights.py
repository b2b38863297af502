"""Weights of cases: a file beside the data set's splits, ``{"case": weight}`` in JSON or ``case,weight`` in CSV."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnplug import NnplugError, TrainingRun

_RECORD_NAME = "case_weights.json"


def read_weights(folder: Path, file_name: str) -> dict[str, float]:
    """Weights by case.

    Args:
        folder: of the preprocessed data set, where ``splits_final.json`` is.
        file_name: name of a file there; ``.csv`` has the columns ``case`` and ``weight``, anything else is JSON.

    Raises:
        NnplugError: not a file there, malformed, a case that is listed twice, a weight that is no number >= 0.
    """
    if not isinstance(file_name, str) or not file_name or Path(file_name).name != file_name:
        raise NnplugError(f"sampler.case_weights: expected the name of a file in {folder}, got {file_name!r}.")
    path = folder / file_name
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin a CSV with a byte order mark
    except FileNotFoundError:
        example = "the lines case,weight and CASE,2" if _is_csv(path) else '{"CASE": 2, "OTHER": 0.5}'
        raise NnplugError(f"{path} is missing. Write it: {example} with a weight for every training case.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NnplugError(f"{path} can not be read: {error}.") from None
    rows = _csv_rows(text, path) if _is_csv(path) else _json_rows(text, path)
    weights: dict[str, float] = {}
    for case, weight in rows:
        if case in weights:
            raise NnplugError(f"{path}: {case} is listed twice. Keep one weight.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= sys.float_info.max:
            raise NnplugError(f"{path}: {case}: expected a weight >= 0, got {weight!r:.40}.")
        weights[case] = float(weight)
    return weights


def write_weights(folder: Path, file_name: str, weights: Mapping[str, float]) -> None:
    """Write a file that :func:`read_weights` reads; it is the old or the new one, whole, whenever the process ends."""
    path = folder / file_name
    lines = ["case,weight", *(f"{case},{weight}" for case, weight in weights.items())]
    text = "\n".join(lines) if _is_csv(path) else json.dumps(weights)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sampling_probabilities(
    weights: Mapping[str, float], cases: Sequence[str], known: Collection[str], path: Path
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Probability of each of ``cases``, proportional to its weight.

    Args:
        weights: by case.
        cases: the training cases of the fold.
        known: every case of the data set; weights of those that are not trained on are left out.
        path: where the weights are from, for messages.

    Raises:
        NnplugError: a case that the data set does not have, a training case without weight, no weight above 0.
    """
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise NnplugError(f"{path}: the data set has no case {_listed(unknown)}. Correct the names or remove them.")
    missing = sorted(set(cases) - set(weights))
    if missing:
        raise NnplugError(f"{path}: no weight for {_listed(missing)}. Add it; the weight 0 leaves a case out.")
    values = np.array([weights[case] for case in cases])
    if not values.any():
        raise NnplugError(f"{path}: every training case of this fold has the weight 0. Give one of them more.")
    shares = values / values.max()  # the sum of very large weights would be infinite
    return shares / shares.sum()


def keep_with_fold(run: TrainingRun, file_name: str) -> None:
    """Write the weights into the fold's folder; a training that goes on must have those that are there.

    Raises:
        NnplugError: other weights than before, or what is there can not be read.
    """
    weights = read_weights(Path(os.environ["nnUNet_preprocessed"], run.dataset), file_name)
    record = run.output_folder / _RECORD_NAME
    if run.is_resumed and record.exists():
        try:
            before = read_weights(run.output_folder, _RECORD_NAME)
        except NnplugError as error:
            raise NnplugError(f"{error} Restore what the training began with, or start anew with --restart.") from None
        changed = sorted(case for case in {*before, *weights} if before.get(case) != weights.get(case))
        if changed:
            first = f"{changed[0]} had {before.get(changed[0], 'none')} and has {weights.get(changed[0], 'none')} now"
            more = f", and {len(changed) - 1} more differ" if len(changed) > 1 else ""
            raise NnplugError(
                f"{run.output_folder} was trained with other case weights: {first}{more}. "
                f"Restore {file_name}, or start anew with --restart."
            )
    write_weights(run.output_folder, _RECORD_NAME, weights)


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _json_rows(text: str, path: Path) -> list[tuple[str, Any]]:
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise NnplugError(f"{path}: not valid JSON: {error}.") from None
    if not isinstance(content, _Pairs):
        raise NnplugError(f'{path}: expected {{"CASE": WEIGHT, ...}}.')
    return content


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON with every one of its keys: a dict would hide that one is there twice."""


def _csv_rows(text: str, path: Path) -> list[tuple[str, Any]]:
    try:
        columns, *lines = list(csv.reader(text.splitlines())) or [[]]
    except csv.Error as error:
        raise NnplugError(f"{path}: not a CSV file: {error}.") from None
    if [columns.count(name) for name in ("case", "weight")] != [1, 1]:
        raise NnplugError(
            f"{path}: expected the columns case,weight in its first line, in these letters and with commas."
        )
    case, weight = columns.index("case"), columns.index("weight")
    for line in lines:
        if any(line[len(columns) :]):
            raise NnplugError(
                f"{path}: {','.join(line)}: {len(line)} values, and there are {len(columns)} columns. Write numbers "
                "with a point."
            )
    lines = [[*line, *[""] * len(columns)] for line in lines if line]
    return [(line[case].strip(), _number(line[weight])) for line in lines]


def _number(text: str) -> float | str:
    try:
        return float(text) if "_" not in text else text
    except ValueError:
        return text


def _listed(cases: list[str]) -> str:
    return cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"
