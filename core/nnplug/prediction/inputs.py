"""What is checked before a network is loaded: the images, the output folder, the previous stage. Imports no torch.

Every problem that can be seen beforehand is said at once; the rest of a prediction may take hours.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnplug.errors import NnplugError
from nnplug.image_headers import (
    NNUNET_SPACING_TOLERANCE,
    ImageHeader,
    UnreadableImageError,
    geometry_differences,
    read_header,
    reason,
)
from nnplug.inventory.loading import load_inventory
from nnplug.models.trained_models import ModelFolder

_MAX_SHOWN = 10
_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Case:
    """One case to predict: its name and its image files in the order of the channels.

    ``is_numbered`` tells whether the files end with the channel's number; those of an inventory need not.
    """

    name: str
    files: tuple[Path, ...]
    is_numbered: bool = True


def check_inputs(
    inputs: Path,
    output: Path,
    model: ModelFolder,
    *,
    prev_stage_predictions: Path | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    continue_prediction: bool = False,
    save_probabilities: bool = False,
) -> tuple[list[Case], list[Case]]:
    """Find the cases of a folder and check them, and where their predictions go; makes the output folder.

    Args:
        inputs: folder with ``CASE_XXXX`` files, XXXX being the channel from 0000, or an inventory (``.json``).
        output: folder for the predictions.
        model: the model's folder.
        prev_stage_predictions: for a cascade, the folder with ``CASE`` files of the first stage.
        num_parts, part_id: every ``num_parts``-th case from number ``part_id`` on, in nnU-Net's order.
        continue_prediction: leave out what is whole in ``output``.
        save_probabilities: whole means with probabilities.

    Returns:
        The cases of this part, and those of them that remain to be predicted.

    Raises:
        NnplugError: with every problem found (the first ten, and how many more there are).
    """
    if num_parts < 1 or not 0 <= part_id < num_parts:
        raise NnplugError(f"Part {part_id} of {num_parts} does not exist: parts count from 0 to num_parts - 1.")
    problems = _output_problems(inputs, output, model, prev_stage_predictions)
    cases, case_problems = find_cases(inputs, model)
    cases = cases[part_id::num_parts]
    remaining = cases
    if continue_prediction:
        remaining = [case for case in cases if not is_complete(case, output, model, save_probabilities)]
    for case in remaining:
        case_problems += _image_problems(case, model)
    if prev_stage_predictions is not None:
        case_problems += _prev_stage_problems(remaining, prev_stage_predictions, model)
    _raise(inputs, problems, case_problems)
    _make_folder(output)
    return cases, remaining


def find_cases(inputs: Path, model: ModelFolder) -> tuple[list[Case], list[str]]:
    """The cases of a folder by nnU-Net's rules for names, and what is wrong with the names."""
    if not inputs.exists():
        raise NnplugError(f"There is no input folder {inputs}.")
    if inputs.suffix == ".json":
        return _find_listed_cases(inputs)
    if not inputs.is_dir():
        raise NnplugError(
            f"The input {inputs} is a file: give the folder with the images (CASE_0000{model.file_ending})."
        )
    ending = model.file_ending
    names = sorted(path.name for path in inputs.iterdir() if path.is_file())
    images = [name for name in names if name.endswith(ending)]
    if not images:
        raise NnplugError(f"{inputs} has no '{ending}' file, which the model was trained with. {_other_files(names)}")
    problems = []
    groups: dict[str, list[str]] = {}
    for name in images:
        match = _CHANNEL.fullmatch(name.removesuffix(ending))
        if match is None:
            problems.append(
                f"{name} has no four-digit channel number: rename it to {name.removesuffix(ending)}_0000{ending}"
            )
        else:
            groups.setdefault(match[1], []).append(name)
    return [Case(case, tuple(inputs / name for name in files)) for case, files in sorted(groups.items())], problems


def _find_listed_cases(inventory: Path) -> tuple[list[Case], list[str]]:
    listed, problems = load_inventory(inventory, labelled=False)
    cases = [Case(name, files.images, is_numbered=False) for name, files in listed.cases.items()]
    return cases, [str(problem).removesuffix(".") for problem in problems]


