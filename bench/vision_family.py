"""The published code of the vision family on a CPU, for comparing results: what it imports and a
CPU has not is replaced by stand-ins.

Checkouts lie side by side in one folder, under the names of ``CHECKOUTS``. ``timm``, ``einops`` and
``PyWavelets`` must be importable.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.bench.vision_equations import vir  # noqa: F401
from longseq.bench.vision_upstream import _load, _module, _quiet, _stand_ins, load_vim

CHECKOUTS = {
    "mambavision": "NVlabs/MambaVision",
    "mobilemamba": "lewandofskee/MobileMamba",
    "groupmamba": "Amshaker/GroupMamba",
    "inceptionnext": "sail-sg/inceptionnext",
    "dinat": "SHI-Labs/Neighborhood-Attention-Transformer",
    "favit": "q2479036243/FaViT",
    "efficientvmamba": "TerryPei/EfficientVMamba",
    "mhsvm": "PixDeep/MHS-VM",
}


_OWN = ("nat", "csms6s", "csm_triton", "csm_tritonk2", "ss2d")
"""Modules of several checkouts that have the same name."""


def _forget() -> None:
    for name in _OWN:
        sys.modules.pop(name, None)


def _fvcore() -> dict[str, types.ModuleType]:
    names = ("FlopCountAnalysis", "flop_count_str", "flop_count", "parameter_count")
    return {
        "fvcore": _module("fvcore"),
        "fvcore.nn": _module("fvcore.nn", **dict.fromkeys(names)),
    }


def _timm() -> dict[str, types.ModuleType]:
    """The places where older releases of timm had what these files import."""
    for name in ("timm.models._builder", "timm.models.vision_transformer"):
        importlib.import_module(name)
    own = vars(importlib.import_module("timm.layers"))

    def register(function: Any) -> Any:
        return function

    layers = _module("timm.models.layers", **own)
    return {
        "timm.models.layers": layers,
        "timm.models.layers.helpers": _module(
            "timm.models.layers.helpers", to_2tuple=own["to_2tuple"]
        ),
        "timm.models.helpers": _module("timm.models.helpers", checkpoint_seq=None),
        "timm.models.registry": _module("timm.models.registry", register_model=register),
    }


def _scan(root: Path) -> Callable[..., Tensor]:
    """Returns the sequential selective scan of the Vim checkout beside the others."""
    load_vim(root / "Vim")
    cuda = {name: _module(name) for name in ("causal_conv1d_cuda", "selective_scan_cuda")}
    conv = _module("causal_conv1d", causal_conv1d_fn=None, causal_conv1d_update=None)
    path = root / "Vim/mamba-1p1p1/mamba_ssm/ops/selective_scan_interface.py"
    with _stand_ins({"causal_conv1d": conv, **cuda}, []), _quiet():
        return _load("family_scan", path).selective_scan_ref


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Leaves tensors where they are when code asks for CUDA."""
    kept = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self if args == ("cuda",) else kept(self, *args, **kwargs)

    Tensor.to = to  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Tensor.to = kept  # type: ignore[method-assign]


class _SequentialScan:
    """The selective scan of VMamba's CUDA kernels, (B, K·D, L), one step at a time."""

    @staticmethod
    def apply(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        bias: Tensor,
        softplus: bool,
        *_: Any,
    ) -> Tensor:
        delta = F.softplus(delta + bias[:, None])
        lanes, states = u.shape[1] // B.shape[1], A.shape[1]
        B, C = (v.repeat_interleave(lanes, 1) for v in (B, C))  # (b, d, n, l)
        h, rows = u.new_zeros(*u.shape[:2], states), []
        for t in range(u.shape[2]):
            step = delta[..., t, None]
            h = torch.exp(step * A) * h + step * B[..., t] * u[..., t, None]
            rows.append((h * C[..., t]).sum(-1))
        return torch.stack(rows, 2) + u * D[:, None]


