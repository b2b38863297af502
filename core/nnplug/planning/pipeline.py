"""Fingerprint, plans and preprocessing of a data set, one after the other: what nnUNetv2_plan_and_preprocess does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnplug.datasets import read_plans
from nnplug.errors import NnplugError
from nnplug.planning.data import PlanningData
from nnplug.planning.data_record import check_unchanged
from nnplug.planning.experiment import PlannerSettings, describe_plans, plan_experiment
from nnplug.planning.fingerprint import extract_fingerprint
from nnplug.planning.plans_file import PlansFile, trained_with
from nnplug.planning.plans_writing import check_data_folder
from nnplug.planning.preprocessing import preprocess
from nnplug.planning.shards import WHOLE, Shard
from nnplug.problems import count, shortened
from nnplug.processes.case_pool import Pool, choose_num_processes

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
_DEFAULT_PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}
_DEFAULT_PROCESSES_OF_OTHERS = 4
_DEFAULT_PROCESSES_OF_FINGERPRINT = 8
_PRELOAD = (
    "nnplug.planning.pipeline",
    "nnunetv2.preprocessing.normalization.default_normalization_schemes",
    "nnunetv2.preprocessing.resampling.resample_torch",
)


@dataclass(frozen=True)
class Running:
    """How the steps are run.

    Attributes:
        progress_bar: show one where there is a terminal.
        verbose: let through what nnU-Net prints.
        on_message: receives what is to be told.
    """

    progress_bar: bool = True
    verbose: bool = False
    on_message: Callable[[str], None] = print

    def pool(self, num_processes: int | None, default: int, num_cases: int) -> Pool:
        number = choose_num_processes(num_processes, default, num_cases)
        return Pool(number, self.progress_bar, self.verbose, _PRELOAD)


def fingerprint(
    data: PlanningData,
    *,
    num_processes: int | None = None,
    shard: Shard = WHOLE,
    verify: bool = False,
    clean: bool = False,
    extractor: str = "DatasetFingerprintExtractor",
    running: Running = Running(),
) -> bool:
    """The fingerprint; see ``extract_fingerprint``. Data that has changed since is refused without ``clean``."""
    if not clean:
        check_unchanged(data)
    pool = running.pool(num_processes, _DEFAULT_PROCESSES_OF_FINGERPRINT, len(data.inventory.cases))
    running.on_message(f"{data.name}: {count(len(data.inventory.cases), 'case')}")
    if data.inventory.converted:
        running.on_message(
            f"Its dataset.json is in the Decathlon's style: {'; '.join(data.inventory.converted)}. The file stays as "
            f"it is; {data.folder} gets a converted one."
        )
    return extract_fingerprint(
        data, pool, shard=shard, clean=clean, verify=verify, extractor=extractor, on_message=running.on_message
    )


def plan(data: PlanningData, settings: PlannerSettings | None = None, running: Running = Running()) -> str:
    """The plans' name after ``plan_experiment``; says what they are, and of models with other plans of this name."""
    check_unchanged(data)
    before = {path: path.read_bytes() for path in data.folder.glob("*.json")}
    name = plan_experiment(data, settings or PlannerSettings(), running.verbose)
    running.on_message("\n".join([f"{name}:", *describe_plans(data, name)]))
    path = data.folder / f"{name}.json"
    models = trained_with(data.name, name)
    if models and before.get(path, path.read_bytes()) != path.read_bytes():
        running.on_message(
            f"nnplug: warning: {shortened([model.name for model in models])} began with other plans of this name. "
            "They predict as before and can not be trained further. To keep both: -overwrite_plans_name"
        )
    return name


def preprocess_configurations(
    data: PlanningData,
    plans_name: str = "nnUNetPlans",
    configurations: Sequence[str] = CONFIGURATIONS,
    *,
    num_processes: Sequence[int] | None = None,
    shard: Shard = WHOLE,
    clean: bool = False,
    running: Running = Running(),
) -> None:
    """Preprocess configurations; those that the plans do not have are left out, as in nnU-Net.

    Args:
        data: the data set.
        plans_name: its plans.
        configurations: of the plans.
        num_processes: one number for all configurations, or one for each.
        shard: this part of the cases only.
        clean: make all anew.
        running: progress and messages.

    Raises:
        NnplugError: no plans, none of the configurations, failing cases.
    """
    check_unchanged(data)
    if num_processes is not None and len(num_processes) not in (1, len(configurations)):
        raise NnplugError(
            f"-np has {len(num_processes)} numbers for {len(configurations)} configurations "
            f"({', '.join(configurations)}). Give one number, or one for each."
        )
    known = read_plans(data.folder, plans_name)["configurations"]
    if not set(known) & set(configurations):
        raise NnplugError(
            f"The plans '{plans_name}' of {data.name} have no configuration {' or '.join(configurations)}; they have "
            f"{', '.join(known)}. Choose with -c."
        )
    for index, configuration in enumerate(configurations):
        if configuration not in known:
            running.on_message(f"{configuration}: not in the plans, left out")
            continue
        if not clean:
            _check_other_plans(data, plans_name, configuration)
        asked = num_processes[index % len(num_processes)] if num_processes is not None else None
        default = _DEFAULT_PROCESSES.get(configuration, _DEFAULT_PROCESSES_OF_OTHERS)
        pool = running.pool(asked, default, len(data.inventory.cases))
        whole = preprocess(
            data, plans_name, configuration, pool, shard=shard, clean=clean, on_message=running.on_message
        )
        if whole:
            running.on_message(f"{configuration}: {count(len(data.inventory.cases), 'case')} preprocessed")


def _check_other_plans(data: PlanningData, plans_name: str, configuration: str) -> None:
    """Refuse to replace the cases of other plans: planners of nnU-Net's share folders, whatever they plan."""
    file = PlansFile(data.folder, plans_name, read_plans(data.folder, plans_name), data.dataset_json)
    if (data.folder / file.configuration(configuration)["data_identifier"]).is_dir():
        check_data_folder(
            file,
            configuration,
            "Derive one with cases of its own (nnplug plans derive), or replace the cases with --clean.",
        )
