"""What the published layers and functions do with nothing, and with what does not fit: empty
outputs, or one line of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longseq.core.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)
from longseq.core.compat.mamba_ssm import Mamba, Mamba2, Mamba2Simple, MambaLMHeadModel
from longseq.core.compat.mamba_ssm.distributed import distributed_utils, tensor_parallel
from longseq.core.compat.mamba_ssm.models.config_mamba import MambaConfig
from longseq.core.compat.mamba_ssm.models.mixer_seq_simple import MixerModel, create_block
from longseq.core.compat.mamba_ssm.modules.mha import MHA
from longseq.core.compat.mamba_ssm.modules.mlp import GatedMLP
from longseq.core.compat.mamba_ssm.ops.selective_scan_interface import (
    mamba_inner_fn,
    selective_scan_fn,
)
from longseq.core.compat.mamba_ssm.ops.triton import layer_norm, layernorm_gated
from longseq.core.compat.mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from longseq.core.compat.mamba_ssm.utils.generation import InferenceParams
from longseq.core.errors import ArgumentError, ConfigError

D = 16
TWO: dict[str, Any] = {"d_state": 8, "headdim": 8}
HEADS: dict[str, Any] = {"causal": True, "layer_idx": 0, "d_conv": 3, "rotary_emb_dim": 2}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Mamba": lambda: Mamba(D, layer_idx=0),
    "two ways": lambda: Mamba(D, bimamba_type="v2"),
    "Mamba2": lambda: Mamba2(D, layer_idx=0, **TWO),
    "Mamba2 with an MLP": lambda: Mamba2(D, d_ssm=16, rmsnorm=False, layer_idx=0, **TWO),
    "Mamba2Simple": lambda: Mamba2Simple(D, **TWO),
    "MHA": lambda: MHA(D, 4, num_heads_kv=2, **HEADS),
    "GatedMLP": lambda: GatedMLP(D),
    "Block": lambda: create_block(D, layer_idx=0),
    "fused Block": lambda: create_block(D, 20, rms_norm=True, fused_add_norm=True, layer_idx=0),
    "RMSNorm": lambda: layer_norm.RMSNorm(D),
    "gated RMSNorm": lambda: layernorm_gated.RMSNorm(D),
    "gated LayerNorm": lambda: layernorm_gated.LayerNorm(D),
}
CASTING = ("Block", "RMSNorm", "gated RMSNorm", "gated LayerNorm")


def first(found: Any) -> Tensor:
    y = found[0] if isinstance(found, tuple) else found
    assert isinstance(y, Tensor)
    return y


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 5), (0, 0)])
def test_nothing_gives_nothing_and_zero_gradients(name: str, batch: int, length: int) -> None:
    layer = LAYERS[name]()
    x = torch.randn(batch, length, D, requires_grad=True)
    y = first(layer(x))
    assert y.shape == (batch, length, D)
    y.sum().backward()
    assert x.grad is not None
    for one in layer.parameters():
        assert one.grad is not None and torch.equal(one.grad, torch.zeros_like(one))


@pytest.mark.parametrize("name", LAYERS)
def test_what_does_not_fit_is_refused_in_one_line(name: str) -> None:
    layer = LAYERS[name]()
    wrong: list[Any] = [
        torch.randn(2, 5, D + 1),
        torch.randn(2, 5, 1),
        torch.ones(2, 5, D, dtype=torch.long),
        torch.ones(2, 5, D, dtype=torch.complex64),
        [[1.0]],
        None,
        torch.randn(2, 5, D).numpy(),
    ]
    if "Norm" not in name and name != "GatedMLP":
        wrong += [torch.randn(5, D), torch.randn(2, 3, 5, D)]
    if name not in CASTING:
        wrong += [torch.randn(2, 5, D).bfloat16(), torch.randn(2, 5, D).double()]
    for x in wrong:
        with pytest.raises(ArgumentError) as caught:
            layer(x)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Mamba", "Mamba2", "MHA"])
def test_generation_from_an_empty_prompt_starts_from_nothing(name: str) -> None:
    layer = LAYERS[name]()
    x = torch.randn(2, 1, D)
    carried = InferenceParams(max_seqlen=4, max_batch_size=2)
    assert layer(x[:, :0], inference_params=carried).shape == (2, 0, D)
    held = carried.key_value_memory_dict[0]
    assert all(not one.any() for one in held)
    with pytest.raises(ArgumentError, match="of 2 rows"):
        layer(torch.randn(3, 1, D), inference_params=carried)
    after = InferenceParams(max_seqlen=4, max_batch_size=2, seqlen_offset=1)
    assert layer(x, inference_params=after).requires_grad
    layer(x.requires_grad_(), inference_params=after).sum().backward()
    with pytest.raises(ArgumentError):
        layer(torch.randn(2, 1, D + 1), inference_params=after)


def test_more_positions_than_the_cache_holds() -> None:
    with pytest.raises(ArgumentError, match="11 come, and the cache holds 10"):
        MHA(D, 4, layer_idx=0)(torch.randn(2, 11, D), InferenceParams(10, 2))


def test_packed_rows_of_mamba2() -> None:
    layer = LAYERS["Mamba2"]()
    x = torch.randn(10, D)
    torch.testing.assert_close(layer(x, seqlen=5), layer(x.view(2, 5, D)).view(10, D))
    assert layer(x[:0], seqlen=5).shape == (0, D)
    for wrong in (3, 0, -5):
        with pytest.raises(ArgumentError, match="must divide the 10 positions"):
            layer(x, seqlen=wrong)


@pytest.mark.parametrize("kind", ["Mamba1", "Mamba2"])
def test_tokens(kind: str) -> None:
    settings = {"layer": kind, **(TWO if kind == "Mamba2" else {})}
    model = MixerModel(D, 2, 0, 30, settings)
    for shape in ((2, 0), (0, 4)):
        y = model(torch.zeros(shape, dtype=torch.long))
        assert y.shape == (*shape, D)
        y.sum().backward()
        assert not any(p.grad is None or p.grad.any() for p in model.parameters())
    with pytest.raises(ArgumentError, match="from 0 to 30, and the vocabulary has 30"):
        model(torch.tensor([[0, 30]]))
    for wrong in (torch.zeros(2, 4), torch.zeros(4, dtype=torch.long), [[1]]):
        with pytest.raises(ArgumentError, match="tokens must be"):
            model(wrong)


def test_last_tokens() -> None:
    model = MambaLMHeadModel(MambaConfig(d_model=D, n_layer=1, vocab_size=30))
    tokens = torch.zeros(2, 4, dtype=torch.long)
    assert [model(tokens, num_last_tokens=n).logits.shape[1] for n in (-1, 0, 3, 9)] == [4, 4, 3, 4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mamba(0),
        lambda: Mamba(16.0),
        lambda: Mamba(16, d_state=0),
        lambda: Mamba(16, d_conv=0),
        lambda: Mamba(16, expand=0),
        lambda: Mamba(16, dt_rank=0),
        lambda: Mamba(16, dt_min=0),
        lambda: Mamba2(0),
        lambda: Mamba2(16, headdim=0),
        lambda: Mamba2(16, headdim=8, ngroups=0),
        lambda: Mamba2(16, headdim=8, ngroups=3),
        lambda: Mamba2(16, headdim=8, d_ssm=64),
        lambda: Mamba2(16, headdim=8, chunk_size=0),
        lambda: Mamba2(16, headdim=8, dt_limit=(1, 0)),
        lambda: Mamba2Simple(16, headdim=8, ngroups=3),
        lambda: MHA(16, 0),
        lambda: GatedMLP(16, multiple_of=0),
        lambda: MixerModel(16, 1, 0, 0),
        lambda: MambaLMHeadModel(MambaConfig(16, 0, 1, 30, pad_vocab_size_multiple=0)),
    ],
)
def test_sizes_that_cannot_be(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_functions_without_positions(batch: int) -> None:
    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, requires_grad=True)

    def zero(*leaves: Tensor) -> None:
        for one in leaves:
            assert one.grad is not None and torch.equal(one.grad, torch.zeros_like(one))

    A, bias = torch.full((6, 4), -50.0, requires_grad=True), torch.full((6,), -9.0)
    u, B, z = new(batch, 6, 0), new(batch, 4, 0), new(batch, 6, 0)
    y, last = selective_scan_fn(u, u, A, B, B, None, z, bias, return_last_state=True)
    assert y.shape == u.shape and torch.equal(last, torch.zeros(batch, 6, 4))
    (y.sum() + last.sum()).backward()
    zero(u, A, B, z)

    taps, past = new(6, 4), new(batch, 6, 3)
    y, last = causal_conv1d_fn(u, taps, initial_states=past, return_final_states=True)
    assert y.shape == u.shape and torch.equal(last, past)
    y.sum().backward()
    zero(taps)
    assert causal_conv1d_fn(u, taps, seq_idx=torch.zeros(batch, 0).int()).shape == u.shape
    state = torch.randn(batch, 6, 4)
    before = state.clone()
    for seen in (None, torch.zeros(batch).int()):
        assert causal_conv1d_update(u, state, taps, cache_seqlens=seen).shape == u.shape
    assert torch.equal(state, before)

    x, dt, maps, first = new(batch, 0, 2, 4), new(batch, 0, 2), new(batch, 0, 1, 4), new(2, 4, 4)
    start = first.expand(batch, -1, -1, -1)
    y, last = mamba_chunk_scan_combined(
        x, dt, -torch.ones(2), maps, maps, 4, initial_states=start, return_final_states=True
    )
    assert y.shape == x.shape and torch.equal(last, start)
    last.sum().backward()
    assert torch.equal(first.grad, torch.full_like(first, batch))
    if batch == 1:
        ends = torch.tensor([0, 0, 0])
        _, states = mamba_chunk_scan_combined(
            x, dt, -torch.ones(2), maps, maps, 4, cu_seqlens=ends, return_varlen_states=True
        )
        assert torch.equal(states, torch.zeros(2, 2, 4, 4))

    inner = new(10, 6), new(6, 2), new(5, 6)
    xz = new(batch, 12, 0)
    y = mamba_inner_fn(xz, new(6, 1, 4), None, *inner, None, A.detach(), delta_softplus=True)
    assert y.shape == (batch, 0, 5)
    y.sum().backward()
    zero(*inner, xz)
    with pytest.raises(ArgumentError, match="taps"):
        causal_conv1d_fn(u, new(5, 4))


def test_names_of_layers_split_over_processes_are_there_for_one() -> None:
    torch.manual_seed(0)
    for cls in (tensor_parallel.ColumnParallelLinear, tensor_parallel.RowParallelLinear):
        layer = cls(6, 4, process_group=None, bias=False, multiple_of=2)
        x = torch.randn(3, 6)
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight))
        with pytest.raises(ConfigError, match="process_group"):
            cls(6, 4, object())
    assert torch.equal(distributed_utils.all_reduce(x, None), x)
    with pytest.raises(ConfigError, match="process_group"):
        distributed_utils.all_gather(x, object())
    parts = [distributed_utils.get_dim_for_local_rank(14, 3, rank, 2) for rank in range(3)]
    assert parts == [6, 4, 4]
    words = tensor_parallel.ParallelEmbeddings(8, 30, 5)
    ids = torch.tensor([[3, 3, 4]])
    apart = words(ids)[0, 1] - words(ids)[0, 0]
    places = words.position_embeddings.weight
    torch.testing.assert_close(apart, places[1] - places[0])
    assert words(ids, combine_batch_seqlen_dim=True).shape == (3, 8)


def test_switches_of_other_forks() -> None:
    torch.manual_seed(0)
    video, vim = Mamba(D, bimamba=True), Mamba(D, bimamba_type="v2")
    vim.load_state_dict(video.state_dict())
    x = torch.randn(2, 5, D)
    assert torch.equal(video(x), vim(x)) and video.bimamba
    assert not Mamba(D, bimamba=False).bimamba
    for wrong in ({"bimamba_type": "v3"}, {"nslices": 4}):
        with pytest.raises(ConfigError, match="SegMamba"):
            Mamba(D, **wrong)
    taps = torch.randn(6, 4)
    u = torch.randn(2, 6, 9)
    assert torch.equal(
        causal_conv1d_fn(u, taps, None, "silu"), causal_conv1d_fn(u, taps, activation="silu")
    )
