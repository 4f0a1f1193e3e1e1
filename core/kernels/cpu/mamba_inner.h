// What a Mamba layer does between its outer maps, whole sequences at a time and in one call:
// convolution, the map to step sizes, B and C, and the scan, in one or several directions. A row of
// the batch goes through all of it while it is in the caches.
#pragma once
#include <algorithm>

#include "causal_conv.h"
#include "selective_scan.h"

namespace LONGSEQ_ISA {

constexpr int kTileSide = 4;        // positions, and rows of the map, whose sums are in registers
constexpr int64_t kInnerRows = 32;  // positions that are one unit of work

// out[t][o] = Σ_k matrix[o][k] x[t][k] for kTileSide positions and rows, of which `rows` and
// `count` are there.
template <class R>
inline void project_tile(const R* x, int64_t rows, const R* matrix, int64_t count, int64_t K,
                         R* out, int64_t pitch) {
  constexpr int W = kLanes<R>, S = kTileSide;
  const R *from[S], *weight[S];
  for (int i = 0; i < S; ++i) {  // the last one again, where there are fewer
    from[i] = x + std::min<int64_t>(i, rows - 1) * K;
    weight[i] = matrix + std::min<int64_t>(i, count - 1) * K;
  }
  Vec<R> sum[S][S] = {};
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    Vec<R> w[S];
#pragma GCC unroll 4
    for (int j = 0; j < S; ++j) w[j] = load(weight[j] + k);
#pragma GCC unroll 4
    for (int i = 0; i < S; ++i) {
      const Vec<R> v = load(from[i] + k);
#pragma GCC unroll 4
      for (int j = 0; j < S; ++j) sum[i][j] += v * w[j];
    }
  }
  if (k < K) {
    const int some = int(K - k);
    for (int i = 0; i < S; ++i)
      for (int j = 0; j < S; ++j)
        sum[i][j] += load_lanes(from[i] + k, some) * load_lanes(weight[j] + k, some);
  }
  alignas(64) R lanes[S * S * W], total[S * S];
#pragma GCC unroll 16
  for (int i = 0; i < S * S; ++i) store(lanes + i * W, sum[i / S][i % S]);
  sum_rows<R>(S * S, lanes, total);
  for (int64_t i = 0; i < rows; ++i)
    std::copy_n(total + i * S, std::min<int64_t>(S, count), out + i * pitch);
}

