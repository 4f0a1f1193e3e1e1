"""Published weights become checkpoints of ours: sizes from shapes and folder names, strict keys."""

from pathlib import Path

import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.timeseries.models.autoformer import Autoformer
from longseq.timeseries.models.informer import Informer
from longseq.timeseries.models.spacetime import SpaceTime
from longseq.timeseries.models.tpgn import TPGN
from longseq.timeseries.published import read_published

L, H, LABEL = 24, 6, 8
WIDTHS = {"d_model": 16, "n_heads": 2, "d_ff": 20, "e_layers": 2, "d_layers": 1}
RUN = "informer_X_ftM_sl24_ll8_pl6_dm16_nh2_el2_dl1_df20_atprob_fc3_ebtimeF_dtTrue_mxTrue_test_0"


def published(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "informer":
        return Informer(2, L, H, LABEL, 4, factor=3, compat=True, **WIDTHS).eval()
    if name == "autoformer":
        return Autoformer(2, L, H, LABEL, 4, factor=3, compat=True, **WIDTHS).eval()
    if name == "spacetime":
        return SpaceTime(H, 16, 5, compat=True).eval()
    return TPGN(2, L, H, 6, 4, 4).eval()


@pytest.mark.parametrize("name", ["informer", "autoformer", "spacetime", "tpgn"])
def test_weights_give_the_same_forecast(name: str, tmp_path: Path) -> None:
    model = published(name)
    folder = tmp_path / RUN if name != "spacetime" else tmp_path / "run"
    folder.mkdir()
    state = model.state_dict()
    if name == "spacetime":  # the authors keep the weights in a training checkpoint
        torch.save({"epoch": 3, "state_dict": state}, folder / "checkpoint.pth")
    else:
        torch.save(
            {f"module.{key}": value for key, value in state.items()}, folder / "checkpoint.pth"
        )
    told = {"context": L, "horizon": H} if name == "spacetime" else {}
    task = read_published(folder, **told)
    assert (task.context, task.horizon) == (L, H) and not task.training
    x, x_mark, y_mark = torch.randn(3, L, 2), torch.rand(3, L, 4), torch.rand(3, H, 4)
    if name == "informer":
        assert task.model.encoder.attn_layers[0].attention.n_heads == 2
    with torch.no_grad():
        found, expected = [], []
        for into, one in ((found, task), (expected, None)):
            torch.manual_seed(1)  # the published attention draws its keys
            if one is not None:
                into.append(one(x, x_mark, y_mark))
            elif name == "spacetime":
                into.append(model(x))
            else:
                into.append(model(x, x_mark) if name == "tpgn" else model(x, x_mark, y_mark))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)


def test_what_is_not_whole_or_not_said_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    state = published("informer").state_dict()
    torch.save(state, file)
    with pytest.raises(ConfigError, match=r"do not say context.*--context"):
        read_published(file)
    told = {"context": L, "horizon": H, "label": LABEL, "n_heads": 2}
    with pytest.raises(ConfigError, match="Informer takes no moving_average"):
        read_published(file, moving_average=3, **told)
    torch.save({**state, "extra": torch.zeros(1)}, file)
    with pytest.raises(DataError, match="unexpected: extra"):
        read_published(file, **told)
    torch.save({key: value for key, value in state.items() if "temporal" not in key}, file)
    with pytest.raises(DataError, match="no whole Informer"):
        read_published(file, **told)
    torch.save({"other": torch.zeros(2)}, file)
    with pytest.raises(DataError, match="none of the layouts informer"):
        read_published(file, **told)


def test_the_command_writes_a_checkpoint_that_forecasts(
    wide_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / RUN
    folder.mkdir()
    torch.save(published("autoformer").state_dict(), folder / "checkpoint.pth")
    out = tmp_path / "a.ckpt"
    usual = ["timeseries", "import", str(folder), "--data", str(wide_csv), "--out", str(out)]
    assert main(usual) == 0
    assert "Autoformer of" in capsys.readouterr().out
    task = load_task(out, "timeseries")
    assert task.facts["imported"]["layout"] == "Autoformer" and len(task.facts["mean"]) == 2
    frame = tmp_path / "f.csv"
    asked = ["timeseries", "predict", str(wide_csv), "--ckpt_path", str(out), "--out", str(frame)]
    assert main(asked) == 0 and frame.is_file()
    assert main([*usual[:-1], str(tmp_path / "a.txt")]) == 2
