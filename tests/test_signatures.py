"""Options that are said once: what `with_options_of` makes of a signature and a docstring."""

import inspect
from typing import TypedDict, get_type_hints

import pytest
from typing_extensions import Unpack

from rnn_blocks.signatures import with_options_of


class Options(TypedDict, total=False):
    width: int
    name: str | None


class Base:
    """Has options.

    Args:
        size: of it,
            in metres.
        width: across.
        name: what it is called.

    Raises:
        ValueError: never.
    """

    def __init__(self, size: int, *, width: int = 1, name: str | None = None) -> None:
        self.options = (size, width, name)


def test_a_class_shows_the_options_of_its_base_and_its_own():
    @with_options_of(Base)
    class Wide(Base):
        """Is wide.

        Args:
            depth: into the page.
            name: another word for it.

        >>> Wide(1)
        """

        def __init__(self, size: int, *, depth: float = 2.0, name: str = "w", **options: Unpack[Options]) -> None:
            super().__init__(size, name=name, **options)

    assert str(inspect.signature(Wide)) == "(size: int, *, depth: float = 2.0, name: str = 'w', width: int = 1) -> None"
    assert inspect.getdoc(Wide) == (
        "Is wide.\n\nArgs:\n    size: of it,\n        in metres.\n    depth: into the page.\n"
        "    name: another word for it.\n    width: across.\n\n>>> Wide(1)"
    )
    hints = {"size": int, "depth": float, "name": str, "width": int, "return": type(None)}
    assert get_type_hints(Wide.__init__) == hints
    assert Wide(3, width=5).options == (3, 5, "w")
    assert "name: what it is called" in inspect.getdoc(Base)
    with pytest.raises(TypeError, match="unexpected keyword argument 'length'"):
        Wide(3, length=5)


def test_a_docstring_without_arguments_gets_them_before_what_it_raises():
    @with_options_of(Base)
    def make(**options: Unpack[Options]) -> Base:
        """Make one.

        Raises:
            TypeError: for other options.
        """
        return Base(0, **options)

    assert inspect.getdoc(make) == (
        "Make one.\n\nArgs:\n    width: across.\n    name: what it is called.\n\n"
        "Raises:\n    TypeError: for other options."
    )
    assert make(name="one").options == (0, 1, "one")


def test_without_options_of_its_own_to_spell_out_it_refuses():
    with pytest.raises(TypeError, match=r"Narrow takes no \*\*options that those of Base could be"):

        @with_options_of(Base)
        class Narrow(Base):
            def __init__(self, size: int) -> None:
                super().__init__(size)

    with pytest.raises(TypeError, match=r"Bare takes no \*\*options"):

        @with_options_of(Base)
        class Bare(Base):
            pass

    with pytest.raises(TypeError, match=r"nothing takes no \*\*options"):

        @with_options_of(Base)
        def nothing() -> None:
            pass
