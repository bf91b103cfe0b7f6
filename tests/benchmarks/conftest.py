"""The benchmarks are run from the repository's root and are not installed: put it in front of the path.

In front, because Opacus installs a top-level package named ``benchmarks`` too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
