"""Run an entry point of nnunetv2: ``python stock_launcher.py nnUNetv2_train ARGS``.

nnU-Net's search for a trainer imports timm, and with it torchvision. A torchvision built for CUDA can not be imported
beside a torch for CPUs, because torch does not know two operators that torchvision expects. They are declared here, and
only where they are missing. The file is run as a script, so that processes that nnU-Net spawns import it again and have
them too.
"""

from __future__ import annotations

import importlib.metadata
import sys

import torch

DECLARED: list[torch.library.Library] = []


def declare_missing_operators() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` where torchvision can not bring them itself."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)  # the operators go away with the library


declare_missing_operators()

if __name__ == "__main__":
    name = sys.argv.pop(1)
    entry_points = importlib.metadata.entry_points(group="console_scripts", name=name)
    if not entry_points:
        raise SystemExit(f"no command {name} is installed")
    sys.argv[0] = name
    sys.exit(next(iter(entry_points)).load()())
