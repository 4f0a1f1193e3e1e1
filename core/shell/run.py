"""``longseq run``: a program in which the stand-ins answer for packages that are not installed."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from longseq.core.compat import install
from longseq.core.compat._finder import environment
from longseq.core.errors import ConfigError
from longseq.core.files import require_file

USAGE = """usage: longseq run [--force] script.py [arguments]
       longseq run [--force] -m module [arguments]

Runs a Python program in which mamba_ssm, causal_conv1d, accelerated_scan, selective_scan_cuda and
causal_conv1d_cuda are longseq's own where they are not installed: on any machine, without a build.
Processes that the program starts (torchrun, jupyter, workers) have them too. Without a GPU,
"with torch.cuda.device(x.device)" does nothing for an x on the CPU instead of raising.

  --force  in place of installed ones as well
  -m       a module, as python -m"""


def run(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status.

    Args:
        argv: options, the script or ``-m`` and a module, and its arguments.

    Raises:
        ConfigError: for wrong usage, or a module that is not there.
        DataError: if the script is not there.
    """
    args = list(argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    force = args[0] == "--force"
    args = args[1:] if force else args
    module = args[:1] == ["-m"]
    args = args[1:] if module else args
    if not args or args[0].startswith("-"):
        raise ConfigError(
            f"longseq run needs {'a module' if module else 'a script'}; longseq run --help shows "
            "the usage"
        )
    target = args[0] if module else str(require_file(args[0], "script"))
    from longseq.core.compat._without_gpu import accept_cpu_devices  # torch: not for --help

    os.environ.update(environment(force))
    install(force)
    accept_cpu_devices()
    sys.argv = args
    # As python itself does: what lies beside the script, or in the current folder, is found.
    sys.path.insert(0, os.getcwd() if module else str(Path(target).resolve().parent))
    if module:
        _check_module(target)
    try:
        if module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except BrokenPipeError:  # python's own way of it
        raise
    except Exception:  # noqa: BLE001 - in a program of one's own the place matters
        traceback.print_exc()
        return 1
    return 0


def _check_module(name: str) -> None:
    """Checks that there is a module that can be run; as ``python -m``, it imports the parents.

    Raises:
        ConfigError: if there is none of this name.
    """
    for wanted in (name, f"{name}.__main__"):
        try:
            spec = importlib.util.find_spec(wanted)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{wanted}.".startswith(f"{error.name}."):
                raise  # of an import inside a parent
            spec = None
        except ValueError:  # an empty part: "a..b"
            spec = None
        if spec is None:
            raise ConfigError(
                f"-m {name}: no module {wanted}; a script is run by its path, without -m"
            )
        if spec.submodule_search_locations is None:
            return
