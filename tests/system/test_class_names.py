"""Names of classes as users type them."""

import pytest

from ffcv_train.system.class_names import label_called

CAFE, COMPOSED = "cafe\u0301", "caf\u00e9"


@pytest.mark.parametrize(
    ("names", "text", "label"),
    [
        (("bee", CAFE), CAFE, 1),
        (("bee", CAFE), COMPOSED, 1),  # macOS stores the one, keyboards type the other
        ((COMPOSED, CAFE), CAFE, 1),
        ((COMPOSED, "Caf\u00e9"), CAFE, 0),
        (("crane", "crane"), "crane", None),
        ((COMPOSED, COMPOSED), CAFE, None),
        (("bee",), "Bee", None),
    ],
)
def test_a_name_is_known_however_it_is_composed(names: tuple[str, ...], text: str, label: int | None) -> None:
    assert label_called(names, text) == label
