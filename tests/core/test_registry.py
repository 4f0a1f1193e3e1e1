"""The registry of names: order, patterns, what is taken, and the nearest name for a misspelt
one."""

import pytest

from longseq.core.errors import ConfigError
from longseq.core.registry import Preset, Registry, check_numbers


def plain(width: int = 3, depth: int = 1) -> tuple[int, int]:
    return width, depth


def test_names_keep_their_order_and_match_patterns() -> None:
    things: Registry[object] = Registry("toy")
    things.register("zebra")(plain)
    things.add("ant", Preset(plain))
    assert list(things) == ["zebra", "ant"] and things.names() == ["ant", "zebra"]
    assert things.names("z*") == ["zebra"] and len(things) == 2 and "bee" not in things
    with pytest.raises(ConfigError, match="no toy named 'zebre'; did you mean 'zebra'"):
        things["zebre"]


def test_a_name_is_taken_but_a_reload_replaces() -> None:
    things: Registry[object] = Registry("toy")
    things.add("plain", plain)
    things.add("plain", plain)
    with pytest.raises(ConfigError, match="a toy named 'plain' is registered already"):
        things.add("plain", Preset)


def test_a_preset_takes_the_arguments_of_its_class() -> None:
    preset = Preset(plain, {"width": 5})
    assert preset.create("p") == (5, 1) and preset.create("p", width=2, depth=4) == (2, 4)
    with pytest.raises(
        ConfigError, match="model 'p' has no hyper-parameter 'widht'; did you mean 'width'"
    ):
        preset.create("p", widht=1)


def test_text_where_a_number_is_declared_is_named() -> None:
    def function(size: int, decay: "float" = 0.9, name: str = "", other=None) -> None: ...

    check_numbers("it", function, {"size": 3, "decay": 1, "name": "x", "other": "y", "new": "z"})
    with pytest.raises(ConfigError, match="it: decay must be a number, got '1e-3'"):
        check_numbers("it", function, {"decay": "1e-3"})
    with pytest.raises(ConfigError, match="size must be a whole number"):
        check_numbers("it", function, {"size": [3]})
