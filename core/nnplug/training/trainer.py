"""From a config to nnU-Net's trainer class: the seams of ``nnUNetTrainer`` filled with what the config sets.

nnU-Net's own ``run_training`` stays. What a run writes, how it stops and goes on: :mod:`nnplug.training.resumable`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar
from unittest.mock import patch as replaced

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnplug.composition.component import Component
from nnplug.composition.references import load
from nnplug.composition.resolved import ResolvedConfig
from nnplug.discovery.stock_names import ATTRIBUTES
from nnplug.errors import NnplugError
from nnplug.loss_contract import LossContext
from nnplug.networks import network
from nnplug.networks.from_plans import build_from_plans
from nnplug.networks.network import call_accepted
from nnplug.training import losses
from nnplug.training.data_seams import DataSeams, saying_whose


def build_trainer_class(resolved: ResolvedConfig) -> type[nnUNetTrainer]:
    """The trainer class of a config: a subclass of ``nnUNetTrainer`` whose ``__name__`` is the canonical name.

    Raises:
        NnplugError: the base trainer can not be imported or is none.
    """
    base = load_base_trainer(resolved)
    attributes: dict[str, Any] = {"resolved": resolved, "base_trainer": base, "__module__": __name__}
    if resolved.config.training_transforms is not None:
        attributes["get_training_transforms"] = staticmethod(_transforms(resolved.config.training_transforms))
    if resolved.config.network_builder is not None:
        # the plans name the builder, and a base trainer that makes the network itself would not look there
        attributes["build_network_architecture"] = staticmethod(nnUNetTrainer.build_network_architecture)
    bases = (ConfiguredTrainer,) if base is nnUNetTrainer else (ConfiguredTrainer, base)
    return type(resolved.name, bases, attributes)


def load_base_trainer(resolved: ResolvedConfig) -> type[nnUNetTrainer]:
    """The class in ``base_trainer``, or ``nnUNetTrainer``."""
    component = resolved.config.base_trainer
    if component is None:
        return nnUNetTrainer
    base = load(component.target, trusted=True)
    if not (isinstance(base, type) and issubclass(base, nnUNetTrainer)):
        raise NnplugError(f"base_trainer {component.target} of '{resolved.name}' is not a subclass of nnUNetTrainer.")
    return base


def _transforms(component: Component) -> Callable[..., Any]:
    names = ("patch_size", "rotation_for_DA", "deep_supervision_scales", "mirror_axes", "do_dummy_2d_data_aug")

    def get_training_transforms(*args: Any, **kwargs: Any) -> Any:
        offered = {**dict(zip(names, args, strict=False)), **kwargs}
        with saying_whose("training_transforms", component):
            return call_accepted(load(component.target, trusted=True), offered=offered, **component.kwargs)

    return get_training_transforms


class ConfiguredTrainer(DataSeams):
    """nnU-Net's trainer with the seams of a config. Made by :func:`build_trainer_class` only."""

    resolved: ClassVar[ResolvedConfig]
    base_trainer: ClassVar[type[nnUNetTrainer]]
    # declared without types by nnU-Net
    enable_deep_supervision: bool

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's own signature)
    ) -> None:
        configured = network.configure_plans(plans, configuration, self.resolved)
        self.claim_model_folder(configured, configuration, dataset_json)
        super().__init__(configured, configuration, fold, dataset_json, device)
        self.outputs: network.NetworkOutputs | None = None
        if self.is_ddp and device.type == "cpu":
            # nnU-Net assumes CUDA as soon as there are several processes
            self.device, self.grad_scaler = device, None
        for name in ATTRIBUTES:
            value = getattr(self.resolved.config, name)
            if value is not None:
                setattr(self, name, value)
        for name in ("batch_size", "patch_size"):
            # some of nnU-Net's classes overwrite the plan when they are made
            if getattr(self.resolved.config, name) is not None:
                self.configuration_manager.configuration[name] = configured["configurations"][configuration][name]
        if (
            self.resolved.config.probabilistic_oversampling
            and self.resolved.config.oversample_foreground_percent is None
        ):
            self._match_oversampling()
        self._check_mirror_axes()
        self._set_amp()

    # --- settings

    def _check_mirror_axes(self) -> None:
        axes, dims = self.resolved.config.mirror_axes, len(self.configuration_manager.patch_size)
        if axes and max(axes) >= dims:
            raise NnplugError(
                f"mirror_axes={'x'.join(map(str, axes))} of '{self.resolved.name}' names axis {max(axes)}; "
                f"configuration '{self.configuration_name}' is {dims}D and has the axes 0 to {dims - 1}."
            )

    def _set_amp(self) -> None:
        amp = self.resolved.config.amp
        if amp is None and "nnUNet_use_amp" in os.environ:
            amp = os.environ["nnUNet_use_amp"].lower() in ("true", "1", "t")
        self.is_without_amp = amp is False and self.device.type == "cuda"
        if self.is_without_amp:
            self.grad_scaler = None
        elif amp and self.device.type != "cuda":
            self.print_to_log_file(f"amp=true changes nothing on {self.device.type}: nnU-Net uses it on CUDA only.")

    @contextmanager
    def _precision(self) -> Iterator[None]:
        before = torch.get_autocast_dtype("cuda")
        if self.is_without_amp:
            # autocast to float32 is how torch spells "off" where the code asks for autocast unconditionally
            torch.set_autocast_dtype("cuda", torch.float32)
        try:
            yield
        finally:
            torch.set_autocast_dtype("cuda", before)

    def run_training(self) -> None:
        with self._precision():
            super().run_training()

    def perform_actual_validation(self, *args: Any, **kwargs: Any) -> None:
        with self._precision():
            super().perform_actual_validation(*args, **kwargs)

    def _do_i_compile(self) -> bool:
        wanted = self.resolved.config.compile
        if wanted is None:
            return super()._do_i_compile()
        with replaced.dict(os.environ, {"nnUNet_compile": "1" if wanted else "0"}):
            return super()._do_i_compile()

    # --- network

    def initialize(self) -> None:
        if self.was_initialized:
            return
        seed = self.resolved.config.seed
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        if self.is_ddp and self.device.type == "cpu":
            self._refuse_batch_norm()
        self.try_network()
        if self.is_ddp and self.device.type == "cpu":
            with replaced.object(trainer_module, "DDP", lambda module, **_: DistributedDataParallel(module)):
                super().initialize()
        else:
            super().initialize()

    def build_for(self, patch_size: network.Size, deep_supervision: bool) -> nn.Module:
        """The network of this run for another patch size, freshly initialised."""
        plans = deepcopy(self.plans_manager.plans)
        settings = PlansManager(plans).get_configuration(self.configuration_name).configuration
        settings["patch_size"] = list(patch_size)
        arch_kwargs = settings["architecture"]["arch_kwargs"]
        if "patch_size" in arch_kwargs:
            arch_kwargs["patch_size"] = list(patch_size)
        settings.pop("inherits_from", None)
        plans["configurations"][self.configuration_name] = settings
        manager = PlansManager(plans)
        configuration = manager.get_configuration(self.configuration_name)
        return build_from_plans(
            self.build_network_architecture, manager, configuration, self.dataset_json, deep_supervision
        )

    def try_network(self) -> None:
        """Dry run with and without deep supervision; settles, once, whether this run has it and at which scales."""
        if self.outputs is not None:
            return
        manager = self.configuration_manager
        common: dict[str, Any] = {
            "trainer": self.resolved.name,
            "num_input_channels": determine_num_input_channels(self.plans_manager, manager, self.dataset_json),
            "num_classes": self.label_manager.num_segmentation_heads,
            "patch_size": tuple(manager.patch_size),
            "batch_size": manager.batch_size,
        }
        single = network.dry_run(self.build_for, deep_supervision=False, **common)
        if single.is_list:
            raise NnplugError(
                f"The network of '{self.resolved.name}' returns a list without deep supervision; expected one tensor."
            )
        self.outputs = single
        if not self.enable_deep_supervision:
            return
        several = network.dry_run(self.build_for, deep_supervision=True, **common)
        other = min((name for name, _ in several.weights.items() ^ single.weights.items()), default=None)
        if other is not None:
            raise NnplugError(
                f"The network of '{self.resolved.name}' has other weights with deep supervision than without "
                f"({other}). Prediction builds it without: make all of its layers in both cases."
            )
        if several.is_list:
            self.outputs = several
        elif self.resolved.config.enable_deep_supervision:
            raise NnplugError(
                f"'{self.resolved.name}' sets enable_deep_supervision=true, but its network returns one output."
            )
        else:
            self.enable_deep_supervision = False
            self.print_to_log_file("The network returns one output: training without deep supervision.")

    def _refuse_batch_norm(self) -> None:
        with torch.device("meta"):
            modules = self.build_for(tuple(self.configuration_manager.patch_size), False).modules()
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules):
                raise NnplugError(
                    f"The network of '{self.resolved.name}' has batch norm, which several processes on the CPU can not "
                    "share (SyncBatchNorm needs CUDA). Use one process, or another norm."
                )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        network.set_deep_supervision(self.bare_network(), enabled and self.enable_deep_supervision)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        if not self.enable_deep_supervision:
            return None
        if self.outputs is None:
            return super()._get_deep_supervision_scales()
        return network.supervision_scales(self.outputs, tuple(self.configuration_manager.patch_size))

    # --- loss, optimiser

    def _build_loss(self) -> nn.Module:
        scales = self._get_deep_supervision_scales()
        loss_fn = self.resolved.config.loss_fn
        if loss_fn is None:
            with np.errstate(invalid="ignore"):
                loss = super()._build_loss()
            if isinstance(loss, DeepSupervisionWrapper) and len(loss.weight_factors) == 1:
                loss.weight_factors = (1.0,)  # nnU-Net gives the last output weight 0, also when it is the only one
            return loss
        needs_all = self.is_ddp and not self._do_i_compile()
        weights = losses.supervision_weights(len(scales), last=1e-6 if needs_all else 0.0) if scales else None
        context = LossContext(
            num_classes=self.label_manager.num_segmentation_heads,
            spatial_dims=len(self.configuration_manager.patch_size),
            ignore_label=self.label_manager.ignore_label,
            has_regions=self.label_manager.has_regions,
            batch_dice=self.configuration_manager.batch_dice,
            is_ddp=self.is_ddp,
            num_deep_supervision_outputs=len(scales) if scales else 1,
            supervision_weights=tuple(weights) if weights else (1.0,),
        )
        return losses.build_loss(loss_fn, context, weights).to(self.device)

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # nnU-Net's warm-up trainers call it again with the stage of the training
        config = self.resolved.config
        if config.optimizer is None and config.lr_scheduler is None:
            return super().configure_optimizers(*args, **kwargs)
        if config.optimizer is None:
            optimizer, _ = super().configure_optimizers(*args, **kwargs)
        else:
            make = load(config.optimizer.target, trusted=True)
            rates = {"lr": self.initial_lr, "weight_decay": self.weight_decay, **config.optimizer.kwargs}
            with saying_whose("optimizer", config.optimizer):
                optimizer = make(self.network.parameters(), **rates)
        if config.lr_scheduler is None:
            return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
        offered = {"initial_lr": self.initial_lr, "num_epochs": self.num_epochs}
        make = load(config.lr_scheduler.target, trusted=True)
        with saying_whose("lr_scheduler", config.lr_scheduler):
            return optimizer, call_accepted(make, optimizer, offered=offered, **config.lr_scheduler.kwargs)
