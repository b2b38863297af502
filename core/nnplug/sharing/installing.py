"""Install the models of a zip file that nnplug or stock nnU-Net has exported.

The file is checked first, unpacked into a hidden folder beside the models, and what is whole is renamed to its place.
Nothing of it is imported or run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from nnplug.datasets import dataset_id, environment_folder
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import write_error
from nnplug.files.new_folder import free_name, removed_if_refused
from nnplug.models.trained_models import read_model_folder
from nnplug.sharing.members import find_problem
from nnplug.sharing.requirements import missing_packages

#: NotImplementedError: a way of packing that Python's zipfile does not know.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class InstalledModel:
    """One model of the file.

    Attributes:
        path: its folder.
        folds: names such as ``0`` and ``all``.
        missing: what it was trained with and is not installed here, see
            :func:`nnplug.sharing.requirements.missing_packages`.
        replaced: where the model is now that was there before.
    """

    path: Path
    folds: tuple[str, ...]
    missing: tuple[str, ...]
    replaced: Path | None = None


def install_models(archive: Path, *, results: Path | None = None, overwrite: bool = False) -> list[InstalledModel]:
    """Install every model of a zip file, or none of them.

    Args:
        archive: the file.
        results: folder of trained models; ``nnUNet_results`` by default.
        overwrite: replace models that are there already; they are moved into ``replaced_<timestamp>`` beside them.

    Raises:
        NnplugError: no zip file or a damaged one; a member that would be written elsewhere, a link, content far larger
            than the file, a pickle that would run code; no model in it; a model that is there already; another data
            set with its id; a full disk.
    """
    if archive.is_dir():
        raise NnplugError(f"{archive} is a folder, and a zip file is installed. Pack it with: nnplug export")
    if not archive.is_file():
        raise NnplugError(f"There is no file {archive}.")
    results = results or environment_folder("nnUNet_results")
    try:
        with zipfile.ZipFile(archive) as file, removed_if_refused(results):
            units = _check(file, archive, results, overwrite)
            models = [unit for unit in units if _is_model(unit)]
            results.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=results, prefix=".nnplug-install-") as scratch:
                draft = Path(scratch)
                _unpack(file, draft)
                installed = _check_content(draft, models, archive, results)
                replaced = _place(draft, units, results, overwrite)
    except _DAMAGED as error:
        raise NnplugError(f"{archive} is no whole zip file ({error}). Download it again.") from error
    except OSError as error:
        raise write_error(results / f"the models of {archive.name}", error) from error
    return [dataclasses.replace(one, replaced=replaced.get(one.path)) for one in installed]


# --- before anything is written --------------------------------------------------------------------------------------


def _check(file: zipfile.ZipFile, archive: Path, results: Path, overwrite: bool) -> list[PurePosixPath]:
    problem = find_problem(file.infolist(), archive.stat().st_size)
    if problem is not None:
        raise NnplugError(f"{archive} is not installed: {problem}. Nothing was written.")
    units = _units(file)
    if not any(_is_model(unit) for unit in units):
        raise NnplugError(f"{archive} holds no model: expected a folder DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION.")
    _check_ids(sorted({unit.parts[0] for unit in units}), archive, results)
    _check_places(file, units, results)
    there = [str(results / unit) for unit in units if (results / unit).is_dir()]
    if there and not overwrite:
        raise NnplugError(f"There is already {', '.join(there)}. Replace it with --overwrite, or move it away.")
    needed = sum(member.file_size for member in file.infolist())
    existing = next(parent for parent in [results, *results.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise NnplugError(f"{archive} needs {needed / 1e9:.2f} GB, and {results} has {free / 1e9:.2f} GB free.")
    return units


def _check_ids(names: Sequence[str], archive: Path, results: Path) -> None:
    """nnU-Net refuses an id that two names have, in whichever of its folders they are."""
    folders = [results]
    in_use = os.environ.get("nnUNet_results")
    if not in_use or Path(in_use).resolve() == results.resolve():
        folders += [Path(os.environ[key]) for key in ("nnUNet_raw", "nnUNet_preprocessed") if os.environ.get(key)]
    there = {path.name: folder for folder in folders for path in folder.glob("Dataset*_*") if path.is_dir()}
    for name in names:
        if (results / name).is_dir():
            continue  # it is not this installation that makes them two
        others = [other for other in (*there, *names) if other != name and dataset_id(other) == dataset_id(name)]
        if others:
            raise NnplugError(
                f"{archive} is not installed: it would add {name}, and {others[0]} in "
                f"{there.get(others[0], 'the file too')} has this id, by which nnU-Net could find neither of them "
                "then. Install it into a folder of its own with --results-dir, and predict with "
                "nnplug predict_from_modelfolder."
            )


def _check_places(file: zipfile.ZipFile, units: Sequence[PurePosixPath], results: Path) -> None:
    files = {PurePosixPath(member.filename) for member in file.infolist()}
    folders = {folder for unit in units for folder in (unit, *unit.parents) if folder not in files}
    taken = [str(results / folder) for folder in sorted(folders) if (results / folder).is_file()]
    if taken:
        raise NnplugError(f"{taken[0]} is a file, and the models need a folder there. Move it away.")


def _units(file: zipfile.ZipFile) -> list[PurePosixPath]:
    """What is moved to its place as a whole: models, ensembles, and the files of a data set."""
    paths = [PurePosixPath(member.filename) for member in file.infolist() if not member.is_dir()]
    lengths = [3 if path.parts[1] == "ensembles" else 2 for path in paths]
    return sorted({PurePosixPath(*path.parts[:length]) for path, length in zip(paths, lengths, strict=True)})


def _is_model(unit: PurePosixPath) -> bool:
    return len(unit.parts) == 2 and unit.name.count("__") == 2


# --- in the hidden folder --------------------------------------------------------------------------------------------


def _unpack(file: zipfile.ZipFile, draft: Path) -> None:
    for member in file.infolist():
        target = draft / member.filename
        if member.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open(member) as source, target.open("xb") as written:
            shutil.copyfileobj(source, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())


def _check_content(draft: Path, models: Sequence[PurePosixPath], archive: Path, results: Path) -> list[InstalledModel]:
    installed = []
    try:
        for model in models:
            path = draft / model
            missing = missing_packages(read_model_folder(path))
            if not _folds(path):
                raise NnplugError(f"{path} has no fold with a checkpoint.")
            installed.append(InstalledModel(results / model, _folds(path), tuple(missing)))
        _check_pickles(sorted(draft.rglob("*.pkl")))
    except NnplugError as error:
        told = str(error).replace(f"{draft}{os.sep}", "")
        raise NnplugError(f"{archive} is not installed: {told}") from error
    return installed


def _check_pickles(paths: Sequence[Path]) -> None:
    """nnU-Net's own commands run what is in these."""
    if paths:
        from nnplug.files.safe_pickle import read_pickle
        from nnplug.prediction.postprocessing import read_postprocessing
    for path in paths:
        (read_postprocessing if path.name == "postprocessing.pkl" else read_pickle)(path)


