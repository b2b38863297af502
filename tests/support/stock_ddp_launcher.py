"""``python stock_ddp_launcher.py ARGS``: nnU-Net's own ``nnUNetv2_train ARGS -num_gpus N`` on a machine without GPUs.

The processes, the search for the trainer and the training are nnU-Net's. Only what names the hardware is replaced: gloo
stands for nccl, the CPU for the GPUs. The file is run as a script, so that spawned processes import it again.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from nnunetv2.run import run_training
from stock_launcher import declare_missing_operators


def _set_up(rank: int, world_size: int) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=world_size)


declare_missing_operators()
run_training.setup_ddp = _set_up
run_training.get_trainer_from_args = partial(run_training.get_trainer_from_args, device=torch.device("cpu"))
torch.cuda.set_device = lambda _: None

if __name__ == "__main__":
    run_training.run_training_entry()
