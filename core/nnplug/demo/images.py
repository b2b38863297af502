"""The demo's images: blocks of the MNI152 template that ships inside nilearn, as a raw data set of nnU-Net.

It is one averaged brain, cut into pieces. Networks that learn it show that the pipeline works, not what they are worth.
Arrays are (X, Y, Z), 1 mm voxels.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnplug.errors import NnplugError

DATASET_NAME = "Dataset152_MNI152Blocks"
BLOCK_SIDE = 40
MIN_SHARE = 0.05
LABELS = {"background": 0, "grey_matter": 1, "white_matter": 2}
NUM_FOLDS = 5
HOLD_OUT_EVERY = 6


@dataclass(frozen=True)
class Block:
    """A cube of the template.

    Attributes:
        position: its place in the grid of blocks.
        start: its first voxel in the template.
        pair: the same for a block and its mirror image in the other half of the brain. The template is symmetric, so
            the two must never be on different sides of a split.
    """

    position: tuple[int, int, int]
    start: tuple[int, int, int]
    pair: tuple[int, int, int]

    @property
    def case(self) -> str:
        return "block_" + "".join(map(str, self.position))

    @property
    def region(self) -> tuple[slice, ...]:
        return tuple(slice(start, start + BLOCK_SIDE) for start in self.start)


def load_template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1 image (uint8, 0 to 255), labels (uint8: 1 grey, 2 white matter) and the affine (4, 4) in mm.

    Raises:
        NnplugError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise NnplugError(
            f"The demo's images come with nilearn, which can not be imported ({error}). Install it with: "
            "pip install 'nnplug[demo]'; or give your own data with --dataset FOLDER."
        ) from None
    t1 = datasets.load_mni152_template(resolution=1)
    # nilearn scales the maps it ships to 0..1; the limit below is meant for their 0..255
    image, grey, white = (
        np.rint(np.asarray(volume.dataobj) * 255).astype(np.uint8)
        for volume in (
            t1,
            datasets.load_mni152_gm_template(resolution=1),
            datasets.load_mni152_wm_template(resolution=1),
        )
    )
    return image, label_tissue(grey, white), np.asarray(t1.affine)


def label_tissue(grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Labels from maps of 0 to 255: the larger of the two where it is above 127."""
    labels = np.zeros(grey.shape, np.uint8)
    labels[(grey >= white) & (grey > 127)] = LABELS["grey_matter"]
    labels[(white > grey) & (white > 127)] = LABELS["white_matter"]
    return labels


def cut_blocks(labels: np.ndarray) -> list[Block]:
    """The blocks of a centred grid in which each class fills more than 5 %."""
    counts = [size // BLOCK_SIDE for size in labels.shape]
    margins = [(size - BLOCK_SIDE * count) // 2 for size, count in zip(labels.shape, counts, strict=True)]
    blocks = []
    for x, y, z in itertools.product(*map(range, counts)):
        start = tuple(margin + BLOCK_SIDE * place for margin, place in zip(margins, (x, y, z), strict=True))
        block = Block((x, y, z), start, (min(x, counts[0] - 1 - x), y, z))
        content = labels[block.region]
        if min((content == 1).mean(), (content == 2).mean()) > MIN_SHARE:
            blocks.append(block)
    return blocks


def split_blocks(blocks: list[Block]) -> tuple[list[Block], list[dict[str, list[str]]]]:
    """Blocks to hold out, and nnU-Net's cross-validation splits of the others; mirror images stay together."""
    pairs = sorted({block.pair for block in blocks})
    held_out = set(pairs[HOLD_OUT_EVERY // 2 :: HOLD_OUT_EVERY])
    rest = [pair for pair in pairs if pair not in held_out]
    folds = {pair: index % NUM_FOLDS for index, pair in enumerate(rest)}
    training = [block for block in blocks if block.pair not in held_out]
    splits = [
        {
            "train": [block.case for block in training if folds[block.pair] != fold],
            "val": [block.case for block in training if folds[block.pair] == fold],
        }
        for fold in range(NUM_FOLDS)
    ]
    return [block for block in blocks if block.pair in held_out], splits


def write_raw_dataset(folder: Path) -> list[dict[str, list[str]]]:
    """Write the blocks as a raw data set; ``dataset.json`` comes last, so that a folder with it is whole.

    Args:
        folder: ``.../Dataset152_MNI152Blocks``.

    Returns:
        The splits for its preprocessed folder.
    """
    image, labels, affine = load_template()
    blocks = cut_blocks(labels)
    held_out, splits = split_blocks(blocks)
    for block in blocks:
        part = "Ts" if block in held_out else "Tr"
        moved = affine.copy()
        moved[:3, 3] = (affine @ [*block.start, 1])[:3]
        _write_nifti(image[block.region], moved, folder / f"images{part}" / f"{block.case}_0000.nii.gz")
        _write_nifti(labels[block.region], moved, folder / f"labels{part}" / f"{block.case}.nii.gz")
    content: Mapping[str, Any] = {
        "name": DATASET_NAME,
        "description": "Blocks of the MNI152 T1 template (one averaged brain) with grey and white matter",
        # the name tells nnU-Net to divide by 255: one image's blocks share a scale that a z-score of each would lose
        "channel_names": {"0": "rgb_to_0_1"},
        "labels": LABELS,
        "numTraining": len(blocks) - len(held_out),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return splits


def _write_nifti(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
