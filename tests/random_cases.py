"""Property tests whose cases are made from a seed, several of them compiled as one program."""

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def tried(test, one, count, together=1):
    """Run a test on `count` cases of `one(random)`, a list of `together` at a time and the same ones at each run.

    A case is made from a seed: Hypothesis would otherwise change one number of an example and try the rest again, and there
    is nothing to shrink.
    """
    checks = (HealthCheck.too_slow, HealthCheck.data_too_large)
    options = settings(
        max_examples=-(-count // together),
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=checks,
    )
    several = st.randoms(use_true_random=True).map(
        lambda random: [one(random) for _ in range(together)]
    )
    options(given(several)(test))()
