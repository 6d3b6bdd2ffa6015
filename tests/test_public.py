"""The public names of the package: all there, and each where it belongs."""

import memdec_edge
from memdec_edge import errors


def test_every_public_name_is_there() -> None:
    assert {name: getattr(memdec_edge, name).__name__ for name in memdec_edge.__all__} == {
        name: name for name in memdec_edge.__all__
    }
    assert set(memdec_edge.__all__) <= set(dir(memdec_edge))


def test_every_error_is_public() -> None:
    tree = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert tree <= set(memdec_edge.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(memdec_edge, "open_everything")
