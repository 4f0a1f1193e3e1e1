"""Generated point clouds: surfaces of simple shapes, turned, stretched, noisy, in part missing."""

from __future__ import annotations

import numpy as np

SHAPES = ("box", "cone", "cylinder", "helix", "saddle", "sphere", "tetrahedron", "torus")
"""Classes, in alphabetical order."""


def _triangles(random: np.random.Generator, corners: np.ndarray, count: int) -> np.ndarray:
    """Returns points spread evenly over triangles (T, 3, 3)."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = random.choice(len(corners), count, p=area / area.sum())
    u, v = random.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]


def _box(random: np.random.Generator, count: int) -> np.ndarray:
    sides = random.uniform(0.5, 1, 3)
    area = np.prod(sides) / sides
    axis = random.choice(3, count, p=area / area.sum())
    points = random.uniform(-1, 1, (count, 3))
    points[np.arange(count), axis] = random.choice([-1, 1], count)
    return points * sides


def _lateral(random: np.random.Generator, count: int, cone: bool) -> np.ndarray:
    """Returns points on a cone or cylinder with its base, or bases."""
    radius, height = random.uniform(0.4, 0.8), random.uniform(0.9, 1.6)
    turn = random.uniform(0, 2 * np.pi, count)
    slant = np.hypot(radius, height) / 2 if cone else height
    share = slant / (slant + radius / (2 if cone else 1))
    wall = random.random(count) < share
    at = np.sqrt(random.random(count)) if cone else random.random(count)
    reach = np.where(wall, at if cone else 1.0, np.sqrt(random.random(count)))
    level = np.where(wall, at, 1.0 if cone else random.integers(0, 2, count))
    x, y = radius * reach * np.cos(turn), radius * reach * np.sin(turn)
    return np.stack([x, y, height * (level - 0.5)], 1)


def _torus(random: np.random.Generator, count: int) -> np.ndarray:
    tube = random.uniform(0.2, 0.45)
    kept = np.empty(0)
    while len(kept) < count:  # the outer half has more surface
        inner = random.uniform(0, 2 * np.pi, 2 * count)
        fits = random.random(2 * count) * (1 + tube) < 1 + tube * np.cos(inner)
        kept = np.concatenate([kept, inner[fits]])
    inner, turn = kept[:count], random.uniform(0, 2 * np.pi, count)
    reach = 1 + tube * np.cos(inner)
    return np.stack([reach * np.cos(turn), reach * np.sin(turn), tube * np.sin(inner)], 1)


def _helix(random: np.random.Generator, count: int) -> np.ndarray:
    turns, height, tube = random.uniform(1.5, 3), random.uniform(1.2, 2), random.uniform(0.05, 0.2)
    at = random.random(count)
    turn = 2 * np.pi * turns * at
    round_it = random.standard_normal((count, 3))
    round_it *= tube / np.linalg.norm(round_it, axis=1, keepdims=True)
    return np.stack([np.cos(turn), np.sin(turn), height * (at - 0.5)], 1) + round_it


def _surface(random: np.random.Generator, name: str, count: int) -> np.ndarray:
    if name == "box":
        return _box(random, count)
    if name in ("cone", "cylinder"):
        return _lateral(random, count, name == "cone")
    if name == "torus":
        return _torus(random, count)
    if name == "helix":
        return _helix(random, count)
    if name == "saddle":
        x, y = random.uniform(-1, 1, (2, count))
        return np.stack([x, y, random.uniform(0.3, 0.8) * (x**2 - y**2)], 1)
    if name == "tetrahedron":
        corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], float)
        corners *= random.uniform(0.8, 1.2, (4, 1))
        faces = corners[[[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]]
        return _triangles(random, faces, count)
    points = random.standard_normal((count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def rotation(random: np.random.Generator) -> np.ndarray:
    """Returns a rotation (3, 3), every one as likely as any other."""
    found, upper = np.linalg.qr(random.standard_normal((3, 3)))
    found = found * np.sign(np.diag(upper))
    return found * np.sign(np.linalg.det(found))


def make_shape(
    random: np.random.Generator, name: str, count: int, noise: float, missing: float
) -> np.ndarray:
    """Returns a cloud float64 (count, 3): a surface, stretched by up to 20% along every axis,
    turned at random, cut by a plane, with noise.

    Args:
        random: draws everything.
        name: one of ``SHAPES``.
        count: points that are left.
        noise: standard deviation, where shapes have a size of about 1.
        missing: greatest share of the points on the cut side.
    """
    share = random.uniform(0, missing)
    points = _surface(random, name, int(np.ceil(count / (1 - share))))
    points = points * random.uniform(0.8, 1.0, 3)
    points = points @ rotation(random).T
    side = points @ random.standard_normal(3)
    points = points[np.sort(np.argsort(side)[:count])]
    return points + noise * random.standard_normal(points.shape)
