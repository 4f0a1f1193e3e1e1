"""What the packages export can be imported, and is imported no sooner than it is used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from longseq.core.domain import DOMAINS


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_export_is_there(domain: str) -> None:
    package = importlib.import_module(f"longseq.{domain}")
    assert len(package.__all__) > 3
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"'longseq.{domain}' has no attribute 'nonsense'"):
        _ = package.nonsense


def test_importing_a_domain_does_not_import_torch() -> None:
    code = "import sys\n" + "".join(f"import longseq.{domain}\n" for domain in DOMAINS)
    code += "import longseq.core.training\n"
    code += "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
