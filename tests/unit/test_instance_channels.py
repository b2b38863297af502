"""Component and cell ids beside a segmentation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnplug_instance_losses.channels import InstanceChannels
from scipy import ndimage
from support.instances import IGNORE, KINDS, blobs, context_for, squared_distances, target_of


@pytest.mark.parametrize("connectivity", ["face", "full"])
@pytest.mark.parametrize("dims", [2, 3])
def test_components_are_numbered_in_the_order_of_the_volume(dims: int, connectivity: str) -> None:
    labels = blobs(dims, num_labels=1)[0]
    ids = InstanceChannels(context_for("labels", dims), connectivity, cells=False).of_sample(labels)
    structure = ndimage.generate_binary_structure(dims, 1 if connectivity == "face" else dims)
    expected, count = ndimage.label(labels[0].numpy(), structure)
    assert count > 1
    np.testing.assert_array_equal(ids[0], expected)


def test_touching_objects_of_two_labels_are_two_components() -> None:
    labels = torch.tensor([[[1, 1, 2, 2, 0, 1]]], dtype=torch.int16)
    ids = InstanceChannels(context_for("labels"), "full", cells=False).of_sample(labels)
    assert ids.tolist() == [[[1, 1, 2, 2, 0, 3]]]


def test_regions_overlap_and_have_ids_of_their_own() -> None:
    labels = torch.tensor([[[[1, 2, 2, 0, 0, 2, 1, 0]]]], dtype=torch.int16)
    ids = InstanceChannels(context_for("regions"), "full", cells=False).of_sample(target_of(labels, "regions")[0])
    assert ids.tolist() == [[[1, 1, 1, 0, 0, 2, 2, 0]], [[0, 3, 3, 0, 0, 4, 0, 0]]]


@pytest.mark.parametrize("kind", ["ignore", "regions+ignore"])
def test_components_end_at_ignored_voxels_and_these_are_in_no_cell(kind: str) -> None:
    row = [[0, 1, 1, IGNORE, 1, 0, IGNORE]]
    labels = torch.tensor([[row]], dtype=torch.int16)
    target = torch.cat([(labels == 1), labels == 2, labels == IGNORE], 1) if "regions" in kind else labels
    context = context_for(kind)
    components = InstanceChannels(context, "full", cells=False).of_sample(target[0])
    assert components[0].tolist() == [[0, 1, 1, 0, 2, 0, 0]]
    cells = InstanceChannels(context, "full", cells=True).of_sample(target[0])
    assert cells.tolist() == [[[1, 1, 1, 0, 2, 2, 0]], [[0] * 7]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_cells_of_every_class_hold_its_components(dims: int, kind: str) -> None:
    context, target = context_for(kind, dims), target_of(blobs(dims), kind)
    for sample in target:
        components = InstanceChannels(context, "full", cells=False).of_sample(sample)
        cells = InstanceChannels(context, "full", cells=True).of_sample(sample)
        ignored = np.zeros(sample.shape[1:], bool)
        if "ignore" in kind:
            ignored = (sample[-1] == (1 if "regions" in kind else IGNORE)).numpy()
        for c in range(2):
            own = components[c] if "regions" in kind else torch.where(sample[0] == c + 1, components[0], 0)
            numbers = own[own > 0].unique().numpy()
            nearest = squared_distances(np.searchsorted(numbers, own.numpy()) + (own > 0).numpy()).argmin(0)
            np.testing.assert_array_equal(cells[c], np.where(ignored, 0, numbers[nearest]))


def test_more_components_than_a_small_integer_holds() -> None:
    labels = torch.zeros((1, 400, 400), dtype=torch.int16)
    labels[:, ::2, ::2] = 1
    extended = InstanceChannels(context_for("labels"), "full", cells=False)(segmentation=labels)["segmentation"]
    assert extended[1].max() == 40_000 > torch.iinfo(torch.int16).max


@pytest.mark.parametrize("cells", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_transform_appends_and_the_step_makes_the_same(kind: str, cells: bool) -> None:
    context, target = context_for(kind), target_of(blobs(), kind)
    made = InstanceChannels(context, "full", cells=cells)
    scales = DownsampleSegForDSTransform([[1, 1], [0.5, 0.5], [0.25, 0.5]])
    transform = pickle.loads(pickle.dumps(ComposeTransforms([made, scales])))
    by_worker = [transform(segmentation=sample)["segmentation"] for sample in target]
    extended = [torch.stack(of_scale) for of_scale in zip(*by_worker, strict=True)]
    num_channels = target.shape[1]
    plain = [scaled[:, :num_channels] for scaled in extended]
    torch.testing.assert_close(plain[0].to(target.dtype), target)
    for scaled, in_step in zip(extended, made.of_batch(plain), strict=True):
        assert scaled.shape[1] == num_channels + (2 if cells or "regions" in kind else 1)
        assert torch.equal(scaled[:, num_channels:], in_step)
        assert in_step.max() > 1


def test_lower_resolutions_that_are_sampled_in_another_way_get_components_of_their_own() -> None:
    full = torch.zeros(1, 1, 8, 8, dtype=torch.int16)
    full[..., 1, 1:4] = full[..., 1, 6] = full[..., 6, 6] = 1
    pooled = torch.nn.functional.max_pool2d(full.float(), 2).short()
    made = InstanceChannels(context_for("labels"), "full", cells=False)
    assert made.of_batch([full, pooled])[1].tolist() == [[[[1, 1, 0, 2], [0] * 4, [0] * 4, [0, 0, 0, 3]]]]
