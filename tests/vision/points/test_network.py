"""Networks on point clouds: no order matters, no cloud sees another, groups are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision.points.network import GroupPoints, PointNet, pool
from longseq.vision.points.voxels import (
    group_ids,
    merge,
    neighbours,
    voxelise,
    window_order,
)

SMALL = {
    "points": (8,),
    "dims": (8, 8),
    "late": (8,),
    "hidden": 8,
    "voxel": 0.4,
    "group": 5,
    "window": 2,
}


def some(*counts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, int]:
    random = torch.Generator().manual_seed(seed)
    cloud = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    points = 2 * torch.rand(len(cloud), 3, generator=random) - 1
    return points, cloud, len(counts)


def networks() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    made = [GroupPoints(4, mixer=name, **SMALL) for name in ("mamba", "gla", "slstm")]
    return [one.eval() for one in (*made, PointNet(4, dims=(6, 8), hidden=8))]


@pytest.mark.parametrize("number", range(4))
def test_the_order_of_points_changes_nothing_and_clouds_do_not_meet(number: int) -> None:
    network = networks()[number]
    points, cloud, clouds = some(40, 1, 23, 77)
    with torch.no_grad():
        whole = network(points, cloud, clouds)
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(1))
        shuffled = network(points[order], cloud[order], clouds)
        alone = [network(points[cloud == i], cloud[cloud == i] * 0, 1) for i in range(clouds)]
    torch.testing.assert_close(shuffled, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-5)
    assert whole.std(0).min() > 0


def test_every_parameter_has_a_gradient() -> None:
    for network in (GroupPoints(3, **SMALL), PointNet(3, dims=(4,), hidden=4)):
        network(*some(50, 60)).square().sum().backward()
        for name, one in network.named_parameters():
            assert one.grad is not None and torch.isfinite(one.grad).all(), name
            assert one.grad.abs().sum() > 0 or name.endswith("bias"), name


def test_without_its_layers_it_is_pointnet() -> None:
    torch.manual_seed(0)
    sizes = {"points": (6, 5), "dims": (4, 3), "late": (7,), "hidden": 8}
    groups, plain = GroupPoints(3, **sizes), PointNet(3, dims=(6, 5, 7), hidden=8)
    state = groups.state_dict()
    state["points.6.weight"] = groups.late[0].weight[:, :5].detach()
    state |= {f"points.7.{key}": value for key, value in groups.late[1].state_dict().items()}
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    cloud = some(40, 23)
    assert not torch.allclose(groups(*cloud), plain(*cloud), atol=1e-3)
    with torch.no_grad():
        groups.late[0].weight[:, 5:] = 0
    torch.testing.assert_close(groups(*cloud), plain(*cloud), rtol=0, atol=1e-6)


def test_every_level_gives_points_what_its_voxels_found() -> None:
    torch.manual_seed(0)
    network = GroupPoints(3, **SMALL).eval()
    points, cloud, clouds = some(60)
    seen: list[torch.Tensor] = []
    network.late.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    network(points, cloud, clouds)
    voxels = voxelise(points, cloud, clouds, SMALL["voxel"])
    coarse = merge(voxels)
    for part, of in ((seen[0][:, 8:16], voxels.of), (seen[0][:, 16:], coarse.of[voxels.of])):
        rows = torch.unique(torch.cat([of[:, None].float(), part], 1), dim=0)
        assert len(rows) == len(of.unique())  # one row for every voxel
        assert part.std(0).min() > 0


def test_pooling_is_a_loop_over_rows() -> None:
    values = torch.randn(9, 4)
    rows = torch.tensor([2, 0, 2, 2, 0, 4, 4, 2, 0])
    for how, function in (("mean", lambda v: v.mean(0)), ("amax", lambda v: v.amax(0))):
        found = pool(values, rows, 6, how)
        for row in range(6):
            here = values[rows == row]
            expected = function(here) if len(here) else torch.zeros(4)
            torch.testing.assert_close(found[row], expected)


def test_voxels_neighbours_and_merging_are_their_definitions() -> None:
    points, cloud, clouds = some(60, 50)
    voxels = voxelise(points, cloud, clouds, 0.3)
    cells = np.floor(points.double().numpy() / 0.3).astype(int) + (1 << 14)
    wanted = sorted({(int(c), *cell[::-1]) for c, cell in zip(cloud, cells.tolist())})
    found = [(int(c), *cell[::-1]) for c, cell in zip(voxels.cloud, voxels.cells.tolist())]
    assert found == wanted
    for point, row in enumerate(voxels.of.tolist()):
        assert found[row] == (int(cloud[point]), *cells[point][::-1])
    place = {key: row for row, key in enumerate(wanted)}
    near = neighbours(voxels)
    for row, (c, z, y, x) in enumerate(wanted):
        expected = [
            place.get((c, z + dz, y + dy, x + dx), len(wanted))
            for dx in (-1, 0, 1)
            for dy in (-1, 0, 1)
            for dz in (-1, 0, 1)
        ]
        assert near[row].tolist() == expected and expected[13] == row
    coarse = merge(voxels)
    both = zip(voxels.cells[:, :], voxels.cloud, coarse.of)
    for cell, one, row in both:
        assert torch.equal(coarse.cells[row], cell // 2) and coarse.cloud[row] == one
    assert set(coarse.of.tolist()) == set(range(len(coarse.cloud)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_windows_run_along_their_axis(axis: int) -> None:
    voxels = voxelise(*some(200, 150), 0.2)
    order = window_order(voxels, axis, 3)
    turned = [(axis + 2) % 3, (axis + 1) % 3, axis]
    cells = voxels.cells.tolist()

    def key(row: int) -> tuple:
        cell = cells[row]
        whole, inside = [[cell[a] // 3 for a in turned], [cell[a] % 3 for a in turned]]
        return int(voxels.cloud[row]), whole, inside

    assert order.tolist() == sorted(range(len(cells)), key=key)
    assert torch.equal(window_order(voxels, axis, 10**9).sort().values, torch.arange(len(cells)))


def test_groups_end_with_their_cloud() -> None:
    cloud = torch.tensor([0] * 7 + [2] * 3 + [3])
    assert group_ids(cloud, 5, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4]


def test_what_does_not_fit_is_refused() -> None:
    points, cloud, clouds = some(4, 4)
    for network in (GroupPoints(2, **SMALL), PointNet(2)):
        with pytest.raises(ArgumentError, match=r"clouds without points: \[2\]"):
            network(points, cloud, clouds + 1)
        with pytest.raises(ArgumentError, match="points must be"):
            network(points[:, :2], cloud, clouds)
        with pytest.raises(ArgumentError, match="numbers beyond 0"):
            network(points, cloud, 1)
    with pytest.raises(ConfigError, match="from the origin"):
        GroupPoints(2, **SMALL)(points * 1e9, cloud, clouds)
    with pytest.raises(ConfigError, match="are no numbers"):
        GroupPoints(2, **SMALL)(points * torch.nan, cloud, clouds)
    with pytest.raises(ConfigError, match="dims must name a width"):
        GroupPoints(2, dims=())
    with pytest.raises(ConfigError, match="side of a voxel"):
        voxelise(points, cloud, clouds, 0.0)
    with pytest.raises(ConfigError, match="must be causal"):
        GroupPoints(2, mixer="bidirectional")
