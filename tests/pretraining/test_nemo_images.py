"""Which NeMo image has which Transformer Engine; of Megatron-Bridge `tests/playbook/publish/test_stacks.py` asks."""

import pytest

from pretraining import nemo_images, packages


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ((2, 8), "NeMo 25.11 has 2.9 (TAG=25.11)"),
        ((2, 14), "NeMo 26.04 has 2.14 (TAG=26.04)"),
        ((2, 18), "NeMo 26.08 has 2.17, so take a newer one (TAG=)"),
    ],
)
def test_the_first_image_that_has_a_release_is_named(release: tuple[int, int], said: str) -> None:
    assert nemo_images.with_engine(release) == said


@pytest.mark.parametrize(
    ("tag", "lacks"),
    [("25.07", True), ("26.02", True), ("26.04.01", False), ("26.06", False), ("26.10", False), ("27.01", False)],
)
def test_an_image_lacks_a_release_only_where_that_is_known(tag: str, lacks: bool) -> None:
    assert nemo_images.lacks_engine(tag, (2, 14)) is lacks


def test_what_is_known_ends_with_26_08() -> None:
    assert nemo_images.lacks_engine("26.08.01", packages.PROBED)
    assert not nemo_images.lacks_engine("26.10.01", packages.PROBED)
