"""Which peers are there: a bare folder of a package's name is none."""

from __future__ import annotations

import importlib

from longseq.bench import peers


def test_a_folder_of_the_name_is_no_package(tmp_path, monkeypatch) -> None:
    (tmp_path / "mambapy_of_nobody").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert peers._package("mambapy_of_nobody") is None and peers._package("no_such_name") is None
    (tmp_path / "mambapy_of_nobody" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert peers._package("mambapy_of_nobody") is not None and peers._package("torch") is not None
