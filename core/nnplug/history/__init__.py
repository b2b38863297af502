"""What a run was like, epoch by epoch: from a checkpoint or, where there is none, from nnU-Net's log."""

from __future__ import annotations

from nnplug.history.series import load_history, read_history, write_csv

__all__ = ["load_history", "read_history", "write_csv"]
