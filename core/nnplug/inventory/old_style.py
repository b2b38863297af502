"""``dataset.json`` of the Medical Segmentation Decathlon and nnU-Net v1, in today's keys. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def to_new_style(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Give ``modality`` and labels from value to name the form that nnU-Net v2 has.

    Returns:
        A new content, and a note on each thing that was converted.
    """
    new, notes = dict(content), []
    if "channel_names" not in new and isinstance(new.get("modality"), Mapping):
        new["channel_names"] = new.pop("modality")
        notes.append("modality is taken for channel_names")
    labels = new.get("labels")
    if isinstance(labels, Mapping) and labels and all(str(key).isdecimal() for key in labels):
        new["labels"] = {str(name): int(value) for value, name in labels.items()}
        notes.append("labels are turned from value: name into name: value")
        # the Decathlon names it in its own ways; it is 0 in all of them
        background = next((name for name, value in new["labels"].items() if value == 0), None)
        if background not in (None, "background"):
            new["labels"] = {"background" if value == 0 else name: value for name, value in new["labels"].items()}
    return new, notes
