"""Training of one fold: in this process, or in one process a device (DDP)."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import distributed as dist

from nnplug.composition.portability import needed_packages, stock_prediction_obstacle
from nnplug.composition.resolved import ResolvedConfig
from nnplug.errors import NnplugError
from nnplug.models.checkpoint import find_resumable, load
from nnplug.models.results import fold_result
from nnplug.processes import interrupts
from nnplug.processes.interrupts import TrainingInterrupted
from nnplug.processes.spawned_workers import keep_signals_from_workers
from nnplug.training import fold_folder
from nnplug.training.checkpointing import BEST, FINAL, LATEST, PREVIOUS
from nnplug.training.lifecycle import VALIDATION_START, call_lifecycle, listening, tell_listeners
from nnplug.training.trainer import build_trainer_class


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Everything one fold needs. It can be sent to the processes of DDP, unless the trainer holds what can not.

    Attributes:
        trainer: decided once for all folds and processes, whatever happens to its recipe's file meanwhile.
        plans: the plans as read from JSON.
        fold: its number, or ``"all"`` for one model on every case.
        model_folder: ``DatasetXXX_Name/trainer__plans__configuration``.
        mode: ``"new"``, ``"continue"``, ``"restart"`` or ``"validate"``.
        keep_finished: leave a fold as it is that is trained and validated with these settings and data already.
        num_processes: processes of DDP; 1 trains in this process.
    """

    trainer: ResolvedConfig
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    fold: int | str
    model_folder: Path
    device: str
    mode: str = "new"
    keep_finished: bool = False
    num_processes: int = 1
    save_probabilities: bool = False
    validate_best: bool = False
    disable_checkpointing: bool = False
    pretrained_weights: Path | None = None
    previous_stage_folder: Path | None = None
    trust_checkpoint: bool = False

    @property
    def fold_folder(self) -> Path:
        return self.model_folder / f"fold_{self.fold}"


def train_fold(job: FoldJob) -> dict[str, Any]:
    """Train and validate one fold.

    Returns:
        Its result, see :func:`nnplug.models.results.fold_result`; it is also written beside the model.

    Raises:
        NnplugError: a user's mistake.
        TrainingInterrupted: a signal stopped it; it can be continued.
    """
    _check_existing(job)  # a refusal leaves no folder behind
    with fold_folder.fold_lock(job.fold_folder), fold_folder.nothing_left_of_a_refusal(job.fold_folder):
        _check_existing(job)  # another process may have begun and ended a training in the meantime
        if job.num_processes == 1:
            _run(job)
        else:
            _run_processes(job)
        result = fold_folder.read_result(job.fold_folder)
    assert result is not None, "written at the end of _run"
    return result


def _checkpoints(fold_folder: Path) -> list[str]:
    return [name for name in (FINAL, LATEST, PREVIOUS, BEST) if (fold_folder / name).exists()]


def _check_existing(job: FoldJob) -> None:
    found = _checkpoints(job.fold_folder)
    if job.mode == "new" and found and not (job.keep_finished and FINAL in found):
        raise NnplugError(
            f"{job.fold_folder} holds a training already ({found[0]}). Continue it with --c, or start anew with "
            "--restart (which sets the old one aside)."
        )
    if job.mode == "validate":
        wanted = BEST if job.validate_best else FINAL
        if wanted not in found:
            raise NnplugError(f"{job.fold_folder} has no {wanted}: --val needs a finished training.")


