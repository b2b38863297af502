"""What an annotation begins with."""

from __future__ import annotations

import numpy as np


def segment_middle_slice(volume: np.ndarray, dark: int, bright: int) -> np.ndarray:
    """An annotation of the middle slice by its grey values, nothing elsewhere.

    Args:
        volume: D H W.
        dark: number of the class for voxels up to Otsu's threshold of the slice.
        bright: for those above. A slice of one value has no threshold and is left alone.

    Returns:
        D H W, uint8.

    Source:
        Otsu 1979, doi:10.1109/TSMC.1979.4310076.
    """
    from skimage.filters import threshold_otsu

    annotation = np.zeros(volume.shape, np.uint8)
    middle = len(volume) // 2
    plane = volume[middle]
    if plane.min() < plane.max():
        annotation[middle] = np.where(plane > threshold_otsu(plane), bright, dark)
    return annotation
