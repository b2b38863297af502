"""``nnplug demo``: a whole nnU-Net session on real images, with two trainers that differ only in ``-tr``.

Everything is written below one output folder, and each step shows the command line that does the same.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.datasets import dataset_id
from nnplug.demo import images
from nnplug.demo.folder import NUM_PROCESSES, DemoFolder, check_raw_dataset
from nnplug.demo.held_out import HeldOutCase, choose_held_out, link_images
from nnplug.demo.networks import count_parameters, smallest_network
from nnplug.demo.report import draw_picture, mean_dice, table_text
from nnplug.discovery.registry import get_registry
from nnplug.files.json_files import read_required_json, write_json

PLANS = "nnUNetPlans"
FOLD = 0
LENGTHS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
RECIPE = "short.toml"
TEMPLATE_NOTE = "One averaged brain (MNI152) in blocks: this shows that the pipeline works, not what a model is worth."


@dataclass(frozen=True)
class DemoTrainer:
    """A trainer of the demo.

    Attributes:
        label: as the user gave it, for table and picture.
        text: with the demo's length, as after ``-tr``.
        name: its canonical name: results folder.
    """

    label: str
    text: str
    name: str


@dataclass(frozen=True)
class DemoSettings:
    """What to run.

    Attributes:
        output: folder for everything; a new one, or one that an earlier demo made.
        dataset: a raw data set ``DatasetXXX_NAME`` to use instead of the template; it is only read.
        trainers: ``-tr`` texts; empty compares nnU-Net's default with the smallest network that a plug-in brings.
        num_epochs, num_iterations_per_epoch, num_val_iterations_per_epoch: length of each training.
        device: ``cpu``, ``cuda``, ``mps``; None takes what the machine has.
    """

    output: Path = Path("demo_output")
    dataset: Path | None = None
    trainers: tuple[str, ...] = ()
    num_epochs: int = 4
    num_iterations_per_epoch: int = 20
    num_val_iterations_per_epoch: int = 4
    device: str | None = None

    @property
    def lengths(self) -> dict[str, int]:
        return {field: getattr(self, field) for field in LENGTHS}


def run_demo(settings: DemoSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the demo, or what is left of it.

    Args:
        settings: what to run.
        say: receives the lines that explain each step.

    Returns:
        ``dataset``, ``configuration``, ``output``, ``picture``, ``seconds`` and ``trainers``: one row each with
        ``label`` (as given), ``trainer`` (canonical name), ``dice`` (held-out cases, by label), ``validation_dice``,
        ``num_parameters``, ``training_seconds``, ``model_path``.

    Raises:
        NnplugError: the output folder holds something else, the data set is none, the trainer is unknown, nilearn is
            missing.
    """
    start = time.perf_counter()
    for label in settings.trainers:
        get_registry().resolve(label)  # a mistake is told before anything is written
    source = None if settings.dataset is None else check_raw_dataset(settings.dataset)
    name = images.DATASET_NAME if source is None else source.name
    demo = Demo(settings, DemoFolder(settings.output, name, source, say), source)
    with demo.folder.environment():
        demo.prepare_data()
        demo.write_recipe()
        trainers = [demo.shorten(label) for label in dict.fromkeys(settings.trainers or demo.default_trainers())]
        for trainer in trainers:
            demo.train(trainer)
        cases = choose_held_out(demo.folder.raw, demo.folder.preprocessed, demo.dataset_json, FOLD)
        link_images(cases, demo.held_out, demo.dataset_json["file_ending"])
        for trainer in trainers:
            demo.predict(trainer, cases)
        result = demo.report(trainers, cases)
    result["seconds"] = round(time.perf_counter() - start, 1)
    say(f"\n{result['seconds']:.0f} s in all. Picture: {settings.output / demo.picture.name}")
    return result


