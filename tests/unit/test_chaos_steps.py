"""The steps at which chaos kills a process are places in today's code."""

import pytest

from tests.chaos.steps import STEPS, Step, find


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.service} {step.name}")
def test_every_step_exists_in_the_code(step: Step) -> None:
    holder, name = find(step.target)
    assert callable(getattr(holder, name))
