"""Write a derived configuration into its plans, or into new ones, without breaking what holds to the old ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from nnplug.datasets import read_plans
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import write_error
from nnplug.files.json_files import as_plain_json, read_required_json, write_json
from nnplug.planning.classes import with_owners
from nnplug.planning.derivation import Derivation
from nnplug.planning.plans_file import PlansFile, trained_with
from nnplug.planning.preprocessing import preprocessing_key
from nnplug.planning.settings import check_name
from nnplug.problems import shortened

_NEW_PLANS = "Give --new-plans NAME with a name that is not taken."
_OF_PLANNERS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


def check_target(file: PlansFile, base: str, name: str, new_plans: str | None, overwrite: bool) -> None:
    """Refuse names that can not be used, before anything is computed.

    Args:
        file: the plans.
        base: the configuration that is derived from.
        name: of the new configuration.
        new_plans: name of new plans, None for the same ones.
        overwrite: whether what is there may be replaced.

    Raises:
        NnplugError: a name that nnU-Net can not use, that is taken, or that trained models hold to.
    """
    check_name(name)
    if new_plans is not None:
        check_name(new_plans)
        target = file.folder / f"{new_plans}.json"
        if new_plans == file.name:
            raise NnplugError(f"--new-plans {new_plans} is the name of the plans themselves. Choose another one.")
        refuse_taken(target.is_file(), f"There are plans '{new_plans}' already ({target})", overwrite)
        check_models(file.folder, new_plans, "replaced", _NEW_PLANS)
        return
    if name in (base, *_OF_PLANNERS):
        reason = "can not be derived from itself" if name == base else "is written by nnU-Net's planner"
        raise NnplugError(
            f"The configuration '{name}' {reason}. Choose another --name, or leave its name and give --new-plans NAME."
        )
    refuse_taken(name in file.plans["configurations"], f"{file.path} has a configuration '{name}' already", overwrite)
    heirs = _heirs(file.plans, name)
    if base in heirs:
        raise NnplugError(f"'{base}' inherits from '{name}', which can not inherit from it. Choose another --name.")
    if heirs:
        raise NnplugError(f"'{name}' can not be replaced: {', '.join(heirs)} inherits from it. Choose another --name.")
    first_stage = file.configuration(base).get("previous_stage")  # is told for which stages it predicts
    for changed in filter(None, (name, first_stage)):
        check_models(file.folder, file.plans["plans_name"], "changed", _NEW_PLANS, changed)


def refuse_taken(is_there: bool, what: str, overwrite: bool) -> None:
    """Refuse to replace what is there without being asked to."""
    if is_there and not overwrite:
        raise NnplugError(f"{what}. Choose another name, or give --overwrite to replace it.")


def check_models(folder: Path, plans_name: str, what: str, advice: str, configuration: str | None = None) -> None:
    """Refuse to touch plans, or a configuration of them, that models were trained with: a model folder holds to it."""
    models = trained_with(folder.name, plans_name, configuration)
    if models:
        touched, it = f"The plans '{plans_name}'", "them"
        if configuration is not None:
            touched, it = f"'{configuration}' in the plans '{plans_name}'", "it"
        raise NnplugError(
            f"{touched} can not be {what}: {shortened([model.name for model in models])} in "
            f"{models[0].parent} was trained with {it}, and could not be continued. {advice}"
        )


def _heirs(plans: dict[str, Any], name: str) -> list[str]:
    """Configurations that inherit from ``name``, also over several steps."""
    found: list[str] = []
    for configuration, settings in plans["configurations"].items():
        seen = {configuration}
        while (parent := settings.get("inherits_from")) in plans["configurations"] and parent not in seen:
            seen.add(parent)
            settings = plans["configurations"][parent]
            if parent == name:
                found.append(configuration)
                break
    return found


@contextmanager
def plans_lock(folder: Path) -> Iterator[None]:
    """Nobody else derives or moves plans in ``folder`` within the block; waits for who does.

    Raises:
        NnplugError: the folder is not writable.
    """
    lock = FileLock(folder / ".nnplug_plans.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise write_error(Path(lock.lock_file), error) from error
    try:
        yield
    finally:
        lock.release()


def write_derivation(
    file: PlansFile, base: str, name: str, derivation: Derivation, new_plans: str | None, overwrite: bool = False
) -> Path:
    """Put the derived configuration into a plans file, beside what others have put there meanwhile.

    Args:
        file: the plans.
        base: the configuration that was derived from.
        name: of the new one.
        derivation: what it is.
        new_plans: name of new plans, which have the others as well; None for the same ones.
        overwrite: whether what is there may be replaced.

    Returns:
        The plans file.

    Raises:
        NnplugError: as ``check_target``; the base was changed meanwhile; its cases would share a folder with others
            that are made in another way.
    """
    with plans_lock(file.folder):
        file = replace(file, plans=read_plans(file.folder, file.name))
        check_target(file, base, name, new_plans, overwrite)
        if file.configuration(base) != derivation.base:
            raise NnplugError(f"'{base}' in {file.path} was changed while '{name}' was derived from it. Run it again.")
        target = _with_derivation(file, base, name, derivation, new_plans)
        check_data_folder(target, name, "Choose another name, or --set data_identifier=NAME.")
        write_json(target.path, target.plans)
    return target.path


def _with_derivation(file: PlansFile, base: str, name: str, derivation: Derivation, new_plans: str | None) -> PlansFile:
    plans = deepcopy(file.plans)
    if name == base:
        for heir in _heirs(plans, name):
            # a cascade's second stage goes with the configuration, others stay what they are
            if "previous_stage" not in plans["configurations"][heir]:
                plans["configurations"][heir] = _in_full(file.configuration(heir))
        plans["configurations"][name] = _in_full(derivation.settings)
    else:
        plans["configurations"][name] = {"inherits_from": base, **derivation.changes}
        _predict_for(plans, name, derivation.settings.get("previous_stage"))
    if new_plans is not None:
        plans["plans_name"] = new_plans
    return replace(file, name=new_plans or file.name, plans=as_plain_json(with_owners(plans)))


def _predict_for(plans: dict[str, Any], name: str, previous_stage: str | None) -> None:
    """The first stage of a cascade predicts for the second stages that it knows."""
    if previous_stage is None:
        return
    stage = plans["configurations"][previous_stage]
    known = stage.get("next_stage", [])
    stage["next_stage"] = list(dict.fromkeys([*([known] if isinstance(known, str) else known), name]))


def _in_full(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "inherits_from"}


def check_data_folder(target: PlansFile, name: str, advice: str) -> None:
    """Refuse a configuration whose cases would lie where others are, that are made in another way.

    Args:
        target: the plans as they are to be written.
        name: the configuration.
        advice: what to do about it.

    Raises:
        NnplugError: whose cases are there.
    """
    identifier = target.configuration(name)["data_identifier"]
    folder = target.folder / identifier
    key = preprocessing_key(target.plans, name, target.dataset_json)
    users = _users_of(target, identifier)
    if not folder.exists():
        users.pop((target.path, name), None)  # it is replaced
    for (path, one), other_key in users.items():
        if other_key != key:
            raise NnplugError(
                f"'{name}' would take the cases of '{one}' of {path.name} in {folder}, which are preprocessed in "
                f"another way. {advice}"
            )
    if not users and folder.exists():
        raise NnplugError(f"{folder} is there already, and no configuration says how it was made. Remove it. {advice}")


def _users_of(target: PlansFile, identifier: str) -> dict[tuple[Path, str], str]:
    """The configurations of all plans that take these cases, and how they are made."""
    users = {}
    for path in sorted(target.folder.glob("*.json")):
        plans = read_required_json(path, "The plans file")
        if not isinstance(plans, dict) or "configurations" not in plans:
            continue
        file = replace(target, name=path.stem, plans=plans)
        for one in plans["configurations"]:
            if file.configuration(one)["data_identifier"] == identifier:
                users[path, one] = preprocessing_key(plans, one, target.dataset_json)
    return users
