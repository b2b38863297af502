"""The plans that trainers are checked on. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

#: Identifiers of the cases of every made-up data set, for trainers whose settings name cases.
CASES = ("case_00", "case_01", "case_02")


@dataclass(frozen=True)
class PlanCase:
    """One configuration of a made-up data set.

    Attributes:
        name: as in the names of checks.
        dataset_name: ``DatasetXXX_Name``; plans of the same data share it.
        configuration: of nnU-Net's plans.
        shape: of every image in voxels.
        spacing_mm: of every image.
        num_channels: of every image.
        has_regions: region-based training.
        has_ignore_label: half of the voxels are not annotated.
        max_features: of the plan's own network; few, so that it costs nothing. nnU-Net's are 320 in 3D and 512 in 2D.
    """

    name: str
    dataset_name: str
    configuration: str = "3d_fullres"
    shape: tuple[int, ...] = (20, 40, 24)
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    num_channels: int = 1
    has_regions: bool = False
    has_ignore_label: bool = False
    max_features: int = 16

    @property
    def dims(self) -> int:
        return 2 if self.configuration == "2d" else 3


PLAIN = (
    PlanCase("2d", "Dataset991_Isotropic", "2d"),
    PlanCase("3d", "Dataset991_Isotropic"),
    PlanCase("3d_anisotropic", "Dataset992_Anisotropic", shape=(8, 40, 32), spacing_mm=(5.0, 1.0, 1.0)),
)


def variants(dims: int) -> tuple[PlanCase, ...]:
    """Data sets with regions, with an ignore label, with both, with several channels."""
    configuration = "2d" if dims == 2 else "3d_fullres"
    return (
        PlanCase("regions", "Dataset993_Regions", configuration, has_regions=True),
        PlanCase("ignore_label", "Dataset994_Ignore", configuration, has_ignore_label=True),
        PlanCase(
            "regions_ignore_label", "Dataset995_RegionsIgnore", configuration, has_regions=True, has_ignore_label=True
        ),
        PlanCase("four_channels", "Dataset996_Channels", configuration, num_channels=4),
    )


#: As large as the patches of the Medical Segmentation Decathlon's Task04_Hippocampus, with nnU-Net's own features.
REFERENCE = (
    PlanCase("reference_2d", "Dataset997_Reference", "2d", shape=(40, 56, 40), max_features=320),
    PlanCase("reference_3d", "Dataset997_Reference", shape=(40, 56, 40), max_features=320),
)
#: The plans by name, as in the brackets of a check's name.
PLAN_NAMES = tuple(case.name for case in (*PLAIN, *variants(2), *REFERENCE))
