"""A metric and a loss of the user: the page of the guide, and what breaks their contract."""

import msgspec
import numpy as np
import pytest
import torch
from own_code import files_of, standing_in

from soupray.core import plugins
from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Predictions, Split, digest
from soupray.maths.metrics import score, value
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.training.losses import TrainingLoss

MODEL_FILES, FILES = files_of("index", "task", "data"), files_of("metric", "loss")
OWN = "metric: calibrated:brier\nloss: robust:gce\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    with standing_in(tmp_path / "mine", {**MODEL_FILES, **FILES}, monkeypatch) as folder:
        yield folder


def spec_of(here, more: str = "") -> SweepSpec:
    return parse(f"{MODEL_FILES['letters.yaml']}{OWN}{more}", "own.yaml")


def predictions(metric: str, logits, labels) -> Predictions:
    code = plugins.digest_of("soupray.metrics", metric)
    logits = np.asarray(logits, np.float32)
    split = Split(name="held_out", role="held_out", digest=digest("x"), size=len(logits),
                  classes=logits.shape[1], metric=(metric, code))  # fmt: skip
    return Predictions(split=split, logits=logits, labels=np.asarray(labels, np.int64))


def test_the_metric_of_the_page_by_hand(here):
    said = predictions("calibrated:brier", [[0, 0], [np.log(3), 0]], [0, 0])
    found = score(said)
    # p = (1/2, 1/2) and (3/4, 1/4): 1 - (1/4 + 1/4) / 2 and 1 - (1/16 + 1/16) / 2
    assert value(found, "calibrated:brier") == pytest.approx((0.75 + 0.9375) / 2)
    assert found.correct == 2
    with pytest.raises(ValueError, match="these scores have no measures:other"):
        value(found, "measures:other")


def test_the_loss_of_the_page_by_hand(here):
    own = ("robust:gce", plugins.digest_of("soupray.losses", "robust:gce"))
    made = TrainingLoss(Hyperparameters(lr=1, epochs=1), msgspec.UNSET, torch.tensor([0]), own)
    outputs = torch.tensor([[0.0, 0.0], [float(np.log(3)), 0.0]], requires_grad=True)
    losses = [(1 - p**0.7) / 0.7 for p in (0.5, 0.75)]
    assert made(outputs, torch.tensor([0, 0])).item() == pytest.approx(sum(losses) / 2)


def test_keys_follow_the_code_of_metric_and_loss(here):
    first = spec_of(here)
    assert first.own_metric == ("calibrated:brier", first.metric_code)
    assert first.own_loss == ("robust:gce", first.loss.code)
    for name in ("calibrated.py", "robust.py"):
        (here / name).write_text(FILES[name] + "# edited\n")
    second = spec_of(here)
    assert second.own_metric != first.own_metric
    assert second.own_loss != first.own_loss
    assert second.digest != first.digest


def test_other_objectives_take_metrics_of_the_user_too(here):
    assert spec_of(here, "objective: multi_label\n").metric == "calibrated:brier"
    with pytest.raises(ConfigError, match="there is no metric 'acuracy'; did you mean 'accuracy'"):
        parse(f"{MODEL_FILES['letters.yaml']}metric: acuracy\n", "own.yaml")


WRONG = {
    "return [float('nan')] * len(outputs)": "it returned a value that is NaN or infinite",
    "return float('inf')": "it returned a value that is NaN or infinite",
    "return np.arange(len(outputs))": "it returned 2 for sample 2. The value of a sample is from 0",
    "return np.ones((2, 2))": r"it returned an array \[2, 2\]. Return a number, or one for each",
    "return 'good'": "it returned str. Return a number, or one for each sample",
    "return None": "it returned NoneType. Return a number",
    "return outputs / nothing": r"raised NameError: .* \(.*broken.py:2\)",
}


@pytest.mark.parametrize("body", WRONG)
def test_a_metric_that_breaks_its_contract_is_named(here, body):
    (here / "broken.py").write_text(f"import numpy as np\ndef metric(outputs, targets): {body}\n")
    said = predictions("broken:metric", np.eye(3), [0, 1, 2])
    with pytest.raises(EvaluationError, match=WRONG[body]) as error:
        score(said)
    assert "metric 'broken:metric' (" in str(error.value)


def test_a_metric_may_be_one_number_without_bounds(here):
    (here / "broken.py").write_text("def metric(outputs, targets): return -7.5\n")
    assert value(score(predictions("broken:metric", np.eye(3), [0, 1, 2])), "broken:metric") == -7.5


def test_what_a_metric_changes_in_place_is_its_own_copy(here):
    (here / "broken.py").write_text(
        "def metric(outputs, targets):\n    outputs -= 9\n    targets[:] = 0\n    return 0.5\n"
    )
    said = predictions("broken:metric", np.eye(3), [0, 1, 2])
    assert value(score(said), "broken:metric") == 0.5
    assert np.array_equal(said.logits, np.eye(3))
    assert said.labels.tolist() == [0, 1, 2]


def test_other_code_than_that_of_the_sweep_is_refused(here):
    said = predictions("calibrated:brier", np.eye(3), [0, 1, 2])
    (here / "calibrated.py").write_text(FILES["calibrated.py"] + "# edited\n")
    plugins.load.cache_clear()
    with pytest.raises(
        EvaluationError, match=r"the code here has the digest .*, that of the sweep"
    ):
        score(said)
