"""The registry of names: order, patterns, what is taken, and the nearest name for a misspelt
one."""

import pytest

from longseq.core.errors import ConfigError
from longseq.core.registry import Preset, Registry


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
