"""The published Vim and VMamba code on a CPU: what it imports and a CPU has not is replaced by
stand-ins.

Vim's fused CUDA function is rebuilt from the sequential ``selective_scan_ref`` of the same
checkout, its fused norm is switched off; VMamba runs with its own ``selective_scan_torch``.
``einops`` must be importable.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class _DropPath(nn.Module):
    """Does nothing: the comparisons are without stochastic depth."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return x


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    module.__path__ = []  # a package, so that its children can be imported
    return module


def _nothing(*args: Any, **kwargs: Any) -> Any:
    return None


@contextmanager
def _stand_ins(modules: dict[str, types.ModuleType], paths: list[Path]) -> Iterator[None]:
    """Puts modules and paths in place for an import and takes them away again."""
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    sys.path[:0] = [str(path) for path in paths]
    try:
        yield
    finally:
        del sys.path[: len(paths)]
        for name, module in kept.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops what the modules print and warn of when there is no CUDA."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _timm() -> dict[str, types.ModuleType]:
    parts = {
        "DropPath": _DropPath,
        "trunc_normal_": nn.init.trunc_normal_,
        "lecun_normal_": lambda tensor: nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5),
        "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
    }
    return {
        "timm": _module("timm"),
        "timm.models": _module("timm.models"),
        "timm.models.layers": _module("timm.models.layers", **parts),
        "timm.models.registry": _module("timm.models.registry", register_model=lambda f: f),
        "timm.models.vision_transformer": _module(
            "timm.models.vision_transformer",
            VisionTransformer=nn.Module,
            _cfg=dict,
            _load_weights=_nothing,
        ),
    }


def _load(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_vim(root: str | Path) -> types.ModuleType:
    """Returns ``models_mamba`` of a checkout of hustvl/Vim, its scan running in plain torch.

    Args:
        root: the checkout.
    """
    root = Path(root)
    mamba = root / "mamba-1p1p1"
    conv = _module("causal_conv1d", causal_conv1d_fn=None, causal_conv1d_update=None)
    cuda = {name: _module(name) for name in ("causal_conv1d_cuda", "selective_scan_cuda")}
    with _stand_ins({"causal_conv1d": conv, **cuda}, []), _quiet():
        scan = _load("vim_scan", mamba / "mamba_ssm/ops/selective_scan_interface.py")

    def no_out_proj(
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        x_proj: Tensor,
        dt_proj: Tensor,
        A: Tensor,
        B: None,
        C: None,
        D: Tensor,
        delta_bias: Tensor,
        delta_softplus: bool,
    ) -> Tensor:
        """What the fused function computes, xz (B, 2·D, L) to (B, D, L)."""
        length, rank, states = xz.shape[-1], dt_proj.shape[1], A.shape[1]
        x, z = xz.chunk(2, dim=1)
        x = F.conv1d(
            x, conv_weight, conv_bias, padding=conv_weight.shape[-1] - 1, groups=x.shape[1]
        )
        x = F.silu(x[..., :length])
        dt, B, C = (x_proj @ x).split([rank, states, states], dim=1)
        return scan.selective_scan_ref(
            x, dt_proj @ dt, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus
        )

    interface = _module(
        "mamba_ssm.ops.selective_scan_interface",
        selective_scan_fn=scan.selective_scan_ref,
        mamba_inner_fn=None,
        bimamba_inner_fn=None,
        mamba_inner_fn_no_out_proj=no_out_proj,
    )
    norm = _module(
        "mamba_ssm.ops.triton.layer_norm", RMSNorm=nn.RMSNorm, layer_norm_fn=None, rms_norm_fn=None
    )
    packages = {
        name: _module(name)
        for name in (
            "mamba_ssm",
            "mamba_ssm.ops",
            "mamba_ssm.ops.triton",
            "mamba_ssm.modules",
            "mamba_ssm.utils",
        )
    }
    stand_ins = {
        **_timm(),
        **packages,
        interface.__name__: interface,
        norm.__name__: norm,
        "mamba_ssm.ops.triton.selective_state_update": _module(
            "update", selective_state_update=None
        ),
        "mamba_ssm.utils.generation": _module("generation", GenerationMixin=object),
        "mamba_ssm.utils.hf": _module("hf", load_config_hf=_nothing, load_state_dict_hf=_nothing),
        "causal_conv1d": conv,
    }
    with _stand_ins(stand_ins, [root / "vim"]):
        simple = _load(
            "mamba_ssm.modules.mamba_simple", mamba / "mamba_ssm/modules/mamba_simple.py"
        )
        sys.modules[simple.__name__] = simple
        try:
            return _load("vim_models", root / "vim/models_mamba.py")
        finally:
            del sys.modules[simple.__name__]


def make_vim(module: types.ModuleType, **kwargs: Any) -> nn.Module:
    """Returns a model as the published weights have it: two directions halved, class token in the
    middle."""
    return module.VisionMamba(
        rms_norm=True,
        residual_in_fp32=True,
        fused_add_norm=False,
        final_pool_type="mean",
        bimamba_type="v2",
        if_abs_pos_embed=True,
        if_cls_token=True,
        if_divide_out=True,
        use_middle_cls_token=True,
        **kwargs,
    )


def load_vmamba(root: str | Path) -> types.ModuleType:
    """Returns ``vmamba`` of a checkout of MzeroMiko/VMamba, everything in plain torch; with einops,
    its models with Mamba-2's scan too.

    Args:
        root: the checkout.
    """
    folder = Path(root) / "classification/models"
    fvcore = _module(
        "fvcore.nn",
        **dict.fromkeys(("FlopCountAnalysis", "flop_count_str", "flop_count", "parameter_count")),
    )
    minimal = _module("mamba2.ssd_minimal", selective_scan_chunk_fn=None)
    if importlib.util.find_spec("einops") is not None:
        hidden: Any = {"triton": None}  # so that it takes its own form in plain torch
        with _stand_ins(hidden, []), _quiet():
            minimal = _load(minimal.__name__, folder / "mamba2/ssd_minimal.py")
    stand_ins = {
        **_timm(),
        "fvcore": _module("fvcore"),
        "fvcore.nn": fvcore,
        "mamba2": _module("mamba2"),
        "mamba2.ssd_minimal": minimal,
    }
    with _stand_ins(stand_ins, [folder]), _quiet():
        scans = importlib.import_module("csm_triton")
        module = _load("vmamba_models", folder / "vmamba.py")

    def on_cpu(function: Any) -> Any:  # upstream's wrappers enter a CUDA device first
        def apply(
            x: Tensor,
            in_channel_first: bool = True,
            out_channel_first: bool = True,
            one_by_one: bool = False,
            scans: int = 0,
            force_torch: bool = False,
        ) -> Tensor:
            return function.apply(x, in_channel_first, out_channel_first, one_by_one, scans)

        return apply

    vars(module).update(
        cross_scan_fn=on_cpu(scans.CrossScanF), cross_merge_fn=on_cpu(scans.CrossMergeF)
    )
    return module
