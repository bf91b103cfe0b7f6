"""The situations are shared by the tests of this folder: put them on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
