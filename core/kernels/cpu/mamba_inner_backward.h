// The gradients of what a Mamba layer does between its outer maps. A row of the batch goes back
// through all of it at a time; the convolution is computed again, the map's values and the states
// of every chunk were kept.
#pragma once
#include "mamba_inner.h"
#include "selective_scan_backward.h"

namespace LONGSEQ_ISA {

constexpr int kSumRows = kBytes == 64 ? 6 : 4;     // of a tile of sums in registers
constexpr int kSumVectors = kBytes == 64 ? 4 : 2;

// out[i][n] += Σ_k a[i row_a + k step_a] b[k step_b + n] for `rows` i and V vectors of n, of which
// `lanes` values are there if V is 1.
template <class R, int V>
inline void add_products_tile(const R* a, int64_t row_a, int64_t step_a, int64_t rows, const R* b,
                              int64_t step_b, int lanes, int64_t K, R* out, int64_t pitch) {
  constexpr int W = kLanes<R>, I = kSumRows;
  const R* from[I];
  for (int i = 0; i < I; ++i) from[i] = a + std::min<int64_t>(i, rows - 1) * row_a;
  Vec<R> sum[I][V] = {};
  for (int64_t k = 0; k < K; ++k, b += step_b) {
    Vec<R> v[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) v[j] = V > 1 ? load(b + j * W) : load_lanes(b, lanes);
#pragma GCC unroll 6
    for (int i = 0; i < I; ++i) {
      const Vec<R> w = splat<R>(from[i][k * step_a]);
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) sum[i][j] += v[j] * w;
    }
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int j = 0; j < V; ++j) {
      R* to = out + i * pitch + j * W;
      const int some = V > 1 ? W : lanes;
      store_lanes(to, load_lanes(to, some) + sum[i][j], some);
    }
}
// The same for all n below N. Threads share out the columns, so that each sum has one order.
template <class R>
inline void add_products(int threads, int64_t rows, int64_t N, int64_t K, const R* a, int64_t row_a,
                         int64_t step_a, const R* b, int64_t step_b, R* out, int64_t pitch) {
  constexpr int W = kLanes<R>, V = kSumVectors;
  const int64_t panels = (N + V * W - 1) / (V * W);
  parallel(panels, threads, [&](int64_t panel) {
    const int64_t first = panel * V * W, end = std::min<int64_t>(N, first + V * W);
    for (int64_t i = 0; i < rows; i += kSumRows) {
      const int64_t some = std::min<int64_t>(kSumRows, rows - i);
      if (end - first == V * W) {
        add_products_tile<R, V>(a + i * row_a, row_a, step_a, some, b + first, step_b, W, K,
                                out + i * pitch + first, pitch);
        continue;
      }
      for (int64_t n = first; n < end; n += W)
        add_products_tile<R, 1>(a + i * row_a, row_a, step_a, some, b + n, step_b,
                                int(std::min<int64_t>(W, end - n)), K, out + i * pitch + n, pitch);
    }
  });
}
template <class R> inline void add_all(R* to, const R* from, int64_t n, R factor = R(1)) {
  for (int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

// Positions that go back through everything together: their values stay in the second cache. Whole
// chunks, as the states of those were kept; of the channels alone, so that nothing else changes a
// sum's order.
inline int64_t positions_at_once(const MambaInner& p) {
  const int64_t least = std::max<int64_t>(98304 / p.D, p.W - 1);
  return std::max<int64_t>(1, (least + kChunk - 1) / kChunk) * kChunk;
}

// Working memory: of one row of the batch, and of a stretch of it and one way.
template <class R> struct InnerRow {
  Room<R> gated, total;                     // (L, D)
  Room<R> u, slope, du, ddelta;             // (n, D)
  Room<R> dvalues, dB, dC;                  // (n, rank + 2N), (n, N)
  Room<R> dstate, dbefore, dpast;           // (D, N): goes on; (W - 1, D): new, and of later steps
  Room<R> dA, dskip, dbias, dtaps, dconv;   // of this stretch alone
  InnerRow(const MambaInner& p, int64_t n)
      : gated(p.L * p.D), total(p.L * p.D), u(n * p.D), slope(n * p.D), du(n * p.D),
        ddelta(n * p.D), dvalues(n * (p.rank + 2 * p.N)), dB(n * p.N), dC(n * p.N),
        dstate(p.D * p.N), dbefore((p.W - 1) * p.D), dpast((p.W - 1) * p.D), dA(p.D * p.N),
        dskip(p.D), dbias(p.D), dtaps(p.D * p.W), dconv(p.D) {}
};

// n positions of row b: memory from `low_t` on, `step` steps after the way's first.
struct Stretch {
  int64_t b, step, low_t, n;
  bool first, last;                           // of the way's steps
};

template <class R> struct InnerWayBackward : InnerWay<R> {
  using InnerWay<R>::p, InnerWay<R>::way, InnerWay<R>::low, InnerWay<R>::A, InnerWay<R>::row,
      InnerWay<R>::dense, InnerWay<R>::in_order;
  Buffer<R> widening, dwidening;  // the map to step sizes turned round (rank, D), and its gradient

  InnerWayBackward(const MambaInner& p, const MambaWay& way)
      : InnerWay<R>(p, way), widening(p.rank * p.D), dwidening(p.rank * p.D, R(0)) {
    for (int64_t d = 0; d < p.D; ++d)
      for (int64_t r = 0; r < p.rank; ++r)
        widening[r * p.D + d] = static_cast<const R*>(way.dt_proj)[d * p.rank + r];
    const auto clear = [](void* at, int64_t n) { std::fill_n(static_cast<R*>(at), n, R(0)); };
    clear(way.dtaps, p.D * p.W), clear(way.dconv_bias, p.D), clear(way.dx_proj, low * p.D);
    clear(way.ddt_bias, p.D), clear(way.dA_log, p.D * p.N), clear(way.dskip, p.D);
  }
  // Of row b, from its last step to its first; output and gradient of x join those of the ways
  // before where `adds`.
  void backward(int64_t b, int64_t at_once, bool adds, InnerRow<R>& r) {
    for (int64_t step = (p.L - 1) / at_once * at_once; step >= 0; step -= at_once) {
      const int64_t n = std::min(at_once, p.L - step);
      const Stretch s{b, step, way.reverse ? p.L - step - n : step, n, step == 0, step + n == p.L};
      const R* const values = this->values_of(b, nullptr) + s.low_t * low;
      this->convolve(b, s.low_t, n, r.u.data(), r.slope.data());
      scan(s, values, adds, r);
      maps(n, values, r);
      convolution(s, adds, r);
    }
  }
  // Of the scan: adds its output to the total of the ways before.
  void scan(const Stretch& at, const R* values, bool adds, InnerRow<R>& r) const {
    SelectiveScan s = this->scanning(at.b, at.step, at.n, r.u.data(), values);
    s.dy = dense(&r.gated[at.low_t * p.D], p.D), s.y = dense(&r.total[at.low_t * p.D], p.D);
    if (adds) s.add = s.y;
    s.du = dense(r.du.data(), p.D), s.ddelta = dense(r.ddelta.data(), p.D);
    s.dfinal = at.last ? nullptr : r.dstate.data();
    s.dinitial = at.first ? nullptr : r.dstate.data();
    s.dA = r.dA.data(), s.dB = r.dB.data(), s.dC = r.dC.data();
    s.dskip = r.dskip.data(), s.dbias = r.dbias.data();
    selective_scan_backward_as<R>(s);
    R* const dlog = static_cast<R*>(way.dA_log);
    for (int64_t i = 0; i < p.D * p.N; ++i) dlog[i] += r.dA[i] * A[i];
    add_all<R>(static_cast<R*>(way.dskip), r.dskip.data(), p.D, R(p.scale));
    add_all<R>(static_cast<R*>(way.ddt_bias), r.dbias.data(), p.D);
  }
  // Of the maps to step sizes, B and C; what they give u joins du.
  void maps(int64_t n, const R* values, InnerRow<R>& r) {
    const int64_t D = p.D, N = p.N, rank = p.rank;
    R* const dvalues = r.dvalues.data();
    parallel((n + kInnerRows - 1) / kInnerRows, p.threads, [&](int64_t unit) {
      const int64_t first = unit * kInnerRows, end = std::min(n, first + kInnerRows);
      for (int64_t o = 0; o < rank; o += kTileSide)
        for (int64_t t = first; t < end; t += kTileSide)
          project_tile<R>(&r.ddelta[t * D], std::min<int64_t>(kTileSide, end - t), &widening[o * D],
                          std::min<int64_t>(kTileSide, rank - o), D, dvalues + t * low + o, low);
      for (int64_t t = first; t < end; ++t)
        for (int64_t i = 0; i < N; ++i) {
          dvalues[t * low + rank + i] = r.dB[t * N + i];
          dvalues[t * low + rank + N + i] = r.dC[t * N + i] * R(p.scale);
        }
    });
    const auto add = [&](int64_t rows, int64_t K, const R* a, int64_t row_a, int64_t step_a,
                         const R* b, R* out) {
      add_products<R>(p.threads, rows, D, K, a, row_a, step_a, b, D, out, D);
    };
    add(rank, n, values, 1, low, r.ddelta.data(), dwidening.data());
    add(low, n, dvalues, 1, low, r.u.data(), static_cast<R*>(way.dx_proj));
    add(n, low, dvalues, low, 1, static_cast<const R*>(way.x_proj), r.du.data());
  }
  // Of the convolution. What it gives the positions before is kept until these are written.
  void convolution(const Stretch& at, bool adds, InnerRow<R>& r) const {
    CausalConv c = this->convolving(at.b, at.low_t, at.n);
    const Strided dx = in_order(row(p.dx, at.b, at.low_t), at.n);
    c.dx = dx, c.adds = adds;
    c.dy = in_order(dense(r.du.data(), p.D), at.n);
    c.slope = in_order(dense(r.slope.data(), p.D), at.n);
    if (c.initial) c.dinitial = dense(r.dbefore.data(), p.D);
    c.dweight = r.dtaps.data(), c.dbias = r.dconv.data();
    causal_conv_backward_as<R>(c);
    add_all<R>(static_cast<R*>(way.dtaps), r.dtaps.data(), p.D * p.W);
    add_all<R>(static_cast<R*>(way.dconv_bias), r.dconv.data(), p.D);
    if (!at.last)  // a stretch that is not the last is as long as the taps look back
      for (int64_t i = 0; i + 1 < p.W; ++i)
        add_all<R>(row_at<R>(dx, 0, at.n - (p.W - 1) + i, 0), &r.dpast[i * p.D], p.D);
    r.dpast.swap(r.dbefore);
  }
  void end() const {
    for (int64_t d = 0; d < p.D; ++d)
      for (int64_t r = 0; r < p.rank; ++r)
        static_cast<R*>(way.ddt_proj)[d * p.rank + r] = dwidening[r * p.D + d];
  }
};

// Calls run(offset in the row's buffers, z, dy, dz, lanes) for every vector of row b.
template <class R, class F> inline void each_gate(const MambaInner& p, int64_t b, const F& run) {
  constexpr int W = kLanes<R>;
  parallel((p.L + kInnerRows - 1) / kInnerRows, p.threads, [&](int64_t unit) {
    const int64_t first = unit * kInnerRows, end = std::min(p.L, first + kInnerRows);
    for (int64_t t = first; t < end; ++t)
      for (int64_t i = 0; i < p.D; i += W) {
        const int some = int(std::min<int64_t>(W, p.D - i));
        run(t * p.D + i, load_lanes(row_at<R>(p.z, b, t, i), some),
            load_lanes(row_at<R>(p.dy, b, t, i), some), row_at<R>(p.dz, b, t, i), some);
      }
  });
}

template <class R> void mamba_inner_backward_as(const MambaInner& p) {
  std::vector<InnerWayBackward<R>> ways;
  ways.reserve(p.ways);
  for (int64_t k = 0; k < p.ways; ++k) ways.emplace_back(p, p.way[k]);
  const int64_t at_once = positions_at_once(p);
  InnerRow<R> r(p, std::min(at_once, p.L));
  for (int64_t b = 0; b < p.B; ++b) {
    each_gate<R>(p, b, [&](int64_t at, Vec<R> z, Vec<R> dy, R*, int some) {
      store_lanes(&r.gated[at], dy * z * sigmoid<R>(z), some);
    });
    for (int64_t k = 0; k < p.ways; ++k) ways[k].backward(b, at_once, k > 0, r);
    each_gate<R>(p, b, [&](int64_t at, Vec<R> z, Vec<R> dy, R* dz, int some) {
      const Vec<R> gate = sigmoid<R>(z), total = load_lanes(&r.total[at], some);
      store_lanes(dz, dy * gate * (R(1) + z * (R(1) - gate)) * total, some);
    });
  }
  for (const auto& way : ways) way.end();
}

}  // namespace LONGSEQ_ISA
