"""The scenarios of the domain page, run on the second model, which was written from the same page."""

from pathlib import Path

import pytest
from pytest_bdd import scenarios

from tests.acceptance.model_platform import ModelPlatform

SCENARIOS = Path(__file__).parent / "scenarios"


@pytest.fixture
def platform() -> ModelPlatform:
    """Return a model for one scenario."""
    return ModelPlatform()


def test_every_scenario_of_the_domain_page_exists() -> None:
    names = sorted(path.name for path in SCENARIOS.glob("*.feature"))
    assert [int(name.partition("_")[0]) for name in names] == list(range(1, 31))


scenarios("scenarios")