// One way's decays and skip, and its convolution and projections of one row of the batch.
template <class R> struct InnerWay {
  const MambaInner& p;
  const MambaWay& way;
  const int64_t low;                // values that the map gives a position
  Buffer<R> A, skip;

  InnerWay(const MambaInner& p, const MambaWay& way)
      : p(p), way(way), low(p.rank + 2 * p.N), A(p.D * p.N), skip(p.D, R(0)) {
    constexpr int W = kLanes<R>;
    const R* log = static_cast<const R*>(way.A_log);
    for (int64_t i = 0; i < p.D * p.N; i += W) {
      const int some = int(std::min<int64_t>(W, p.D * p.N - i));
      store_lanes(&A[i], -vexp<R>(load_lanes(log + i, some)), some);
    }
    if (way.skip)
      for (int64_t i = 0; i < p.D; ++i) skip[i] = static_cast<const R*>(way.skip)[i] * R(p.scale);
  }
  static Strided dense(const R* at, int64_t stride) {
    Strided t;
    t.ptr = reinterpret_cast<char*>(const_cast<R*>(at));
    t.dtype = sizeof(R) == 8 ? kFloat64 : kFloat32, t.stride_b = 0, t.stride_l = stride;
    return t;
  }
  // Row b of a tensor alone, from position t on.
  static Strided row(const Tensor3& x, int64_t b, int64_t t = 0) {
    return dense(reinterpret_cast<const R*>(x.ptr) + b * x.stride_b + t * x.stride_l, x.stride_l);
  }
  // n positions of x in this way's order, the first of them `step` steps after x's first.
  Strided in_order(Strided x, int64_t n, int64_t step = 0) const {
    return way.reverse ? rows_from(x, n - 1 - step, -1) : rows_from(x, step, 1);
  }
  // The convolution of n positions of row b, memory from `low_t` on: what it reads.
  CausalConv convolving(int64_t b, int64_t low_t, int64_t n) const {
    CausalConv c{};
    c.B = 1, c.L = n, c.D = p.D, c.W = p.W, c.silu = true;
    c.compute = p.compute, c.threads = p.threads;
    c.x = in_order(row(p.x, b, low_t), n);
    if (way.reverse ? low_t + n < p.L : low_t > 0)  // the positions just before them
      c.initial = in_order(row(p.x, b, low_t), n, 1 - p.W);
    c.weight = way.taps, c.bias = way.conv_bias;
    return c;
  }
  // Fills u (n, D), and the slopes of its activation where there is room for them.
  void convolve(int64_t b, int64_t low_t, int64_t n, R* u, R* slope = nullptr) const {
    CausalConv c = convolving(b, low_t, n);
    c.y = in_order(dense(u, p.D), n);
    if (slope) c.slope = in_order(dense(slope, p.D), n);
    causal_conv_forward_as<R>(c);
  }
  // The map's values (L, low); those that become C are scaled.
  void project(const R* u, R* out) const {
    const int64_t units = (p.L + kInnerRows - 1) / kInnerRows, C = p.rank + p.N;
    parallel(units, p.threads, [&](int64_t unit) {
      const int64_t first = unit * kInnerRows, end = std::min(p.L, first + kInnerRows);
      for (int64_t o = 0; o < low; o += kTileSide)
        for (int64_t t = first; t < end; t += kTileSide)
          project_tile<R>(u + t * p.D, std::min<int64_t>(kTileSide, end - t),
                          static_cast<const R*>(way.x_proj) + o * p.D,
                          std::min<int64_t>(kTileSide, low - o), p.D, out + t * low + o, low);
      for (int64_t t = first; t < end; ++t)
        for (int64_t n = C; n < low; ++n) out[t * low + n] *= R(p.scale);
    });
  }
  // The scan of n positions of row b, `step` steps after its first, but for what it gives.
  SelectiveScan scanning(int64_t b, int64_t step, int64_t n, const R* u, const R* values) const {
    SelectiveScan s{};
    s.B = 1, s.L = n, s.D = p.D, s.N = p.N, s.G = 1, s.softplus = true;
    s.compute = p.compute, s.threads = p.threads, s.reverse = way.reverse;
    s.u = dense(u, p.D), s.delta = dense(values, low);
    s.Bm = dense(values + p.rank, low), s.Cm = dense(values + p.rank + p.N, low);
    s.rank = p.rank, s.delta_weight = way.dt_proj, s.delta_bias = way.dt_bias;
    s.A = A.data(), s.skip = skip.data();
    if (way.states) {
      const int64_t chunks = (p.L + kChunk - 1) / kChunk, padded = (p.D + kPad - 1) / kPad * kPad;
      s.states = static_cast<R*>(way.states) + (b * chunks + step / kChunk) * p.N * padded;
    }
    return s;
  }
  // Adds the scan to y where `adds`, which is gated by z where that is there.
  void scan(int64_t b, const R* u, const R* values, R* final_state, bool adds,
            const Strided& z) const {
    SelectiveScan s = scanning(b, 0, p.L, u, values);
    s.z = z, s.final_state = final_state, s.y = row(p.y, b);
    if (adds) s.add = s.y;
    selective_scan_forward_as<R>(s);
  }
  // Where the map's values of row b are: kept, or in the room given.
  R* values_of(int64_t b, R* room) const {
    return way.values ? static_cast<R*>(way.values) + b * p.L * low : room;
  }
};

template <class R> void mamba_inner_as(const MambaInner& p) {
  std::vector<InnerWay<R>> ways;
  ways.reserve(p.ways);
  for (int64_t k = 0; k < p.ways; ++k) ways.emplace_back(p, p.way[k]);
  Buffer<R> u(p.L * p.D), values(p.L * (p.rank + 2 * p.N)), final_state(p.D * p.N);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t k = 0; k < p.ways; ++k) {
      const bool last = k + 1 == p.ways;  // the gate is applied once, to the sum
      R* const mapped = ways[k].values_of(b, values.data());
      ways[k].convolve(b, 0, p.L, u.data());
      ways[k].project(u.data(), mapped);
      ways[k].scan(b, u.data(), mapped, final_state.data(), k > 0,
                   last ? InnerWay<R>::row(p.z, b) : Strided{});
    }
}

}  // namespace LONGSEQ_ISA
