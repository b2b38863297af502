"""Predictions from NIfTI to the format that a lab works with, voxels and geometry kept exactly. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nnplug.conversion.reading import Image, read_image, split_ending
from nnplug.conversion.running import Case, Conversion, Outcome, run
from nnplug.conversion.spacing import find_spacing
from nnplug.conversion.writing import TARGET_ENDINGS, WRITTEN_AS, Output, geometry_file, write_voxels
from nnplug.errors import NnplugError
from nnplug.problems import Problem, raise_problems
from nnplug.processes.case_pool import CaseFailure, Pool

#: MetaImage stores every digit of the geometry; a TIFF has it in the file beside it.
ENDINGS = (".mha", ".tif")


class _Work(NamedTuple):
    prediction: Path
    reference: Path | None
    ending: str


def convert_predictions(
    folder: Path,
    target: Path,
    ending: str | None,
    pool: Pool,
    *,
    reference: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Convert every NIfTI file of a folder.

    Args:
        folder: of the predictions.
        target: folder of the result.
        ending: one of ``ENDINGS``; None takes that of each reference.
        pool: processes.
        reference: folder of the images that were predicted, ``CASE`` or ``CASE_0000``: each prediction gets the
            geometry of its image, to the last digit, and its format.
        overwrite, dry_run: see ``run``.

    Raises:
        NnplugError: there is none; another ending than ``ENDINGS``; all files that have no reference or can not be
            converted are named.
    """
    if (ending is None and reference is None) or (ending is not None and ending not in ENDINGS):
        given = f"--file-ending {ending}" if ending is not None else "Which format?"
        raise NnplugError(
            f"{given}: predictions can be converted to {' or '.join(ENDINGS)}, or with --reference DIR to the format "
            "of the images."
        )
    found = _find_predictions(folder)
    references = _find_references(reference, found) if reference is not None else {}
    work = {
        name: _Work(path, references.get(name), ending or _ending_of(references[name])) for name, path in found.items()
    }
    conversion = Conversion(
        target=target,
        settings={"command": "predictions", "file_ending": ending},
        cases={name: Case(tuple(filter(None, (one.prediction, one.reference))), one) for name, one in work.items()},
        convert=_convert_case,
        shared=None,
        finish=lambda _files: None,
        final_file=None,
    )
    return run(conversion, pool, overwrite=overwrite, dry_run=dry_run)


def _find_predictions(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise NnplugError(f"There is no folder {folder}.")
    found = {path: split_ending(path) for path in sorted(folder.iterdir())}
    files = [path for path, (_, of_file) in found.items() if of_file in (".nii.gz", ".nii") and path.name[0] != "."]
    if not files:
        raise NnplugError(f"{folder} holds no NIfTI file (.nii.gz or .nii).")
    if len({found[path][0] for path in files}) < len(files):
        raise NnplugError(f"{folder} holds a .nii and a .nii.gz of the same name. Remove one of them.")
    return {found[path][0]: path for path in files}


def _find_references(folder: Path, predictions: Mapping[str, Path]) -> dict[str, Path]:
    """The image of each prediction: ``CASE``, or the first channel ``CASE_0000``."""
    if not folder.is_dir():
        raise NnplugError(f"There is no folder {folder}.")
    images: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        stem, ending = split_ending(path)
        if _ending_of(path) in TARGET_ENDINGS and ending != ".json" and path.name[0] != ".":
            images.setdefault(stem.removesuffix("_0000"), []).append(path)
    problems = []
    for name in predictions:
        of_case = images.get(name, [])
        if len(of_case) != 1:
            names = " and ".join(path.name for path in of_case)
            found = f"{names} may be its image" if of_case else f"{name} has no image there"
            problems.append(Problem(found, "One file CASE or CASE_0000 belongs to each prediction.", name))
    raise_problems(folder, problems)
    return {name: images[name][0] for name in predictions}


def _ending_of(path: Path) -> str:
    ending = split_ending(path)[1]
    return WRITTEN_AS.get(ending, ending)


# --- in a worker -----------------------------------------------------------------------------------------------------


def _convert_case(_shared: None, name: str, work: _Work) -> list[Output]:
    image = read_image(work.prediction)
    if len(image.voxels) != 1:
        raise CaseFailure(f"{work.prediction}: it has {len(image.voxels)} channels; a prediction has one")
    if work.reference is not None:
        image = _with_geometry_of(work.reference, image)
    output = Output(f"{name}{work.ending}", partial(write_voxels, image.voxels[0], image))
    return [output, geometry_file(name, image)] if work.ending == ".tif" else [output]


def _with_geometry_of(path: Path, prediction: Image) -> Image:
    """What the reference says of its geometry; the rest stays the prediction's own."""
    reference = read_image(path)
    if reference.size != prediction.size:
        one, other = ("x".join(map(str, image.size)) for image in (prediction, reference))
        raise CaseFailure(f"the prediction has {one} voxels, and its image {path} has {other}")
    return replace(
        prediction,
        spacing_mm=find_spacing(path, reference, None, is_needed=False) or prediction.spacing_mm,
        origin_mm=reference.origin_mm or prediction.origin_mm,
        direction=reference.direction or prediction.direction,
    )
