"""What a network costs: parameters, multiply-adds, memory. Nothing here computes or changes the network.

Axes: B batch, C channels, then the patch.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nnplug.networks.diagram import save_diagram
from nnplug.networks.replica import forked_random_state, replica_of, unwrapped

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["LayerSummary", "NetworkSummary", "save_diagram", "summarise", "summary_text"]

MAX_PARTS_IN_TEXT = 6


@dataclass(frozen=True)
class LayerSummary:
    """One module of a network, with everything inside it.

    Attributes:
        name: dotted path in the network, as in its state dict.
        kind: name of the class.
        depth: 1 for the network's direct children.
        num_parameters: parameters in the module and below. One that several modules share counts in the first of them
            (nnU-Net's decoders hold their encoder).
        multiply_adds: of all calls in one forward pass, of its modules where it is only a list of them; None where
            the pass could not be followed.
        output_shape: of the last call's first tensor, batch included; None where the module was not called.
    """

    name: str
    kind: str
    depth: int
    num_parameters: int
    multiply_adds: int | None
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class NetworkSummary:
    """The costs of a network for one batch.

    Attributes:
        kind: name of the network's class.
        input_shape: (B, C, *patch).
        num_parameters: all, tied ones once.
        num_trainable: those with ``requires_grad``.
        parameter_bytes: memory of the parameters.
        multiply_adds: of convolutions, matrix products and attention in one forward pass; None if the pass could
            not be followed.
        activation_bytes: memory of what the forward pass keeps for the backward pass; None likewise.
        layers: every module, parents before children.
        problem: why the pass could not be followed, None if it could.
    """

    kind: str
    input_shape: tuple[int, ...]
    num_parameters: int
    num_trainable: int
    parameter_bytes: int
    multiply_adds: int | None
    activation_bytes: int | None
    layers: list[LayerSummary] = field(repr=False)
    problem: str | None = None


def summarise(network: nn.Module, input_shape: tuple[int, ...], device: torch.device | str = "meta") -> NetworkSummary:
    """Count a network's parameters, and what one forward pass in its present mode computes and keeps.

    The pass runs on a replica: the network keeps its mode, buffers, hooks and gradients, the random state its course.
    On the device ``meta`` nothing is computed and no memory is taken, wherever the network itself lies.

    Args:
        network: on any device; wrappers of DDP and torch.compile are looked through.
        input_shape: (B, C, *patch).
        device: where the pass runs. Another one than ``meta`` is for networks that look at values on their way.

    Returns:
        A summary. A network that can not be followed has no multiply-adds and a ``problem`` instead.
    """
    network = unwrapped(network)
    parameters = list(network.parameters())
    counts = _parameters_by_module(network)
    recorder = _Recorder()
    problem = None
    try:
        recorder.run(replica_of(network, device), input_shape, device)
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return NetworkSummary(
        kind=type(network).__name__,
        input_shape=tuple(input_shape),
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        multiply_adds=None if problem else recorder.multiply_adds.get("", 0),
        activation_bytes=None if problem else recorder.activation_bytes,
        layers=[
            LayerSummary(
                name=name,
                kind=type(module).__name__,
                depth=name.count(".") + 1,
                num_parameters=counts[name],
                multiply_adds=None if problem else recorder.multiply_adds.get(name, 0),
                output_shape=recorder.output_shapes.get(name),
            )
            for name, module in network.named_modules()
            if name
        ],
        problem=problem,
    )


def summary_text(summary: NetworkSummary) -> str:
    """The summary in a few lines for the log."""
    batch, *rest = summary.input_shape
    frozen = summary.num_parameters - summary.num_trainable
    lines = [
        f"{summary.kind}: {count_text(summary.num_parameters)} parameters ({bytes_text(summary.parameter_bytes)})"
        + (f", {count_text(frozen)} of them not trained" if frozen else "")
    ]
    if summary.multiply_adds is None or summary.activation_bytes is None:
        return lines[0] + f"\nMultiply-adds and activations are not known ({summary.problem})"
    lines.append(
        f"Forward pass of a batch of {batch} x ({', '.join(map(str, rest))}): {count_text(summary.multiply_adds)} "
        f"multiply-adds, {bytes_text(summary.activation_bytes)} kept for the backward pass without mixed precision"
    )
    parts = [layer for layer in summary.layers if layer.depth == 1 and layer.multiply_adds]
    heaviest = sorted(parts, key=lambda layer: layer.multiply_adds or 0)[-MAX_PARTS_IN_TEXT:]
    if len(parts) > 1:
        lines += [
            f"  {part.name}: {count_text(part.num_parameters)} parameters, "
            f"{count_text(part.multiply_adds or 0)} multiply-adds"
            for part in parts
            if part in heaviest
        ]
    if len(parts) > len(heaviest):
        lines.append(f"  and {len(parts) - len(heaviest)} lighter parts")
    return "\n".join(lines)


def _parameters_by_module(network: nn.Module) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        while "." in name:
            name = name.rpartition(".")[0]
            counts[name] += parameter.numel()
    return counts


class _Recorder:
    """Follows one forward pass: multiply-adds and output shapes of every module, bytes kept for the backward pass."""

    def __init__(self) -> None:
        self.multiply_adds: dict[str, int] = {}
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self._kept: dict[int, Any] = {}

    @property
    def activation_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())

    def run(self, network: nn.Module, input_shape: tuple[int, ...], device: torch.device | str) -> None:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        for name, module in network.named_modules():
            self._watch(name, module, counter)
        with forked_random_state(device), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x_BC = torch.zeros(input_shape, device=device)
            # The counter does not know the CPU's fused attention.
            with sdpa_kernel(SDPBackend.MATH), self._keeping(network), counter:
                network(x_BC)
        # A list of modules is never called itself.
        for name, module in reversed(list(network.named_modules())):
            if name not in self.multiply_adds:
                children = (f"{name}.{child}" for child, _ in module.named_children())
                self.multiply_adds[name] = sum(self.multiply_adds.get(child, 0) for child in children)

    def _watch(self, name: str, module: nn.Module, counter: Any) -> None:
        begun: list[int] = []

        def before(*_: Any) -> None:
            begun.append(counter.get_total_flops())

        def after(_module: Any, _inputs: Any, output: Any) -> None:
            # A multiply-add is two floating-point operations.
            done = (counter.get_total_flops() - begun.pop()) // 2
            self.multiply_adds[name] = self.multiply_adds.get(name, 0) + done
            if (shape := _first_shape(output)) is not None:
                self.output_shapes[name] = shape

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    @contextlib.contextmanager
    def _keeping(self, network: nn.Module) -> Iterator[None]:
        """Count every storage once that autograd keeps, but for the parameters' own."""
        import torch
        from torch.autograd.graph import saved_tensors_hooks
        from torch.nn.functional import scaled_dot_product_attention
        from torch.overrides import TorchFunctionMode

        own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                self._kept[storage._cdata] = storage
            return tensor

        class FusedAttention(TorchFunctionMode):
            """Real devices keep inputs and output; the meta device spells attention out and keeps the scores too."""

            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                del types
                if func is not scaled_dot_product_attention:
                    return func(*args, **(kwargs or {}))
                with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
                    output = func(*args, **(kwargs or {}))
                for tensor in (*args, *(kwargs or {}).values(), output):
                    if isinstance(tensor, torch.Tensor):
                        keep(tensor)
                return output

        with saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
            yield


def _first_shape(output: Any) -> tuple[int, ...] | None:
    while isinstance(output, (list, tuple)) and output:
        output = output[0]
    return tuple(output.shape) if hasattr(output, "shape") else None


def count_text(number: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def bytes_text(number: int) -> str:
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"
