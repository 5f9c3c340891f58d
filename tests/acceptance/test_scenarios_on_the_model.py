"""The scenarios of the domain page, told to the second model: both were written from the same page."""

import pytest

from tests.acceptance.model_platform import ModelPlatform
from tests.acceptance.steps import SCENARIOS, Scenario


def test_every_scenario_of_the_domain_page_is_told() -> None:
    assert [scenario.number for scenario in SCENARIOS] == list(range(1, 31))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_the_model_agrees_with(scenario: Scenario) -> None:
    await scenario.play(ModelPlatform())
