"""What the field trains with where nobody says otherwise: the learning rate of each method, and its warm-up."""

FULL = "full"
LEARNING_RATES = {FULL: 2e-5}
"""By method, where none is given: a tenth of an adapter's, which is the ratio that published sweeps found."""
ADAPTER_LEARNING_RATE = 2e-4
WARM_UP_SHARE = 0.1
"""Of all optimizer steps."""


def usual_learning_rate(method: str) -> float:
    return LEARNING_RATES.get(method, ADAPTER_LEARNING_RATE)
