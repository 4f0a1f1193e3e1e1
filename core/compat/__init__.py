"""Stand-ins for mamba-ssm, causal-conv1d and accelerated-scan: their users' code runs unchanged.

    import longseq.core.compat

    longseq.core.compat.install()
    from mamba_ssm import Mamba  # ours, where mamba-ssm is not installed

``longseq run script.py …`` does the same for a whole program; ``LONGSEQ_COMPAT=1`` does it when
this module is imported. An installed package is never shadowed unless ``force=True`` asks for it.
"""

from __future__ import annotations

from longseq.core.compat._finder import (
    STAND_INS,
    VARIABLE,
    install,
    install_by_environment,
    uninstall,
)

__all__ = ["STAND_INS", "VARIABLE", "install", "uninstall"]

install_by_environment()
