"""What a training needs of its data and is not there yet: checks, fingerprint, plans, preprocessed cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.datasets import check_configuration, read_plans
from nnplug.errors import NnplugError
from nnplug.files.folder_use import FolderUse
from nnplug.planning.data import PlanningData
from nnplug.planning.data_record import FINGERPRINT, check_unchanged, is_of_stock, is_verified, write_record
from nnplug.planning.experiment import PlannerSettings, find_planner
from nnplug.planning.pipeline import Running, fingerprint, plan, preprocess_configurations
from nnplug.planning.stock_data import check_stock_cases, check_stock_fingerprint, is_from_stock


@dataclass(frozen=True, kw_only=True)
class MissingSteps:
    """Does what is missing, and keeps what is there and still holds.

    Attributes:
        data: the data set.
        plans_name: its plans; made by the planner of nnU-Net that names its plans so.
        verify: check every rule, once for each state of the data.
        clean: begin anew.
        num_processes: worker processes; None takes nnU-Net's numbers, 0 works in this process.
        tell: called with a stage, a message, and the configuration of ``preprocess``.
        check_plans: called when the plans are there and nothing is preprocessed yet.
    """

    data: PlanningData
    plans_name: str
    verify: bool = True
    clean: bool = False
    num_processes: int | None = None
    tell: Callable[..., None]
    check_plans: Callable[[PlanningData], None]

    def run(self, configuration: str, use: FolderUse) -> None:
        """Everything that ``configuration`` needs, for a cascade also its first stage; ``use`` reads it from then on.

        Raises:
            NnplugError: the data has problems, all of which are named, or has changed; no such plans or configuration;
                a training reads what has to be made anew.
        """
        before = use.made_anew()
        with self._alone():
            what = f"{self.plans_name} {configuration}"
            now = use.made_anew()
            if self.clean and not (now != before and now.startswith(f"{what} ")):
                use.make_anew()
                self._work(configuration)
                use.note_made_anew(what)
            else:  # of several processes that begin anew at once, one for each fold, the first has done it
                replace(self, clean=False)._work(configuration)
            use.read(partial(self.tell, "check"))

    def _work(self, configuration: str) -> None:
        if not self.clean:
            self._check_stock(configuration)
        self._make_fingerprint()
        self._make_plans()
        self.check_plans(self.data)
        for name in list_stages(self.data.folder, self.plans_name, configuration):
            self._preprocess(name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Of several processes that start at once, one for each fold, the first works and the others wait for it."""
        try:
            self.data.preprocessed.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NnplugError(f"The cache {self.data.preprocessed} can not be created ({error.strerror}).") from None
        lock = FileLock(self.data.preprocessed / f".nnplug_{self.data.name}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.tell("check", f"Another process works on {self.data.folder}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _check_stock(self, configuration: str) -> None:
        """Before anything certifies that what is there belongs to the data."""
        check_stock_fingerprint(self.data)
        if (self.data.folder / f"{self.plans_name}.json").is_file():
            stages = list_stages(self.data.folder, self.plans_name, configuration)
            check_stock_cases(self.data, self.plans_name, stages)

    def _make_fingerprint(self) -> None:
        data = self.data
        is_there = (data.folder / FINGERPRINT).is_file() and not self.clean
        verify = self.verify and not (is_there and is_verified(data))
        if is_there and not verify:
            check_unchanged(data)
            self.tell("fingerprint", f"{data.name}: the fingerprint is there already")
            return
        stage = "check" if is_there else "fingerprint"
        number, running = self.num_processes, self._running(stage)
        fingerprint(data, num_processes=number, verify=verify, clean=self.clean, running=running)
        if is_there:
            write_record(data, is_verified=True, is_of_stock=is_of_stock(data))

    def _make_plans(self) -> None:
        is_there = (self.data.folder / f"{self.plans_name}.json").is_file()
        planner = None if is_there and not self.clean else find_planner(self.plans_name)
        if planner is not None:
            self.tell("plan", f"Planning with {planner}")
            plan(self.data, PlannerSettings(planner=planner), self._running("plan"))
        elif is_there and self.clean:
            self.tell(
                "plan",
                f"{self.plans_name} are kept, made for the data as it was: no planner of nnU-Net gives its plans this "
                "name. Where the data has changed, make them anew with nnplug plan, plans derive or move_plans.",
            )
        elif is_there:
            self.tell("plan", f"{self.plans_name} are there already")
        else:
            raise NnplugError(
                f"{self.data.folder} has no plans '{self.plans_name}', and no planner of nnU-Net gives its plans this "
                "name. Make them with nnplug plan, or choose others with -p."
            )

    def _preprocess(self, configuration: str) -> None:
        if not self.clean and is_from_stock(self.data, self.plans_name, configuration):
            message = f"{configuration} was preprocessed by nnU-Net itself and is taken as it is"
            self.tell("preprocess", message, configuration=configuration)
            return
        self.tell("preprocess", f"Preprocessing {configuration}", configuration=configuration)
        preprocess_configurations(
            self.data,
            self.plans_name,
            [configuration],
            num_processes=None if self.num_processes is None else [self.num_processes],
            clean=self.clean,
            running=self._running("preprocess", configuration=configuration),
        )

    def _running(self, stage: str, **details: str) -> Running:
        def on_message(message: str) -> None:
            self.tell(stage, message, **details)

        return Running(on_message=on_message)


def list_stages(folder: Path, plans_name: str, configuration: str) -> list[str]:
    """The configurations that have to be trained for this one, in their order; itself the last.

    Args:
        folder: ``nnUNet_preprocessed/DatasetXXX_NAME``.
        plans_name: its plans.
        configuration: of the plans.

    Raises:
        NnplugError: the plans do not have it.
    """
    plans = read_plans(folder, plans_name)
    small = "; a cascade is planned only for images that are much larger than a patch" * ("3d_" in configuration)
    check_configuration(plans, configuration, small)
    stages = [configuration]
    while (previous := PlansManager(plans).get_configuration(stages[0]).previous_stage_name) is not None:
        stages.insert(0, previous)
    return stages
