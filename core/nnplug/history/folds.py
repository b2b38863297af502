"""The histories of several folds side by side: of one model, or of models that are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from nnplug.errors import NnplugError
from nnplug.history.series import History, Row, find_folds, load_history


def load_folds(runs: Sequence[Path]) -> dict[Path, History]:
    """The history of every fold of ``runs``, by fold folder.

    Args:
        runs: fold folders and model folders; of a model folder every fold is taken.

    Raises:
        NnplugError: a folder is no run, or no fold has a finished epoch. A fold without one beside others that have is
            left out, and told in the messages of the first.
    """
    folders = list(dict.fromkeys(fold for run in runs for fold in find_folds(run)))
    found: dict[Path, History] = {}
    failed: list[NnplugError] = []
    for folder in folders:
        try:
            found[folder] = load_history(folder)
        except NnplugError as error:
            failed.append(error)
    if not found:
        raise failed[0]
    next(iter(found.values())).messages.extend(map(str, failed))
    return found


def label_folds(folders: Sequence[Path]) -> list[Row]:
    """What tells folds apart: ``fold``, and ``model`` where they are of several."""
    models = list(dict.fromkeys(folder.absolute().parent for folder in folders))
    is_unique = len({model.name for model in models}) == len(models)
    labels = []
    for folder in folders:
        model = folder.absolute().parent
        name = model.name if is_unique else f"{model.parent.name}/{model.name}"
        labels.append({**({"model": name} if len(models) > 1 else {}), "fold": folder.name.removeprefix("fold_")})
    return labels


def name_folds(folders: Sequence[Path]) -> list[str]:
    """The labels as text: ``fold 0``, or ``MODEL, fold 0``."""
    return [", ".join([*filter(None, [one.get("model")]), f"fold {one['fold']}"]) for one in label_folds(folders)]


def join_folds(histories: dict[Path, History]) -> list[Row]:
    """All rows, each with its labels first; a class that a model does not have is NaN."""
    names = ["epoch", *(name for history in histories.values() for name in history.rows[0])]
    columns = list(dict.fromkeys(names))
    return [
        {**label, **{name: row.get(name, math.nan) for name in columns}}
        for label, history in zip(label_folds(list(histories)), histories.values(), strict=True)
        for row in history.rows
    ]
