"""Splits for the cross-validation: by group, stratified, with cases held out. The format is nnU-Net's."""

from __future__ import annotations

import csv
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from nnunetv2.utilities.crossval_split import generate_crossval_split
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import replace_file
from nnplug.files.json_files import as_plain_json, write_json
from nnplug.files.new_folder import free_name
from nnplug.planning.data import PlanningData
from nnplug.problems import count, shortened

FILE_NAME = "splits_final.json"
HELD_OUT_NAME = "splits_held_out.json"
_NUM_FOLDS_FOR_SHARE = 20
_MOST_OFF = 1.5  # times what was asked for, or less than it

Split = dict[str, list[str]]


# --- making ----------------------------------------------------------------------------------------------------------


def make_splits(
    cases: Sequence[str],
    num_folds: int = 5,
    seed: int = 12345,
    *,
    groups: Mapping[str, str] | None = None,
    strata: Mapping[str, str] | None = None,
) -> list[Split]:
    """Distribute cases over folds, each of which validates its own.

    Args:
        cases: names.
        num_folds: 2 or more.
        seed: of the shuffling.
        groups: a name by case; cases of one group are never on both sides of a fold.
        strata: a name by case; every fold gets its share of each, as far as the groups allow.

    Returns:
        nnU-Net's splits. Without groups and strata they are those that nnU-Net makes itself.

    Raises:
        NnplugError: more folds than cases, groups, or cases of every stratum.
    """
    if num_folds < 2:
        raise NnplugError(f"-k {num_folds}: expected 2 folds or more.")
    cases = sorted(cases)
    _check_enough(cases, num_folds, groups, strata)
    if groups is None and strata is None:
        return as_plain_json(generate_crossval_split(cases, seed=seed, n_splits=num_folds))
    return [
        {"train": sorted(set(cases) - set(validated)), "val": validated}
        for validated in _folds(cases, num_folds, seed, groups, strata)
    ]


