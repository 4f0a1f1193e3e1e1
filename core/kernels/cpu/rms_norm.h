// Root mean square norm of rows, with the residual stream added before it, in one pass over each
// row: t = x + r, y = t w / sqrt(mean(t²) + eps). Equations in core/ops/rms_norm.
#pragma once
#include "gated_norm.h"

namespace LONGSEQ_ISA {

// y = unit w, where unit = t times `slope`.
template <class R> struct RootRow {
  const RmsNorm& p;
  R slope = 1;
  explicit RootRow(const RmsNorm& p) : p(p) {}
  static R* row(const Tensor3& x, int64_t r) {
    return x ? reinterpret_cast<R*>(x.ptr) + r * x.stride_l : nullptr;
  }
  void read(const R* t) {
    Vec<R> squares = {};
    over_lanes<R>(0, p.W, [&](int64_t c, int n) {
      const Vec<R> v = load_lanes(t + c, n);
      squares += v * v;
    });
    measure(t, sum_lanes(squares));
  }
  // The slope of a row whose squares have this sum.
  void measure(const R* t, R sum) {
    R square = sum / R(p.W), factor = 1;
    if (!(square < kLargest<R> * kLargest<R>)) {
      R greatest = 0;
      for (int64_t c = 0; c < p.W; ++c) greatest = std::max(greatest, std::abs(t[c]));
      factor = greatest > kBrought<R> ? kBrought<R> / greatest : R(1);
      square = 0;
      for (int64_t c = 0; c < p.W; ++c) square += t[c] * factor * (t[c] * factor);
      square /= R(p.W);
    }
    slope = R(1) / std::sqrt(square + R(p.eps)) * factor;
  }
};

template <class R> void rms_norm_forward_as(const RmsNorm& p) {
  const R* weight = static_cast<const R*>(p.weight);
  parallel((p.rows + kNormRows - 1) / kNormRows, p.threads, [&](int64_t block) {
    RootRow<R> root(p);
    for (int64_t r = block * kNormRows; r < std::min(p.rows, (block + 1) * kNormRows); ++r) {
      const R *x = root.row(p.x, r), *residual = root.row(p.residual, r);
      R *out = root.row(p.out, r), *total = root.row(p.total, r);
      if (residual) {
        Vec<R> squares = {};
        over_lanes<R>(0, p.W, [&](int64_t c, int n) {
          const Vec<R> v = load_lanes(x + c, n) + load_lanes(residual + c, n);
          store_lanes(total + c, v, n);
          squares += v * v;
        });
        root.measure(x = total, sum_lanes(squares));
      } else {
        root.read(x);
      }
      over_lanes<R>(0, p.W, [&](int64_t c, int n) {
        store_lanes(out + c, load_lanes(x + c, n) * root.slope * load_lanes(weight + c, n), n);
      });
    }
  });
}

// x is what was normalised; dtotal may be absent.
template <class R> void rms_norm_backward_as(const RmsNorm& p) {
  const R* weight = static_cast<const R*>(p.weight);
  parallel((p.rows + kNormRows - 1) / kNormRows, p.threads, [&](int64_t block) {
    RootRow<R> root(p);
    R* dweight = static_cast<R*>(p.dweight) + block * p.W;
    std::fill(dweight, dweight + p.W, R(0));
    for (int64_t r = block * kNormRows; r < std::min(p.rows, (block + 1) * kNormRows); ++r) {
      const R *x = root.row(p.x, r), *dout = root.row(p.dout, r), *dtotal = root.row(p.dtotal, r);
      R* dx = root.row(p.dx, r);
      root.read(x);
      Vec<R> product = {};
      over_lanes<R>(0, p.W, [&](int64_t c, int n) {
        const Vec<R> d = load_lanes(dout + c, n), unit = load_lanes(x + c, n) * root.slope;
        product += d * load_lanes(weight + c, n) * unit;
        store_lanes(dweight + c, load_lanes(dweight + c, n) + d * unit, n);
      });
      const R along = sum_lanes(product) / R(p.W);
      over_lanes<R>(0, p.W, [&](int64_t c, int n) {
        const Vec<R> unit = load_lanes(x + c, n) * root.slope;
        const Vec<R> weighted = load_lanes(dout + c, n) * load_lanes(weight + c, n);
        Vec<R> d = (weighted - unit * along) * root.slope;
        if (dtotal) d += load_lanes(dtotal + c, n);
        store_lanes(dx + c, d, n);
      });
    }
  });
}

}  // namespace LONGSEQ_ISA
