"""torchmetrics is loaded without scipy.signal, and nobody notices."""

import subprocess
import sys

import pytest

pytest.importorskip("scipy")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_task_loads_no_scipy_signal():
    run(
        "import sys, longseq.core.training.task, torchmetrics\n"
        "assert 'scipy.signal' not in sys.modules\n"
        "import scipy\n"
        "assert 'signal' not in vars(scipy)\n"
        "assert scipy.signal.convolve([1, 2], [1, 3]).tolist() == [1, 5, 6]\n"
        "from scipy import signal\n"
        "assert signal is sys.modules['scipy.signal'] is scipy.signal\n"
        # torchmetrics' own gift to SRMRpy.
        "assert signal.hamming is signal.windows.hamming\n"
        "import inspect\n"
        "assert 'functional' in inspect.getsource(torchmetrics)\n"
    )


def test_who_asks_while_torchmetrics_loads_gets_the_module_itself():
    run(
        "import sys, longseq.core\n"
        "from longseq.core.lean_imports import _standing_in\n"
        "with _standing_in():\n"
        "    import scipy.signal\n"
        "    assert hasattr(scipy.signal, 'hamming')\n"
        "    assert type(sys.modules['scipy.signal']).__name__ == '_Later'\n"
        "    from scipy.signal import convolve\n"
        "    assert convolve([1, 2], [1, 3]).tolist() == [1, 5, 6]\n"
        "import scipy.signal\n"
        "assert scipy.signal.convolve is convolve\n"
    )


def test_what_is_loaded_already_stays():
    run(
        "import scipy.signal, sys\n"
        "before = scipy.signal\n"
        "import longseq.core, torchmetrics\n"
        "assert sys.modules['scipy.signal'] is scipy.signal is before\n"
    )


def test_the_hook_is_installed_once():
    out = run(
        "import sys, longseq.core\n"
        "from longseq.core import lean_imports\n"
        "lean_imports.install()\n"
        "print(sum(isinstance(one, lean_imports._Finder) for one in sys.meta_path))\n"
    )
    assert out.split() == ["1"]