def hold_out(
    cases: Sequence[str],
    share: float,
    seed: int = 12345,
    *,
    groups: Mapping[str, str] | None = None,
    strata: Mapping[str, str] | None = None,
) -> list[str]:
    """Choose about this share of the cases, whole groups, with its part of every stratum.

    Raises:
        NnplugError: the share is not between 0 and 0.5, there is but one case or group, or groups are so large that
            what they make is far from the share.
    """
    if not 0 < share <= 0.5:
        raise NnplugError(f"--held-out {share:g}: expected a share above 0 and up to 0.5, or a file.")
    cases = sorted(cases)
    sizes = Counter(groups[name] if groups is not None else name for name in cases)
    if len(sizes) < 2:
        raise NnplugError(f"--held-out {share:g}: there are too few cases or groups to keep some of them out.")
    wanted = max(1, min(round(share * len(cases)), len(cases) // 2))
    if groups is None:
        return sorted(_choose_cases(wanted, cases, seed, strata))
    chosen = _groups_up_to(wanted, cases, seed, groups, strata)
    chosen += _nearest_group(wanted - len(chosen), sorted(set(cases) - set(chosen)), seed, groups, not chosen)
    is_near = wanted / _MOST_OFF <= len(chosen) <= wanted * _MOST_OFF
    if not is_near and abs(len(chosen) - wanted) > min(sizes.values()):
        raise NnplugError(
            f"--held-out {share:g}: whole groups come to {len(chosen)} of {len(cases)} cases, a share of "
            f"{len(chosen) / len(cases):.2g}. Give a share near that, or a file with the cases."
        )
    return sorted(chosen)


def _choose_cases(number: int, cases: Sequence[str], seed: int, strata: Mapping[str, str] | None) -> list[str]:
    """Cases at equal distances in a shuffled list that is sorted by stratum: of each its part, rounded up or down."""
    rng = np.random.default_rng(seed)
    ordered = sorted(rng.permutation(cases).tolist(), key=lambda name: strata[name] if strata is not None else "")
    start = int(rng.integers(len(cases)))
    marks = [(start + index * number) // len(cases) for index in range(len(cases) + 1)]
    return [name for index, name in enumerate(ordered) if marks[index] < marks[index + 1]]


def _groups_up_to(
    most: int, cases: Sequence[str], seed: int, groups: Mapping[str, str], strata: Mapping[str, str] | None
) -> list[str]:
    """As many cases as folds make without being more than ``most``; a fold that is too large is divided again."""
    if len(cases) <= most:
        return list(cases)
    num_groups = len({groups[name] for name in cases})
    if most < 1 or num_groups < 2:
        return []
    largest = max(Counter(strata[name] for name in cases).values()) if strata is not None else len(cases)
    if largest < 2:
        strata, largest = None, len(cases)
    chosen: list[str] = []
    for fold in _folds(cases, min(_NUM_FOLDS_FOR_SHARE, num_groups, largest), seed, groups, strata):
        chosen += _groups_up_to(most - len(chosen), fold, seed, groups, strata)
    return chosen


def _nearest_group(
    missing: int, cases: Sequence[str], seed: int, groups: Mapping[str, str], is_needed: bool
) -> list[str]:
    """The cases of the group that comes nearest to what is missing; none where that is nearer and not needed."""
    sizes = Counter(groups[name] for name in cases)
    shuffled = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    best = min(shuffled, key=lambda group: abs(sizes[group] - missing))
    if not is_needed and abs(sizes[best] - missing) >= missing:
        return []
    return [name for name in cases if groups[name] == best]


def _folds(
    cases: Sequence[str],
    number: int,
    seed: int,
    groups: Mapping[str, str] | None,
    strata: Mapping[str, str] | None,
) -> list[list[str]]:
    values = np.array([strata[name] if strata is not None else "" for name in cases])
    splitter = (StratifiedKFold if groups is None else StratifiedGroupKFold)(number, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rare strata, which are told in words
        found = splitter.split(values, values, None if groups is None else [groups[name] for name in cases])
        return [[cases[index] for index in validated] for _, validated in found]


def _check_enough(
    cases: Sequence[str], num_folds: int, groups: Mapping[str, str] | None, strata: Mapping[str, str] | None
) -> None:
    if len(cases) < num_folds:
        raise NnplugError(f"-k {num_folds}: there are only {count(len(cases), 'case')}. Make fewer folds.")
    number = len({groups[name] for name in cases}) if groups is not None else num_folds
    if number < num_folds:
        raise NnplugError(f"-k {num_folds}: there are only {count(number, 'group')}. Make fewer folds.")
    if strata is not None and max(Counter(strata[name] for name in cases).values()) < num_folds:
        raise NnplugError(f"-k {num_folds}: no stratum has as many cases. Make fewer folds or strata.")


def rare_strata(cases: Sequence[str], num_folds: int, strata: Mapping[str, str]) -> list[str]:
    """Strata that can not be in every fold's validation."""
    return sorted(name for name, number in Counter(strata[case] for case in cases).items() if number < num_folds)


# --- tables ----------------------------------------------------------------------------------------------------------


def read_groups(text: str, cases: Sequence[str], option: str) -> dict[str, str]:
    """The group or stratum of each case.

    Args:
        text: a CSV file with the case in its first column and the group in its second, below a header; or a regular
            expression that finds the group in the name of a case (its first parenthesis, or all that it finds).
        cases: names.
        option: the command's, for messages.

    Raises:
        NnplugError: no such file, cases without a group or with two, an expression that finds nothing.
    """
    if not text.lower().endswith((".csv", ".tsv")) and not Path(text).is_file():
        return _match_groups(text, cases, option)
    found: dict[str, str] = {}
    try:
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NnplugError(f"{option} {text} can not be read ({error}).") from None
    delimiter = max(",;\t", key=lambda sign: lines[0].count(sign)) if lines else ","
    for number, row in enumerate(csv.reader(lines[1:], delimiter=delimiter), 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) < 2 or not row[1].strip():
            raise NnplugError(f"{text}, line {number}: expected a case and its group, got '{delimiter.join(row)}'.")
        name, group = row[0].strip(), row[1].strip()
        if found.setdefault(name, group) != group:
            raise NnplugError(f"{text}, line {number}: case {name} is in '{found[name]}' and in '{group}'. Name one.")
    missing = [name for name in cases if name not in found]
    if missing:
        raise NnplugError(
            f"{option} {text} has no line for {shortened(missing)}. The first column names cases as nnU-Net does, "
            "below a header."
        )
    return {name: found[name] for name in cases}


def _match_groups(text: str, cases: Sequence[str], option: str) -> dict[str, str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise NnplugError(f"{option} {text}: neither a file nor a regular expression ({error}).") from None
    found = {name: pattern.search(name) for name in cases}
    missing = [name for name, match in found.items() if match is None or match[min(1, pattern.groups)] is None]
    if missing:
        raise NnplugError(f"{option} {text}: it finds nothing in {shortened(missing)}.")
    return {name: match[min(1, pattern.groups)] for name, match in found.items() if match is not None}


def read_names(path: Path) -> list[str]:
    """Names of cases in a file: a JSON list, or one a line.

    Raises:
        NnplugError: it can not be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise NnplugError(f"{path} can not be read ({error}).") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise NnplugError(f"{path}: expected a list of names of cases.")
    return [name for name in names if name]


# --- files -----------------------------------------------------------------------------------------------------------


def write_splits(data: PlanningData, splits: list[Split], held_out: Sequence[str], *, overwrite: bool) -> list[str]:
    """Write ``splits_final.json``, and ``splits_held_out.json`` where cases are held out.

    Returns:
        What is to be told: the old file's new name, folds that were trained with it.

    Raises:
        NnplugError: there are splits already, or the raw data set brings its own.
    """
    path, beside = data.folder / FILE_NAME, data.folder / HELD_OUT_NAME
    messages = []
    check_free(data, overwrite)
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    if path.is_file():
        kept = free_name(path.with_name(f"replaced_splits_final_{now}.json"))
        messages.append(f"The old splits are kept as {kept.name}.")
        if trained := trained_folds(data.name):
            messages.append(
                f"Trained with them: {shortened(trained)}. Such folds can not be continued, nor compared with new ones."
            )
    data.folder.mkdir(parents=True, exist_ok=True)
    if beside.is_file() and (no_longer := sorted(set(read_names(beside)) - set(held_out))):
        list_kept = free_name(beside.with_name(f"replaced_splits_held_out_{now}.json"))
        os.replace(beside, list_kept)
        messages.append(
            f"No longer held out: {shortened(no_longer)}. The old list is kept as {list_kept.name}; to hold out the "
            f"same cases again: --held-out {list_kept}"
        )
    if held_out:
        write_json(beside, list(held_out))
    else:
        beside.unlink(missing_ok=True)
    content = json.dumps(splits, indent=4).encode()
    replace_file(path, lambda file: file.write(content), keep_previous=kept if path.is_file() else None)
    return messages


def check_free(data: PlanningData, overwrite: bool) -> None:
    """Refuse to make splits where there are some. Raises NnplugError."""
    path, own = data.folder / FILE_NAME, data.raw / data.name / FILE_NAME
    if own.is_file() and own.resolve() != path.resolve():
        raise NnplugError(
            f"{own}: the raw data set brings splits of its own, on which nnU-Net's planner insists. Move that file "
            "away first."
        )
    if path.is_file() and not overwrite:
        trained = trained_folds(data.name)
        used = f", with which were trained: {shortened(trained)}" if trained else ""
        raise NnplugError(f"There are splits already ({path}){used}. Give --overwrite to replace them.")


def trained_folds(dataset_name: str) -> list[str]:
    """Folds in ``nnUNet_results`` that have a checkpoint; not ``fold_all``, which takes no splits."""
    results = os.environ.get("nnUNet_results")
    if not results:
        return []
    folder = Path(results, dataset_name)
    found = {path.parent for path in folder.glob("*/fold_*/checkpoint_*.pth") if path.parent.name != "fold_all"}
    return sorted(str(fold.relative_to(folder)) for fold in found)
