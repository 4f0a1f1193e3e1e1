"""Read by Python as it starts where this folder is on PYTHONPATH: ``longseq run`` puts it there."""

import importlib.util
import os
import sys
from importlib.machinery import PathFinder

_here = os.path.dirname(os.path.abspath(__file__))
# The environment's own, which this one hides.
_spec = PathFinder.find_spec("sitecustomize", [p for p in sys.path if os.path.abspath(p) != _here])
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))

if os.environ.get("LONGSEQ_COMPAT", "0") != "0" and importlib.util.find_spec("longseq") is not None:
    import longseq.core.compat  # noqa: F401 - installs by LONGSEQ_COMPAT