def _folds(model: Path) -> tuple[str, ...]:
    folds = [path.parent.name.removeprefix("fold_") for path in sorted(model.glob("fold_*/checkpoint_*.pth"))]
    return tuple(dict.fromkeys(folds))


# --- into its place --------------------------------------------------------------------------------------------------


def _place(draft: Path, units: Sequence[PurePosixPath], results: Path, overwrite: bool) -> dict[Path, Path]:
    """Move everything to its place, or nothing. Returns where what was there is now."""
    # not the name of a model: what is in it is not found as one
    now = f"replaced_{datetime.now():%Y%m%d_%H%M%S}"
    replaced = {name: free_name(results / name / now) for name in {unit.parts[0] for unit in units}}
    moved = {}
    with contextlib.ExitStack() as undo:
        for unit in units:
            target = results / unit
            if target.is_file() and not overwrite:
                continue  # what find_best has written about the data set
            if target.exists():
                moved[target] = replaced[unit.parts[0]].joinpath(*unit.parts[1:])
                _move(target, moved[target], undo)
            _move(draft / unit, target, undo)
        undo.pop_all()
    return moved


def _move(source: Path, target: Path, undo: contextlib.ExitStack) -> None:
    undo.callback(_move_back, source, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)


def _move_back(source: Path, target: Path) -> None:
    if not source.exists():
        os.rename(target, source)
    with contextlib.suppress(OSError):  # folders that are not empty stay
        os.removedirs(target.parent)
