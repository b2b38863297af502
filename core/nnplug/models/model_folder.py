"""A model folder belongs to one resolved config, plans and dataset.json; its folds: see ``fold_folder``.

nnU-Net rewrites ``plans.json`` at every start and would let folds of different settings share a folder. nnplug keeps a
manifest (``nnplug.json``) beside it and refuses to train or continue with anything else. Torch-free.

::

    DATASET/TRAINER__PLANS__CONFIGURATION/     the model folder
        nnplug.json  plans.json  dataset.json
        fold_0/
            nnplug_fold.json  nnplug_result.json  checkpoint_final.pth  ...
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.composition.differences import list_differences
from nnplug.errors import NnplugError
from nnplug.files.json_files import as_plain_json, create_json, keep_json, read_json
from nnplug.training.fold_folder import has_checkpoints, make_folder

MANIFEST_NAME = "nnplug.json"
MANIFEST_FORMAT = 1

_NOT_HASHED = ("description", "source")


@dataclass(frozen=True)
class Manifest:
    """What a model folder belongs to.

    Args:
        name: canonical trainer name.
        config: ``ResolvedConfig.as_dict()``.
        distributions: plugin distributions and their versions; a difference here warns only.
        plans: the plans as trained (with the network builder), as in ``plans.json``.
        dataset_json: as in ``dataset.json``.
        configuration: of the plans that is trained; others in them may come and go.
    """

    name: str
    config: dict[str, Any]
    distributions: dict[str, str]
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str

    def __post_init__(self) -> None:
        # nnU-Net's trainers put this key into the plans on the way to the logger
        plans = {key: value for key, value in self.plans.items() if key != "continue_training"}
        object.__setattr__(self, "plans", plans)
        for field in ("config", "distributions", "plans", "dataset_json"):
            object.__setattr__(self, field, as_plain_json(getattr(self, field)))

    @property
    def compared(self) -> dict[str, Any]:
        """The part that makes the folder's identity."""
        config = {key: value for key, value in self.config.items() if key not in _NOT_HASHED}
        plans = _plans_of(self.plans, self.configuration)
        return {**config, "plans.json": plans, "dataset.json": self.dataset_json}

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON of what is compared: the config without description and source, the plans as
        far as the configuration goes, dataset.json."""
        text = json.dumps(self.compared, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The content of ``nnplug.json``."""
        return {
            "format": MANIFEST_FORMAT,
            "hash": self.hash,
            "name": self.name,
            "config": self.config,
            "distributions": self.distributions,
            "plans": self.plans,
            "dataset_json": self.dataset_json,
            "configuration": self.configuration,
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a model folder, None if it has none.

        Raises:
            NnplugError: unreadable, or written by a newer nnplug.
        """
        path = Path(folder) / MANIFEST_NAME
        content = read_json(path)
        if content is None:
            return None
        written_format = content.get("format")
        if isinstance(written_format, int) and written_format > MANIFEST_FORMAT:
            raise NnplugError(
                f"{path} was written by a newer nnplug (format {written_format}, this one knows {MANIFEST_FORMAT}). "
                "Update it: pip install -U nnplug"
            )
        parts: dict[str, Any] = {key: content.get(key) for key in ("config", "distributions", "plans", "dataset_json")}
        wrong = [key for key, part in parts.items() if not isinstance(part, dict)]
        if wrong or not isinstance(content.get("name"), str):
            raise NnplugError(
                f"{path} is not an nnplug manifest: check {(wrong or ['name'])[0]}, or move the folder away."
            )
        configuration = content.get("configuration") or Path(folder).name.rpartition("__")[2]
        return cls(name=content["name"], configuration=configuration, **parts)


def differences(old: Manifest, new: Manifest) -> list[str]:
    """What makes ``new`` another model than ``old``, as in "num_epochs: 100 in the folder, 200 now".

    At most 12 lines, then one that counts the rest; none exactly if the hashes are equal.
    """
    return list_differences(old.compared, new.compared)


def check_claim(folder: Path, manifest: Manifest) -> list[str]:
    """Check that ``folder`` is free or belongs to ``manifest``; writes nothing.

    Returns:
        Warnings: plugin distributions whose version differs.

    Raises:
        NnplugError: it belongs to other settings, which are listed.
    """
    folder = Path(folder)
    owner = Manifest.read(folder)
    if owner is None:
        _check_stock_run(folder, manifest)
        return []
    found = differences(owner, manifest)
    if found:
        advice = "Use those settings, give the new ones a name of their own, or move the folder away."
        if not has_checkpoints(folder):
            advice += " There is no checkpoint in it yet: if nothing is training there, it can be deleted."
        raise NnplugError(f"{folder} belongs to a model with other settings: {'; '.join(found)}. {advice}")
    return _version_warnings(owner, manifest)


def claim(folder: Path, manifest: Manifest) -> list[str]:
    """``check_claim``, then make ``folder`` belong to ``manifest``.

    Any number of processes may do this at once: the first one to write ``nnplug.json`` decides, the others compare.
    ``plans.json`` and ``dataset.json`` become those of the manifest: a training that was killed early may have left
    others, and prediction reads them.
    """
    folder = Path(folder)
    make_folder(folder)
    warnings = check_claim(folder, manifest)
    if not create_json(folder / MANIFEST_NAME, manifest.as_json()):
        warnings = check_claim(folder, manifest)
    keep_json(folder / "plans.json", manifest.plans)
    keep_json(folder / "dataset.json", manifest.dataset_json)
    return warnings


def _plans_of(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The plans with one configuration and what it inherits from."""
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict):
        return plans
    kept, name = {}, configuration
    while name in configurations and name not in kept:
        kept[name] = configurations[name]
        name = kept[name].get("inherits_from")
    return {**plans, "configurations": kept}


def _check_stock_run(folder: Path, manifest: Manifest) -> None:
    if not has_checkpoints(folder):
        return
    found = []
    for name, now in (("plans.json", manifest.plans), ("dataset.json", manifest.dataset_json)):
        before = read_json(folder / name)
        if before is None:
            found.append(f"{name} is missing")
            continue
        if name == "plans.json":
            before, now = (_plans_of(plans, manifest.configuration) for plans in (before, now))
        found += list_differences({name: before}, {name: now})
    if found:
        raise NnplugError(
            f"{folder} holds a model that nnplug did not train, with other settings: {'; '.join(found)}. "
            "Use its plans and dataset.json, another trainer name, or move the folder away."
        )


def _version_warnings(owner: Manifest, manifest: Manifest) -> list[str]:
    return [
        f"{name} {owner.distributions.get(name, '(not used)')} was used in this folder before, "
        f"{manifest.distributions.get(name, '(not used)')} now."
        for name in sorted({*owner.distributions, *manifest.distributions})
        if owner.distributions.get(name) != manifest.distributions.get(name)
    ]
