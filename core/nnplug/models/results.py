"""The result of a trained fold, as JSON: what programs read and what is kept beside the model."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnplug.datasets import dataset_id
from nnplug.files.json_files import read_required_json

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
    needs: Sequence[str] = (),
    trust_code: bool = False,
) -> dict[str, Any]:
    """The result of a fold, with the metrics from ``validation/summary.json`` as nnU-Net wrote it.

    Returns:
        ``checkpoint``: the validated one, None where none was written; there is no ``predict_command`` then.
        ``metrics``: ``dice`` and ``iou`` (foreground mean over the validation cases, 0 to 1), ``validation_loss`` (of
        the last epoch before the checkpoint). ``per_class``: the same for each label or region.
        ``seconds``: wall time of this call. ``stock_prediction_obstacle``: why stock nnU-Net can not predict with the
        model, None where it can. ``stock_prediction_needs``: packages that have to be installed for that, beside
        nnU-Net. ``trust_code``: its code was trusted with ``--trust-code``.
    """
    model = fold_folder.parent
    _, plans, configuration = model.name.split("__")
    path = fold_folder / "validation" / "summary.json"
    # nnU-Net's benchmark trainers skip the validation
    nothing: dict[str, Any] = {"foreground_mean": {}, "mean": {}}
    summary = read_required_json(path, "The validation's summary") if path.exists() else nothing
    name = fold_folder.name.removeprefix("fold_")
    fold = int(name) if name.isdigit() else name
    result = {
        "status": "completed",
        "model_path": str(model),
        "dataset_id": dataset_id(dataset),
        "dataset": dataset,
        "configuration": configuration,
        "fold": fold,
        "trainer": trainer,
        "plans": plans,
        "checkpoint": checkpoint,
        "metrics": {**_metrics(summary["foreground_mean"]), "validation_loss": _number(validation_loss)},
        "per_class": {label: _metrics(values) for label, values in summary["mean"].items()},
        "seconds": round(seconds, 1),
        "predict_command": None,
        "stock_prediction_obstacle": obstacle,
        "stock_prediction_needs": list(needs),
        "trust_code": trust_code,
    }
    return {**result, "predict_command": _predict_command(result, [fold])}


def combine(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of several folds: the metrics are means over the folds, ``folds`` holds each."""
    if len(results) == 1:
        return dict(results[0])
    metrics = {key: _mean([r["metrics"][key] for r in results]) for key in results[0]["metrics"]}
    common = {k: v for k, v in results[0].items() if k not in ("fold", "metrics", "per_class", "seconds")}
    return {
        **common,
        "fold": [r["fold"] for r in results],
        "metrics": metrics,
        "seconds": round(sum(r["seconds"] for r in results), 1),
        "predict_command": _predict_command(common, [r["fold"] for r in results]),
        "folds": list(results),
    }


def with_results_dir(result: Mapping[str, Any], folder: str | Path | None) -> dict[str, Any]:
    """The result with a command that says in which folder the model is, where no variable of nnU-Net's does.

    Stock nnU-Net's commands can not be told.
    """
    folds = result["fold"] if isinstance(result["fold"], list) else [result["fold"]]
    return {**result, "predict_command": _predict_command(result, folds, folder)}


def _predict_command(
    result: Mapping[str, Any],
    folds: Sequence[int | str],
    results_dir: str | Path | None = None,
) -> str | None:
    """For a shell, None without a checkpoint: stock nnU-Net's where that can predict and finds the model."""
    if not result["checkpoint"]:
        return None
    is_stock = not result["stock_prediction_obstacle"] and results_dir is None
    program = STOCK if is_stock else "nnplug predict"
    chosen = " ".join(str(fold) if is_stock or fold != "all" else "fold_all" for fold in folds)
    model = f"-d {result['dataset']} -c {result['configuration']} -f {chosen} -p {result['plans']}"
    command = f"{program} -i INPUT -o OUTPUT {model} -tr '{result['trainer']}'"
    if result.get("trust_code") and result["stock_prediction_obstacle"]:
        command += " --trust-code"
    if result["checkpoint"] != DEFAULT_CHECKPOINT:
        command += f" -chk {result['checkpoint']}"
    return command if results_dir is None else f"{command} --results-dir {shlex.quote(str(results_dir))}"


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
