"""Lets the tests of the device's program import the stand-ins in the folder above by their names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
