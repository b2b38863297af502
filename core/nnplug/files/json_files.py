"""JSON files of a model folder: written whole, read with a message that says what is wrong."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import create_file, keep_file, replace_file


def write_json(path: Path, content: Any) -> None:
    """Replace ``path`` by ``content`` in nnU-Net's format (indent 4). Raises NnplugError as ``replace_file``."""
    replace_file(path, lambda file: file.write(_encode(content)))


def create_json(path: Path, content: Any) -> bool:
    """As ``write_json``, only if ``path`` does not exist; of several processes exactly one gets True."""
    return create_file(path, _encode(content))


def keep_json(path: Path, content: Any) -> None:
    """As ``write_json``, only if ``path`` does not hold ``content`` already."""
    keep_file(path, _encode(content))


def _encode(content: Any) -> bytes:
    return json.dumps(content, indent=4).encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON object file, None if the file is missing; waits for one that is being created."""
    for attempt in range(20):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NnplugError(f"{path} could not be read: {error.strerror}.") from error
        except ValueError as error:
            # without hard links a file is created first and filled then
            if attempt < 19 and time.time() - path.stat().st_mtime < 5:
                time.sleep(0.1)
                continue
            raise NnplugError(f"{path} is not readable JSON ({error}). Restore it or move it away.") from error
        break
    if not isinstance(content, dict):
        raise NnplugError(f"{path} does not hold a JSON object. Restore it or move it away.")
    return content


def read_required_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Raises:
        NnplugError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NnplugError(f"{what} {path} is missing.") from None
    except OSError as error:
        raise NnplugError(f"{what} {path} can not be read: {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise NnplugError(f"{what} {path} is no valid JSON ({error}).") from None


def as_plain_json(value: Any, nan_as_null: bool = False) -> Any:
    """``value`` as it comes back from a JSON file: lists for tuples, text keys, numbers for numpy's."""
    if isinstance(value, Mapping):
        return {str(key): as_plain_json(item, nan_as_null) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain_json(item, nan_as_null) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy, which is not imported here
        return as_plain_json(value.tolist(), nan_as_null)
    if nan_as_null and isinstance(value, float) and not math.isfinite(value):
        return None
    return value