@dataclass(frozen=True)
class Demo:
    """The steps, in the order of a session."""

    settings: DemoSettings
    folder: DemoFolder
    source: Path | None

    @property
    def number(self) -> int:
        number = dataset_id(self.folder.dataset)
        assert number is not None
        return number

    @property
    def plans(self) -> dict[str, Any]:
        return read_required_json(self.folder.preprocessed / f"{PLANS}.json", "The plans file")

    @property
    def dataset_json(self) -> dict[str, Any]:
        return read_required_json(self.folder.raw / "dataset.json", "The data set file")

    @property
    def configuration(self) -> str:
        return "3d_fullres" if "3d_fullres" in self.plans["configurations"] else "2d"

    @property
    def picture(self) -> Path:
        return self.folder.path / "demo.png"

    @property
    def held_out(self) -> Path:
        return self.folder.path / "held_out"

    def model_folder(self, trainer: DemoTrainer) -> Path:
        return self.folder.results / f"{trainer.name}__{PLANS}__{self.configuration}"

    def predictions(self, trainer: DemoTrainer) -> Path:
        return self.folder.path / "predictions" / trainer.name

    # --- data

    def prepare_data(self) -> None:
        """Raw data set, fingerprint, plans, preprocessed cases."""
        from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

        folder, ids = self.folder, [self.number]
        title = (
            f"Data: {TEMPLATE_NOTE}" if self.source is None else f"Data: {self.settings.dataset}, which is only read"
        )
        folder.step("raw", title, None, lambda: (folder.raw / "dataset.json").is_file(), self._write_raw)
        for part in ("raw", "preprocessed", "results"):
            folder.say(f"$ export nnUNet_{part}={shlex.quote(str(folder.shown / f'nnUNet_{part}'))}")
        folder.step(
            "fingerprint",
            "Fingerprint: sizes, spacings and intensities of the data set",
            f"nnUNetv2_extract_fingerprint -d {self.number} -np {NUM_PROCESSES} --verify_dataset_integrity",
            lambda: (folder.preprocessed / "dataset_fingerprint.json").is_file(),
            lambda: folder.quietly(
                lambda: nnunet.extract_fingerprints(
                    ids,
                    num_processes=NUM_PROCESSES,
                    check_dataset_integrity=True,
                    verbose=False,
                    show_progress_bar=False,
                )
            ),
        )
        folder.step(
            "plan",
            "Plan: patch size, batch size and network that fit the data",
            f"nnUNetv2_plan_experiment -d {self.number}",
            lambda: (folder.preprocessed / f"{PLANS}.json").is_file(),
            lambda: folder.quietly(lambda: nnunet.plan_experiments(ids)),
        )
        folder.step(
            "preprocess",
            "Preprocess: crop, resample, normalise",
            f"nnUNetv2_preprocess -d {self.number} -c {self.configuration} -np {NUM_PROCESSES}",
            self._is_preprocessed,
            lambda: folder.quietly(
                lambda: nnunet.preprocess(
                    ids, configurations=(self.configuration,), num_processes=(NUM_PROCESSES,), show_progress_bar=False
                )
            ),
        )

    def _write_raw(self) -> None:
        if self.source is None:
            splits = images.write_raw_dataset(self.folder.raw)
            self.folder.preprocessed.mkdir(exist_ok=True)
            write_json(self.folder.preprocessed / "splits_final.json", splits)
        elif not self.folder.raw.exists():
            self.folder.raw.symlink_to(self.source, target_is_directory=True)

    def _is_preprocessed(self) -> bool:
        data = self.folder.preprocessed / self.plans["configurations"][self.configuration]["data_identifier"]
        return len(list(data.glob("*.pkl"))) == self.dataset_json["numTraining"]

    # --- trainers

    def default_trainers(self) -> list[str]:
        """nnU-Net's own, and the smallest network that a plug-in brings."""
        chosen = self.folder.state.get("default_trainers")
        if chosen is None:
            other = smallest_network(self.plans, self.configuration, self.dataset_json)
            chosen = ["nnUNetTrainer", *([other] if other else [])]
            self.folder.remember("default_trainers", chosen)
        return chosen

    def write_recipe(self) -> None:
        """The length of the trainings as a recipe, so that it can be joined to any trainer with ``+``."""
        lines = [f"{field} = {value}" for field, value in self.settings.lengths.items()]
        text = "\n".join(["# how long the demo trains; join it to any trainer with +", 'name = "short"', *lines, ""])
        path = self.folder.path / RECIPE
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")

    def shorten(self, label: str) -> DemoTrainer:
        """A trainer with the demo's length, as far as its text does not assign one itself."""
        own = get_registry().resolve(label).config
        recipe = str(self.folder.shown.expanduser() / RECIPE)
        if "+" in recipe or any(getattr(own, field) is not None for field in LENGTHS):
            # two recipes with different lengths would be a conflict; an assignment wins over any recipe
            terms = [f"{field}={n}" for field, n in self.settings.lengths.items() if f"+{field}=" not in f"+{label}"]
        else:
            terms = [recipe]
        text = "+".join([label, *terms])
        return DemoTrainer(label, text, get_registry().resolve(text).name)

    def train(self, trainer: DemoTrainer) -> None:
        """Train and validate one fold."""
        from nnplug.training.training import train

        fold = self.model_folder(trainer) / f"fold_{FOLD}"

        def do() -> None:
            started = any(fold.glob("checkpoint_*.pth"))
            train(
                self.folder.dataset,
                self.configuration,
                FOLD,
                trainer.text,
                plans=PLANS,
                device=self.settings.device,
                continue_training=started,
                on_message=self.folder.say,
            )

        device = "" if self.settings.device is None else f" -device {self.settings.device}"
        self.folder.step(
            f"train {trainer.name}",
            f"Train and validate: {trainer.label}",
            f"nnplug train {self.number} {self.configuration} {FOLD} -tr {shlex.quote(trainer.text)}{device}",
            lambda: (fold / "checkpoint_final.pth").is_file() and (fold / "validation" / "summary.json").is_file(),
            do,
        )

    # --- results

    def predict(self, trainer: DemoTrainer, cases: list[HeldOutCase]) -> None:
        """Predict the held-out cases with one trainer's model."""
        from nnplug.prediction.predicting import predict

        target, ending = self.predictions(trainer), self.dataset_json["file_ending"]
        shown = self.folder.shown
        command = (
            f"nnplug predict -i {shown / 'held_out'} -o {shown / 'predictions' / trainer.name} "
            f"-d {self.number} -c {self.configuration} -f {FOLD} -tr {shlex.quote(trainer.text)}"
        )
        self.folder.step(
            f"predict {trainer.name}",
            f"Predict {len(cases)} held-out cases: {trainer.label}",
            command,
            lambda: all((target / f"{case.name}{ending}").is_file() for case in cases),
            lambda: self.folder.quietly(
                lambda: predict(
                    self.model_folder(trainer),
                    self.held_out,
                    target,
                    folds=FOLD,
                    device=self.settings.device,
                    num_processes_preprocessing=0,  # each process would import torch for longer than these cases take
                    num_processes_export=0,
                    progress_bar=False,
                )
            ),
        )

    def report(self, trainers: list[DemoTrainer], cases: list[HeldOutCase]) -> dict[str, Any]:
        """The table, printed; the picture; and the result."""
        rows = [self._row(trainer, cases) for trainer in trainers]
        self.folder.say("\n== Held-out cases")
        self.folder.say(table_text(rows))
        if self.source is None:
            self.folder.say(TEMPLATE_NOTE)
        folders = {trainer.label: self.predictions(trainer) for trainer in trainers}
        note = TEMPLATE_NOTE if self.source is None else self.folder.dataset
        draw_picture(self.picture, self.model_folder(trainers[0]), cases, folders, note)
        return {
            "dataset": self.folder.dataset,
            "configuration": self.configuration,
            "output": str(self.folder.path),
            "picture": str(self.picture),
            "trainers": rows,
        }

    def _row(self, trainer: DemoTrainer, cases: list[HeldOutCase]) -> dict[str, Any]:
        from nnplug.history import read_history

        model = self.model_folder(trainer)
        summary = read_required_json(model / f"fold_{FOLD}" / "validation" / "summary.json", "The validation's summary")
        return {
            "label": trainer.label,
            "trainer": trainer.name,
            "dice": mean_dice(model, self.predictions(trainer), cases),
            "validation_dice": summary["foreground_mean"]["Dice"],
            "num_parameters": count_parameters(
                read_required_json(model / "plans.json", "The plans file"), self.configuration, self.dataset_json
            ),
            "training_seconds": round(sum(epoch["epoch_seconds"] for epoch in read_history(model / f"fold_{FOLD}")), 1),
            "model_path": str(model),
        }
