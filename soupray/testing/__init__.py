"""The contracts of plug-ins, for the tests of their authors.

from soupray.testing import check_recipe
from trimmed import TRIMMED

def test_trimmed(tmp_path):
check_recipe(TRIMMED, tmp_path)
"""

from soupray.testing.recipes import check_recipe
from soupray.testing.trackers import Shown, check_tracker

__all__ = ["Shown", "check_recipe", "check_tracker"]
