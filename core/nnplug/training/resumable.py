"""What a run writes, shows and remembers: checkpoints, logs, progress, interruption in the middle of an epoch.

nnU-Net's ``run_training`` loop is used as it is. A resumed epoch runs its remaining steps: the loop asks for
``num_iterations_per_epoch`` after :meth:`ResumableTrainer.on_train_epoch_start`, which lowers it for that epoch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import empty_cache
from torch import distributed as dist

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import keep_file
from nnplug.hookspecs import EpochMetrics
from nnplug.models import model_folder
from nnplug.planning.classes import OWNERS
from nnplug.processes import interrupts
from nnplug.training import fold_folder
from nnplug.training.checkpointing import BEST, FINAL, LATEST, PREVIOUS, CheckpointingTrainer, overrides
from nnplug.training.lifecycle import call_lifecycle
from nnplug.training.loaders import WorkerDiedError
from nnplug.training.progress import TrainingProgress
from nnplug.training.progress_plot import ThrottledPlot

#: ``checkpoint_latest.pth`` is written at the end of an epoch when this many seconds have passed since the last.
SECONDS_BETWEEN_CHECKPOINTS = 300


def is_verbose() -> bool:
    """``nnUNet_verbose=1``: every line of nnU-Net's log is printed, not only the progress."""
    return os.environ.get("nnUNet_verbose", "0").lower() in ("1", "true", "t")


