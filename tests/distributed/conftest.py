"""What runs in the processes is shared by the tests of this folder: put it on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
