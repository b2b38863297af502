"""Checkpoints of a trainer: what nnU-Net's hold, what made the model, and where inside an epoch it was interrupted."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from time import time
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnplug.composition.references import describe
from nnplug.composition.resolved import ResolvedConfig
from nnplug.datasets import foreground_names
from nnplug.hookspecs import TrainingRun
from nnplug.models.checkpoint import Writer, load
from nnplug.models.model_folder import Manifest
from nnplug.networks.replica import unwrapped
from nnplug.training.lifecycle import call_lifecycle
from nnplug.training.loaders import worker_seeds
from nnplug.training.worker_process import seed_generators

LATEST, PREVIOUS = "checkpoint_latest.pth", "checkpoint_previous.pth"
BEST, FINAL = "checkpoint_best.pth", "checkpoint_final.pth"


def overrides(trainer: type[nnUNetTrainer], method: str) -> bool:
    """Whether a trainer class has its own version of a method of ``nnUNetTrainer``."""
    return getattr(trainer, method) is not getattr(nnUNetTrainer, method)


def stock_trainer_name(trainer: type[nnUNetTrainer]) -> tuple[str, bool]:
    """The class by which nnU-Net builds this trainer's network, and whether stock nnU-Net has that class."""
    if trainer.build_network_architecture is nnUNetTrainer.build_network_architecture:
        return nnUNetTrainer.__name__, True
    for cls in trainer.__mro__:
        if "build_network_architecture" in vars(cls):
            return cls.__name__, cls.__module__.split(".")[0] == "nnunetv2"
    raise AssertionError("nnUNetTrainer defines build_network_architecture")


class CheckpointingTrainer(nnUNetTrainer):
    """The part of a trainer that saves and loads; see :mod:`nnplug.training.resumable` for when."""

    resolved: ClassVar[ResolvedConfig]
    base_trainer: ClassVar[type[nnUNetTrainer]]
    manifest: Manifest
    trust_checkpoint = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._writer = Writer()
        self._last_saved = time()
        self._epoch_losses: list[float] = []  # of the steps done in this epoch, those before an interruption included
        self._epoch_started = 0.0
        self._seconds_before = 0.0  # spent in this epoch before an interruption
        self._is_resumed = self._is_announced = False

    def describe_run(self) -> TrainingRun:
        """This run, as loggers are told of it."""
        return TrainingRun(
            trainer=self.resolved.name,
            dataset=self.plans_manager.dataset_name,
            configuration=self.configuration_name,
            plans=self.plans_manager.plans_name,
            fold=str(self.fold),
            output_folder=Path(self.output_folder),
            num_epochs=self.num_epochs,
            device=str(self.device),
            is_resumed=self._is_resumed,
            config=self.resolved.as_dict(),
            labels=tuple(foreground_names(self.dataset_json["labels"])),
        )

    def announce_start(self, *, is_resumed: bool) -> None:
        """Tell loggers, once. They may refuse with a NnplugError, so call it before much is spent."""
        if self.local_rank == 0 and not self._is_announced:
            self._is_resumed, self._is_announced = is_resumed, True
            call_lifecycle("train_start", run=self.describe_run())

    def bare_network(self) -> nn.Module:
        """The network without DDP's and torch.compile's wrappers."""
        return unwrapped(self.network)

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        path = Path(filename)
        self._write(path, self._checkpoint())
        if path.name == LATEST:
            self._last_saved = time()
        if path.name == FINAL:
            self._writer.flush()
            self._announce_saved()

    def _write(self, path: Path, checkpoint: dict[str, Any]) -> None:
        self._writer.write(checkpoint, path, path.with_name(PREVIOUS) if path.name == LATEST else None)

    def _announce_saved(self) -> None:
        """Tell loggers of the checkpoints that are complete; the writer may still be busy with the newest."""
        for path in self._writer.take_finished():
            call_lifecycle("checkpoint_saved", run=self.describe_run(), path=path)

    def _checkpoint(self, *, in_epoch: bool = False) -> dict[str, Any]:
        logging = self.logger.get_checkpoint()
        partial = None
        if in_epoch:
            # one value an epoch is nnU-Net's rule: what this epoch has logged so far is logged again when it goes on
            logging = {key: series[: self.current_epoch] for key, series in logging.items()}
            partial = {"losses": self._epoch_losses, "seconds": time() - self._epoch_started}
        architecture = self.configuration_manager.configuration["architecture"]
        base = self.resolved.config.base_trainer
        return {
            "network_weights": self.bare_network().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": {key: list(series) for key, series in logging.items()},
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + (0 if in_epoch else 1),
            "init_args": self.my_init_kwargs,
            "trainer_name": stock_trainer_name(type(self))[0],
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "nnplug": {
                "name": self.resolved.name,
                "config": self.resolved.as_dict(),
                "distributions": dict(self.resolved.distributions),
                "versions": {
                    "nnplug": version("nnplug"),
                    "nnunetv2": version("nnunetv2"),
                    "torch": str(torch.__version__),
                    "python": platform.python_version(),
                },
                "seed": self.resolved.config.seed,
                "plans_hash": self.manifest.hash,
                "labels": self.dataset_json["labels"],
                "step": len(self._epoch_losses) if in_epoch else 0,
                "partial_epoch": partial,
                "network_builder": architecture["network_class_name"],
                "base_trainer": describe(base.target if base else nnUNetTrainer),
            },
        }

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            path = Path(checkpoint)
            checkpoint = load(path, map_location=self.device, trust_checkpoint=self.trust_checkpoint)
        if overrides(self.base_trainer, "load_checkpoint"):
            super().load_checkpoint(filename_or_checkpoint)
        else:
            self._load_state(checkpoint)
        partial = checkpoint.get("nnplug", {}).get("partial_epoch") or {}
        self._epoch_losses = list(partial.get("losses", []))
        self._seconds_before = partial.get("seconds", 0.0)
        # the network was made with the seed itself, and going on from there would repeat the beginning
        seeds = worker_seeds(self.resolved.config.seed, 1, self.local_rank, self.current_epoch, len(self._epoch_losses))
        if seeds is not None:
            seed_generators(seeds[0])

    def _load_state(self, checkpoint: dict[str, Any]) -> None:
        if not self.was_initialized:
            self.initialize()
        self.bare_network().load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.current_epoch = checkpoint["current_epoch"]
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint.get("inference_allowed_mirroring_axes")

    def resume(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint that was read already; base trainers with a reading of their own get its path."""
        self.load_checkpoint(str(path) if overrides(self.base_trainer, "load_checkpoint") else checkpoint)
