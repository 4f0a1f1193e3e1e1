"""The peers of our blocks: built in their own packages, or written out in plain torch, on our
weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.bench.conv_cases import plain_fft_conv
from longseq.bench.measure import Mode, Program, Shape
from longseq.bench.peers import load
from longseq.core.mixers.base import Mixer, create_mixer
from longseq.core.mixers.hyena import Hyena
from longseq.core.mixers.long_conv import LongConv
from longseq.core.mixers.s4d import S4D
from longseq.core.mixers.s5 import S5

Block = tuple[Mixer, Tensor]
"""Our layer and the input (B, L, D)."""


def program(module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, mode: Mode) -> Program:
    """Returns a program that runs a layer on the whole input.

    Args:
        module: whose parameters take gradients.
        call: the layer.
        x: (B, L, D).
        mode: what to run.
    """
    module.train(mode == "training")
    leaf = x.detach().clone().requires_grad_()
    return Program(lambda: call(leaf), [leaf, *module.parameters()])


def ours(block: Block, shape: Shape, mode: Mode) -> Program:
    """Our layer: the whole input, or its first position again and again from a carried state."""
    mixer, x = block
    if mode != "step":
        return program(mixer, lambda u: mixer(u)[0], x, mode)
    mixer.eval()
    state = [mixer.init_state(shape.batch)]
    x_t = x[:, 0].contiguous()

    def run() -> Tensor:
        y, state[0] = mixer.step(x_t, state[0])
        return y

    return Program(run, [x_t, *mixer.parameters()])


def _on_our_weights(module: nn.Module, mixer: Mixer, shape: Shape) -> Any:
    """Copies our weights, which have the published names, and refuses anything left over."""
    module.load_state_dict(mixer.state_dict())
    return module.to(shape.torch_dtype)


def _transformers(
    layer: Any, configuration: Any, block: Block, shape: Shape, mode: Mode
) -> Program:
    """Hugging Face's layer; its step writes into the cache that its models use."""
    mixer, x = block
    _on_our_weights(layer, mixer, shape)
    if mode != "step":
        return program(layer, layer, x, mode)
    layer.eval()
    cache = load("transformers.cache_utils").DynamicCache(config=configuration)
    x_t = x[:, :1].contiguous()
    return Program(lambda: layer(x_t, cache_params=cache).squeeze(1), [x_t, *layer.parameters()])


def transformers_mamba(block: Block, shape: Shape, mode: Mode) -> Program:
    """Mamba as Hugging Face runs it without CUDA: a Python loop over time, or its cached step."""
    configuration = load("transformers.models.mamba.configuration_mamba").MambaConfig(
        hidden_size=shape.width, num_hidden_layers=1, use_mambapy=False
    )
    layer = load("transformers.models.mamba.modeling_mamba").MambaMixer(configuration, 0)
    return _transformers(layer, configuration, block, shape, mode)


def transformers_mamba2(block: Block, shape: Shape, mode: Mode) -> Program:
    """Mamba-2 as Hugging Face runs it without CUDA: chunked products, or its cached step."""
    configuration = load("transformers.models.mamba2.configuration_mamba2").Mamba2Config(
        hidden_size=shape.width,
        num_heads=2 * shape.width // 64,
        head_dim=64,
        state_size=128,
        n_groups=1,
        num_hidden_layers=1,
        layer_norm_epsilon=1e-5,
    )
    layer = load("transformers.models.mamba2.modeling_mamba2").Mamba2Mixer(configuration, 0)
    return _transformers(layer, configuration, block, shape, mode)


def mambapy(block: Block, shape: Shape, mode: Mode) -> Program:
    """mambapy's block, with its parallel scan."""
    module = load("mambapy.mamba")
    configuration = module.MambaConfig(d_model=shape.width, n_layers=1)
    layer = _on_our_weights(module.MambaBlock(configuration), block[0], shape)
    if mode != "step":
        return program(layer, layer, block[1], mode)
    layer.eval()
    x_t = block[1][:, 0].contiguous()
    inner, taps = configuration.d_inner, configuration.d_conv
    cache = [(None, torch.zeros(shape.batch, inner, taps - 1, dtype=shape.torch_dtype))]

    def run() -> Tensor:
        y, cache[0] = layer.step(x_t, cache[0])
        return y

    return Program(run, [x_t, *layer.parameters()])


