// Several scans of one map along paths of their own, and their sum, in one call; and its gradients.
// A row of the batch goes through all of them while it is in the caches.
#pragma once
#include "mamba_inner_backward.h"

namespace LONGSEQ_ISA {

template <class R> struct CrossWay {
  const CrossScan& p;
  const int64_t k, width;           // number of the way; values that a position has of it
  CrossWay(const CrossScan& p, int64_t k) : p(p), k(k), width(p.rank + 2 * p.N) {}

  const R* given(const void* all, int64_t size) const {
    return all ? static_cast<const R*>(all) + k * size : nullptr;
  }
  static Strided row(const Tensor3& x, int64_t b) { return InnerWay<R>::row(x, b); }
  // Of row b, from this way's value `at` on.
  Strided values(const Tensor3& x, int64_t b, int64_t at) const {
    Strided t = row(x, b);
    t.ptr += (k * width + at) * int64_t(sizeof(R));
    return t;
  }
  // The scan of row b, but for what it gives.
  SelectiveScan scanning(int64_t b) const {
    SelectiveScan s{};
    s.B = 1, s.L = p.L, s.D = p.D, s.N = p.N, s.G = 1, s.softplus = true;
    s.compute = p.compute, s.threads = p.threads;
    s.reverse = p.reverse[k] != 0, s.height = p.height[k];
    s.u = row(p.x, b), s.rank = p.rank, s.delta = values(p.low, b, 0);
    s.Bm = values(p.low, b, p.rank), s.Cm = values(p.low, b, p.rank + p.N);
    s.delta_weight = given(p.weight, p.D * p.rank), s.delta_bias = given(p.bias, p.D);
    s.A = given(p.A, p.D * p.N), s.skip = given(p.skip, p.D);
    if (p.states) {
      const int64_t chunks = (p.L + kChunk - 1) / kChunk, padded = (p.D + kPad - 1) / kPad * kPad;
      s.states = static_cast<R*>(p.states) + (k * p.B + b) * chunks * p.N * padded;
    }
    return s;
  }
};

template <class R> void cross_scan_as(const CrossScan& p) {
  Buffer<R> final_state(p.D * p.N);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t k = 0; k < p.ways; ++k) {
      SelectiveScan s = CrossWay<R>(p, k).scanning(b);
      s.y = InnerWay<R>::row(p.y, b), s.final_state = final_state.data();
      if (k) s.add = s.y;
      selective_scan_forward_as<R>(s);
    }
}

// Calls run(at, turned) with the place of every weight (ways, D, rank) and that in (ways, rank, D),
// a line of the cache of either at a time.
template <class F> inline void each_weight(const CrossScan& p, const F& run) {
  constexpr int64_t some = 16;
  for (int64_t k = 0; k < p.ways; ++k)
    for (int64_t first = 0; first < p.D; first += some)
      for (int64_t r = 0; r < p.rank; ++r)
        for (int64_t d = first, end = std::min(p.D, first + some); d < end; ++d)
          run((k * p.D + d) * p.rank + r, (k * p.rank + r) * p.D + d);
}

// Working memory of a row and a way, and sums over the rows.
template <class R> struct CrossRow {
  Room<R> ddelta, dB, dC, dA, dskip, dbias;
  Buffer<R> widening, dwidening;    // every way's map to step sizes turned round, and its gradient
  explicit CrossRow(const CrossScan& p)
      : ddelta(p.L * p.D), dB(p.L * p.N), dC(p.L * p.N), dA(p.D * p.N), dskip(p.D), dbias(p.D),
        widening(p.ways * p.rank * p.D), dwidening(p.ways * p.rank * p.D, R(0)) {
    each_weight(p, [&](int64_t at, int64_t turned) {
      widening[turned] = static_cast<const R*>(p.weight)[at];
    });
  }
};

template <class R> struct CrossWayBackward : CrossWay<R> {
  using CrossWay<R>::p, CrossWay<R>::k, CrossWay<R>::width, CrossWay<R>::row;
  using CrossWay<R>::CrossWay;

  void backward(int64_t b, CrossRow<R>& r) const {
    SelectiveScan s = this->scanning(b);
    s.dy = row(p.dy, b), s.du = row(p.dx, b), s.adds = k > 0;
    s.ddelta = InnerWay<R>::dense(r.ddelta.data(), p.D);
    s.dA = r.dA.data(), s.dB = r.dB.data(), s.dC = r.dC.data();
    s.dskip = r.dskip.data(), s.dbias = r.dbias.data();
    selective_scan_backward_as<R>(s);
    const auto join = [&](void* to, const R* from, int64_t n) {
      add_all<R>(static_cast<R*>(to) + k * n, from, n);
    };
    join(p.dA, r.dA.data(), p.D * p.N), join(p.dbias, r.dbias.data(), p.D);
    join(p.dskip, r.dskip.data(), p.D);
    maps(b, r);
  }
  // The gradients of this way's values, and of its map to step sizes.
  void maps(int64_t b, CrossRow<R>& r) const {
    const int64_t D = p.D, N = p.N, rank = p.rank;
    const Strided to = this->values(p.dlow, b, 0), from = this->values(p.low, b, 0);
    R* const out = reinterpret_cast<R*>(to.ptr);
    const R* const widening = &r.widening[k * rank * D];
    parallel((p.L + kInnerRows - 1) / kInnerRows, p.threads, [&](int64_t unit) {
      const int64_t first = unit * kInnerRows, end = std::min(p.L, first + kInnerRows);
      for (int64_t o = 0; o < rank; o += kTileSide)
        for (int64_t t = first; t < end; t += kTileSide)
          project_tile<R>(&r.ddelta[t * D], std::min<int64_t>(kTileSide, end - t),
                          widening + o * D, std::min<int64_t>(kTileSide, rank - o), D,
                          out + t * to.stride_l + o, to.stride_l);
      for (int64_t t = first; t < end; ++t)
        for (int64_t i = 0; i < N; ++i) {
          out[t * to.stride_l + rank + i] = r.dB[t * N + i];
          out[t * to.stride_l + rank + N + i] = r.dC[t * N + i];
        }
    });
    add_products<R>(p.threads, rank, D, p.L, reinterpret_cast<const R*>(from.ptr), 1,
                    from.stride_l, r.ddelta.data(), D, &r.dwidening[k * rank * D], D);
  }
};

template <class R> void cross_scan_backward_as(const CrossScan& p) {
  CrossRow<R> r(p);
  const auto clear = [](void* at, int64_t n) { std::fill_n(static_cast<R*>(at), n, R(0)); };
  clear(p.dA, p.ways * p.D * p.N), clear(p.dskip, p.ways * p.D), clear(p.dbias, p.ways * p.D);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t k = 0; k < p.ways; ++k) CrossWayBackward<R>(p, k).backward(b, r);
  each_weight(p, [&](int64_t at, int64_t turned) {
    static_cast<R*>(p.dweight)[at] = r.dwidening[turned];
  });
}

}  // namespace LONGSEQ_ISA
