"""``dataset.json`` and ``plans.json`` beside predictions: which files there are, and how nnU-Net reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.errors import NnplugError
from nnplug.files.json_files import read_required_json
from nnplug.models.trained_models import check_keys


@dataclass(frozen=True)
class Descriptions:
    """The content of both files.

    Attributes:
        dataset_json, plans: nnU-Net's.
    """

    dataset_json: dict[str, Any]
    plans: dict[str, Any]

    @property
    def file_ending(self) -> str:
        """Ending of the images, for example ``.nii.gz``."""
        return self.dataset_json["file_ending"]

    @property
    def reader(self) -> type[Any]:
        """nnU-Net's class for the images."""
        return self._manager().image_reader_writer_class

    @property
    def labels(self) -> Any:
        """nnU-Net's label manager."""
        return self._manager().get_label_manager(self.dataset_json)

    def _manager(self) -> Any:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans)


def read_descriptions(dataset_json: Path, plans: Path | None) -> Descriptions:
    """Read both files; without plans nnU-Net's reader for the file ending.

    Raises:
        NnplugError: one is missing, damaged or not complete; nnU-Net has no reader for the file ending.
    """
    description = read_required_json(dataset_json, "The data set's description")
    check_keys(dataset_json, description, "labels", "file_ending")
    if plans is None:
        from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

        named = description.get("overwrite_image_reader_writer") or "None"
        try:
            reader = determine_reader_writer_from_dataset_json(
                {**description, "overwrite_image_reader_writer": named}, verbose=False
            )
        except RuntimeError:
            raise NnplugError(f"{dataset_json}: nnU-Net reads no '{description['file_ending']}' files.") from None
        return Descriptions(description, {"image_reader_writer": reader.__name__, "label_manager": "LabelManager"})
    content = read_required_json(plans, "The plans file")
    check_keys(plans, content, "image_reader_writer")
    return Descriptions(description, content)


def find_description(name: str, folders: Sequence[Path], advice: str) -> Path:
    """The first of ``folders`` that has the file. Raises NnplugError, ending with ``advice``, where none has it."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = " and none in ".join(map(str, folders))
    raise NnplugError(f"There is no {name} in {places}. {advice}")
