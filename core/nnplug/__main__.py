"""``python -m nnplug``: the command line without the script."""

from __future__ import annotations

from nnplug.cli import main

if __name__ == "__main__":  # worker processes import this module again
    raise SystemExit(main())