def _xlstm_step(layer: Any, x: Tensor) -> Program:
    layer.eval()
    x_t = x[:, :1].contiguous()
    state: list[dict[str, Any]] = [{}]

    def run() -> Tensor:
        y, state[0] = layer.step(x_t, **state[0])
        out: Tensor = y.squeeze(1)
        return out

    return Program(run, [x_t, *layer.parameters()])


def xlstm_mlstm(block: Block, shape: Shape, mode: Mode) -> Program:
    """xLSTM's mLSTM layer in its native form, which is parallel over time and quadratic in L."""
    module = load("xlstm.blocks.mlstm.layer")
    configuration = module.mLSTMLayerConfig(
        embedding_dim=shape.width, num_heads=4, context_length=shape.length
    )
    layer = _on_our_weights(module.mLSTMLayer(configuration), block[0], shape)
    return _xlstm_step(layer, block[1]) if mode == "step" else program(layer, layer, block[1], mode)


def _chunkwise(block: Block, shape: Shape, mode: Mode, kernel_name: str, chunk: int) -> Program:
    """xLSTM's layer with a chunkwise native kernel of mlstm-kernels in place of its own."""
    module = load("xlstm.blocks.mlstm.layer")
    kernel = load("mlstm_kernels.torch").get_mlstm_kernel(f"chunkwise--{kernel_name}")
    configuration = module.mLSTMLayerConfig(
        embedding_dim=shape.width, num_heads=4, context_length=1
    )
    layer = _on_our_weights(module.mLSTMLayer(configuration), block[0], shape)

    def chunkwise(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        igate_preact: Tensor,
        fgate_preact: Tensor,
        **_: Any,
    ) -> Any:
        gates = {"i": igate_preact.squeeze(-1), "f": fgate_preact.squeeze(-1)}
        return kernel(q=queries, k=keys, v=values, **gates, chunk_size=min(chunk, shape.length))

    layer.mlstm_cell.backend_fn = chunkwise
    return program(layer, layer, block[1], mode)


def xlstm_chunkwise(block: Block, shape: Shape, mode: Mode) -> Program:
    """xLSTM's layer with the chunkwise native kernel of mlstm-kernels, its derivative by
    autograd."""
    return _chunkwise(block, shape, mode, "native_autograd", 64)


def xlstm_custom_backward(block: Block, shape: Shape, mode: Mode) -> Program:
    """The same with the kernel's hand-written backward and larger chunks: its fastest form without
    a GPU.

    That backward leaves out the gradient of the denominator, which ours does not.
    """
    return _chunkwise(block, shape, mode, "native_custbw", 256)


def xlstm_slstm(block: Block, shape: Shape, mode: Mode) -> Program:
    """xLSTM's sLSTM layer with the vanilla backend, the one that runs without CUDA."""
    module = load("xlstm.blocks.slstm.layer")
    configuration = module.sLSTMLayerConfig(
        embedding_dim=shape.width,
        num_heads=4,
        backend="vanilla",
        dtype=shape.dtype,
        dtype_b=shape.dtype,
    )
    layer = _on_our_weights(module.sLSTMLayer(configuration), block[0], shape)
    return _xlstm_step(layer, block[1]) if mode == "step" else program(layer, layer, block[1], mode)


def torch_lstm(block: Block, shape: Shape, mode: Mode) -> Program:
    """torch's own LSTM of the same width: dense recurrent weights, another cell."""
    layer = nn.LSTM(shape.width, shape.width, batch_first=True, dtype=shape.torch_dtype)
    if mode != "step":
        return program(layer, lambda x: layer(x)[0], block[1], mode)
    x_t, state = block[1][:, :1].contiguous(), [None]

    def run() -> Tensor:
        y, state[0] = layer(x_t, state[0])
        out: Tensor = y.squeeze(1)
        return out

    return Program(run, [x_t, *layer.parameters()])


class Attention(nn.Module):
    """Causal softmax attention of torch between its projections, without positions.

    Args:
        width: D.
        heads: H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter, self.leave = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        q, k, v = self.enter(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.leave(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )


def softmax_attention(block: Block, shape: Shape, mode: Mode) -> Program:
    """Attention of the same width, for scale."""
    layer = Attention(shape.width, 8).to(shape.torch_dtype)
    return program(layer, layer, block[1], mode)


def our_mamba2(block: Block, shape: Shape, mode: Mode) -> Program:
    """Our own Mamba-2 layer of the same width, for scale."""
    layer = create_mixer("mamba2", shape.width).to(shape.torch_dtype)
    return ours((layer, block[1]), shape, mode)


def s5_pytorch(block: Block, shape: Shape, mode: Mode) -> Program:
    """s5-pytorch's layer: one row after another through its associative scan (its own vmap)."""
    mixer, x = block
    assert isinstance(mixer, S5)
    layer = load("s5").S5(shape.width, mixer.n_complex)
    with torch.no_grad():
        seq = layer.seq
        seq.Lambda.copy_(torch.complex(mixer.Lambda_re, mixer.Lambda_im))
        seq.B.copy_(mixer.B)
        seq.C.copy_(2 * torch.view_as_complex(mixer.C.detach()))  # it takes no conjugate pairs
        seq.D.copy_(mixer.D)
        seq.log_step.copy_(mixer.log_step.view_as(seq.log_step))
    return program(layer, layer, x, mode)


