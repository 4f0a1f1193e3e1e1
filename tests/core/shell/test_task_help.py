"""The help of task commands is made once: the second time neither torch nor Lightning is imported."""

import subprocess
import sys

CODE = """
import sys
from longseq.core.shell.cli import main
status = main(["genomics", "test", "--help"])
print("heavy" if "torch" in sys.modules or "lightning" in sys.modules else "light", file=sys.stderr)
sys.exit(status)
"""


def test_the_second_help_is_light_and_equal(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path))
    first, second = (
        subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert "heavy" in first.stderr and "light" in second.stderr
    assert first.stdout == second.stdout
    assert "--trainer.devices" in first.stdout and "--ckpt_path" in first.stdout
    assert len(list((tmp_path / "help").iterdir())) == 1
