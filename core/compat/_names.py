"""Errors of the published packages' names that longseq does not offer."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from typing import Any, Final

PREFIX: Final = "longseq.core.compat."
_IMPORT_FROM = dis.opmap["IMPORT_FROM"]


def published(module: str) -> str:
    """Returns what a module stands for: mamba_ssm.ops for longseq.core.compat.mamba_ssm.ops."""
    return module.removeprefix(PREFIX)


def module_getattr(module: str) -> Callable[[str], Any]:
    """Returns a module's ``__getattr__``: it says by name that longseq does not offer something.

    ``from module import name`` gets an ImportError, which published code often catches; anything
    else an AttributeError, so that ``hasattr`` works.

    Args:
        module: its ``__name__``.
    """

    def getattribute(name: str) -> Any:
        offered = vars(sys.modules[module]).get("__all__", ())
        text = (
            f"longseq's stand-in for {published(module)} does not offer {name!r}; it offers "
            f"{', '.join(offered) or 'modules only'}"
        )
        frame = sys._getframe(1)
        if not name.startswith("_") and frame.f_code.co_code[frame.f_lasti] == _IMPORT_FROM:
            raise ImportError(text, name=module)
        raise AttributeError(text)

    return getattribute
