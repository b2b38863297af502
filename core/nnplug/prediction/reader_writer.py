"""The reader and writer of a prediction: nnU-Net's own, with errors that name the case and files that are whole.

nnU-Net's predictor asks the plans manager for the class that reads and writes images, in the worker processes too. The
one given to it here wraps nnU-Net's class, so nothing of nnU-Net is replaced.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnplug.errors import NnplugError
from nnplug.files.disk import flush_to_disk
from nnplug.image_headers import decompressed_length, reason
from nnplug.planning.classes import find_preprocessor


class PredictionPlans(PlansManager):
    """nnU-Net's plans manager with a careful reader and writer, and with the preprocessors of plugins.

    Args:
        plans: content of ``plans.json``.
        report: file in which a worker process says why it ended: nnU-Net only tells that it did.
    """

    def __init__(self, plans: dict[str, Any], report: Path) -> None:
        super().__init__(plans)
        self._report = report
        self._main_process = os.getpid()

    @property
    def image_reader_writer_class(self) -> Callable[[], BaseReaderWriter]:
        inner = PlansManager.image_reader_writer_class.fget(self)
        return partial(CarefulReaderWriter, inner(), self._end_worker)

    def get_configuration(self, configuration_name: str) -> ConfigurationManager:
        settings = super().get_configuration(configuration_name).configuration
        return _Configuration(settings, find_preprocessor(self.plans, settings["preprocessor_name"]))

    def _end_worker(self, message: str) -> None:
        """In a worker, leave the message for the main process and end without a traceback; elsewhere do nothing."""
        if os.getpid() == self._main_process:
            return
        self._report.write_text(message, encoding="utf-8")
        raise SystemExit(1)


class _Configuration(ConfigurationManager):
    """Knows its preprocessor, which nnU-Net would look for in its own package; in worker processes too."""

    def __init__(self, settings: dict[str, Any], preprocessor: type[DefaultPreprocessor]) -> None:
        super().__init__(settings)
        self._preprocessor = preprocessor

    @property
    def preprocessor_class(self) -> type[DefaultPreprocessor]:
        return self._preprocessor


class CarefulReaderWriter(BaseReaderWriter):
    """Reads and writes with ``inner``; ``end_worker`` is called with the message before an error is raised."""

    def __init__(self, inner: BaseReaderWriter, end_worker: Callable[[str], None]) -> None:
        self._inner = inner
        self._end_worker = end_worker

    def read_images(self, image_fnames: Sequence[str]) -> tuple[np.ndarray, dict]:
        images, properties = self._read(self._inner.read_images, list(image_fnames), image_fnames)
        if not np.isfinite(images).all():
            names = ", ".join(os.path.basename(name) for name in image_fnames)
            print(
                f"nnplug: warning: {names} holds NaN or infinite voxels; the prediction is not valid", file=sys.stderr
            )
        return images, properties

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict]:
        return self._read(self._inner.read_seg, seg_fname, [seg_fname])

    def _read(self, read: Callable[[Any], Any], argument: Any, paths: Sequence[str]) -> tuple[np.ndarray, dict]:
        try:
            for path in map(Path, paths):
                if path.name.endswith(".gz"):
                    # ITK gives zeros for what it can not decompress, without an error
                    decompressed_length(path)
            return read(argument)
        except Exception as error:  # every library has its own, and each means the same here
            shown = ", ".join(map(str, paths))
            message = (
                f"{shown} can not be read: {reason(error)}. Mend or remove the case and use --continue_prediction."
            )
            self._end_worker(message)
            raise NnplugError(message) from error

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
        """Write into a hidden folder beside the file, then rename, so that a killed process leaves no half a file.

        One folder a case: what a killed process left is used up when the case is predicted again.
        """
        target = Path(output_fname)
        folder = target.with_name(f".{target.name}.unfinished")
        try:
            folder.mkdir(exist_ok=True)
            self._inner.write_seg(seg, str(folder / target.name), properties)
            flush_to_disk(folder / target.name)
            # files beside the image (the spacing of a TIFF) come first: an image that is there is complete
            for path in sorted(folder.iterdir(), key=lambda path: path.name == target.name):
                os.replace(path, target.with_name(path.name))
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, RuntimeError) as error:  # ITK's errors are RuntimeErrors
            raise NnplugError(
                f"{target} could not be written: {reason(error)}. See to the folder (space, permissions) and use "
                "--continue_prediction."
            ) from error
