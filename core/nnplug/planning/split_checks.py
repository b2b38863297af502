"""What can be wrong with splits: leaks between training and validation, cases that are unknown, missing or doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nnplug.errors import NnplugError
from nnplug.problems import Problem, shortened


def check_splits(
    splits: Any,
    cases: Sequence[str],
    *,
    groups: Mapping[str, str] | None = None,
    held_out: Sequence[str] = (),
) -> list[Problem]:
    """Find every problem of splits.

    Args:
        splits: content of ``splits_final.json``.
        cases: names of the data set's cases.
        groups: a name by case; one group must not be on both sides of a fold.
        held_out: cases that no fold may use.

    Raises:
        NnplugError: not in nnU-Net's format.
    """
    _check_format(splits)
    problems = [
        Problem(found, advice)
        for number, split in enumerate(splits)
        for found, advice in _check_fold(f"fold {number}", split, set(cases), groups, set(held_out))
    ]
    if left := cases_in_no_fold(splits, cases, held_out):
        problems.append(Problem(f"{shortened(left)} in no fold", "Add them, or hold them out with --held-out."))
    validated = Counter(name for split in splits for name in set(split["val"]))
    twice = sorted(name for name, number in validated.items() if number > 1)
    if twice:
        advice = "nnU-Net merges the validations of all folds, where each case has to be once."
        problems.append(Problem(f"{shortened(twice)} validated in several folds", advice))
    gone = sorted(set(held_out) - set(cases))
    if gone:
        problems.append(Problem(f"held out, but not in the data set: {shortened(gone)}", "Mend the list."))
    return problems


def cases_in_no_fold(
    splits: Sequence[Mapping[str, Sequence[str]]], cases: Sequence[str], held_out: Sequence[str]
) -> list[str]:
    """Cases that no fold trains or validates with and that are not held out, in their order."""
    used = {name for split in splits for name in (*split["train"], *split["val"])}.union(held_out)
    return [name for name in cases if name not in used]


def _check_format(splits: Any) -> None:
    right = isinstance(splits, list) and all(
        isinstance(split, dict)
        and all(
            isinstance(split.get(part), list) and all(isinstance(name, str) for name in split[part])
            for part in ("train", "val")
        )
        for split in splits
    )
    if not right or not splits:
        raise NnplugError('The splits are not in nnU-Net\'s format: a list of {"train": [names], "val": [names]}.')


def _check_fold(
    fold: str,
    split: Mapping[str, list[str]],
    cases: set[str],
    groups: Mapping[str, str] | None,
    held_out: set[str],
) -> list[tuple[str, str]]:
    found = []
    train, val = set(split["train"]), set(split["val"])
    for part in ("train", "val"):
        doubled = sorted(name for name, number in Counter(split[part]).items() if number > 1)
        if doubled:
            found.append((f"{fold}: {shortened(doubled)} more than once in {part}", "Name each case once."))
        if not split[part]:
            found.append((f"{fold}: nothing in {part}", "Give it some cases."))
        unknown = sorted(set(split[part]) - cases)
        if unknown:
            found.append((f"{fold}: {shortened(unknown)} in {part}, not in the data set", "Take them out."))
    if leaked := sorted(train & val):
        found.append((f"{fold}: {shortened(leaked)} in train and in val", "Take them out of one side."))
    if kept := sorted(held_out & (train | val)):
        found.append((f"{fold}: {shortened(kept)} used, though held out", "Take them out."))
    if groups is not None:
        sides = [{groups[name] for name in side if name in groups} for side in (train, val)]
        if shared := sorted(sides[0] & sides[1]):
            found.append((f"{fold}: group {shortened(shared)} in train and in val", "Keep a group on one side."))
    return found
