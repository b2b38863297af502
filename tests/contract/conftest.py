"""Makes the sample networks importable under one name, for nnU-Net too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
