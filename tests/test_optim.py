"""Groups of parameters, what is frozen, and the moving average, by hand."""

import pytest
import torch

from soupray.core.errors import TrialError
from soupray.training.optim import MovingAverage, adamw, below_head, train_last_blocks


class Tower(torch.nn.Module):
    """An embedding, three blocks, a norm, a head."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Linear(2, 2, bias=False)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(3))
        self.norm = torch.nn.Linear(2, 2, bias=False)
        self.head = torch.nn.Linear(2, 2, bias=False)


def test_how_far_a_tensor_is_below_the_head():
    assert below_head(Tower()) == {
        "embedding.weight": 4,
        "blocks.0.weight": 3,
        "blocks.1.weight": 2,
        "blocks.2.weight": 1,
        "norm.weight": 0,
        "head.weight": 0,
    }


def test_the_rate_decays_by_layer():
    model = Tower()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = adamw(model, 0.1, 0.0, layer_decay=0.5).param_groups
    scales = {names[id(p)]: g["scale"] for g in groups for p in g["params"]}
    assert scales == {
        "embedding.weight": 1 / 16,
        "blocks.0.weight": 1 / 8,
        "blocks.1.weight": 1 / 4,
        "blocks.2.weight": 1 / 2,
        "norm.weight": 1,
        "head.weight": 1,
    }
    (group,) = adamw(model, 0.1, 0.0).param_groups
    assert group["scale"] == 1


def test_the_last_blocks_and_what_follows_are_trained():
    model = Tower()
    train_last_blocks(model, 2)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ["blocks.1.weight", "blocks.2.weight", "norm.weight", "head.weight"]
    assert len(adamw(model, 0.1, 0.0).param_groups[0]["params"]) == 4
    with pytest.raises(TrialError, match="last_blocks = 4, but the model has 3"):
        train_last_blocks(model, 4)


def test_a_model_without_blocks_says_so():
    with pytest.raises(TrialError, match=r"numbered blocks.*'weight'"):
        below_head(torch.nn.Linear(2, 2))


def test_a_moving_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    model.register_buffer("seen", torch.tensor(0))
    model.weight.data.fill_(1.0)
    average = MovingAverage(model, decay=0.25)
    for step, value in ((1, 2.0), (2, 4.0)):
        model.weight.data.fill_(value)
        model.seen += 1
        average.update(model, step)
    # The decay is 2/11 after the first step; 3/12 after the second, as far as it may grow.
    first = 2 / 11 * 1 + 9 / 11 * 2
    assert average.model.weight.item() == pytest.approx(0.25 * first + 0.75 * 4)
    assert average.model.seen == 2
    assert not average.model.weight.requires_grad
