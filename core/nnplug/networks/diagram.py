"""The diagram of a network, ``network_architecture.pdf``."""

from __future__ import annotations

import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import replace_file
from nnplug.networks.replica import forked_random_state, replica_of, unwrapped

if TYPE_CHECKING:
    from torch import nn

MAX_BOXES = 48
FIRST_DEPTH = 3
SECONDS_FOR_TRACING = 1.0
SECONDS_FOR_LAYOUT = 20.0
MISSING_PACKAGES = "the packages that draw it are missing. Install them with: pip install 'nnplug[diagram]'"
MISSING_DOT = (
    "Graphviz's program dot is missing. Install it with: apt-get install graphviz (Debian, Ubuntu), "
    "brew install graphviz (macOS) or conda install graphviz"
)


def save_diagram(
    network: nn.Module, input_shape: tuple[int, ...], path: Path, *, log: Callable[[str], Any] | None = None
) -> Path | None:
    """Draw the network's modules and the tensors between them as a PDF, as deep as stays readable. Never raises.

    Call it in the main thread while nothing trains: to follow the network, torchview wraps torch's functions for a
    moment.

    Args:
        network: neither computed nor changed; wrappers of DDP and torch.compile are looked through.
        input_shape: (B, C, *patch).
        path: the PDF, replaced in one step.
        log: is given one line where there is no diagram: why, and what to install.

    Returns:
        ``path``, or None without a diagram.
    """
    try:
        return _save_diagram(network, input_shape, path)
    except Exception as error:
        # torchview wraps what the network raised in an error of its own that says nothing.
        cause = error if isinstance(error, NnplugError) else error.__cause__ or error
        reason = str(cause) if isinstance(cause, (_NoDiagram, NnplugError)) else f"{type(cause).__name__}: {cause}"
        if log is not None:
            log(f"No {path.name}: {' '.join(reason.split())}")
        return None


class _NoDiagram(Exception):
    """There is none, and why, for the log."""


def _save_diagram(network: nn.Module, input_shape: tuple[int, ...], path: Path) -> Path:
    try:
        import torchview
    except ImportError:
        raise _NoDiagram(MISSING_PACKAGES) from None
    if (dot := which("dot")) is None:
        raise _NoDiagram(MISSING_DOT)
    source = _diagram_source(torchview.draw_graph, replica_of(unwrapped(network), "meta"), input_shape)
    try:
        done = subprocess.run(
            [dot, "-Tpdf"], input=source.encode(), capture_output=True, timeout=SECONDS_FOR_LAYOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise _NoDiagram(f"dot needed more than {SECONDS_FOR_LAYOUT:.0f} s") from None
    if done.returncode != 0 or not done.stdout.startswith(b"%PDF"):
        raise _NoDiagram(f"dot failed: {done.stderr.decode(errors='replace')}")
    replace_file(path, lambda file: file.write(done.stdout))
    return path


def _diagram_source(draw_graph: Callable[..., Any], network: nn.Module, input_shape: tuple[int, ...]) -> str:
    """The diagram in the language of dot, at the greatest depth that has few enough boxes."""
    began = time.monotonic()
    source = _source_at(FIRST_DEPTH, draw_graph, network, input_shape)
    depth = FIRST_DEPTH
    while _num_boxes(source) > MAX_BOXES and depth > 1:
        depth -= 1
        source = _source_at(depth, draw_graph, network, input_shape)
    if depth < FIRST_DEPTH:
        return source
    while time.monotonic() - began < SECONDS_FOR_TRACING:
        depth += 1
        deeper = _source_at(depth, draw_graph, network, input_shape)
        if deeper == source or _num_boxes(deeper) > MAX_BOXES:
            break
        source = deeper
    return source


def _source_at(depth: int, draw_graph: Callable[..., Any], network: nn.Module, input_shape: tuple[int, ...]) -> str:
    import torch

    with forked_random_state("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = draw_graph(
            network,
            input_data=torch.empty(input_shape, device="meta"),
            device="meta",
            depth=depth,
            expand_nested=True,
            mode="train" if network.training else "eval",
        )
    return str(graph.visual_graph.source)


def _num_boxes(source: str) -> int:
    return source.count("<TABLE")
