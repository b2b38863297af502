"""The result of a trained fold, as JSON: what programs read and what is kept beside the model."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnplug.datasets import read_json

STOCK = "nnUNetv2_predict"
DEFAULT_CHECKPOINT = "checkpoint_final.pth"


def fold_result(
    fold_folder: Path,
    *,
    dataset: str,
    trainer: str,
    checkpoint: str | None,
    validation_loss: float | None,
    obstacle: str | None,
    seconds: float,
) -> dict[str, Any]:
    """The result of a fold, with the metrics from ``validation/summary.json`` as nnU-Net wrote it.

    Returns:
        ``checkpoint``: the validated one, None where none was written; there is no ``predict_command`` then.
        ``metrics``: ``dice`` and ``iou`` (foreground mean over the validation cases, 0 to 1), ``validation_loss`` (of
        the last epoch before the checkpoint). ``per_class``: the same for each label or region.
        ``seconds``: wall time of this call. ``stock_prediction_obstacle``: why stock nnU-Net can not predict with the
        model, None where it can.
    """
    model = fold_folder.parent
    _, plans, configuration = model.name.split("__")
    path = fold_folder / "validation" / "summary.json"
    # nnU-Net's benchmark trainers skip the validation
    nothing: dict[str, Any] = {"foreground_mean": {}, "mean": {}}
    summary = read_json(path, "The validation's summary") if path.exists() else nothing
    name = fold_folder.name.removeprefix("fold_")
    fold = int(name) if name.isdigit() else name
    program, chosen = STOCK, name
    if obstacle:
        program, chosen = "nnplug predict", "fold_all" if name == "all" else name
    command = f"{program} -i INPUT -o OUTPUT -d {dataset} -c {configuration} -f {chosen} -p {plans} -tr '{trainer}'"
    if checkpoint != DEFAULT_CHECKPOINT:
        command += f" -chk {checkpoint}"
    return {
        "status": "completed",
        "model_path": str(model),
        "dataset_id": int(dataset.removeprefix("Dataset").split("_")[0]),
        "dataset": dataset,
        "configuration": configuration,
        "fold": fold,
        "trainer": trainer,
        "plans": plans,
        "checkpoint": checkpoint,
        "metrics": {**_metrics(summary["foreground_mean"]), "validation_loss": _number(validation_loss)},
        "per_class": {label: _metrics(values) for label, values in summary["mean"].items()},
        "seconds": round(seconds, 1),
        "predict_command": command if checkpoint else None,
        "stock_prediction_obstacle": obstacle,
    }


def combine(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of several folds: the metrics are means over the folds, ``folds`` holds each."""
    if len(results) == 1:
        return dict(results[0])
    metrics = {key: _mean([r["metrics"][key] for r in results]) for key in results[0]["metrics"]}
    common = {k: v for k, v in results[0].items() if k not in ("fold", "metrics", "per_class", "seconds")}
    command = results[0]["predict_command"]
    if command:
        command = command.replace(f"-f {results[0]['fold']} ", f"-f {' '.join(str(r['fold']) for r in results)} ")
    return {
        **common,
        "fold": [r["fold"] for r in results],
        "metrics": metrics,
        "seconds": round(sum(r["seconds"] for r in results), 1),
        "predict_command": command,
        "folds": list(results),
    }


def with_results_dir(result: Mapping[str, Any], folder: str | Path | None) -> dict[str, Any]:
    """The result with a command that says in which folder the model is, where no variable of nnU-Net's does.

    Stock nnU-Net's commands can not be told.
    """
    command = result["predict_command"]
    if folder is None or not command:
        return dict(result)
    command = command.replace(STOCK, "nnplug predict").replace(" -f all ", " -f fold_all ")
    return {**result, "predict_command": f"{command} --results-dir {shlex.quote(str(folder))}"}


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As ``combine``, with ``per_class`` and ``folds`` for any number of folds."""
    per_class = {
        label: {key: _mean([one["per_class"].get(label, {}).get(key) for one in results]) for key in metrics}
        for label, metrics in results[0]["per_class"].items()
    }
    whole = {**combine(results), "per_class": per_class, "folds": list(results)}
    first = ("status", "model_path", "dataset_id", "configuration", "fold", "metrics", "per_class", "folds")
    return {key: whole[key] for key in (*first, *whole)}


def _metrics(values: Mapping[str, float]) -> dict[str, float | None]:
    return {"dice": _number(values.get("Dice")), "iou": _number(values.get("IoU"))}


def _number(value: float | None) -> float | None:
    """JSON has no NaN: a class that no validation case has is None."""
    return None if value is None or math.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [v for v in values if v is not None]
    return sum(numbers) / len(numbers) if numbers else None