def _run(job: FoldJob) -> None:
    """The phases of a training, in the process that does it."""
    started = time.time()
    device = torch.device(job.device)
    torch.set_num_threads(max(1, joblib.cpu_count() // job.num_processes) if device.type == "cpu" else 1)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
    trainer = _make_trainer(job, device)
    if trainer.local_rank == 0:
        record = trainer.fold_record()
        if job.mode != "restart":
            fold_folder.check_fold(job.fold_folder, record)
    if job.keep_finished:
        if _is_finished(trainer, job):
            return
        _check_existing(replace(job, keep_finished=False))
    is_told = job.mode != "validate" and trainer.local_rank == 0
    with _set_aside(trainer, job):
        if job.mode != "validate":
            trainer.announce_start(is_resumed=job.mode == "continue" and bool(_checkpoints(job.fold_folder)))
        finished = _load(trainer, job)
        if not finished:
            trainer.run_training()
    if job.validate_best and job.mode != "validate":
        if trainer.is_ddp:
            dist.barrier()  # the first process may still be writing it
        trainer.load_checkpoint(str(job.fold_folder / BEST))
    if trainer.local_rank == 0:
        tell_listeners(VALIDATION_START, {"run": trainer.describe_run()})
    try:
        with keep_signals_from_workers(), _stoppable(job):
            trainer.perform_actual_validation(job.save_probabilities)
    except TrainingInterrupted:
        if is_told:
            result = {"status": "interrupted", "epoch": trainer.current_epoch, "step": 0}
            call_lifecycle("train_end", run=trainer.describe_run(), result=result)
        raise
    if trainer.local_rank == 0:
        result = _keep_result(trainer, job, time.time() - started)
        if is_told:
            call_lifecycle("train_end", run=trainer.describe_run(), result=result)


def _is_finished(trainer: Any, job: FoldJob) -> bool:
    """Whether the fold is trained and validated, with every file that its validation would write now."""
    wanted = BEST if job.validate_best else FINAL
    result = fold_folder.read_result(job.fold_folder) or {}
    if result.get("checkpoint") != wanted or not {FINAL, wanted} <= set(_checkpoints(job.fold_folder)):
        return False
    _, cases = trainer.do_split()
    files = [job.fold_folder / "validation" / f"{case}.npz" for case in cases if job.save_probabilities]
    for stage in trainer.configuration_manager.next_stage_names or ():
        identifier = trainer.plans_manager.get_configuration(stage).data_identifier
        if Path(trainer.preprocessed_dataset_folder_base, identifier).is_dir():
            predicted = {path.stem for path in (job.model_folder / "predicted_next_stage" / stage).glob("*")}
            if not set(cases) <= predicted:
                return False
    return all(file.is_file() for file in files)


def _keep_result(trainer: Any, job: FoldJob, seconds: float) -> dict[str, Any]:
    losses = trainer.logger.get_value("val_losses", step=None)
    validated = BEST if job.validate_best else FINAL
    result = fold_result(
        job.fold_folder,
        dataset=trainer.plans_manager.dataset_name,
        trainer=trainer.resolved.name,
        checkpoint=validated if (job.fold_folder / validated).exists() else None,
        validation_loss=losses[-1] if losses else None,
        obstacle=stock_prediction_obstacle(trainer.resolved, trainer.configuration_manager.preprocessor_name),
        needs=needed_packages(trainer.resolved),
        seconds=seconds,
        trust_code=trainer.resolved.trust_code,
    )
    fold_folder.write_result(job.fold_folder, result)
    return result


def _make_trainer(job: FoldJob, device: torch.device) -> Any:
    trainer_class = build_trainer_class(job.trainer)
    plans = {**job.plans, "continue_training": job.mode == "continue"}
    trainer = trainer_class(plans, job.configuration, job.fold, job.dataset_json, device)
    trainer.disable_checkpointing = trainer.disable_checkpointing or job.disable_checkpointing
    trainer.trust_checkpoint = job.trust_checkpoint
    trainer.pretrained_weights = job.pretrained_weights
    if job.previous_stage_folder is not None:
        trainer.folder_with_segs_from_previous_stage = str(job.previous_stage_folder)
    return trainer


@contextmanager
def _set_aside(trainer: Any, job: FoldJob) -> Iterator[None]:
    """``--restart`` moves an earlier training away, and back if the new one ends before it begins, for any reason."""
    if job.mode != "restart":
        yield
        return
    trainer.initialize()
    try:
        if trainer.local_rank == 0 and _checkpoints(job.fold_folder):
            trainer.earlier_training = fold_folder.set_aside(job.fold_folder)
            job.fold_folder.mkdir()
        if trainer.is_ddp:
            dist.barrier()
        yield
    except BaseException:
        if trainer.earlier_training is not None and not fold_folder.has_begun(job.fold_folder):
            fold_folder.put_back(trainer.earlier_training, job.fold_folder)
        raise


def _load(trainer: Any, job: FoldJob) -> bool:
    """Load what the job continues from; True where its training is finished already."""
    if job.mode == "validate":
        trainer.load_checkpoint(str(job.fold_folder / (BEST if job.validate_best else FINAL)))
        return True
    if job.mode == "continue" and _checkpoints(job.fold_folder):
        path, checkpoint, messages = find_resumable(job.fold_folder, trust_checkpoint=job.trust_checkpoint)
        for message in messages:
            print(f"nnplug: {message}")
        trainer.resume(path, checkpoint)
        is_finished = path.name == FINAL and trainer.current_epoch >= trainer.num_epochs
        where = "the final validation" if is_finished else trainer.describe_position()
        trainer.print_to_log_file(f"Continuing from {path.name} at {where}.")
        return is_finished
    if job.mode == "continue":
        _begin_again(job)
    if job.pretrained_weights is not None:
        trainer.initialize()
        load_pretrained(trainer.bare_network(), job.pretrained_weights, trust_checkpoint=job.trust_checkpoint)
        trainer.print_to_log_file(f"Starting from the weights of {job.pretrained_weights}.")
    return False


def _begin_again(job: FoldJob) -> None:
    if job.pretrained_weights is None and fold_folder.begins_with_weights(job.fold_folder):
        raise NnplugError(
            f"{job.fold_folder} has no checkpoint yet, and its training began with pretrained weights (its log names "
            "the file). Give -pretrained_weights again, or leave out --c to begin without them."
        )
    print(f"nnplug: {job.fold_folder} has no checkpoint to continue from; starting a new training.")


def load_pretrained(network: torch.nn.Module, path: Path, *, trust_checkpoint: bool = False) -> None:
    """Copy the weights of a checkpoint into a network of the same architecture, its segmentation layers left out.

    The layers that nnU-Net leaves out (``.seg_layers.``) may have other classes.

    Raises:
        NnplugError: a layer is missing in the file or has another shape.
    """
    weights = load(path, trust_checkpoint=trust_checkpoint)["network_weights"]
    own = network.state_dict()
    wanted = [key for key in own if ".seg_layers." not in key]
    missing = [key for key in wanted if key not in weights]
    if missing:
        raise NnplugError(
            f"Pretrained weights {path} lack {missing[0]} ({len(missing)} of {len(wanted)} layers missing)."
        )
    for key in wanted:
        if own[key].shape != weights[key].shape:
            raise NnplugError(
                f"Pretrained weights {path}: {key} has shape {tuple(weights[key].shape)}, the network needs "
                f"{tuple(own[key].shape)}. Train with the plans that the weights were trained with."
            )
    network.load_state_dict({**own, **{key: weights[key] for key in wanted}})


@contextmanager
def _stoppable(job: FoldJob) -> Iterator[None]:
    """A signal during the final validation ends it at once: the training is saved, ``--c`` validates again."""

    def stop(number: int, _frame: Any) -> None:
        interrupts.ignore_signals()
        name = signal.Signals(number).name
        raise TrainingInterrupted(f"Interrupted by {name} while validating {job.fold_folder}. Validate again with --c.")

    main = interrupts.in_main_thread()
    before = {name: signal.signal(getattr(signal, name), stop) for name in interrupts.SIGNALS} if main else {}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


# --- several processes -----------------------------------------------------------------------------------------------


def _run_processes(job: FoldJob) -> None:
    context = torch.multiprocessing.get_context("spawn")
    outcomes, events = context.SimpleQueue(), context.SimpleQueue()
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(_free_port())
    processes = torch.multiprocessing.spawn(
        _process, args=(job, outcomes, events), nprocs=job.num_processes, join=False
    )
    try:
        with interrupts.listen() as stop:
            forwarded = False
            while not processes.join(timeout=0.5):
                _pass_on(events)
                if stop.name is not None and not forwarded:
                    forwarded = True
                    for pid in processes.pids():
                        with suppress(ProcessLookupError):  # the signal may have come to all of them at once
                            os.kill(pid, signal.SIGTERM)
    except Exception:
        if outcomes.empty():
            raise
    finally:
        _pass_on(events)
    if not outcomes.empty():
        kind, message = outcomes.get()
        raise NnplugError(message) if kind == "error" else TrainingInterrupted(message)


def _pass_on(events: Any) -> None:
    while not events.empty():
        tell_listeners(*events.get())


def _process(rank: int, job: FoldJob, outcomes: Any, events: Any) -> None:
    backend = "nccl" if job.device.startswith("cuda") else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    if rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for the life of the process)
    dist.init_process_group(backend, rank=rank, world_size=job.num_processes)
    try:
        with listening(lambda *told: events.put(told)):
            _run(job)
    except TrainingInterrupted as interrupted:
        # every process stops at the same step; returning lets all of them finish in peace
        outcomes.put(("interrupted", str(interrupted)))
    except NnplugError as error:
        outcomes.put(("error", str(error)))
        time.sleep(0.2)
        raise
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
