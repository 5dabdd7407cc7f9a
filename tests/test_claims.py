"""The rules that say whether a claim of a paper holds in a pool, and the page that has them."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def claims():
    found = importlib.util.spec_from_file_location("claims", ROOT / "scripts" / "claims.py")
    module = importlib.util.module_from_spec(found)
    sys.modules["claims"] = module
    found.loader.exec_module(module)
    return module


def test_a_sign_test_decides(claims):
    assert claims.counted(9, 10, "pairs") == ("holds", "9 of 10 pairs, p = .021")
    assert claims.counted(1, 10, "pairs")[0] == "does not hold"
    assert claims.counted(6, 10, "pairs") == ("cannot tell", "6 of 10 pairs, p = .754")
    assert claims.counted(0, 0, "pairs")[0] == "cannot tell"
    assert claims.counted(20, 20, "pairs")[1] == "20 of 20 pairs, p < .001"


def test_a_correlation_has_a_direction(claims):
    xs = [float(k) for k in range(10)]
    assert claims.correlated(xs, xs, 1)[0] == "holds"
    assert claims.correlated(xs, xs, -1)[0] == "does not hold"
    assert claims.correlated(xs, [0.0, 1.0] * 5, 1)[0] == "cannot tell"
    assert claims.correlated(xs[:3], xs[:3], 1) == ("cannot tell", "3 pairs are too few")


def rho(name: str, low: float, value: float, high: float) -> dict:
    return {"name": name, "low": low, "rho": value, "high": high}


def test_intervals_that_do_not_touch_decide(claims):
    single, line = rho("best_single", -0.04, -0.03, -0.02), "wise_ft(best_single, half)"
    assert claims.wise_ft({"means": [single, rho(line, 0.01, 0.05, 0.06)]}) == (
        "holds",
        "+5.0 against -3.0",
    )
    assert claims.wise_ft({"means": [single, rho(line, -0.03, 0.0, 0.03)]})[0] == "cannot tell"
    assert claims.wise_ft({"means": [single, rho(line, -0.9, -0.8, -0.7)]})[0] == "does not hold"
    assert claims.wise_ft({"means": [single]})[0] == "cannot tell"
    assert claims.soups({"means": [rho("uniform", 0.1, 0.2, 0.3)]})[0] == "holds"


def test_a_difference_across_families_has_an_interval(claims):
    def made(*gain: float) -> dict:
        return {"contrasts": [{"gain": gain}]}

    assert claims.across("gain")(made(0.02, 0.01, 0.03)) == ("holds", "+2.0 [+1.0, +3.0] points")
    assert claims.across("gain")(made(-0.02, -0.03, -0.01))[0] == "does not hold"
    assert claims.across("gain")(made(0.02, -0.01, 0.05))[0] == "cannot tell"


def test_trials_below_the_middle_help_or_not(claims):
    def trial(accuracy: float, low: float, high: float) -> dict:
        return {"accuracy": accuracy, "loss_low": low, "loss_high": high}

    good, bad, unsure = trial(0.5, -2, -1), trial(0.6, 1, 2), trial(0.7, -1, 1)
    top = [trial(0.9, 1, 2)] * 4
    assert claims.low_accuracy({"trials": [good, bad, *top]})[0] == "holds"
    assert claims.low_accuracy({"trials": [bad, *top]})[0] == "does not hold"
    assert claims.low_accuracy({"trials": [unsure, *top]})[0] == "cannot tell"


def test_a_mixture_may_be_smoother_in_one_place(claims):
    def part(where: str, low: float, high: float) -> dict:
        return {"name": "soup of these", "where": where, "difference": (low + high) / 2,
                "low": low, "high": high}  # fmt: skip

    smoother = claims.smoother("soup")
    within, between = part("within classes", -0.2, 0.1), part("between classes", -0.3, -0.1)
    assert smoother({"differences": [within, between]}) == (
        "holds between classes",
        "within -5.0 [-20.0, +10.0]; between -20.0 [-30.0, -10.0]",
    )
    assert smoother({"differences": [within, within]})[0] == "cannot tell"
    assert smoother({"differences": []})[0] == "cannot tell"


def test_the_page_has_a_row_for_each_claim(claims):
    page = (ROOT / "docs" / "papers.md").read_text()
    for claim in claims.CLAIMS:
        assert f"| {claim.text} ([{claim.paper}]" in page