class ResumableTrainer(CheckpointingTrainer):
    """The bookkeeping half of a trainer made by :func:`nnplug.training.trainer.build_trainer_class`."""

    pretrained_weights: Path | None = None
    #: where a training is that this one takes the place of
    earlier_training: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._is_quiet = False
        super().__init__(*args, **kwargs)
        self._stop = interrupts.StopRequest()
        self._progress: TrainingProgress | None = None
        self._plot = ThrottledPlot(Path(self.output_folder))
        self._steps_per_epoch = self._steps_before = 0
        self._waited_before = 0.0

    # --- model folder

    def claim_model_folder(self, plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> None:
        """Refuse early, before anything is written, a folder that belongs to another config, plans or data set."""
        plans = {key: value for key, value in plans.items() if key != "continue_training"}
        self.manifest = model_folder.Manifest(
            name=self.resolved.name,
            config=self.resolved.as_dict(),
            distributions={
                **self.resolved.distributions,
                **{owner["distribution"]: owner["version"] for owner in plans.get(OWNERS, {}).values()},
            },
            plans=plans,
            dataset_json=dict(dataset_json),
            configuration=configuration,
        )
        if not nnUNet_results.is_set():
            raise NnplugError("nnUNet_results is not set: it names the folder that trained models are written to.")
        folder_name = f"{self.resolved.name}__{plans['plans_name']}__{configuration}"
        folder = Path(str(nnUNet_results), plans["dataset_name"], folder_name)
        for warning in model_folder.check_claim(folder, self.manifest):
            print(f"nnplug: {warning}")

    def _claim(self) -> None:
        if self.local_rank == 0:
            model_folder.claim(Path(self.output_folder_base), self.manifest)
            fold_folder.claim_fold(Path(self.output_folder), self.fold_record())
            if self.earlier_training is not None:
                print(f"nnplug: the earlier training was set aside in {self.earlier_training}")
            fingerprint = Path(self.preprocessed_dataset_folder_base, "dataset_fingerprint.json")
            keep_file(Path(self.output_folder_base, fingerprint.name), fingerprint.read_bytes())
        if self.is_ddp:
            dist.barrier()

    def fold_record(self) -> fold_folder.FoldRecord:
        """What this run trains and validates on.

        Raises:
            NnplugError: a cascade's first stage has not predicted all of it.
        """
        train, val = self.do_split()
        previous = self.folder_with_segs_from_previous_stage
        if previous is not None:
            fold_folder.check_previous_stage(Path(previous), {*train, *val})
        return fold_folder.FoldRecord.of(
            train,
            val,
            fingerprint=Path(self.preprocessed_dataset_folder_base, "dataset_fingerprint.json"),
            pretrained_weights=self.pretrained_weights,
            previous_stage=None if previous is None else Path(previous),
            results_folder=Path(self.output_folder_base).parent,
        )

    # --- the run

    def run_training(self) -> None:
        with interrupts.listen() as self._stop:
            try:
                super().run_training()
                if self._stop_requested():  # it came after the last step
                    self._interrupt()
            except WorkerDiedError:
                # a signal to the whole job ends the data workers too, and may do so before this process has seen it
                if self._stop_requested():
                    self._interrupt()
                raise
            finally:
                self._close()

    def _close(self) -> None:
        self._is_quiet = False
        if self._progress is not None:
            self._progress.close()
        self._writer.flush()

    def on_train_start(self) -> None:
        self.announce_start(is_resumed=self.current_epoch > 0 or bool(self._epoch_losses))
        if overrides(self.base_trainer, "on_train_start"):
            super().on_train_start()
            self._claim()
        else:
            if not self.was_initialized:
                self.initialize()
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
            self._claim()
            self.set_deep_supervision_enabled(self.enable_deep_supervision)
            self._is_quiet = not is_verbose()
            self.print_plans()
            empty_cache(self.device)
            if self.local_rank == 0:
                self.dataset_class.unpack_dataset(
                    self.preprocessed_dataset_folder,
                    overwrite_existing=False,
                    num_processes=max(1, get_allowed_n_proc_DA() // 2),
                    verify=True,
                )
            if self.is_ddp:
                dist.barrier()
            self._save_debug_information()
        if self.local_rank == 0:
            self._progress = TrainingProgress(self.num_epochs, self.num_iterations_per_epoch)
        self._is_quiet = not is_verbose()

    def on_train_end(self) -> None:
        self._is_quiet = not is_verbose()
        super().on_train_end()
        self._is_quiet = False
        if self.local_rank == 0:
            Path(self.output_folder, PREVIOUS).unlink(missing_ok=True)
            self._finish_plot()

    def plot_network_architecture(self) -> None:
        """Parameters, multiply-adds and memory into the log, and ``network_architecture.pdf``.

        Called after the first epoch, so that the first step does not wait for it.
        """
        from nnplug.networks.diagram import save_diagram
        from nnplug.networks.report import summarise, summary_text

        if self.local_rank == 0:
            shape = (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size)
            network = self.bare_network()
            self.print_to_log_file(summary_text(summarise(network, shape)))
            save_diagram(
                network, shape, Path(self.output_folder, "network_architecture.pdf"), log=self.print_to_log_file
            )

    # --- epochs

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        # a resumed epoch began earlier than now by what it had already taken
        self.logger.local_logger.my_fantastic_logging["epoch_start_timestamps"][-1] -= self._seconds_before
        self._epoch_started = time() - self._seconds_before
        self._seconds_before = 0.0
        self._waited_before = getattr(self.dataloader_train, "wait_seconds", 0.0)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._steps_per_epoch = self.num_iterations_per_epoch
        self._steps_before = len(self._epoch_losses)
        self.num_iterations_per_epoch -= self._steps_before
        if self._progress is not None:
            self._progress.start_epoch(self.current_epoch, first_step=self._steps_before)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        output = super().train_step(batch)
        loss = float(output["loss"])
        self._epoch_losses.append(loss)
        if self._progress is not None:
            self._progress.step(loss)
        if self._stop_requested():
            self._interrupt()
        return output

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        self.num_iterations_per_epoch = self._steps_per_epoch
        before = [{"loss": np.asarray(loss)} for loss in self._epoch_losses[: self._steps_before]]
        super().on_train_epoch_end(before + list(train_outputs))
        if self._progress is not None:
            self._progress.start_validation(self.num_val_iterations_per_epoch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        output = super().validation_step(batch)
        if self._progress is not None:
            self._progress.validation_step()
        if self._stop_requested():
            self._interrupt()
        return output

    def on_epoch_end(self) -> None:
        self._epoch_losses = []
        if overrides(self.base_trainer, "on_epoch_end"):
            super().on_epoch_end()
        else:
            self._end_epoch()
            self.current_epoch += 1
        if self.local_rank == 0:
            self._report_epoch()

    def _end_epoch(self) -> None:
        """As nnU-Net, without drawing progress.png and writing to the disk while the training waits."""
        log, epoch = self.logger, self.current_epoch
        log.log("epoch_end_timestamps", time(), epoch)
        for label, key in (("train_loss", "train_losses"), ("val_loss", "val_losses")):
            self.print_to_log_file(label, np.round(log.get_value(key, step=-1), decimals=4))
        dice = log.get_value("dice_per_class_or_region", step=-1)
        self.print_to_log_file("Pseudo dice", [round(float(d), 4) for d in dice])
        seconds = log.get_value("epoch_end_timestamps", step=-1) - log.get_value("epoch_start_timestamps", step=-1)
        self.print_to_log_file(f"Epoch time: {np.round(seconds, decimals=2)} s")
        ema = log.get_value("ema_fg_dice", step=-1)
        # before the latest checkpoint, which would otherwise go on with the best value of the epoch before
        if self._best_ema is None or ema > self._best_ema:
            self._best_ema = ema
            self.print_to_log_file(f"Yayy! New best EMA pseudo Dice: {np.round(ema, decimals=4)}")
            self.save_checkpoint(str(Path(self.output_folder, BEST)))
        is_last = epoch == self.num_epochs - 1
        is_due = (epoch + 1) % self.save_every == 0 or time() - self._last_saved > SECONDS_BETWEEN_CHECKPOINTS
        if is_due and not is_last:
            self.save_checkpoint(str(Path(self.output_folder, LATEST)))

    def _report_epoch(self) -> None:
        values = self.logger.get_checkpoint()
        last = {key: series[-1] for key, series in values.items() if series}
        seconds = last["epoch_end_timestamps"] - last["epoch_start_timestamps"]
        metrics = EpochMetrics(
            epoch=self.current_epoch - 1,
            learning_rate=float(last["lrs"]),
            train_loss=float(last["train_losses"]),
            val_loss=float(last["val_losses"]),
            mean_dice=float(last["mean_fg_dice"]),
            ema_dice=float(last["ema_fg_dice"]),
            dice_per_class=tuple(float(d) for d in last["dice_per_class_or_region"]),
            epoch_seconds=float(seconds),
            data_seconds=getattr(self.dataloader_train, "wait_seconds", 0.0) - self._waited_before,
        )
        if self._progress is not None:
            self._progress.end_epoch(
                metrics.train_loss,
                metrics.val_loss,
                metrics.mean_dice,
                metrics.ema_dice,
                metrics.epoch_seconds,
                metrics.data_seconds,
            )
        self._plot.update(values)
        self._announce_saved()
        call_lifecycle("epoch_end", run=self.describe_run(), metrics=metrics)
        if metrics.epoch == 0:
            self.plot_network_architecture()

    # --- interruption

    def _stop_requested(self) -> bool:
        asked = self._stop.name is not None
        if not self.is_ddp:
            return asked
        # every process must stop at the same step, though the signal may have reached only one of them
        flag = torch.tensor(int(asked), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def describe_position(self) -> str:
        """Where in the training this is; epochs and steps are counted from 0, as in nnU-Net's log."""
        steps = self._steps_per_epoch or self.num_iterations_per_epoch
        return f"epoch {self.current_epoch}, step {len(self._epoch_losses)} of {steps}"

    def _interrupt(self) -> None:
        step, epoch = len(self._epoch_losses), self.current_epoch
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, self._epoch_losses)
            self._epoch_losses = [float(np.mean(losses)) for losses in zip(*gathered, strict=True)]
        name = self._stop.name or "another process"
        is_done = epoch >= self.num_epochs
        where = "the end of the training" if is_done else self.describe_position()
        if self.local_rank == 0:
            if not is_done and not self.disable_checkpointing:
                self._write(Path(self.output_folder, LATEST), self._checkpoint(in_epoch=True))
                self._writer.flush()
                self._announce_saved()
            self._finish_plot()
            result = {"status": "interrupted", "epoch": epoch, "step": step}
            call_lifecycle("train_end", run=self.describe_run(), result=result)
        self._is_quiet = True
        self.print_to_log_file(f"Interrupted by {name} at {where}.")
        saved = "no checkpoint (disabled)" if self.disable_checkpointing else FINAL if is_done else LATEST
        raise interrupts.TrainingInterrupted(
            f"Interrupted by {name} at {where}; saved {saved} in {self.output_folder}. Continue with --c."
        )

    # --- logs

    def _finish_plot(self) -> None:
        self._plot.finish(self.logger.get_checkpoint())
        if self._plot.error is not None:
            self.print_to_log_file(f"{self._plot.path.name} could not be drawn: {self._plot.error}")

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """To nnU-Net's dated log and to ``training_log.txt``; to the console while no progress is shown there."""
        also_print_to_console = also_print_to_console and not self._is_quiet
        super().print_to_log_file(*args, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)
        if self.local_rank == 0:
            stamp = f"{datetime.now()}: " if add_timestamp else ""
            path = Path(self.output_folder, "training_log.txt")
            # a full disk is no reason to lose a training; what it needs to be written says so itself
            with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as log:
                log.write(stamp + " ".join(str(a) for a in args) + "\n")
