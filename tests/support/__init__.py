"""What tests share: prepared data sets and commands in processes of their own."""

from support.commands import run_nnplug, run_stock
from support.datasets import DatasetForTests

__all__ = ["DatasetForTests", "run_nnplug", "run_stock"]
