// Linear scan h_t = a_t h_{t-1} + b_t over time, real or complex, forward and backward. Lanes are
// channels; of complex ones, real and imaginary parts in turn, as they lie in memory.
#pragma once
#include "row_walk.h"

namespace LONGSEQ_ISA {

// Of pairs (re, im): both lanes the real part, both the imaginary part, the two exchanged.
#if defined(__AVX512F__)
inline Vec<float> both_re(Vec<float> x) { return (Vec<float>)_mm512_moveldup_ps((__m512)x); }
inline Vec<float> both_im(Vec<float> x) { return (Vec<float>)_mm512_movehdup_ps((__m512)x); }
inline Vec<float> exchanged(Vec<float> x) { return (Vec<float>)_mm512_permute_ps((__m512)x, 0xb1); }
inline Vec<double> both_re(Vec<double> x) { return (Vec<double>)_mm512_movedup_pd((__m512d)x); }
inline Vec<double> both_im(Vec<double> x) {
  return (Vec<double>)_mm512_permute_pd((__m512d)x, 0xff);
}
inline Vec<double> exchanged(Vec<double> x) {
  return (Vec<double>)_mm512_permute_pd((__m512d)x, 0x55);
}
#else
template <class V> inline V both_re(V x) {
  V y;
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) y[i] = x[i & ~size_t(1)];
  return y;
}
template <class V> inline V both_im(V x) {
  V y;
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) y[i] = x[i | 1];
  return y;
}
template <class V> inline V exchanged(V x) {
  V y;
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) y[i] = x[i ^ 1];
  return y;
}
#endif
template <class R> inline Vec<R> alternating() {  // -1, 1, -1, 1, …
  R lane[kLanes<R>];
  for (int i = 0; i < kLanes<R>; ++i) lane[i] = i % 2 ? R(1) : R(-1);
  return load(lane);
}
// a x + b, and conj(a) x.
template <class R, bool complex> inline Vec<R> multiply_add(Vec<R> a, Vec<R> x, Vec<R> b) {
  if constexpr (!complex) return a * x + b;
  else return both_re(a) * x + (both_im(a) * alternating<R>() * exchanged(x) + b);
}
template <class R, bool complex> inline Vec<R> conjugate_times(Vec<R> a, Vec<R> x) {
  if constexpr (!complex) return a * x;
  else return both_re(a) * x - both_im(a) * alternating<R>() * exchanged(x);
}

template <class R, class F> inline void each_linear_span(const LinearScan& p, const F& run) {
  each_span<R>(p.B, p.complex ? 2 * p.D : p.D, kLanes<R>, p.threads, run);
}
template <class R> inline int64_t state_at(const LinearScan& p, const Span& s) {
  return s.b * (p.complex ? 2 * p.D : p.D) + s.at;
}

template <class R, bool complex> void linear_forward(const LinearScan& p) {
  constexpr int W = kLanes<R>;
  const bool stream = worth_streaming<R>(p.B * p.L * p.D);
  each_linear_span<R>(p, [&](const Span& s) {
    RowsIn<R> a(p.a, s), b(p.b, s);
    RowsOut<R> out(p.h, s);
    Buffer<R> state((s.n + W - 1) / W * W, R(0));
    if (p.initial)
      std::memcpy(state.data(), static_cast<const R*>(p.initial) + state_at<R>(p, s),
                  s.n * sizeof(R));
    for (int64_t t0 = 0; t0 < p.L; t0 += kWalkRows) {
      const int64_t T = std::min(kWalkRows, p.L - t0);
      a.step(t0, T);
      b.step(t0, T);
      for (int64_t i = 0; i < s.n; i += W) {
        const int some = int(std::min<int64_t>(W, s.n - i));
        Vec<R> h = load(&state[i]);
        for (int64_t t = 0; t < T; ++t) {
          h = multiply_add<R, complex>(load_lanes(a.row(t0 + t) + i, some), h,
                                       load_lanes(b.row(t0 + t) + i, some));
          put(out.row(t0 + t, t) + i, h, some, stream);
        }
        store(&state[i], h);
      }
      out.done(t0, T);
    }
    end_streaming();
  });
}

// g_t = dh_t + conj(a_{t+1}) g_{t+1};  db_t = g_t;  da_t = g_t conj(h_{t-1}).
template <class R, bool complex> void linear_backward(const LinearScan& p) {
  constexpr int W = kLanes<R>;
  const bool stream = worth_streaming<R>(p.B * p.L * p.D);
  each_linear_span<R>(p, [&](const Span& s) {
    RowsIn<R> a(p.a, s), dh(p.dh, s), h(p.h, s);
    RowsOut<R> db(p.db, s), da(p.da, s);
    const int64_t width = (s.n + W - 1) / W * W;
    Buffer<R> carry(width, R(0)), initial(width, R(0));
    if (p.initial)
      std::memcpy(initial.data(), static_cast<const R*>(p.initial) + state_at<R>(p, s),
                  s.n * sizeof(R));
    for (int64_t t0 = (p.L - 1) / kWalkRows * kWalkRows; t0 >= 0; t0 -= kWalkRows) {
      const int64_t T = std::min(kWalkRows, p.L - t0), skip = t0 == 0 ? 1 : 0;
      a.step(t0, T);
      dh.step(t0, T);
      h.step(t0 - 1 + skip, T - skip);
      for (int64_t i = 0; i < s.n; i += W) {
        const int some = int(std::min<int64_t>(W, s.n - i));
        Vec<R> c = load(&carry[i]);
        for (int64_t t = T - 1; t >= 0; --t) {
          const R* before = t0 + t ? h.row(t0 + t - 1) : initial.data();
          const Vec<R> g = load_lanes(dh.row(t0 + t) + i, some) + c;
          put(db.row(t0 + t, t) + i, g, some, stream);
          put(da.row(t0 + t, t) + i, conjugate_times<R, complex>(load_lanes(before + i, some), g),
              some, stream);
          c = conjugate_times<R, complex>(load_lanes(a.row(t0 + t) + i, some), g);
        }
        store(&carry[i], c);
      }
      db.done(t0, T);
      da.done(t0, T);
    }
    if (p.dinitial)
      std::memcpy(static_cast<R*>(p.dinitial) + state_at<R>(p, s), carry.data(), s.n * sizeof(R));
    end_streaming();
  });
}

template <class R> void linear_scan_forward_as(const LinearScan& p) {
  p.complex ? linear_forward<R, true>(p) : linear_forward<R, false>(p);
}
template <class R> void linear_scan_backward_as(const LinearScan& p) {
  p.complex ? linear_backward<R, true>(p) : linear_backward<R, false>(p);
}

}  // namespace LONGSEQ_ISA
