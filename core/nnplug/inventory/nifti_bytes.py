"""What is in a NIfTI file, as opposed to what ITK makes of it: it reads damage and NaN as zeros, without an error."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from nnplug.image_headers import UnreadableImageError

_BLOCK_BYTES = 1 << 22  # a multiple of every item size


def count_nonfinite(path: Path) -> int:
    """Number of NaN and infinite voxels. Reads every byte, so a compressed file's checksum is compared.

    Raises:
        UnreadableImageError: truncated or damaged.
    """
    import nibabel

    image: Any = nibabel.load(path)
    dtype = image.get_data_dtype()
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            file.read(image.dataobj.offset)
            number = _count(file, dtype, math.prod(image.shape) * dtype.itemsize if dtype.kind in "fc" else 0)
            while file.read(_BLOCK_BYTES):
                pass
            return number
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableImageError("the file is truncated or damaged") from error


def _count(file: Any, dtype: np.dtype, num_bytes: int) -> int:
    number = 0
    while num_bytes > 0:
        block = file.read(min(_BLOCK_BYTES, num_bytes))
        if not block:
            raise EOFError
        num_bytes -= len(block)
        values = np.frombuffer(block[: len(block) // dtype.itemsize * dtype.itemsize], dtype)
        number += values.size - int(np.count_nonzero(np.isfinite(values)))
    return number
