"""The contracts of plug-ins, for the tests of their authors; docs/guide/plugins.md shows them."""

from soupray.testing.data import check_dataset
from soupray.testing.recipes import check_recipe
from soupray.testing.samplers import check_sampler
from soupray.testing.tasks import check_task
from soupray.testing.trackers import Shown, check_tracker

__all__ = [
    "Shown",
    "check_dataset",
    "check_recipe",
    "check_sampler",
    "check_task",
    "check_tracker",
]
