"""The benchmark of chaos: a small run from the command line to the table."""

import pandas as pd

from longseq.core.shell.cli import main


def test_a_small_run(tmp_path, capsys):
    out = tmp_path / "chaos.csv"
    argv = ["bench", "chaos", "--systems", "henon,logistic", "--rows", "300", "--starts", "3"]
    assert main([*argv, "--models", "persistence,linear,reservoir", "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert len(table) == 6
    best = table[table["system"] == "henon"].set_index("model")["lyapunov_times"]
    assert best["reservoir"] > best["linear"] >= best["persistence"]
    assert "mean over the systems" in capsys.readouterr().out


def test_wrong_names_are_refused(capsys):
    assert main(["bench", "chaos", "--systems", "lorentz"]) == 2
    assert "lorenz" in capsys.readouterr().err
    assert main(["bench", "chaos", "--models", "mixer-x"]) == 2
    assert main(["bench", "chaos", "--rows", "3"]) == 2
