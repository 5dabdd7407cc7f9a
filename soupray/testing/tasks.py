"""The contract of a task: a model, its head, and the way from samples to inputs."""

from __future__ import annotations

import torch

from soupray.core.ports import Task
from soupray.core.records import Setting
from soupray.evaluation.live_model import predict
from soupray.store.weights_file import Weights

BATCH = 4
"""Samples in a forward pass of the checks; there is at least one more sample than this."""


def check_task(task: Task, samples: torch.Tensor) -> None:
    """Check that a task keeps its contract.

    Outputs are those of the head for the features, finite, the same in a second run, those of each
    sample alone, and those of the weights and nothing else; every weight is trained; weights that
    are written under the task's names are read back.

    Args:
        task: the task.
        samples: images [N, C, H, W] uint8 or texts [N, L] uint8, N > 4, as the data cache has them.

    Raises:
        AssertionError: the contract is broken; the message says how.
    """
    assert len(samples) > BATCH, f"give more than {BATCH} samples"
    torch.manual_seed(0)
    start = task.init()
    torch.manual_seed(0)
    _equal(start, task.init(), "two calls of init with one seed")
    model = task.model().eval()
    model.load_state_dict(start)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: tensor.shape for name, tensor in start.items()}
    assert given == wanted, f"init and model have other tensors: {set(given) ^ set(wanted)}"
    assert all(t.is_floating_point() for t in start.values()), "a tensor is no floating-point one"
    assert "head.weight" in wanted, "there is no head.weight: the head is not called `head`"
    inputs = task.inputs(samples)
    assert len(inputs) == len(samples), f"{len(samples)} samples became {len(inputs)} inputs"
    _check_outputs(task, model, samples, inputs)
    _check_gradients(model, inputs)
    other = {name: tensor + 0.01 for name, tensor in start.items()}
    _equal(other, task.adopt(other, "the task's own weights"), "adopt of the task's own weights")


@torch.no_grad()
def _check_outputs(
    task: Task, model: torch.nn.Module, samples: torch.Tensor, inputs: torch.Tensor
) -> None:
    logits = model(inputs)
    features = model.features(inputs)  # type: ignore[operator]
    assert logits.ndim == 2, f"outputs are {list(logits.shape)}, not [N, classes]"
    assert torch.isfinite(logits).all(), "outputs are not finite"
    assert torch.equal(model.head(features), logits), "outputs are not head(features)"  # type: ignore[operator]
    assert torch.equal(model(inputs), logits), "outputs change from one run to the next"
    fresh = task.model().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(inputs), logits), "outputs depend on more than the weights"
    setting = Setting(batch_size=BATCH)
    alone, _ = predict(model, task, samples[-1:].numpy(), setting)
    together, _ = predict(model, task, samples.numpy(), setting)
    close = torch.allclose(torch.from_numpy(alone[0]), torch.from_numpy(together[-1]), atol=1e-4)
    assert close, "the outputs of a sample depend on the other samples of its batch"


def _check_gradients(model: torch.nn.Module, inputs: torch.Tensor) -> None:
    model.train()
    (model(inputs) ** 2).sum().backward()
    model.eval()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, f"no gradient reaches {unused[0]!r}: nothing would train it"


def _equal(a: Weights, b: Weights, what: str) -> None:
    assert a.keys() == b.keys(), f"{what}: other tensors: {set(a) ^ set(b)}"
    other = [name for name in a if not torch.equal(a[name], b[name])]
    assert not other, f"{what} give other values of {other[0]!r}"
