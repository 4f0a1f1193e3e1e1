// Linear scan h_t = a_t h_{t-1} + b_t over time, real or complex, forward and backward. Lanes are channels.
#pragma once
#include <algorithm>

#include "rows.h"

namespace LONGSEQ_ISA {

// A unit of work is one row of the batch and kWide vectors of channels.
constexpr int64_t kWide = 4;

// Chunks of rows as separate real and imaginary tiles.
template <class R> struct Split {
  static constexpr int W = kLanes<R>;
  alignas(64) R re[kChunk * W], im[kChunk * W], pair[kChunk * 2 * W];
  void read(const Tensor3& x, bool complex, int64_t b, int64_t t0, int64_t T, int64_t at, int64_t n) {
    if (!complex) return read_rows<R>(x, b, t0, T, at, n, W, re);
    read_rows<R>(x, b, t0, T, 2 * at, 2 * n, 2 * W, pair);
    for (int64_t i = 0; i < T * W; ++i) {
      re[i] = pair[2 * i];
      im[i] = pair[2 * i + 1];
    }
  }
  void write(const Tensor3& x, bool complex, int64_t b, int64_t t0, int64_t T, int64_t at, int64_t n) {
    if (!complex) return write_rows<R>(x, b, t0, T, at, n, W, re);
    for (int64_t i = 0; i < T * W; ++i) {
      pair[2 * i] = re[i];
      pair[2 * i + 1] = im[i];
    }
    write_rows<R>(x, b, t0, T, 2 * at, 2 * n, 2 * W, pair);
  }
};

// One value a channel: a vector for the real parts, one for the imaginary parts.
template <class R> struct Value {
  static constexpr int W = kLanes<R>;
  Vec<R> re = {}, im = {};
  void read(const void* from, bool complex, int64_t at, int64_t n) {
    if (!from) return;
    R r[W] = {}, i[W] = {};
    const R* p = static_cast<const R*>(from) + (complex ? 2 * at : at);
    for (int64_t k = 0; k < n; ++k) {
      r[k] = complex ? p[2 * k] : p[k];
      if (complex) i[k] = p[2 * k + 1];
    }
    re = load(r);
    im = load(i);
  }
  void write(void* to, bool complex, int64_t at, int64_t n) const {
    R r[W], i[W];
    store(r, re);
    store(i, im);
    R* p = static_cast<R*>(to) + (complex ? 2 * at : at);
    for (int64_t k = 0; k < n; ++k) {
      (complex ? p[2 * k] : p[k]) = r[k];
      if (complex) p[2 * k + 1] = i[k];
    }
  }
};

template <class R, class F> inline void linear_units(const LinearScan& p, const F& run) {
  constexpr int W = kLanes<R>;
  const int64_t blocks = (p.D + kWide * W - 1) / (kWide * W);
  parallel(p.B * blocks, p.threads, [&](int64_t index) {
    const int64_t b = index / blocks, end = std::min(p.D, (index % blocks + 1) * kWide * W);
    for (int64_t at = index % blocks * kWide * W; at < end; at += W) run(b, at, std::min<int64_t>(W, p.D - at));
  });
}

template <class R> void linear_scan_forward_as(const LinearScan& p) {
  constexpr int W = kLanes<R>;
  linear_units<R>(p, [&](int64_t b, int64_t at, int64_t n) {
    Split<R> a, x;
    Value<R> h;
    h.read(p.initial, p.complex, b * p.D + at, n);
    for (int64_t t0 = 0; t0 < p.L; t0 += kChunk) {
      const int64_t T = std::min(kChunk, p.L - t0);
      a.read(p.a, p.complex, b, t0, T, at, n);
      x.read(p.b, p.complex, b, t0, T, at, n);
      if (!p.complex) {
        for (int64_t t = 0; t < T; ++t) {
          h.re = load(a.re + t * W) * h.re + load(x.re + t * W);
          store(x.re + t * W, h.re);
        }
      } else {
        for (int64_t t = 0; t < T; ++t) {
          const Vec<R> ar = load(a.re + t * W), ai = load(a.im + t * W);
          const Vec<R> re = ar * h.re - ai * h.im + load(x.re + t * W);
          h.im = ar * h.im + ai * h.re + load(x.im + t * W);
          h.re = re;
          store(x.re + t * W, h.re);
          store(x.im + t * W, h.im);
        }
      }
      x.write(p.h, p.complex, b, t0, T, at, n);
    }
  });
}

// g_t = dh_t + conj(a_{t+1}) g_{t+1};  db_t = g_t;  da_t = g_t conj(h_{t-1}).
template <class R> void linear_scan_backward_as(const LinearScan& p) {
  constexpr int W = kLanes<R>;
  linear_units<R>(p, [&](int64_t b, int64_t at, int64_t n) {
    Split<R> a, g, h;  // h holds h_{t-1}
    Value<R> carry, initial;
    initial.read(p.initial, p.complex, b * p.D + at, n);
    for (int64_t t0 = (p.L - 1) / kChunk * kChunk; t0 >= 0; t0 -= kChunk) {
      const int64_t T = std::min(kChunk, p.L - t0), skip = t0 == 0 ? 1 : 0;
      a.read(p.a, p.complex, b, t0, T, at, n);
      g.read(p.dh, p.complex, b, t0, T, at, n);
      h.read(p.h, p.complex, b, t0 - 1 + skip, T - skip, at, n);
      if (skip) {
        std::memmove(h.re + W, h.re, (T - 1) * W * sizeof(R));
        store(h.re, initial.re);
        if (p.complex) {
          std::memmove(h.im + W, h.im, (T - 1) * W * sizeof(R));
          store(h.im, initial.im);
        }
      }
      for (int64_t t = T - 1; t >= 0; --t) {
        const Vec<R> ar = load(a.re + t * W), hr = load(h.re + t * W);
        if (!p.complex) {
          const Vec<R> gr = load(g.re + t * W) + carry.re;
          store(g.re + t * W, gr);
          store(h.re + t * W, gr * hr);
          carry.re = ar * gr;
          continue;
        }
        const Vec<R> ai = load(a.im + t * W), hi = load(h.im + t * W);
        const Vec<R> gr = load(g.re + t * W) + carry.re, gi = load(g.im + t * W) + carry.im;
        store(g.re + t * W, gr);
        store(g.im + t * W, gi);
        store(h.re + t * W, gr * hr + gi * hi);
        store(h.im + t * W, gi * hr - gr * hi);
        carry.re = ar * gr + ai * gi;
        carry.im = ar * gi - ai * gr;
      }
      g.write(p.db, p.complex, b, t0, T, at, n);
      h.write(p.da, p.complex, b, t0, T, at, n);
    }
    carry.write(p.dinitial, p.complex, b * p.D + at, n);
  });
}

}  // namespace LONGSEQ_ISA
