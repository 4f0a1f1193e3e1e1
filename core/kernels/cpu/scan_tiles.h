// What a selective scan holds of its tensors while it walks: blocks of channels, their decays, and
// tiles of a chunk in the compute type.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "row_walk.h"
#include "scan_walk.h"

namespace LONGSEQ_ISA {

// How the channels are cut: tiles lie inside one group of B and C, blocks of tiles have one sum of
// gradients of B and C. It depends on D and G alone, so that neither the batch nor the thread count
// changes a result. A team of blocks of one row and group is the unit of parallel work and goes
// through time together, chunk by chunk: a page of memory holds the channels of many blocks, and
// looking its address up once per block would cost more than the arithmetic.
template <class R> struct Blocks {
  static constexpr int W = kLanes<R>;
  int64_t channels, padded, tiles, per_block, blocks, N2, per_team, teams;
  explicit Blocks(const SelectiveScan& p)
      : channels(p.D / p.G),
        padded((channels + kPad - 1) / kPad * kPad),
        tiles((channels + W - 1) / W),
        per_block(std::min(tiles, std::max<int64_t>(2, (p.G * tiles + 15) / 16))),
        blocks((tiles + per_block - 1) / per_block),
        N2(p.complex ? 2 * p.N : p.N) {
    // No more teams than threads: each of them visits every row, and so every page, of the tensors.
    const int64_t wanted = (p.threads + p.B * p.G - 1) / (p.B * p.G);
    per_team = p.threads == 1 ? blocks : std::max<int64_t>(1, blocks / wanted);
    teams = (blocks + per_team - 1) / per_team;
  }
  // Calls run(first block, number of blocks) for every team, counting blocks through rows and
  // groups.
  template <class F> void each_team(const SelectiveScan& p, const F& run) const {
    parallel(p.B * p.G * teams, p.threads, [&](int64_t index) {
      const int64_t first = index % teams * per_team;
      run(index / teams * blocks + first, std::min(per_team, blocks - first));
    });
  }
};

// One block of channels of one row: its decays in tile layout, and the chunk's B and C in the
// compute type.
template <class R> struct Unit {
  static constexpr int W = kLanes<R>;
  const SelectiveScan& p;
  int64_t b, g, first, count, channels, padded, N2;  // first tile of the group, number of tiles
  Buffer<R> A, Bc, Cc;
  // Of low-rank step sizes: [rank][W] per tile, and the chunk's (kChunk, rank).
  Buffer<R> weight, steps;
  uint8_t flags[kChunk];
  // Without `values` it says where the block's channels are, and no more.
  Unit(const SelectiveScan& p, const Blocks<R>& k, int64_t index, bool values = true)
      : p(p), channels(k.channels), padded(k.padded), N2(k.N2) {
    const int64_t block = index % k.blocks;
    g = index / k.blocks % p.G;
    b = index / k.blocks / p.G;
    first = block * k.per_block;
    count = std::min(k.tiles - first, k.per_block);
    if (!values) return;
    A.assign(count * N2 * W, R(0));
    for (int64_t i = 0; i < count; ++i)  // without states there is no A[0] to take the address of
      gather(static_cast<const R*>(p.A) + g * channels * N2, i, A.data() + i * N2 * W);
    weight.assign(count * p.rank * W, R(0));
    for (int64_t i = 0; i < count; ++i)
      for (int64_t r = 0; r < p.rank; ++r)
        for (int lane = 0; lane < lanes(i); ++lane)
          weight[(i * p.rank + r) * W + lane] =
              static_cast<const R*>(p.delta_weight)[(channel(i) + lane) * p.rank + r];
  }
  int lanes(int64_t i) const { return int(std::min<int64_t>(W, channels - (first + i) * W)); }
  int64_t channel(int64_t i) const {
    return g * channels + (first + i) * W;
  }  // the tile's first channel, of D
  // (D, N2) rows to [N2][W] and back
  void gather(const R* from, int64_t i, R* to) const {
    const R* src = from + (first + i) * W * N2;
    for (int lane = 0; lane < lanes(i); ++lane)
      for (int64_t n = 0; n < N2; ++n) to[n * W + lane] = src[lane * N2 + n];
  }
  void scatter(const R* from, int64_t i, R* to) const {
    R* dst = to + (first + i) * W * N2;
    for (int lane = 0; lane < lanes(i); ++lane)
      for (int64_t n = 0; n < N2; ++n) dst[lane * N2 + n] = from[n * W + lane];
  }
  int64_t row_of_channels() const { return b * p.D + g * channels; }
  R* state_slot(int64_t chunk, int64_t i) const {  // [N2] rows at stride G * padded
    const int64_t chunks = (p.L + kChunk - 1) / kChunk;
    return static_cast<R*>(p.states) + ((b * chunks + chunk) * N2) * p.G * padded + g * padded +
           (first + i) * W;
  }
  void read_BC(int64_t t0, int64_t T) {
    // Only the first unit of a team reads them, for all.
    Bc.resize(kChunk * N2), Cc.resize(kChunk * N2), steps.resize(kChunk * p.rank);
    read_steps<R>(p, p.Bm, b, t0, T, g * N2, N2, N2, Bc.data());
    read_steps<R>(p, p.Cm, b, t0, T, g * N2, N2, N2, Cc.data());
    if (p.rank) read_steps<R>(p, p.delta, b, t0, T, 0, p.rank, p.rank, steps.data());
  }
  Ahead ahead(int64_t t0) const {
    Ahead next;
    if (t0 < 0 || t0 >= p.L) return next;
    const int64_t rows = std::min<int64_t>(kChunk, p.L - t0),
                  n = std::min(count * W, channels - first * W);
    // then a line runs along time, and there is one row per channel
    const bool turned = p.u.stride_c != 1;
    if (turned && (p.reverse || p.height)) return next;
    each_run(p, t0, 1, [&](int64_t row, int64_t step, int64_t, int64_t) {
      for (const Strided* x : {&p.u, &p.delta, &p.z, &p.add, &p.dy})
        if (*x && (x->stride_c != 1) == turned && !(x == &p.delta && p.rank))
          next.add(rows_from(*x, row, step), b, 0, channel(0));
      if (p.adds && (p.du.stride_c != 1) == turned)
        next.add(rows_from(p.du, row, step), b, 0, channel(0));
    });
    next.rows = turned ? n : rows;
    next.lines = ((turned ? rows : n) * int64_t(sizeof(R)) + 63) / 64;
    return next;
  }
  const uint8_t* resets(int64_t t0, int64_t T) {
    if (!p.resets) return nullptr;
    each_run(p, t0, T, [&](int64_t row, int64_t step, int64_t rows, int64_t offset) {
      for (int64_t t = 0; t < rows; ++t) flags[offset + t] = p.resets[b * p.L + row + t * step];
    });
    return flags;
  }
  R at(const void* vector, int64_t i, int lane) const {
    return vector ? static_cast<const R*>(vector)[channel(i) + lane] : R(0);
  }
  Vec<R> vector_of(const void* vector, int64_t i) const {
    if (vector && lanes(i) == W) return load(static_cast<const R*>(vector) + channel(i));
    R out[W] = {};
    for (int lane = 0; lane < lanes(i); ++lane) out[lane] = at(vector, i, lane);
    return load(out);
  }
};

// Per tile and chunk: dt = softplus(delta + bias), du = dt u; also the inputs that the gates need.
template <class R> struct Tile {
  static constexpr int W = kLanes<R>;
  alignas(64) R dt[kChunk * W], du[kChunk * W], u[kChunk * W], y[kChunk * W], z[kChunk * W],
      slope[kChunk * W], add[kChunk * W];
  // Low-rank step sizes are in dt already.
  void read(const Unit<R>& unit, int64_t i, int64_t t0, int64_t T, bool backward) {
    const SelectiveScan& p = unit.p;
    const int64_t at = unit.channel(i), n = unit.lanes(i);
    read_steps<R>(p, p.u, unit.b, t0, T, at, n, W, u);
    if (!p.rank) read_steps<R>(p, p.delta, unit.b, t0, T, at, n, W, dt);
    if (p.z) read_steps<R>(p, p.z, unit.b, t0, T, at, n, W, z);
    if (p.add) read_steps<R>(p, p.add, unit.b, t0, T, at, n, W, add);
    const Vec<R> bias = unit.vector_of(p.delta_bias, i), skip = unit.vector_of(p.skip, i);
    for (int64_t t = 0; t < T; ++t) {
      Vec<R> d = load(dt + t * W) + bias;
      const Vec<R> ut = load(u + t * W);
      if (p.softplus) {
        Vec<R> rise = {};
        d = backward ? softplus<R>(d, &rise) : softplus<R>(d);
        if (backward) store(slope + t * W, rise);
      } else if (backward) {
        store(slope + t * W, splat(R(1)));
      }
      store(dt + t * W, d);
      store(du + t * W, d * ut);
      store(y + t * W, p.add ? skip * ut + load(add + t * W) : skip * ut);
    }
  }
};

// dt = the products of the chunk's `steps` (T, rank) and a tile's weights [rank][W].
template <class R>
inline void widen_steps(int64_t T, int64_t rank, const R* steps, const R* weight, R* dt) {
  constexpr int W = kLanes<R>, K = 8;
  int64_t t = 0;
  for (; t + K <= T; t += K) {
    Vec<R> sum[K] = {};
    for (int64_t r = 0; r < rank; ++r) {
      const Vec<R> w = load(weight + r * W);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) sum[k] += w * steps[(t + k) * rank + r];
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) store(dt + (t + k) * W, sum[k]);
  }
  for (; t < T; ++t) {
    Vec<R> sum = {};
    for (int64_t r = 0; r < rank; ++r) sum += load(weight + r * W) * steps[t * rank + r];
    store(dt + t * W, sum);
  }
}

}  // namespace LONGSEQ_ISA