def mambavision(root: Path, **kwargs: Any) -> nn.Module:
    """Returns a MambaVision; keywords are those of the published class."""
    reference = _scan(root)

    def scan(*args: Any, return_last_state: Any = None, **named: Any) -> Tensor:
        return reference(*args, **named)

    interface = _module("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=scan)
    stand_ins = {
        **_timm(),
        **{name: _module(name) for name in ("mamba_ssm", "mamba_ssm.ops")},
        interface.__name__: interface,
        "family_mv": _module("family_mv"),
        "family_mv.registry": _module("family_mv.registry", register_pip_model=lambda f: f),
    }
    path = root / "MambaVision/mambavision/models/mamba_vision.py"
    with _stand_ins(stand_ins, []), _quiet():
        return _load("family_mv.mamba_vision", path).MambaVision(**kwargs)


def mobilemamba(root: Path, **kwargs: Any) -> nn.Module:
    """Returns a MobileMamba; keywords are those of the published class."""
    folder = root / "MobileMamba/model"
    _forget()

    class Names:
        def register_module(self, thing: Any) -> Any:
            return thing

    stand_ins = {
        **_timm(),
        **_fvcore(),
        "model": _module("model", MODEL=Names()),
        "model.lib_mamba": _module("model.lib_mamba"),
        "pywt.data": _module("pywt.data"),
    }
    with _stand_ins(stand_ins, [folder / "lib_mamba"]), _quiet():
        vars(importlib.import_module("pywt"))["data"] = stand_ins["pywt.data"]
        new = _load("model.lib_mamba.vmambanew", folder / "lib_mamba/vmambanew.py")
        sys.modules[new.__name__] = new
        try:
            found = _load("family_mobile", folder / "mobilemamba/mobilemamba.py")
        finally:
            del sys.modules[new.__name__]

        def scan(x: Tensor, **_: Any) -> Tensor:
            flat = x.flatten(2)
            return torch.stack([flat, flat.flip(-1)], 1)

        def merge(y: Tensor, **_: Any) -> Tensor:
            flat = y.flatten(3)
            return flat[:, 0] + flat[:, 1].flip(-1)

        if torch.cuda.is_available():
            raise RuntimeError("this comparison is of a CPU")
        # Upstream's own wrappers enter a CUDA device first; these are its torch code's results.
        vars(new).update(cross_scan_fn_k2=scan, cross_merge_fn_k2=merge)
        return found.MobileMamba(**kwargs)


def groupmamba(root: Path, **kwargs: Any) -> nn.Module:
    """Returns a GroupMamba; keywords are those of the published class."""
    folder = root / "GroupMamba/classification/models"
    _forget()
    cuda = {name: _module(name) for name in ("selective_scan_cuda_core", "selective_scan_cuda")}
    with _stand_ins({**_timm(), **cuda}, [folder]), _quiet():
        module = _load("family_group", folder / "groupmamba.py")
        ss2d = importlib.import_module("ss2d")

    vars(ss2d)["SelectiveScanCore"] = _SequentialScan
    return module.GroupMamba(**kwargs)


def inceptionnext(root: Path, band: int = 11, share: float = 0.125, **kwargs: Any) -> nn.Module:
    """Returns an InceptionNeXt; keywords are those of the published class."""
    from functools import partial

    with _stand_ins(_timm(), []), _quiet():
        module = _load("family_inception", root / "inceptionnext/models/inceptionnext.py")
    mixer = partial(module.InceptionDWConv2d, band_kernel_size=band, branch_ratio=share)
    return module.MetaNeXt(token_mixers=mixer, **kwargs)


class _Neighborhood(nn.Module):
    """The layer of the NATTEN package (0.14), its attention one position at a time."""

    def __init__(
        self, dim: int, kernel_size: int, dilation: int | None, num_heads: int, **_: Any
    ) -> None:
        super().__init__()
        self.heads, self.kernel, self.dilation = num_heads, kernel_size, dilation or 1
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))

    def _line(self, i: int, length: int) -> list[int]:
        same = range(i % self.dilation, length, self.dilation)
        own = same.index(i)
        start = min(max(own - self.kernel // 2, 0), len(same) - self.kernel)
        return list(same[start : start + self.kernel])

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, dim = x.shape
        least = self.kernel * self.dilation
        x = F.pad(x, (0, 0, 0, max(0, least - width), 0, max(0, least - height)))
        q, k, v = self.qkv(x).unflatten(3, (3, self.heads, -1)).unbind(3)
        out = []
        for i in range(height):
            rows = self._line(i, x.shape[1])
            for j in range(width):
                columns = self._line(j, x.shape[2])
                near = [(a, b) for a in rows for b in columns]
                keys = torch.stack([k[:, a, b] for a, b in near], 1)
                values = torch.stack([v[:, a, b] for a, b in near], 1)
                step, middle = self.dilation, self.kernel - 1
                bias = torch.stack(
                    [
                        self.rpb[:, (a - i) // step + middle, (b - j) // step + middle]
                        for a, b in near
                    ]
                )
                scores = (q[:, i, j, None] * keys).sum(-1) * (dim // self.heads) ** -0.5 + bias
                out.append((scores.softmax(1)[..., None] * values).sum(1))
        return self.proj(torch.stack(out, 1).flatten(2).view(-1, height, width, dim))


def dinat(root: Path, **kwargs: Any) -> nn.Module:
    """Returns a DiNAT; keywords are those of the published class."""
    _forget()
    folder = root / "Neighborhood-Attention-Transformer/classification"
    natten = _module("natten", NeighborhoodAttention2D=_Neighborhood)
    with _stand_ins({**_timm(), "natten": natten}, [folder]), _quiet():
        return _load("family_dinat", folder / "dinat.py").DiNAT(**kwargs)


def favit(root: Path, **kwargs: Any) -> nn.Module:
    """Returns a FaViT; keywords are those of the published class."""
    path = root / "FaViT/FaViT/classification/favit.py"
    with _stand_ins(_timm(), []), _quiet():
        return _load("family_favit", path).FactorizationTransformer(**kwargs)


def efficientvmamba(root: Path, **kwargs: Any) -> nn.Module:
    """Returns an EfficientVMamba; keywords are those of the published class."""
    folder = root / "EfficientVMamba/classification"
    packages = {name: _module(name) for name in ("lib", "lib.models")}
    packages["lib.models"].__path__ = [str(folder / "lib/models")]
    cuda = {"selective_scan_cuda": _module("selective_scan_cuda")}
    with _stand_ins({**_timm(), **_fvcore(), **packages, **cuda}, []), _quiet():
        module = _load("family_efficient", folder / "models/vmamba_efficient.py")
    vars(module)["SelectiveScan"] = _SequentialScan
    with _quiet():
        return module.EfficientVSSM(**kwargs)


class _Classifier(nn.Module):
    """An encoder under a norm and a head, for results to compare."""

    def __init__(self, encoder: Any, num_classes: int) -> None:
        super().__init__()
        self.patch_embed, self.layers = encoder.patch_embed, encoder.layers
        self.norm = nn.LayerNorm(encoder.num_features)
        self.head = nn.Linear(encoder.num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean((1, 2)))


def mhsvm(root: Path, num_classes: int, **kwargs: Any) -> nn.Module:
    """Returns the encoder of MHS-VM under a head; keywords are those of the published class."""
    return _Classifier(mhsvm_whole(root, 1, **kwargs), num_classes)


def mhsvm_whole(root: Path, num_classes: int, **kwargs: Any) -> Any:
    """Returns MHS-VM's segmenter; keywords are those of the published class."""
    folder, reference = root / "MHS-VM", _scan(root)
    names = ("mamba_ssm", "mamba_ssm.ops", "models", "models.vmunet")
    packages = {name: _module(name) for name in names}
    packages["models.vmunet"].__path__ = [str(folder / "models/vmunet")]

    def scan(*args: Any, return_last_state: Any = None, **named: Any) -> Tensor:
        return reference(*args, **named)

    interface = _module("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=scan)
    with _stand_ins({**_timm(), **packages, interface.__name__: interface}, [folder]), _quiet():
        module = _load("models.vmunet.vmamba", folder / "models/vmunet/vmamba.py")
        routes = _load("family_routes", folder / "scanutils.py")
        parts = importlib.import_module("models.vmunet.mhsm")
    for name in ("scanutils", "models.vmunet.mhsm"):
        sys.modules.pop(name, None)

    def pairs(height: int, width: int) -> dict[str, list[Tensor]]:
        diagonal, spiral = routes.diag_scan(height, width), routes.spiral_scan(height, width)
        right, below = diagonal.clone(), spiral.clone()
        right[:, 1], below[:, 0] = width - 1 - right[:, 1], height - 1 - below[:, 0]
        return {
            "C": [routes.cons_scan_h(height, width), routes.cons_scan_v(height, width)],
            "X": [diagonal, right],
            "S": [spiral, below],
            "Z": list(routes.zigzag_scan(height, width)),
        }

    class Everywhere(parts.ScanPattern):  # type: ignore[name-defined]
        """Routes of the map that comes, as the published generator makes them for one size."""

        def forward(self, x: Tensor, **_: Any) -> Tensor:
            height, width = x.shape[2:]
            for i, places in enumerate(pairs(height, width)[self.scan_pattern]):
                there, back = routes.pos2d_indices(places, width)
                setattr(self, f"scan_tind_{i}", there)
                setattr(self, f"scan_pind_{i}", back)
            return super().forward(x)

    vars(parts)["ScanPattern"] = Everywhere
    count = len(kwargs["depths"])
    unused = [{f"layer_{i}.cxsz_tpinds": torch.zeros(8, 2, 1)} for i in range(count)]
    with _on_cpu(), _quiet():
        model = module.VSSM(num_classes=num_classes, route_dict=unused, **kwargs)
    for part in list(model.modules()):
        # The same tensors stand under second names.
        if isinstance(part, parts.MHSM):
            del part._parameters["x_ssproj_W"]
            object.__setattr__(part, "x_ssproj_W", part.x_ssproj.weight)
        if isinstance(part, parts.ScanHead):
            del part.scanning._modules["seq2seq_engine"]
            object.__setattr__(part.scanning, "seq2seq_engine", part.mambaeng)
    return model
