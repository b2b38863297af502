"""Compare what was preprocessed with what stock nnU-Net makes of the same data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def assert_same_results(made: Path, stock: Path, *configurations: str) -> None:
    """Fingerprint and plans byte for byte; images by their arrays, since blosc2's threads order blocks as they come."""
    for name in ("dataset_fingerprint.json", "nnUNetPlans.json"):
        assert (made / name).read_bytes() == (stock / name).read_bytes(), name
    for configuration in configurations:
        assert_same_cases(made / f"nnUNetPlans_{configuration}", stock / f"nnUNetPlans_{configuration}")


def assert_same_cases(made: Path, stock: Path) -> None:
    import blosc2

    names = files(stock)
    assert files(made) == names
    assert names
    for name in names:
        if not name.endswith(".b2nd"):
            assert (made / name).read_bytes() == (stock / name).read_bytes(), name
            continue
        ours, theirs = blosc2.open(str(made / name), mode="r"), blosc2.open(str(stock / name), mode="r")
        assert (ours.dtype, ours.chunks, ours.blocks) == (theirs.dtype, theirs.chunks, theirs.blocks), name
        assert np.array_equal(ours[:], theirs[:]), name


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
