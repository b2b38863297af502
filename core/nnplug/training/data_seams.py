"""The data half of a trainer: what is sampled, how it is augmented and mirrored, and the workers that do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnplug.composition.component import Component
from nnplug.composition.references import load
from nnplug.composition.settings import explain
from nnplug.errors import NnplugError
from nnplug.files.json_files import write_json
from nnplug.networks import network
from nnplug.training import losses
from nnplug.training.checkpointing import overrides
from nnplug.training.label_check import with_label_check
from nnplug.training.loaders import build_augmenters
from nnplug.training.resumable import ResumableTrainer

NUM_FOLDS = 5  # of nnU-Net's own cross-validation


@contextmanager
def saying_whose(field: str, component: Component) -> Iterator[None]:
    """Say of an error which field and which code it came from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise explain(field, component, error) from error


class DataSeams(ResumableTrainer):
    """The seams of ``nnUNetTrainer`` that concern its data, filled with what the config sets."""

    # declared without types by nnU-Net
    oversample_foreground_percent: float
    dataset_class: Any
    # one split for the training and its validation, whatever happens to the file meanwhile
    _split: tuple[list[str], list[str]] | None = None

    def do_split(self) -> tuple[list[str], list[str]]:
        if overrides(self.base_trainer, "do_split"):
            return super().do_split()
        if self._split is None:
            if self.fold != "all":
                self._make_splits()
            self._split = super().do_split()
        return self._split

    def _make_splits(self) -> None:
        """The file that nnU-Net would make, appearing whole: other folds that start now read it at once."""
        path = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
        if path.exists():
            return
        folder = self.preprocessed_dataset_folder
        cases = sorted(infer_dataset_class(folder).get_identifiers(folder))
        if len(cases) < NUM_FOLDS:
            raise NnplugError(
                f"{folder} has {len(cases)} cases, too few for {NUM_FOLDS} folds. Make fewer with nnplug splits "
                "make -k, or train on every case with --all-data."
            )
        self.print_to_log_file(f"Creating new {NUM_FOLDS}-fold cross-validation split...")
        write_json(path, generate_crossval_split(cases, seed=12345, n_splits=NUM_FOLDS))

    def _match_oversampling(self) -> None:
        """The share that nnU-Net's fixed oversampling has in a batch, as its probabilistic trainer computes it."""
        batch_size = self.configuration_manager.batch_size
        forced = batch_size - round(batch_size * (1 - self.oversample_foreground_percent))
        self.oversample_foreground_percent = forced / batch_size

    def _set_batch_size_and_oversample(self) -> None:
        share = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()
        if self.probabilistic_oversampling:
            self.oversample_foreground_percent = share

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        rotation, dummy_2d, initial_patch_size, axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.resolved.config.mirror_axes is not None:
            # nnU-Net's predictor reads None as "no mirroring" and crashes on an empty tuple
            axes = self.resolved.config.mirror_axes or None
            self.inference_allowed_mirroring_axes = axes
        return rotation, dummy_2d, initial_patch_size, axes

    def get_dataloaders(self) -> tuple[Any, Any]:
        if overrides(self.base_trainer, "get_dataloaders") and self.resolved.config.sampler is None:
            return super().get_dataloaders()
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        patch_size = self.configuration_manager.patch_size
        scales = self._get_deep_supervision_scales()
        labels = self.label_manager
        rotation, dummy_2d, initial_patch_size, axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        common = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": labels.foreground_labels,
            "regions": labels.foreground_regions if labels.has_regions else None,
            "ignore_label": labels.ignore_label,
        }
        use_mask = self.configuration_manager.use_mask_for_norm
        augment = self.get_training_transforms(
            patch_size, rotation, scales, axes, dummy_2d, use_mask_for_norm=use_mask, **common
        )
        self._check_mirroring(augment)
        augment = self._with_target_transform(augment, deep_supervision=scales is not None)
        augment = with_label_check(augment, labels)
        plain = with_label_check(self.get_validation_transforms(scales, **common), labels)
        cases_train, cases_val = self.get_tr_and_val_datasets()
        train = self._loader(self._sampler(), cases_train, initial_patch_size, augment)
        val = self._loader(nnUNetDataLoader, cases_val, patch_size, plain)
        position = (self.local_rank, self.current_epoch, len(self._epoch_losses))
        return build_augmenters(train, val, self.device, self.resolved.config.seed, *position)

    def _check_mirroring(self, augment: Any) -> None:
        """A class with transforms of its own may never mirror; prediction would, over axes never seen in training."""
        axes, is_own = self.resolved.config.mirror_axes, overrides(self.base_trainer, "get_training_transforms")
        if not axes or not is_own or self.resolved.config.training_transforms is not None:
            return
        if not any(isinstance(step, MirrorTransform) for step in getattr(augment, "transforms", [])):
            raise NnplugError(
                f"'{self.resolved.name}' sets mirror_axes={'x'.join(map(str, axes))}, and the training transforms of "
                f"{self.base_trainer.__name__} do not mirror. Leave mirror_axes out, or set training_transforms."
            )

    def _with_target_transform(self, augment: Any, *, deep_supervision: bool) -> Any:
        """The training transforms with what the loss wants beside its targets.

        Those of validation stay as they are: nnU-Net's validation step reads the targets itself.
        """
        make = losses.target_transform_of(self.loss)
        if make is None:
            return augment
        extended = losses.add_target_transform(augment, make(), deep_supervision=deep_supervision)
        if extended is None:
            self.print_to_log_file(
                "The training transforms scale the targets in a way of their own: what the loss wants beside them is "
                "computed in the training step and not by the data workers."
            )
            return augment
        return extended

    def _sampler(self) -> Callable[..., Any]:
        component = self.resolved.config.sampler
        if component is None:
            return nnUNetDataLoader
        make = load(component.target, trusted=True)
        offered = {"log": self.print_to_log_file} if "log" in network.parameter_names(make) else {}

        def build(*args: Any, **kwargs: Any) -> Any:
            with saying_whose("sampler", component):
                return make(*args, **{**kwargs, **offered, **component.kwargs})

        return build

    def _loader(self, make: Callable[..., Any], cases: Any, patch_size: Any, transforms: Any) -> Any:
        return make(
            cases,
            self.batch_size,
            patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            sampling_probabilities=None,
            pad_sides=None,
            transforms=transforms,
            probabilistic_oversampling=self.probabilistic_oversampling,
        )
