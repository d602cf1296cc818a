"""What the tests of the parameter server share."""

import pytest
from toy_fleet import Toy, toy_plan


@pytest.fixture
def toy():
    return Toy(toy_plan())
