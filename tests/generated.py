"""Values for tests of what holds for any input. Each run gets the same ones."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# A slow machine fails nothing.
steady = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# What JSON can spell, and of it what every database keeps.
ANY_TEXT = st.text(st.characters())
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


def values(text):
    numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    return st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=8,
    )


VALUES = values(TEXT)
