"""The contracts of plug-ins, for the tests of their authors; docs/plugins/ shows each."""

from soupray.testing.data import check_dataset
from soupray.testing.images import check_augmentation, check_shift
from soupray.testing.measures import check_loss, check_metric
from soupray.testing.recipes import check_recipe
from soupray.testing.samplers import check_sampler
from soupray.testing.tasks import check_task
from soupray.testing.trackers import Shown, check_tracker

__all__ = [
    "Shown",
    "check_augmentation",
    "check_dataset",
    "check_loss",
    "check_metric",
    "check_recipe",
    "check_sampler",
    "check_shift",
    "check_task",
    "check_tracker",
]
