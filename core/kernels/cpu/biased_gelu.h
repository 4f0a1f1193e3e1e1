// The exact GELU and the bias before it: y = t Φ(t), t = x + bias, with Φ the normal distribution.
#pragma once
#include "gated_norm.h"

namespace LONGSEQ_ISA {

// Φ(t) and, where it is wanted, its slope, the density.
//   Φ(-|t|) = exp(-t²/2) s P(s), s = 1 / (1 + 0.26 |t|)
// P is a fit of erfcx(|t|/√2) / (2 s) on 0 … 14.5 with a relative error of 2.8e-8.
inline Vec<float> normal(Vec<float> t, Vec<float>* density) {
  typedef Vec<float> V;
  const V minus = t < V{} ? t : -t;  // -|t|; NaN stays
  const V s = 1.0f / (1.0f - 0.26f * minus);
  const V e = exp2_product(t * -0.72134752044448170f, t);  // exp(-t²/2)
  V p = splat<float>(0.0302337589f);
  constexpr float c[] = {-0.15151013f,  0.248763319f, -0.147821172f, 0.158778976f,
                         0.0519569378f, 0.10279052f,  0.103050739f,  0.103757035f};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) p = p * s + c[i];
  const V tail = e * s * p;
  if (density) *density = e * 0.39894228040143268f;
  return t < V{} ? tail : 1.0f - tail;
}
inline Vec<double> normal(Vec<double> t, Vec<double>* density) {
  Vec<double> y;
  for (int i = 0; i < kLanes<double>; ++i) {
    y[i] = 0.5 * std::erfc(-0.70710678118654752440 * t[i]);
    if (density) (*density)[i] = 0.39894228040143267794 * std::exp(-0.5 * t[i] * t[i]);
  }
  return y;
}

template <class R> void biased_gelu_forward_as(const BiasedGelu& p) {
  const R* bias = static_cast<const R*>(p.bias);
  parallel((p.rows + kNormRows - 1) / kNormRows, p.threads, [&](int64_t block) {
    for (int64_t r = block * kNormRows; r < std::min(p.rows, (block + 1) * kNormRows); ++r) {
      const R* x = static_cast<const R*>(p.x) + r * p.W;
      R* y = static_cast<R*>(p.y) + r * p.W;
      over_lanes<R>(0, p.W, [&](int64_t c, int n) {
        const Vec<R> t = load_lanes(x + c, n) + load_lanes(bias + c, n);
        store_lanes(y + c, t * normal(t, nullptr), n);
      });
    }
  });
}

// dx = dy (Φ(t) + t φ(t)); y holds its gradient.
template <class R> void biased_gelu_backward_as(const BiasedGelu& p) {
  const R* bias = static_cast<const R*>(p.bias);
  parallel((p.rows + kNormRows - 1) / kNormRows, p.threads, [&](int64_t block) {
    R* dbias = static_cast<R*>(p.dbias) + block * p.W;
    std::fill(dbias, dbias + p.W, R(0));
    for (int64_t r = block * kNormRows; r < std::min(p.rows, (block + 1) * kNormRows); ++r) {
      const R *x = static_cast<const R*>(p.x) + r * p.W, *dy = static_cast<R*>(p.y) + r * p.W;
      R *dx = static_cast<R*>(p.dx) + r * p.W,
        *again = p.again ? static_cast<R*>(p.again) + r * p.W : nullptr;
      over_lanes<R>(0, p.W, [&](int64_t c, int n) {
        const Vec<R> t = load_lanes(x + c, n) + load_lanes(bias + c, n);
        Vec<R> density;
        const Vec<R> below = normal(t, &density);
        const Vec<R> d = load_lanes(dy + c, n) * (below + t * density);
        store_lanes(dx + c, d, n);
        if (again) store_lanes(again + c, t * below, n);
        store_lanes(dbias + c, load_lanes(dbias + c, n) + d, n);
      });
    }
  });
}

}  // namespace LONGSEQ_ISA
