"""Sums of probabilities over components and what is around them, with a gradient that takes one pass over the volume.

Axis letters: B batch, C channels of the network, F foreground classes or regions (the last F of the C channels), N
voxels, I channels with ids, K components of the batch (and a place for id 0 of every sample), V foreground voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

_BLOCK = 2**14
_FAINT = 1e-30


@dataclass(frozen=True)
class Components:
    """The components of a batch.

    Attributes:
        shape: (B, F, N).
        voxels: (V,) places of the foreground voxels in a flat (B, F, N), one sample after the other.
        counts: (B,) how many of them each sample has.
        numbers: (V,) the component, 0..K-1, of each.
        channels: (K,) b * F + f of each component.
        sizes: (K,) voxels of each component, 0 where it has none (left) at this resolution.
        first: for each sample, the place of its id 0, and K as the last.
        cells: (B, F, N) the id of the cell, 0 for none; None where the surroundings are the whole background.
        valid: (B, 1, N), False at ignored voxels; None where nothing is ignored.
    """

    shape: tuple[int, int, int]
    voxels: torch.Tensor
    counts: torch.Tensor
    numbers: torch.Tensor
    channels: torch.Tensor
    sizes: torch.Tensor
    first: list[int]
    cells: torch.Tensor | None
    valid: torch.Tensor | None

    def sum_around(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of (B, F, N) over what is around components: the background, (B, F), or each cell, (K,)."""
        if self.cells is None:
            return values.sum(2)
        samples = []
        for ids, channels, start, end in zip(self.cells, values, self.first, self.first[1:], strict=False):
            pairs = zip(ids, channels, strict=True)
            samples.append(sum(segment_sums(value, cell, end - start) for cell, value in pairs))
        return torch.cat(samples)

    def spread_around(self, around: torch.Tensor, background: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Give every voxel of ``out`` (B, F, N) the value of what it is summed into by :meth:`sum_around`, plus that
        of the background (B, F)."""
        if self.cells is None:
            out[:] = (around + background)[:, :, None]
            return out
        for b, (start, end) in enumerate(zip(self.first, self.first[1:], strict=False)):
            for f in range(self.shape[1]):
                torch.index_select(around[start:end] + background[b, f], 0, self.cells[b, f], out=out[b, f])
        return out

    def of_components(self, around: torch.Tensor) -> torch.Tensor:
        """(K,) what :meth:`sum_around` gives for each component."""
        return around if self.cells is not None else around.flatten()[self.channels]

    def sizes_around(self) -> torch.Tensor:
        """(K,) voxels around each component."""
        num_samples, _, num_voxels = self.shape
        if self.cells is None:
            counted = self.sizes.new_full((num_samples, 1), num_voxels) if self.valid is None else self.valid.sum(2)
            return self.of_components(counted - self.sizes_of_channels())
        pairs = zip(self.cells, self.first, self.first[1:], strict=False)
        cells = [torch.bincount(ids.flatten(), minlength=end - start) for ids, start, end in pairs]
        return torch.cat(cells) - self.sizes

    def sizes_of_channels(self) -> torch.Tensor:
        """(B, F) foreground voxels of each class or region."""
        return self.sum_by_channel(self.sizes)

    def sum_by_channel(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of (K,) by class or region, (B, F)."""
        num_samples, num_classes, _ = self.shape
        sums = values.new_zeros(num_samples * num_classes)
        return sums.index_add(0, self.channels, values).view(num_samples, num_classes)

    def remove_components(self, values: torch.Tensor) -> torch.Tensor:
        """Set (B, F, N) to 0, in place, in each channel's own foreground and where voxels are ignored."""
        values.view(-1).index_fill_(0, self.voxels, 0)
        return values if self.valid is None else values.masked_fill_(~self.valid, 0)


def find_components(target: torch.Tensor, ids: torch.Tensor, context: Any, *, cells: bool) -> Components:
    """Bring a target and its ids into the form that sums are made from.

    Args:
        target: (B, 1, N) label values, or (B, F, N) regions (and the ignore channel).
        ids: (B, I, N), see ``InstanceChannels.of_sample``.
        context: the data set, a ``nnplug.LossContext``.
        cells: the ids are those of cells.
    """
    num_samples, _, num_voxels = target.shape
    num_classes = context.num_classes - (not context.has_regions)
    valid, foreground = None, (target[:, :num_classes] if context.has_regions else target) > 0
    if context.ignore_label is not None:
        valid = target[:, -1:] == 0 if context.has_regions else target != context.ignore_label
        foreground &= valid
    voxels = places = foreground.flatten().nonzero()[:, 0]
    per_channel = foreground.sum(2)
    counts = per_channel.sum(1)
    samples = torch.arange(num_samples, device=target.device)
    # a division of every place by the number of voxels would do the same in ten times the time
    if not context.has_regions and num_classes > 1:
        own_sample = samples.repeat_interleave(counts, output_size=len(places))
        own_channel = own_sample * num_classes + target.flatten().index_select(0, places).long() - 1
        voxels = places + (own_channel - own_sample) * num_voxels
    else:
        channels = torch.arange(per_channel.numel(), device=target.device)
        own_channel = channels.repeat_interleave(per_channel.flatten(), output_size=len(places))
    tops = ids.flatten(1).amax(1) + 1
    starts = tops.cumsum(0) - tops
    first = [0, *accumulate(tops.tolist())]
    own_id = ids.flatten().index_select(0, voxels if ids.shape[1] == num_classes else places)
    numbers = own_id + starts.repeat_interleave(counts, output_size=len(places))
    if num_classes == 1:
        channels = samples.repeat_interleave(tops, output_size=first[-1])
    else:
        channels = samples.new_zeros(first[-1]).index_copy_(0, numbers, own_channel)
    sizes = torch.bincount(numbers, minlength=first[-1])
    shape = (num_samples, num_classes, num_voxels)
    return Components(shape, voxels, counts, numbers, channels, sizes, first, ids if cells else None, valid)


def segment_sums(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
    """Sum ``values`` (n,) with the same number in ``segments`` (n,).

    In blocks: added one by one, two million float32 values are off by per cents.
    """
    length = max(_BLOCK, num_segments)
    num_blocks = len(values) // length
    whole = num_blocks * length
    shifts = torch.arange(num_blocks, dtype=segments.dtype, device=segments.device) * num_segments
    shifted = (segments[:whole].view(num_blocks, length) + shifts[:, None]).flatten()
    blocks = values.new_zeros(num_blocks * num_segments).index_add_(0, shifted, values[:whole])
    rest = values.new_zeros(num_segments).index_add_(0, segments[whole:], values[whole:])
    return blocks.view(num_blocks, num_segments).sum(0) + rest


class Sums(NamedTuple):
    """What the losses are made from; all but ``background`` may be of cross-entropy as well as of probability.

    Attributes:
        inside: (K,) over each component.
        background: (B, F) over what is not ignored and not of the class.
        around: (B, F) the same, or (K,) over the component's cell without the component.
        inside_ce, around_ce: the same of the one-vs-rest cross-entropy; None where it is not wanted.
    """

    inside: torch.Tensor
    background: torch.Tensor
    around: torch.Tensor
    inside_ce: torch.Tensor | None
    around_ce: torch.Tensor | None


class _Sum(torch.autograd.Function):
    """Sums of probabilities (B, C, N) and of their cross-entropy, see :class:`Sums`.

    ``log_p`` (B, C, N) are the logarithms of the probabilities. ``log_opposite`` (B, F, N) are those of 1 - probability
    where the C channels are independent (regions), None where they sum to 1. Probabilities of voxels that are sure and
    wrong are 0 in float32, their logarithms are not, so they keep their gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_p: torch.Tensor,
        log_opposite: torch.Tensor | None,
        components: Components,
        cross_entropy: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        ctx.components, ctx.cross_entropy = components, cross_entropy
        num_classes, num_components = components.shape[1], components.first[-1]
        rest = log_p[:, -num_classes:].exp().contiguous()
        values = rest.view(-1).index_select(0, components.voxels)
        ctx.save_for_backward(log_p, log_opposite, values)
        components.remove_components(rest)
        inside = segment_sums(values, components.numbers, num_components)
        background, around = rest.sum(2), components.sum_around(rest)
        if not cross_entropy:
            return inside, background, around, None, None
        log_inside = log_p.reshape(-1).index_select(0, _in_all_channels(components, log_p.shape[1]))
        inside_ce = -segment_sums(log_inside, components.numbers, num_components)
        rest.copy_(_log_of_others(log_p, log_opposite, num_classes))
        return inside, background, around, inside_ce, -components.sum_around(components.remove_components(rest))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inside, background, around, inside_ce, around_ce = grads
        components: Components = ctx.components
        log_p, log_opposite, values = ctx.saved_tensors
        num_classes = components.shape[1]
        grad = torch.empty_like(log_p, memory_format=torch.contiguous_format)
        grad[:, :-num_classes] = 0
        own, grad_opposite = grad[:, -num_classes:], None
        components.spread_around(around, background, own)
        own *= log_p[:, -num_classes:].exp()
        at_voxels = inside.index_select(0, components.numbers) * values
        if ctx.cross_entropy:
            at_voxels -= inside_ce.index_select(0, components.numbers)
        grad.view(-1).index_copy_(0, _in_all_channels(components, grad.shape[1]), at_voxels)
        if ctx.cross_entropy:
            weight = torch.empty(components.shape, dtype=grad.dtype, device=grad.device)
            components.spread_around(around_ce, torch.zeros_like(background), weight)
            components.remove_components(weight)
            if log_opposite is not None:
                grad_opposite = weight.neg_()
            else:
                _subtract_others(grad, weight, log_p)
        if components.valid is not None:
            grad.masked_fill_(~components.valid, 0)
        return grad, grad_opposite, None, None


def _log_of_others(log_p: torch.Tensor, log_opposite: torch.Tensor | None, num_classes: int) -> torch.Tensor:
    """log(1 - probability) of each foreground class, (B, F, N)."""
    if log_opposite is not None:
        return log_opposite
    if num_classes == 1:
        return log_p[:, :1]
    others = _others(log_p.exp())
    faint = _faint(others)
    others.log_()[faint] = _columns_of_others(log_p, faint).logsumexp(1)
    return others


def _subtract_others(grad: torch.Tensor, weight: torch.Tensor, log_p: torch.Tensor) -> None:
    """Subtract from ``grad`` (B, C, N) the gradient of log(1 - probability), times ``weight`` (B, F, N)."""
    if weight.shape[1] == 1:
        grad[:, :1] -= weight
        return
    p = log_p.exp()
    others = _others(p)
    faint = _faint(others)
    at_faint = weight[faint][:, None] * _columns_of_others(log_p, faint).softmax(1)
    weight.div_(others)[faint] = 0
    grad[:, 1:].addcmul_(weight, p[:, 1:])
    grad -= p.mul_(weight.sum(1, keepdim=True))
    grad[faint[0], :, faint[2]] -= at_faint  # a voxel has one class at most that is all but sure


def _others(p: torch.Tensor) -> torch.Tensor:
    """1 - probability of each class but the first, (B, F, N): the sum of the others; a difference loses digits."""
    sums = [p[:, :c].sum(1) + p[:, c + 1 :].sum(1) for c in range(1, p.shape[1])]
    return torch.stack(sums, dim=1)


def _faint(others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where that sum is, or soon would be, 0 in float32."""
    return (others < _FAINT).nonzero(as_tuple=True)


def _columns_of_others(log_p: torch.Tensor, places: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """(M, C) the classes' ``log_p`` at M places in (B, F, N), without the class of the place."""
    samples, classes, voxels = places
    return log_p[samples, :, voxels].scatter_(1, classes[:, None] + 1, -torch.inf)


def _in_all_channels(components: Components, num_channels: int) -> torch.Tensor:
    """Places of the foreground voxels in a flat (B, C, N) instead of (B, F, N)."""
    num_samples, num_classes, num_voxels = components.shape
    more = (num_channels - num_classes) * num_voxels
    if not more:
        return components.voxels
    shifts = torch.arange(1, num_samples + 1, device=components.voxels.device) * more
    return components.voxels + shifts.repeat_interleave(components.counts, output_size=len(components.voxels))


def sum_components(
    log_p: torch.Tensor, log_opposite: torch.Tensor | None, components: Components, *, cross_entropy: bool
) -> Sums:
    """Sums over the components of a batch and what is around them.

    Args:
        log_p: (B, C, N), logarithms of the probabilities.
        log_opposite: (B, F, N), those of 1 - probability, where the channels are independent; None where they sum to 1.
        components: where the components are.
        cross_entropy: the sums of the cross-entropy too.
    """
    return Sums(*_Sum.apply(log_p, log_opposite, components, cross_entropy))
