"""What the header says of the data."""

import pytest

from metarun.runs.report import understood


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "1 feature: f0"),
        (8, "8 features: f0, f1, f2, f3, f4, f5, f6, f7"),
        (9, "9 features: f0 … f8"),
    ],
)
def test_up_to_eight_features_are_named(count, said):
    assert understood({"features": [f"f{i}" for i in range(count)]}) == {"columns": said}
