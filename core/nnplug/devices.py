"""The device to compute on: the one asked for, or the best of the machine."""

from __future__ import annotations

import torch

from nnplug.errors import NnplugError


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best one of the machine.

    Raises:
        NnplugError: unknown, or not on this machine.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [name for name, is_there in has.items() if is_there]
    if device is None:
        return torch.device(available[0])
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in has:
        raise NnplugError(f"Unknown device '{device}'. Choose cuda, cpu or mps.")
    if not has[chosen.type]:
        raise NnplugError(
            f"Device '{device}' is not available here (torch {torch.__version__}). "
            f"Choose -device {' or '.join(available)}."
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise NnplugError(f"This machine has no device '{device}': it has {torch.cuda.device_count()} CUDA devices.")
    return chosen


def choose_training_device(device: str | None, num_gpus: int = 1) -> str:
    """As `choose_device`, for ``num_gpus`` processes; nnU-Net's trainer takes no device with an index.

    Raises:
        NnplugError: a device that is not there or has an index, more processes than GPUs.
    """
    kind, _, index = (device or "").partition(":")
    if index:
        raise NnplugError(
            f"Device '{device}': choose the GPU with CUDA_VISIBLE_DEVICES={index} and give -device {kind}."
        )
    if num_gpus < 1:
        raise NnplugError(f"-num_gpus must be at least 1, got {num_gpus}.")
    chosen = choose_device(device).type
    if chosen == "mps" and num_gpus > 1:
        if device is not None:
            raise NnplugError("Several processes can not share mps. Use -num_gpus 1.")
        return "cpu"
    if chosen == "cuda" and num_gpus > torch.cuda.device_count():
        raise NnplugError(f"-num_gpus {num_gpus}: only {torch.cuda.device_count()} GPUs are visible here.")
    return chosen