def _other_files(names: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        ending = "." + ".".join(name.split(".")[1:][-2:]) if name.endswith(".gz") else Path(name).suffix or name
        counts[ending] = counts.get(ending, 0) + 1
    found = ", ".join(f"{count} '{ending}'" for ending, count in sorted(counts.items(), key=lambda item: -item[1])[:5])
    return f"It has: {found or 'no files'}."


# --- images ----------------------------------------------------------------------------------------------------------


def _image_problems(case: Case, model: ModelFolder) -> list[str]:
    problems = []
    headers: dict[Path, ImageHeader] = {}
    for path in case.files:
        try:
            header = read_header(path, model.plans["image_reader_writer"])
        except UnreadableImageError as error:
            problems.append(f"{path.name} can not be read: {error}")
            continue
        if header is not None:
            headers[path] = header
    channels = {path: header.num_channels for path, header in headers.items()}
    problems += _channel_problems(case, channels, model)
    if len({header.size for header in headers.values()}) > 1:
        sizes = ", ".join(f"{path.name} {'x'.join(map(str, header.size))}" for path, header in headers.items())
        problems.append(f"case {case.name}: the channels differ in size ({sizes})")
    elif not _same_spacing(list(headers.values())):
        spacings = ", ".join(f"{path.name} {header.spacing_mm}" for path, header in headers.items())
        problems.append(f"case {case.name}: the channels differ in voxel spacing ({spacings})")
    return problems


def _channel_problems(case: Case, channels: dict[Path, int | None], model: ModelFolder) -> list[str]:
    names, ending = model.channel_names, model.file_ending
    takes = f"the model takes {len(names)} ({', '.join(names)})"
    several = {path: count for path, count in channels.items() if count is not None and count > 1}
    if several or not case.is_numbered or None in channels.values():
        total = sum(count or 0 for count in channels.values())
        if None in channels.values() or len(channels) != len(case.files) or total == len(names):
            return []
        held = ", ".join(f"{path.name} holds {count}" for path, count in channels.items())
        return [f"case {case.name} has {total} channels ({held}); {takes}"]
    have = {path.name.removesuffix(ending)[-4:]: path.name for path in case.files}
    expected = {f"{index:04d}": name for index, name in enumerate(names)}
    missing = [f"{case.name}_{key}{ending} ({name})" for key, name in expected.items() if key not in have]
    extra = [name for key, name in have.items() if key not in expected]
    problems = []
    if missing:
        problems.append(f"case {case.name}: missing channel {', '.join(missing)}; {takes}")
    if extra:
        problems.append(f"case {case.name}: unexpected channel {', '.join(extra)}; {takes}")
    return problems


def _same_spacing(headers: Sequence[ImageHeader]) -> bool:
    """As nnU-Net's readers compare; it takes the rest of the geometry from the first channel."""
    return not any(
        "spacing" in geometry_differences(header, headers[0], NNUNET_SPACING_TOLERANCE) for header in headers[1:]
    )


def _prev_stage_problems(cases: Sequence[Case], folder: Path, model: ModelFolder) -> list[str]:
    if not folder.is_dir():
        return [f"There is no folder {folder} with the predictions of the previous stage"]
    problems = []
    for case in cases:
        path = folder / f"{case.name}{model.file_ending}"
        if not path.is_file():
            problems.append(f"case {case.name}: the previous stage's prediction {path} is missing")
            continue
        try:
            read_header(path, model.plans["image_reader_writer"])
        except UnreadableImageError as error:
            problems.append(f"{path} can not be read: {error}")
    return problems


# --- output ----------------------------------------------------------------------------------------------------------


def is_complete(case: Case, output: Path, model: ModelFolder, save_probabilities: bool) -> bool:
    """Whether a prediction is there and whole: stock nnU-Net writes in place, and may have been killed while it did."""
    path = output / f"{case.name}{model.file_ending}"
    try:
        if not path.is_file():
            return False
        read_header(path, model.plans["image_reader_writer"])
        _read_fully(path, model.plans["image_reader_writer"])
        return not save_probabilities or _is_whole_archive(path.with_name(f"{case.name}.npz"))
    except UnreadableImageError:
        return False


def _read_fully(path: Path, reader: str) -> None:
    """Formats whose header does not tell that the rest is missing; NIfTI and TIFF are settled by then."""
    try:
        if reader == "SimpleITKIO" and not path.name.endswith((".nii", ".nii.gz")):
            import SimpleITK as sitk

            sitk.ReadImage(str(path))
        elif reader == "NaturalImage2DIO" and path.suffix.lower() not in (".tif", ".tiff"):
            from PIL import Image

            with Image.open(path) as image:
                image.load()
    except Exception as error:  # every library has its own, and each means the same here
        raise UnreadableImageError(reason(error)) from error


def _is_whole_archive(path: Path) -> bool:
    import zipfile

    # the directory of a zip file is its end, so a truncated one has none
    return zipfile.is_zipfile(path)


def _output_problems(inputs: Path, output: Path, model: ModelFolder, prev_stage: Path | None) -> list[str]:
    target = output.resolve()
    taken = {"the input folder": inputs, "the model folder": model.path, "the previous stage's folder": prev_stage}
    for what, folder in taken.items():
        if folder is not None and folder.resolve() == target:
            return [f"The output folder {output} is {what}: choose another"]
    if output.is_dir():
        # nnU-Net writes dataset.json and plans.json beside its predictions, over those of a data set
        if (output / "dataset.json").exists() and not (output / "predict_from_raw_data_args.json").exists():
            return [f"The output folder {output} holds a dataset.json that no prediction wrote: choose another"]
        existing = output
    else:
        existing = next(parent for parent in [target, *target.parents] if parent.exists())
    if not existing.is_dir():
        return [f"The output folder {output} can not be made: {existing} is a file"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"The output folder {output} can not be written: no permission in {existing}"]
    return []


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output) as file:
            file.write(b"0")
    except OSError as error:
        raise NnplugError(f"The output folder {output} can not be written: {error.strerror or error}.") from error


def _raise(inputs: Path, output_problems: Sequence[str], case_problems: Sequence[str]) -> None:
    problems = [*output_problems, *case_problems]
    if not problems:
        return
    if len(problems) == 1:
        where = "" if output_problems else f"{inputs}: "
        raise NnplugError(f"{where}{problems[0]}.")
    more = [f"and {len(problems) - _MAX_SHOWN} more"] if len(problems) > _MAX_SHOWN else []
    lines = "\n  ".join([*problems[:_MAX_SHOWN], *more])
    raise NnplugError(f"{inputs}: {len(problems)} problems:\n  {lines}")
