"""Two processes with half of a batch each have the loss and gradient of one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnplug_instance_losses import losses
from support.instances import blobs, context_for, noise, target_of

HALF = """
import sys
from dataclasses import replace
import torch
from nnplug_instance_losses import losses

torch.set_num_threads(1)
store, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
results = []
for name, context, logits, target in torch.load(f"{folder}/cases.pt", weights_only=False):
    half = slice(2 * rank, 2 * rank + 2)
    logits = logits[half].clone().requires_grad_()
    value = getattr(losses, name)(replace(context, is_ddp=True))(logits, target[half])
    value.backward()
    results.append((value.detach(), logits.grad))
torch.save(results, f"{folder}/{rank}.pt")
torch.distributed.barrier()  # gloo's threads must not outlive the other process's
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("batch_dice", [False, True])
def test_halves_of_a_batch(tmp_path: Path, batch_dice: bool) -> None:
    cases, expected = [], []
    for name in ("BlobDiceLoss", "BlobDiceCELoss", "RegionDiceLoss", "RegionDiceCELoss"):
        for kind in ("labels", "regions"):
            context, labels = context_for(kind, batch_dice=batch_dice), blobs(num_samples=4)
            labels[0] = labels[2] = labels[3] = 0  # one process has nothing but background
            labels[1][labels[1] == 1] = 0
            if name.endswith("CELoss"):
                labels[0] = blobs(num_samples=1)[0]  # the first process has a class twice, the other none
                labels[3] = blobs(num_samples=1, num_labels=1, seed=1)[0]
            target = target_of(labels, kind)
            logits = noise(context, target).requires_grad_()
            cases.append((name, context, logits.detach(), target))
            value = getattr(losses, name)(context)(logits, target)
            value.backward()
            expected.append((value.detach(), logits.grad))
    torch.save(cases, tmp_path / "cases.pt")
    command = [sys.executable, "-c", HALF, str(tmp_path / "store")]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for (value, gradient), *of_ranks in zip(expected, *halves, strict=True):
        # DDP takes the mean of the processes' gradients
        torch.testing.assert_close(torch.stack([v for v, _ in of_ranks]).mean(), value)
        torch.testing.assert_close(torch.cat([g for _, g in of_ranks]) / 2, gradient, rtol=1e-4, atol=1e-9)
