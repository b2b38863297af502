"""The intensities that nnU-Net samples of each case's foreground, drawn where they are needed.

nnU-Net draws a hundred million values in all, a case's share in the process that reads it, and sends them on: gigabytes
for several channels. Its generator has a fixed seed, so the foreground itself tells the same values later.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from nnplug.errors import NnplugError

_SEED = inspect.signature(DatasetFingerprintExtractor.collect_foreground_intensities).parameters["seed"].default
_BLOCK = 1 << 20


def keep_for_samples(pixels: np.ndarray, num_samples: int) -> np.ndarray:
    """What has to be kept of a case's foreground: all of it, or the samples where these are fewer.

    Args:
        pixels: channels, voxels.
        num_samples: that nnU-Net draws of the case.
    """
    if pixels.shape[1] < num_samples:
        return pixels
    return _draw(pixels, np.random.RandomState(_SEED), np.empty((len(pixels), num_samples), pixels.dtype))


def _draw(pixels: np.ndarray, generator: np.random.RandomState, samples: np.ndarray) -> np.ndarray:
    """As ``generator.choice`` for one channel after the other, without an index for each sample."""
    for channel, drawn in zip(pixels, samples, strict=True):
        for start in range(0, drawn.size, _BLOCK):
            block = drawn[start : start + _BLOCK]
            np.take(channel, generator.randint(0, channel.size, block.size), out=block)
    return samples


class Samples:
    """nnU-Net's samples of all cases, one channel after the other.

    Args:
        files: what was kept of each case, in its order.
        num_samples: of each case.
    """

    def __init__(self, files: Sequence[Path], num_samples: int) -> None:
        self.files = files
        self.num_samples = num_samples
        self.generators = [np.random.RandomState(_SEED) for _ in files]
        kept = [np.load(file, mmap_mode="r") for file in files]
        self.sizes = [pixels.shape[1] for pixels in kept]
        # nnU-Net joins an empty list of a case without foreground, which makes all of them double precision
        self.dtype = np.result_type(*(pixels.dtype if pixels.size else np.float64 for pixels in kept))

    def draw(self, channel: int) -> np.ndarray:
        """The samples of a channel; call it for channel 0, 1, ... in this order.

        Raises:
            NnplugError: no case has any foreground.
        """
        labelled = [index for index, size in enumerate(self.sizes) if size]
        if not labelled:
            raise NnplugError("No case has a labelled voxel, so there are no intensities to plan with. See the labels.")
        values = np.empty(len(labelled) * self.num_samples, self.dtype)
        for position, index in enumerate(labelled):
            share = values[position * self.num_samples : (position + 1) * self.num_samples]
            pixels = np.load(self.files[index], mmap_mode="r")[channel]
            if self.sizes[index] == self.num_samples:
                share[:] = pixels
            else:
                _draw(np.asarray(pixels, self.dtype)[None], self.generators[index], share[None])
        return values
