"""A preprocessor for images whose noise has a few extreme values."""

from __future__ import annotations

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor


class AcmePreprocessor(DefaultPreprocessor):
    """Clips every channel to its percentiles 0.5 and 99.5, then does what nnU-Net does."""

    def run_case_npy(self, data, *args):
        limits = np.percentile(data, (0.5, 99.5), axis=(1, 2, 3), keepdims=True)
        return super().run_case_npy(np.clip(data, *limits), *args)
