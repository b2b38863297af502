"""The cases that the demo predicts: none of them was trained on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.files.json_files import read_required_json

MAX_CASES = 6


@dataclass(frozen=True)
class HeldOutCase:
    """A case that no trainer saw: its image files (one a channel) and its true segmentation."""

    name: str
    images: tuple[Path, ...]
    truth: Path


def choose_held_out(raw: Path, preprocessed: Path, dataset_json: dict[str, Any], fold: int) -> list[HeldOutCase]:
    """The raw data set's test cases as far as it has labels for them (labelsTs), else the fold's validation cases."""
    cases = _labelled_test_cases(raw, dataset_json["file_ending"])
    return (cases or _validation_cases(raw, preprocessed, dataset_json, fold))[:MAX_CASES]


def _labelled_test_cases(raw: Path, ending: str) -> list[HeldOutCase]:
    from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

    if not (raw / "imagesTs").is_dir():
        return []
    cases = []
    for images in create_lists_from_splitted_dataset_folder(str(raw / "imagesTs"), ending):
        name = Path(images[0]).name.removesuffix(ending)[: -len("_0000")]
        cases.append(HeldOutCase(name, tuple(map(Path, images)), raw / "labelsTs" / f"{name}{ending}"))
    return [case for case in cases if case.truth.is_file()]


def _validation_cases(raw: Path, preprocessed: Path, dataset_json: dict[str, Any], fold: int) -> list[HeldOutCase]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    files = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    names = read_required_json(preprocessed / "splits_final.json", "The splits file")[fold]["val"]
    return [HeldOutCase(n, tuple(map(Path, files[n]["images"])), Path(files[n]["label"])) for n in names]


def link_images(cases: Sequence[HeldOutCase], folder: Path, ending: str) -> None:
    """Put links to the images into one folder, named as nnU-Net wants them; copies where there are no links."""
    folder.mkdir(exist_ok=True)
    for case in cases:
        for channel, image in enumerate(case.images):
            link = folder / f"{case.name}_{channel:04d}{ending}"
            if link.exists():
                continue
            try:
                os.symlink(image.resolve(), link)
            except OSError:
                shutil.copyfile(image, link)
