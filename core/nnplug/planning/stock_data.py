"""What nnU-Net itself has made of the data; of what, it does not note, so what is seen to be stale is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.datasets import read_plans
from nnplug.errors import NnplugError
from nnplug.files.json_files import as_plain_json, read_json
from nnplug.planning.data import PlanningData
from nnplug.planning.data_record import FINGERPRINT, file_states, is_of_stock
from nnplug.planning.preprocessing import is_own
from nnplug.problems import count, shortened

_COMPARED = ("labels", "channel_names", "regions_class_order", "file_ending")


def is_from_stock(data: PlanningData, plans_name: str, configuration: str) -> bool:
    """Whether nnU-Net itself has preprocessed the cases."""
    folder = _cases_folder(data, plans_name, configuration)
    return not is_own(folder) and bool(_names(folder))


def check_stock_fingerprint(data: PlanningData) -> None:
    """Refuse a fingerprint of nnU-Net's that is seen to be of other data.

    Raises:
        NnplugError: what differs, and that ``--clean`` begins anew.
    """
    if not (data.folder / FINGERPRINT).is_file() or not is_of_stock(data):
        return
    kept, now = read_json(data.folder / "dataset.json"), as_plain_json(data.inventory.dataset_json())
    changes = []
    if kept is not None:
        changes = [
            f"{key} was {kept.get(key)}, is {now.get(key)}" for key in _COMPARED if kept.get(key) != now.get(key)
        ]
    _refuse(data.folder, [*changes, *_newer(data, [data.folder / FINGERPRINT])])


def check_stock_cases(data: PlanningData, plans_name: str, configurations: Sequence[str]) -> None:
    """Refuse cases that nnU-Net itself has preprocessed and that are seen to be of other data.

    Raises:
        NnplugError: what differs, and that ``--clean`` begins anew.
    """
    for configuration in configurations:
        if not is_from_stock(data, plans_name, configuration):
            continue
        folder = _cases_folder(data, plans_name, configuration)
        made, known = _names(folder), set(data.inventory.cases)
        changes = [
            f"{count(len(names), 'case')} {what} ({shortened(sorted(names))})"
            for what, names in (("missing in it", known - made), ("gone from the data", made - known))
            if names
        ]
        files = [folder / f"{name}.pkl" for name in made]
        changes += _newer(data, files)
        fingerprint = data.folder / FINGERPRINT
        if not is_of_stock(data) and _time(fingerprint) > min(map(_time, files)):
            changes.append("the fingerprint was taken anew since")
        _refuse(folder, changes)


def _cases_folder(data: PlanningData, plans_name: str, configuration: str) -> Path:
    manager = PlansManager(read_plans(data.folder, plans_name)).get_configuration(configuration)
    return data.folder / manager.data_identifier


def _names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.pkl")}


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns


def _newer(data: PlanningData, made: Sequence[Path]) -> list[str]:
    oldest = min(map(_time, made))
    names = [name for name, files in file_states(data).items() if max(file[2] for file in files) > oldest]
    return [f"{count(len(names), 'case')} with files that are newer ({shortened(names)})"] if names else []


def _refuse(made: Path, changes: Sequence[str]) -> None:
    if changes:
        raise NnplugError(
            f"{made} was made by nnU-Net itself, it seems from other data: {'; '.join(changes)}. Give --clean to make "
            "it anew, or --no_preprocessing to train with it as it is."
        )
