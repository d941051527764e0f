"""What all tests of scripts share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def small_figures():
    """Write figures with a quarter of the dots, as half of the time to draw one is that of its pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.plots.style.DPI", 40)
        yield
