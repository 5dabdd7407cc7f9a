"""Workers of one trial over real gloo: DistributedDataParallel against sums after the pass."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from shared import Small, small

from soupray.core.hyperparameters import Hyperparameters
from soupray.core.trials import Training
from soupray.distributed.train import TorchGroup
from soupray.training.loop import Loop
from soupray.training.start import Alone, Group, Start

MICRO = 4  # of a batch of 20: two passes for shares of 7 and 6
SIZE = 3  # workers; `test_together` has two


class After(TorchGroup):
    """Adds up all gradients in one message after the pass, as soupray 0.1 did."""

    def shared(self, model: torch.nn.Module) -> torch.nn.Module:
        return model


class Spare:
    """The task, whose model also has a parameter that no pass uses."""

    def __init__(self, task) -> None:
        self._task, self.inputs = task, task.inputs

    def model(self) -> torch.nn.Module:
        made = self._task.model()
        made.spare = torch.nn.Parameter(torch.ones(3))
        return made


def loop(world: Small, group: Group, **training) -> Loop:
    start = Start(
        weights=world.checkpoints.load(world.trial.init) | {"spare": torch.ones(3)},
        seed=world.trial.seed,
        device="cpu",
        training=Training(micro_batch=MICRO, **training),
        group=group,
    )
    return Loop(Spare(world.task), world.data, Hyperparameters(**world.trial.hparams), start)


def member(rank: int, size: int, folder: str) -> None:
    """One worker; the first one stores what came of each way."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
    )
    world = small(Path(folder, str(rank)))
    group = TorchGroup()
    made = {
        "together": loop(world, group),
        "after": loop(world, After()),
        "checkpointed": loop(world, group, checkpointing=True),
    }
    losses = {way: each.epoch(1) for way, each in made.items()}
    taken_up = loop(world, group)
    taken_up.restore(made["together"].state())
    weights = {way: each.weights() for way, each in made.items()}
    made["together"].epoch(2)
    taken_up.epoch(2)
    weights |= {"on": made["together"].weights(), "taken up": taken_up.weights()}
    torch.save((losses, weights), Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(weights.items())])


@pytest.mark.slow
def test_workers_train_the_model_that_one_would(tmp_path):
    torch.multiprocessing.spawn(member, (SIZE, str(tmp_path)), SIZE)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(SIZE)]
    losses, weights = found[0]
    for way in ("together", "after", "checkpointed", "on", "taken up"):
        for others in found[1:]:
            assert torch.equal(flat(others[1][way]), flat(weights[way]))
            assert others[0].get(way) == losses.get(way)
        # No pass used it, so neither its gradient nor the decay of weights moved it.
        assert torch.equal(weights[way]["spare"], torch.ones(3))
    world = small(tmp_path / "alone")
    one = loop(world, Alone())
    assert losses["together"] == pytest.approx(one.epoch(1), rel=1e-5)
    alone, init = flat(one.weights()), flat(loop(world, Alone()).weights())
    for way in ("together", "after", "checkpointed"):
        # Sums in another order, which Adam enlarges where a gradient is all but zero.
        assert (flat(weights[way]) - alone).norm() < 0.01 * (alone - init).norm()
    assert torch.equal(flat(weights["on"]), flat(weights["taken up"]))
