"""How many examples a test tries: all of them, or under the profile `quick` of `make test` a part."""

from hypothesis import settings

FULL = 100
"""Examples of a test that does not say how many, as Hypothesis has it."""


def examples(most: int) -> int:
    """``most`` of them, or the same part of them as the loaded profile has of :data:`FULL`."""
    return max(1, most * settings.default.max_examples // FULL)
