// The gated linear unit and the bias before it: y = (a + α) σ(g + γ) of rows [a, g], with the bias
// [α, γ].
#pragma once
#include "gated_norm.h"

namespace LONGSEQ_ISA {

template <class R, class F> inline void glu_rows(const GLU& p, const F& run) {
  const R* bias = static_cast<const R*>(p.bias);
  const int64_t blocks = (p.rows + kNormRows - 1) / kNormRows;
  parallel(blocks, p.threads, [&](int64_t block) {
    for (int64_t r = block * kNormRows; r < std::min(p.rows, (block + 1) * kNormRows); ++r) {
      const R* x = static_cast<const R*>(p.x) + r * 2 * p.W;
      over_lanes<R>(0, p.W, [&](int64_t c, int n) {
        Vec<R> a = load_lanes(x + c, n), g = load_lanes(x + p.W + c, n);
        if (bias) a += load_lanes(bias + c, n), g += load_lanes(bias + p.W + c, n);
        run(block, r, c, n, a, sigmoid<R>(g));
      });
    }
  });
}

template <class R> void glu_forward_as(const GLU& p) {
  glu_rows<R>(p, [&](int64_t, int64_t r, int64_t c, int n, Vec<R> a, Vec<R> s) {
    store_lanes(static_cast<R*>(p.y) + r * p.W + c, a * s, n);
  });
}

template <class R> void glu_backward_as(const GLU& p) {
  glu_rows<R>(p, [&](int64_t block, int64_t r, int64_t c, int n, Vec<R> a, Vec<R> s) {
    const Vec<R> dy = load_lanes(static_cast<const R*>(p.y) + r * p.W + c, n);
    const Vec<R> da = dy * s, dg = da * a * (R(1) - s);
    R *dx = static_cast<R*>(p.dx) + r * 2 * p.W + c,
      *db = static_cast<R*>(p.dbias) + block * 2 * p.W + c;
    store_lanes(dx, da, n);
    store_lanes(dx + p.W, dg, n);
    const bool first = r % kNormRows == 0;
    store_lanes(db, first ? da : load_lanes(db, n) + da, n);
    store_lanes(db + p.W, first ? dg : load_lanes(db + p.W, n) + dg, n);
  });
}

}  // namespace LONGSEQ_ISA
