"""Predictions from NIfTI to the format that a lab works with, voxels and geometry kept exactly. Imports no torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nnplug.case_pool import CaseFailure, Pool
from nnplug.conversion.reading import read_image, split_ending
from nnplug.conversion.running import Case, Conversion, Outcome, run
from nnplug.conversion.writing import Output, side_cars, write_voxels
from nnplug.errors import NnplugError

#: MetaImage stores every digit of the geometry; a TIFF has it in the file beside it.
ENDINGS = (".mha", ".tif")


def convert_predictions(
    folder: Path, target: Path, ending: str, pool: Pool, *, overwrite: bool = False, dry_run: bool = False
) -> Outcome:
    """Convert every NIfTI file of a folder.

    Raises:
        NnplugError: there is none; another ending than ``ENDINGS``; all files that can not be converted are named.
    """
    if ending not in ENDINGS:
        raise NnplugError(f"--file-ending {ending}: predictions can be converted to {' or '.join(ENDINGS)}.")
    if not folder.is_dir():
        raise NnplugError(f"There is no folder {folder}.")
    found = {path: split_ending(path) for path in sorted(folder.iterdir())}
    files = [path for path, (_, of_file) in found.items() if of_file in (".nii.gz", ".nii") and path.name[0] != "."]
    if not files:
        raise NnplugError(f"{folder} holds no NIfTI file (.nii.gz or .nii).")
    if len({found[path][0] for path in files}) < len(files):
        raise NnplugError(f"{folder} holds a .nii and a .nii.gz of the same name. Remove one of them.")
    conversion = Conversion(
        target=target,
        settings={"command": "predictions", "file_ending": ending},
        cases={found[path][0]: Case((path,), path) for path in files},
        convert=_convert_case,
        shared=ending,
        finish=lambda _files: None,
        final_file=None,
    )
    return run(conversion, pool, overwrite=overwrite, dry_run=dry_run)


def _convert_case(ending: str, name: str, path: Path) -> list[Output]:
    image = read_image(path)
    if len(image.voxels) != 1:
        raise CaseFailure(f"{path}: it has {len(image.voxels)} channels; a prediction has one")
    output = Output(f"{name}{ending}", partial(write_voxels, image.voxels[0], image))
    return [output, *side_cars(name, image, ending)]