def _plain_glu(sequence: nn.Module, x: Tensor) -> Tensor:
    """The linear map and its gate in torch's own operators, whatever ours runs."""
    assert isinstance(sequence, nn.Sequential)
    linear = sequence[0]
    assert isinstance(linear, nn.Linear)
    return F.glu(F.linear(x, linear.weight, linear.bias))


def plain_s4d(block: Block, shape: Shape, mode: Mode) -> Program:
    """S4D as its paper's listing: a kernel through a tensor (H, N, L), then FFTs of twice the
    length."""
    mixer, x = block
    assert isinstance(mixer, S4D)
    kernel, positions = mixer.layer.kernel, torch.arange(shape.length)

    def call(u: Tensor) -> Tensor:
        rates = torch.complex(-kernel.A_real.float().exp(), -kernel.A_imag.float())
        b, c = (torch.view_as_complex(p.float())[0] for p in (kernel.B, kernel.C))
        step = rates * kernel.inv_dt.float().exp()
        weights = b * c * (step.exp() - 1) / rates
        taps = (
            2 * torch.einsum("hn,hnl->hl", weights, torch.exp(step.unsqueeze(-1) * positions)).real
        )
        y = plain_fft_conv(u.transpose(1, 2), taps, mixer.layer.D[0])
        return _plain_glu(mixer.output_linear, F.gelu(y.transpose(1, 2)))

    return program(mixer, call, x, mode)


def plain_long_conv(block: Block, shape: Shape, mode: Mode) -> Program:
    """The long convolution with the textbook FFT form."""
    mixer, x = block
    assert isinstance(mixer, LongConv)

    def call(u: Tensor) -> Tensor:
        y = plain_fft_conv(u.transpose(1, 2), mixer.kernel()[0], mixer.D[0])
        return _plain_glu(mixer.output_linear, F.gelu(y.transpose(1, 2)))

    return program(mixer, call, x, mode)


def plain_hyena(block: Block, shape: Shape, mode: Mode) -> Program:
    """Hyena as published: channels before time, F.conv1d, textbook FFTs, its filter evaluated every
    time."""
    mixer, x = block
    assert isinstance(mixer, Hyena)
    filters, length = mixer.filter_fn, shape.length
    table, times = filters.pos_emb.z[:, :length].float(), filters.pos_emb.t[:, :length].float()

    def call(u: Tensor) -> Tensor:
        inner = F.conv1d(
            mixer.in_proj(u).transpose(1, 2),
            mixer.short_filter.weight,
            mixer.short_filter.bias,
            padding=mixer.taps - 1,
            groups=mixer.short_filter.groups,
        )[..., :length]
        first, second, v = inner.split(shape.width, dim=1)
        h = table
        for layer in filters.implicit_filter:
            if isinstance(layer, nn.Linear):
                h = F.linear(
                    h, layer.weight.float(), None if layer.bias is None else layer.bias.float()
                )
            else:
                h = layer(h)
        decay = (
            torch.exp(-times * filters.modulation.deltas.float().abs()) + filters.modulation.shift
        )
        y = plain_fft_conv(v * second, (h * decay)[0].T, filters.bias)
        out: Tensor = mixer.out_proj((y * first).transpose(1, 2))
        return out

    return program(mixer, call, x, mode)


def flops_of_projections(mixer: Mixer) -> float:
    """Returns the multiply-adds of a position in the linear maps of a layer, block-diagonal ones
    included."""
    total = 0.0
    for name, parameter in mixer.named_parameters():
        if (
            parameter.ndim == 2
            and name.endswith("weight")
            and "filter" not in name
            and "conv" not in name
        ):
            total += parameter.numel()
        elif parameter.ndim == 3 and name.endswith(("_proj.weight", "gate.weight")):
            total += math.prod(parameter.shape)
    return total
