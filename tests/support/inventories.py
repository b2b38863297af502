"""Small made-up data sets described by an inventory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SHAPE = (6, 8, 10)


class MadeInventory:
    """Images of noise with a bright box (label 1), and their inventory; change ``content`` and ``write()`` again.

    Args:
        folder: where everything is written, ``inventory.json`` included.
        channels: names.
        num_cases: named ``case_0``, ``case_1``, ...
        ending: of every file.
    """

    def __init__(
        self, folder: Path, channels: tuple[str, ...] = ("MRI",), num_cases: int = 2, ending: str = ".nii.gz"
    ) -> None:
        self.folder = folder
        self.ending = ending
        self.path = folder / "inventory.json"
        self.content: dict[str, Any] = {
            "channel_names": {str(index): name for index, name in enumerate(channels)},
            "labels": {"background": 0, "box": 1},
            "numTraining": num_cases,
            "file_ending": ending,
            "dataset": {
                f"case_{index}": {
                    "images": [f"images/case_{index}_{channel:04d}{ending}" for channel in range(len(channels))],
                    "label": f"labels/case_{index}{ending}",
                }
                for index in range(num_cases)
            },
        }
        for sub in ("images", "labels"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        for index, entry in enumerate(self.content["dataset"].values()):
            image, label = make_case(index)
            for channel, file in enumerate(entry["images"]):
                self.save(file, image + channel)
            self.save(entry["label"], label)
        self.write()

    def write(self) -> Path:
        """Write the inventory and return its path."""
        self.path.write_text(json.dumps(self.content, indent=2))
        return self.path

    def save(self, file: str, array: np.ndarray, **geometry: Any) -> Path:
        """Write one image: D H W; ``geometry`` is ``spacing``, ``origin``, ``direction`` in ITK's order."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(path, array, **geometry)
        return path

    def entry(self, case: str = "case_0") -> dict[str, Any]:
        return self.content["dataset"][case]


def make_case(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Image (float32) and label (uint8)."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(size // 3, size // 3 * 2) for size in shape)] = 1
    return (rng.normal(100, 10, shape) + 80 * label).astype(np.float32), label


def save_image(
    path: Path,
    array: np.ndarray,
    *,
    spacing: tuple[float, ...] | None = None,
    origin: tuple[float, ...] | None = None,
    direction: tuple[float, ...] | None = None,
) -> None:
    """Write with the library of the ending."""
    if path.name.endswith((".tif", ".tiff")):
        import tifffile

        tifffile.imwrite(path, array)
    elif path.suffix in (".png", ".bmp", ".jpg"):
        from PIL import Image

        Image.fromarray(array).save(path)
    else:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing or (1.0,) * array.ndim)
        image.SetOrigin(origin or (0.0,) * array.ndim)
        if direction is not None:
            image.SetDirection(direction)
        sitk.WriteImage(image, str(path))
