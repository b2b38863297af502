"""A real image of which a few slices are annotated; everything else has the ignore label."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.datasets import DATA_FOLDER, write_dataset_json

IGNORE = 3
EVERY = 10  # slices


def write_sparse_concrete(folder: Path) -> None:
    """Four blocks of X-ray CT of concrete: pores, aggregate and paste on every tenth slice."""
    import SimpleITK as sitk

    source = DATA_FOLDER / "xray_ct"
    image, label = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(source / f"concrete_{name}.tif")))
        for name in ("image", "label_multiotsu")
    )
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    sparse = np.full(label.shape, IGNORE, np.uint8)
    sparse[EVERY // 2 :: EVERY] = label[EVERY // 2 :: EVERY]
    for index in range(4):
        block = (slice(0, 40), slice(50 * (index // 2), 50 * (index // 2) + 48), slice(50 * (index % 2), None))
        for array, path in (
            (image[block].astype(np.float32), f"imagesTr/concrete_{index}_0000.nii.gz"),
            (sparse[block], f"labelsTr/concrete_{index}.nii.gz"),
        ):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / path))
    labels = {"background": 0, "pore": 1, "aggregate": 2, "ignore": IGNORE}
    write_dataset_json(folder, labels=labels, num_cases=4, channels=("CT",))
