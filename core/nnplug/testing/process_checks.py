"""Checks that take processes of their own or a compiler, and many seconds."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import distributed as dist
from torch import nn

from nnplug.composition.portability import stock_prediction_obstacle
from nnplug.composition.resolved import ResolvedConfig
from nnplug.testing.made_up_data import made_up_dataset
from nnplug.testing.outcomes import CheckFailed, CheckSkipped
from nnplug.testing.plan_cases import CASES
from nnplug.testing.subject import Subject, as_list, probe
from nnplug.testing.training_checks import train_step
from nnplug.training.checkpointing import FINAL
from nnplug.training.trainer import build_trainer_class

NUM_STEPS = 2
#: Of the processes that train together, from their start.
SECONDS_FOR_PROCESSES = 300
_NO_REPORT = f"no word from one of them: it died, or waited for {SECONDS_FOR_PROCESSES} s"
COMPILE_TOLERANCE = 1e-3

# Stock nnU-Net alone, as a user of the model has it.
_PREDICT = """
import sys, numpy, torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, checkpoint, image, output = sys.argv[1:]
predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, use_folds=(0,), checkpoint_name=checkpoint)
numpy.save(output, predictor.predict_single_npy_array(*SimpleITKIO().read_images(image.split(chr(10)))))
"""


def torch_compile(subject: Subject) -> None:
    """The network compiled by torch.compile gives what it gives without, and gradients."""
    network = copy.deepcopy(subject.prepared_network(training=False, deep_supervision=None))
    images = subject.images()
    with torch.no_grad():
        expected = as_list(network(images))
    compiler = _cpp_compiler()
    torch._dynamo.reset()
    try:
        compiled: Any = torch.compile(network, backend="inductor" if compiler else "aot_eager")
        with torch._inductor.config.patch(compile_threads=1):
            found = as_list(compiled(images))
            probe(found).backward()
    finally:
        torch._dynamo.reset()
    errors = [(ours - theirs).abs().max().item() for ours, theirs in zip(found, expected, strict=True)]
    if max(errors) > COMPILE_TOLERANCE * max(1.0, expected[0].abs().max().item()):
        raise CheckFailed(
            "the same outputs with torch.compile",
            f"a difference of {max(errors):.3g}",
            subject.where("network_builder"),
        )
    missing = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        where = subject.where("network_builder")
        raise CheckFailed("a gradient for every parameter with torch.compile", f"none for {missing[0]}", where)
    if not compiler:
        raise CheckSkipped("no C++ compiler on this machine: the network was traced for torch.compile, not compiled")


def two_processes(subject: Subject) -> None:
    """Two processes train together (DDP with gloo) and have the same weights after every step."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in subject.network.modules()):
        raise CheckSkipped("batch norm can be shared by several processes on GPUs only")
    dataset_json, plans = made_up_dataset(subject.case).dataset_json, subject.plans()
    if (subject.resolved.config.batch_size or 2) % 2:
        raise CheckSkipped("its batch can not be shared evenly by two processes")
    # nnU-Net's batch Dice needs shares of one size
    plans["configurations"][subject.case.configuration]["batch_size"] = 2
    folder = Path(tempfile.mkdtemp(dir=subject.results))
    context = multiprocessing.get_context("spawn")
    job = (subject.resolved, plans, subject.case.configuration, dataset_json, folder)
    processes = [context.Process(target=_process, args=(rank, *job), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        _wait_for(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
    found = [_report(folder, rank) for rank in range(2)]
    failed = [report["error"] for report in found if "error" in report]
    if failed:
        # one that waits for the other says no more than that it is gone
        own = [error for error in failed if "gloo" not in error and error != _NO_REPORT]
        raise CheckFailed("two processes that train together", (own or failed)[0], subject.where("network_builder"))
    if found[0]["weights"] != found[1]["weights"]:
        raise CheckFailed("the same weights in both processes", "others", subject.where("network_builder"))


def stock_prediction(subject: Subject) -> str | None:
    """Stock nnU-Net loads the trained checkpoint in a fresh process and predicts what the trained network predicts."""
    trainer = subject.trainer
    train_step(subject)
    trainer._claim()
    trainer.save_checkpoint(str(Path(trainer.output_folder, FINAL)))
    folder = made_up_dataset(subject.case).raw_folder / "imagesTr"
    images = sorted(str(path) for path in folder.glob(f"{CASES[-1]}_*"))
    output = subject.results / "prediction.npy"
    model = str(trainer.output_folder_base)
    done = subprocess.run(
        [sys.executable, "-c", _PREDICT, model, FINAL, "\n".join(images), str(output)],
        env=_environment(),
        cwd=subject.results,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CheckFailed("a prediction by stock nnU-Net", lines[-1], subject.where("network_builder"))
    found, expected = np.load(output), _own_prediction(subject, images)
    if found.shape != expected.shape or (found != expected).any():
        share = (found != expected).mean() if found.shape == expected.shape else 1
        where = subject.where("network_builder")
        raise CheckFailed("the prediction of the trained network", f"{share:.1%} of the voxels differ", where)
    return stock_prediction_obstacle(subject.resolved)


OF_NETWORK = {"torch_compile": torch_compile}
OF_NETWORK_OR_LOSS = {"ddp": two_processes}
OF_PREDICTION = {"stock_prediction": stock_prediction}


def _wait_for(processes: Sequence[Any]) -> None:
    """Until all are done or one has failed, which leaves the others waiting."""
    deadline = time.monotonic() + SECONDS_FOR_PROCESSES
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            time.sleep(1)  # for what the other has to say
            return
        time.sleep(0.1)


def _report(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f"{rank}.json"
    return json.loads(path.read_text()) if path.exists() else {"error": _NO_REPORT}


def _process(
    rank: int,
    resolved: ResolvedConfig,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    folder: Path,
) -> None:
    """One of two processes: make steps, and report a number that tells its weights from others."""
    sys.stdout = sys.stderr = io.StringIO()
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    timeout = timedelta(seconds=SECONDS_FOR_PROCESSES)
    report: dict[str, Any] = {}
    try:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
        report["weights"] = _train_together(resolved, plans, configuration, dataset_json)
        dist.destroy_process_group()
    except Exception as error:
        report["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    (folder / f"{rank}.json").write_text(json.dumps(report))
    sys.exit("error" in report)


def _train_together(
    resolved: ResolvedConfig, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> float:
    trainer = build_trainer_class(resolved)(plans, configuration, 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    for _ in range(NUM_STEPS):
        trainer.train_step(next(trainer.dataloader_train))
    return sum(parameter.double().abs().sum().item() for parameter in trainer.network.parameters())


def _own_prediction(subject: Subject, images: list[str]) -> np.ndarray:
    trainer = subject.trainer
    network = subject.prepared_network(training=False, deep_supervision=False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [copy.deepcopy(network.state_dict())],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor.predict_single_npy_array(*SimpleITKIO().read_images(images))


def _environment() -> dict[str, str]:
    """Without nnU-Net's variables, and with the modules that this process can import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _cpp_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False
