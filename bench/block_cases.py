"""The blocks and models that ``longseq bench models`` measures, with their peers and their bounds.

Every peer that computes the same function gets a copy of our weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from longseq.bench import block_peers as peers
from longseq.bench.chunked_cases import CHUNK, chunked
from longseq.bench.conv_cases import long_conv_work
from longseq.bench.delta_cases import delta_work
from longseq.bench.measure import OURS, Case, Mode, Program, Shape, Side, Work
from longseq.bench.scan_cases import scan_work, slstm_work
from longseq.core.language_model import LanguageModel
from longseq.core.mixers import create_mixer

S5_STATES = 256
HYENADNA_LAYERS = 8


def _options(name: str, length: int) -> dict[str, Any]:
    if name == "hyena":
        return {"l_max": length}
    if name == "long_conv":
        return {"l_max": length, "lam": 0.0}  # its threshold makes all of a fresh kernel zero
    return {"d_state": S5_STATES, "activation": "none"} if name == "s5" else {}


def _inputs(name: str) -> Callable[[Shape], peers.Block]:
    """Returns what makes our layer and an input, always the same ones."""

    def make(shape: Shape) -> peers.Block:
        torch.manual_seed(0)
        mixer = create_mixer(name, shape.width, **_options(name, shape.length)).to(
            shape.torch_dtype
        )
        x = torch.randn(shape.batch, shape.length, shape.width)
        return mixer, x.to(shape.torch_dtype)

    return make


@cache
def _projections(name: str, width: int) -> tuple[float, float]:
    """Returns multiply-adds per position in the linear maps of a layer, and its number of
    weights."""
    mixer = create_mixer(name, width, **_options(name, 64))
    return peers.flops_of_projections(mixer), float(sum(p.numel() for p in mixer.parameters()))


def _with_projections(
    name: str, inner: Callable[[Shape, Mode], Work]
) -> Callable[[Shape, Mode], Work]:
    """Returns a block's work: its operator's, its linear maps', and its input, output and weights
    moved."""

    def work(shape: Shape, mode: Mode) -> Work:
        core, (each, weights) = inner(shape, mode), _projections(name, shape.width)
        tokens = shape.batch * (1 if mode == "step" else shape.length)
        times = 3 if mode == "training" else 1
        # Between its parts a block could keep everything in cache: only its ends and its weights
        # must move.
        moved = shape.item * times * (2 * tokens * shape.width + weights)
        carried = core.bytes if mode == "step" else 0.0
        return Work(core.fma + times * tokens * each, core.exp, moved + carried)

    return work


def _mamba2_work(shape: Shape, mode: Mode) -> Work:
    heads, tokens = 2 * shape.width // 64, shape.batch * (1 if mode == "step" else shape.length)
    return chunked(tokens, heads, 1, 128, 64, heads * (CHUNK / 2 + 2), shape, mode)


def _mlstm_work(shape: Shape, mode: Mode) -> Work:
    width, tokens = shape.width // 2, shape.batch * (1 if mode == "step" else shape.length)
    return chunked(tokens, 4, 4, width, width, 4 * (CHUNK / 2 + 4), shape, mode)


def _retention_work(shape: Shape, mode: Mode) -> Work:
    tokens, head = shape.batch * shape.length, shape.width // 8
    return chunked(tokens, 8, 8, head, 2 * head, 8 * (CHUNK / 2 + 2), shape, mode)


def _gla_work(shape: Shape, mode: Mode) -> Work:
    tokens = shape.batch * shape.length
    return chunked(tokens, 4, 4, shape.width // 8, shape.width // 4, shape.width * 6, shape, mode)


def _gated_delta_work(shape: Shape, mode: Mode) -> Work:
    tokens, key = shape.batch * (1 if mode == "step" else shape.length), 3 * shape.width // 16
    return delta_work(tokens, 4, key, 2 * key, shape, mode)


def _s4d_work(shape: Shape, mode: Mode) -> Work:
    """The cheaper of its two algorithms: convolution by FFT; the kernel's own products are left
    out."""
    return long_conv_work(shape, mode)


def _s5_work(shape: Shape, mode: Mode) -> Work:
    states, times = S5_STATES // 2, 3 if mode == "training" else 1
    tokens = shape.batch * shape.length
    # In and out maps are real products with the two halves of complex matrices.
    return Work(times * tokens * (4 * states * shape.width + 4 * states), 0, 0)


def _model_inputs(mixer: str) -> Callable[[Shape], tuple[nn.Module, Tensor]]:
    """Returns what makes a language model of HyenaDNA's shape (8 layers of mixer and MLP, 16
    tokens) and its tokens (B, L)."""

    def make(shape: Shape) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        options = _options(mixer, shape.length)
        model = LanguageModel(
            16, shape.width, HYENADNA_LAYERS, mixer, options, mlp_ratio=4.0, norm="layer"
        )
        tokens = torch.randint(16, (shape.batch, shape.length))
        return model.to(shape.torch_dtype).eval(), tokens

    return make


def _model_ours(inputs: tuple[nn.Module, Tensor], shape: Shape, mode: Mode) -> Program:
    model, tokens = inputs
    # The states of long convolutions are as long as the input; nothing follows here that would
    # need them.
    return Program(lambda: model(tokens, keep_states=False)[0], [*model.parameters()])


def _model_work(shape: Shape, mode: Mode) -> Work:
    one = long_conv_work(shape, mode)
    tokens, layers = shape.batch * shape.length, HYENADNA_LAYERS
    # In, out, MLP; the filter's network.
    maps = (4 + 8) * shape.width**2 + 2 * 64 * 64 + 64 * shape.width
    return Work(
        layers * (one.fma + tokens * maps), 0, layers * shape.item * 2.0 * tokens * shape.width
    )


def _mamba_model_work(shape: Shape, mode: Mode) -> Work:
    one = _with_projections("mamba", scan_work)(shape, mode)
    tokens = shape.batch * shape.length
    maps = tokens * 8 * shape.width**2  # of the MLP
    return Work(*(HYENADNA_LAYERS * part for part in (one.fma + maps, one.exp, one.bytes)))


def _block(
    name: str, about: str, sides: tuple[Side, ...], work: Callable[[Shape, Mode], Work], **kw: Any
) -> Case:
    return Case(
        name,
        about,
        "block",
        _inputs(name),
        (Side(OURS, peers.ours), *sides),
        _with_projections(name, work),
        **kw,
    )


_SEQUENCE: tuple[Mode, ...] = ("forward", "training")
_ALL: tuple[Mode, ...] = ("forward", "training", "step")
_SDPA = Side(
    "sdpa",
    peers.softmax_attention,
    same=False,
    modes=_SEQUENCE,
    note="softmax attention of the same width: another function",
)
_FORM = "textbook torch form"

CASES: tuple[Case, ...] = (
    _block(
        "mamba",
        "Mamba: expand 2, N 16, 4 taps",
        (
            Side(
                "transformers",
                peers.transformers_mamba,
                "transformers",
                note="slow path, without CUDA",
            ),
            Side("mambapy", peers.mambapy, "mambapy", note="parallel scan"),
        ),
        scan_work,
        modes=_ALL,
        longest=1 << 16,
    ),
    _block(
        "mamba2",
        "Mamba-2: expand 2, N 128, heads of 64",
        (
            Side(
                "transformers",
                peers.transformers_mamba2,
                "transformers",
                note="torch path, chunk 256",
            ),
        ),
        _mamba2_work,
        modes=_ALL,
        longest=1 << 16,
    ),
    _block(
        "mlstm",
        "mLSTM: 4 heads, projection factor 2",
        (
            Side("xlstm", peers.xlstm_mlstm, "xlstm", note="native, parallel form, quadratic in L"),
            Side(
                "xlstm chunkwise",
                peers.xlstm_chunkwise,
                "mlstm-kernels",
                modes=_SEQUENCE,
                note="its layer with mlstm-kernels' native chunkwise kernel",
            ),
            Side(
                "xlstm custbw",
                peers.xlstm_custom_backward,
                "mlstm-kernels",
                modes=_SEQUENCE,
                note="the same with the kernel's own backward (no gradient of the denominator), "
                "chunk 256",
            ),
        ),
        _mlstm_work,
        modes=_ALL,
        longest=1 << 16,
    ),
    _block(
        "slstm",
        "sLSTM: 4 heads, 4 taps",
        (
            Side("xlstm", peers.xlstm_slstm, "xlstm", note="vanilla"),
            Side("nn.LSTM", peers.torch_lstm, same=False, note="same width, another cell"),
        ),
        slstm_work,
        modes=_ALL,
        longest=1 << 16,
    ),
    _block(
        "s4d",
        "S4D: 32 complex states, GELU, GLU",
        (Side("torch.fft", peers.plain_s4d, note=_FORM),),
        _s4d_work,
        longest=1 << 16,
    ),
    _block(
        "hyena",
        "Hyena: order 2, filter network of width 64",
        (Side("torch.fft", peers.plain_hyena, note=_FORM),),
        long_conv_work,
        longest=1 << 16,
    ),
    _block(
        "long_conv",
        "long convolution: as many taps as positions, GELU, GLU",
        (Side("torch.fft", peers.plain_long_conv, note=_FORM),),
        long_conv_work,
        longest=1 << 16,
    ),
    _block(
        "s5",
        f"S5: {S5_STATES // 2} complex states, no activation",
        (
            Side(
                "s5-pytorch",
                peers.s5_pytorch,
                "s5-pytorch",
                modes=_SEQUENCE,
                note="its associative scan",
            ),
        ),
        _s5_work,
        dtypes=("float32",),
        longest=1 << 16,
    ),
    _block("retention", "RetNet: 8 heads, values 2·D", (_SDPA,), _retention_work, longest=1 << 16),
    _block("gla", "gated linear attention: 4 heads", (_SDPA,), _gla_work, longest=1 << 16),
    _block(
        "gated_delta_net",
        "Gated DeltaNet: 4 heads, values 1.5·D",
        (
            Side(
                "mamba2",
                peers.our_mamba2,
                same=False,
                note="our Mamba-2 block of the same width: another function",
            ),
        ),
        _gated_delta_work,
        modes=_ALL,
        longest=1 << 16,
    ),
    *(
        Case(
            name,
            f"HyenaDNA-shaped{said}: 8 layers of width 256, one forward",
            "model",
            _model_inputs(mixer),
            (Side(OURS, _model_ours),),
            work,
            modes=("forward",),
            dtypes=("float32",),
            alone=(1_000_000,),
            longest=1_000_000,
            width=256,
        )
        for name, mixer, said, work in (
            ("hyenadna", "hyena", "", _model_work),
            ("hyenadna_mamba", "mamba", ", with Mamba", _mamba_model_work),
        )
    ),
)
"""All blocks and models."""
