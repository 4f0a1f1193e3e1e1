// The causal convolution of memory whose time is dense, (B, D, L): lanes are positions, a channel's
// row at a time.
#pragma once
#include <algorithm>

#include "rows.h"

namespace LONGSEQ_ISA {

// Calls run with the number of taps at compile time, 0 where they are not 2 to 4.
template <class F> inline void with_taps(int64_t taps, const F& run) {
  switch (taps) {
    case 2: return run(std::integral_constant<int, 2>());
    case 3: return run(std::integral_constant<int, 3>());
    case 4: return run(std::integral_constant<int, 4>());
    default: return run(std::integral_constant<int, 0>());
  }
}

constexpr int64_t kConvSpan = 1024;  // positions of a row at a time: they stay in the first cache

// Positions t0 … t0 + n of channel d, in the compute type.
template <class R>
inline void read_along(const Strided& x, int64_t b, int64_t d, int64_t t0, int64_t n, R* out) {
  const int64_t size = x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2;
  const char* p = x.ptr + size * (b * x.stride_b + d * x.stride_c + t0 * x.stride_l);
  const int64_t step = x.stride_l;
  const auto all = [&](auto* from, auto convert) {
    if (step == 1)
      for (int64_t i = 0; i < n; ++i) out[i] = R(convert(from[i]));
    else
      for (int64_t i = 0; i < n; ++i) out[i] = R(convert(from[i * step]));
  };
  switch (x.dtype) {
    case kFloat32: all(reinterpret_cast<const float*>(p), [](float v) { return v; }); break;
    case kFloat64: all(reinterpret_cast<const double*>(p), [](double v) { return v; }); break;
    case kBFloat16: all(reinterpret_cast<const uint16_t*>(p), from_bf16); break;
    default: all(reinterpret_cast<const uint16_t*>(p), from_half);
  }
}
template <class R>
inline void write_along(const Strided& x, int64_t b, int64_t d, int64_t t0, int64_t n, const R* in,
                        bool stream = false) {
  const int64_t size = x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2;
  char* p = x.ptr + size * (b * x.stride_b + d * x.stride_c + t0 * x.stride_l);
  const int64_t step = x.stride_l;
#if defined(__AVX512F__)
  // Past the caches: reading the lines first, only to overwrite them, is a third of the traffic.
  if (stream && step == 1 && size == int64_t(sizeof(R)) &&
      reinterpret_cast<uintptr_t>(p) % 64 == 0) {
    const int64_t whole = n / kLanes<R> * kLanes<R>;
    for (int64_t i = 0; i < whole; i += kLanes<R>)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(p + size * i), _mm512_loadu_si512(in + i));
    p += size * whole, in += whole, n -= whole;
  }
#endif
  const auto all = [&](auto* to, auto convert) {
    if (step == 1)
      for (int64_t i = 0; i < n; ++i) to[i] = convert(in[i]);
    else
      for (int64_t i = 0; i < n; ++i) to[i * step] = convert(in[i]);
  };
  switch (x.dtype) {
    case kFloat32: all(reinterpret_cast<float*>(p), [](R v) { return float(v); }); break;
    case kFloat64: all(reinterpret_cast<double*>(p), [](R v) { return double(v); }); break;
    case kBFloat16:
      all(reinterpret_cast<uint16_t*>(p), [](R v) { return to_bf16(float(v)); });
      break;
    default: all(reinterpret_cast<uint16_t*>(p), [](R v) { return to_half(float(v)); });
  }
}

// What the channels of one row of the batch share, and one channel's taps and working memory.
template <class R> struct ConvRow {
  static constexpr int V = kLanes<R>;
  const CausalConv& p;
  const int64_t b, K, past;
  // of every position: so many before it may be looked at; empty without resets
  std::vector<uint8_t> reach;
  Buffer<R> x, y;              // a span with its past; a span; padded to whole vectors
  Buffer<R> weight;
  R bias = R(0);
  int64_t d = 0;

  ConvRow(const CausalConv& p, int64_t b)
      : p(p), b(b), K(p.W), past(p.W - 1), x(past + kConvSpan + V, R(0)), y(kConvSpan + V, R(0)),
        weight(p.W, R(0)) {
    if (!p.resets) return;
    reach.assign(p.L + V + past, uint8_t(past));
    int64_t since = past;
    for (int64_t t = 0; t < p.L; ++t) {
      since = p.resets[b * p.L + t] ? 0 : since + 1;
      reach[t] = uint8_t(std::min(past, since));
    }
  }
  void channel(int64_t at) {
    d = at;
    for (int64_t k = 0; k < K; ++k) weight[k] = static_cast<const R*>(p.weight)[d * K + k];
    bias = p.bias ? static_cast<const R*>(p.bias)[d] : R(0);
  }
  // Makes x hold positions t0 - past … t0 + n.
  void span(int64_t t0, int64_t n) {
    // of them in this row; what is earlier is the initial state or zero
    const int64_t before = std::min(past, t0);
    for (int64_t i = 0; i < past - before; ++i) x[i] = R(0);
    if (p.initial && before < past) read_along<R>(p.initial, b, d, t0, past - before, x.data());
    read_along<R>(p.x, b, d, t0 - before, before + n, &x[past - before]);
  }
  // Whether no reset lies in the way of n positions from t on.
  bool plain(int64_t t, int64_t n) const {
    if (reach.empty()) return true;
    uint8_t least = uint8_t(past);
    for (int64_t i = 0; i < n; ++i) least = std::min(least, reach[t + i]);
    return least == past;
  }
  // Values of o positions earlier, zero where a reset lies between; at: of the span, t: of the row.
  Vec<R> earlier(int64_t at, int64_t t, int64_t o, bool plain) const {
    if (plain) return load(&x[past + at - o]);
    R lane[V];
    for (int i = 0; i < V; ++i) lane[i] = reach[t + i] >= o ? x[past + at - o + i] : R(0);
    return load(lane);
  }
  template <int KS> Vec<R> sum(int64_t at, int64_t t, bool plain) const {
    Vec<R> s = splat<R>(bias);
    if constexpr (KS > 0) {
      if (plain) {
#pragma GCC unroll 4
        for (int k = 0; k < KS; ++k) s += splat<R>(weight[k]) * load(&x[at + k]);
        return s;
      }
    }
    for (int64_t o = past; o >= 0; --o) s += splat<R>(weight[past - o]) * earlier(at, t, o, plain);
    return s;
  }
};

// Calls run(row) for every channel of every row; threads share out blocks of channels.
template <class Row, class F> inline void each_conv_row(const CausalConv& p, const F& run) {
  const int64_t per = std::min<int64_t>(64, std::max<int64_t>(1, p.B * p.D / (4 * p.threads)));
  const int64_t blocks = (p.D + per - 1) / per;
  parallel(p.B * blocks, p.threads, [&](int64_t index) {
    Row row(p, index / blocks);
    for (int64_t d = index % blocks * per, end = std::min(p.D, d + per); d < end; ++d) {
      row.channel(d);
      run(row);
    }
    end_streaming();
  });
}

template <class R> void causal_conv_forward_along(const CausalConv& p) {
  constexpr int V = kLanes<R>;
  const bool stream = worth_streaming<R>(p.B * p.L * p.D);
  each_conv_row<ConvRow<R>>(p, [&](ConvRow<R>& row) {
    for (int64_t t0 = 0; t0 < p.L; t0 += kConvSpan) {
      const int64_t n = std::min(kConvSpan, p.L - t0);
      row.span(t0, n);
      with_taps(p.W, [&](auto taps) {
        for (int64_t i = 0; i < n; i += V) {
          Vec<R> v = row.template sum<decltype(taps)::value>(i, t0 + i, row.plain(t0 + i, V));
          if (p.silu) v *= sigmoid<R>(v);
          store(&row.y[i], v);
        }
      });
      write_along<R>(p.y, row.b, row.d, t0, n, row.y.data(), stream);
    }
  });
}

// dx[t] = Σ_o g[t + o] w[K-1-o], g = dy silu'(pre): spans from the last to the first, so that what
// follows is known.
template <class R> struct ConvRowBackward : ConvRow<R> {
  using ConvRow<R>::V, ConvRow<R>::p, ConvRow<R>::K, ConvRow<R>::past, ConvRow<R>::reach,
      ConvRow<R>::x;
  using ConvRow<R>::weight;
  Buffer<R> dy, g, dx, dw, part;  // a span; with what follows; a span; taps; taps by lanes
  R db = R(0);

  ConvRowBackward(const CausalConv& p, int64_t b)
      : ConvRow<R>(p, b),
        dy(kConvSpan + V),
        g(kConvSpan + p.W + V),
        dx(kConvSpan + V),
        dw(p.W),
        part(p.W * V) {}
  void channel(int64_t at) {
    ConvRow<R>::channel(at);
    std::fill(dw.begin(), dw.end(), R(0)), std::fill(g.begin(), g.end(), R(0));
    db = R(0);
  }
  // Fills g of n positions from t0 on and adds what they give to dw and db.
  template <int KS> void activations(int64_t t0, int64_t n) {
    Vec<R> db_part = {}, dw_part[KS > 0 ? KS : 1] = {};
    std::fill(part.begin(), part.end(), R(0));
    for (int64_t i = 0; i < n; i += V) {
      const bool plain = this->plain(t0 + i, V);
      Vec<R> v = load_lanes(&dy[i], int(std::min<int64_t>(V, n - i)));
      if (p.silu) {
        const Vec<R> s = this->template sum<KS>(i, t0 + i, plain), a = sigmoid<R>(s);
        v *= a * (R(1) + s * (R(1) - a));
      }
      if (n - i < V) {  // lanes past the end saw whatever lay there
        R lane[V] = {};
        store_lanes(lane, v, int(n - i));
        v = load(lane);
      }
      store_lanes(&g[i], v, int(std::min<int64_t>(V, n - i)));
      db_part += v;
      if (KS > 0 && plain) {
        // The same lanes of x were not read where dy ends, and are finite or not: what they give is
        // not kept.
#pragma GCC unroll 4
        for (int k = 0; k < KS; ++k) dw_part[k] += v * seen(i + k, n - i);
      } else {
        for (int64_t o = 0; o < K; ++o) {
          R* w = &part[(past - o) * V];
          Vec<R> back = this->earlier(i, t0 + i, o, plain);
          if (n - i < V) back = first_lanes(back, int(n - i));
          store(w, load(w) + v * back);
        }
      }
    }
    for (int j = 0; j < V; ++j) db += db_part[j];
    for (int64_t k = 0; k < K; ++k) {
      R total = R(0);
      for (int j = 0; j < V; ++j) total += part[k * V + j];
      if constexpr (KS > 0)
        for (int j = 0; j < V; ++j) total += dw_part[k][j];
      dw[k] += total;
    }
  }
  static Vec<R> first_lanes(Vec<R> v, int n) {
    R lane[V] = {};
    store_lanes(lane, v, n);
    return load(lane);
  }
  Vec<R> seen(int64_t at, int64_t left) const {
    return left >= V ? load(&x[at]) : load_lanes(&x[at], int(left));
  }
  // The gradient of V inputs: at in the span, t in the row.
  template <int KS> Vec<R> input(int64_t at, int64_t t) const {
    Vec<R> s = {};
    if (KS > 0 && this->plain(t, V + past)) {
#pragma GCC unroll 4
      for (int o = 0; o < KS; ++o) s += splat<R>(weight[KS - 1 - o]) * load(&g[at + o]);
      return s;
    }
    for (int64_t o = 0; o < K; ++o) {
      Vec<R> from = load(&g[at + o]);
      if (!reach.empty()) {
        R lane[V];
        for (int i = 0; i < V; ++i) lane[i] = reach[t + i + o] >= o ? g[at + i + o] : R(0);
        from = load(lane);
      }
      s += splat<R>(weight[past - o]) * from;
    }
    return s;
  }
  // Of position i - past, before the row, which positions 0 … i look back at.
  R initial(int64_t i) const {
    R s = R(0);
    for (int64_t t = 0; t <= i && t < p.L; ++t) {
      const int64_t o = t + past - i;
      if (reach.empty() || reach[t] >= o) s += g[t] * weight[past - o];
    }
    return s;
  }
};

template <class R> void causal_conv_backward_along(const CausalConv& p) {
  constexpr int V = kLanes<R>;
  const bool stream = worth_streaming<R>(p.B * p.L * p.D);
  each_conv_row<ConvRowBackward<R>>(p, [&](ConvRowBackward<R>& row) {
    for (int64_t t0 = (p.L - 1) / kConvSpan * kConvSpan; t0 >= 0; t0 -= kConvSpan) {
      const int64_t n = std::min(kConvSpan, p.L - t0);
      row.span(t0, n);
      read_along<R>(p.dy, row.b, row.d, t0, n, row.dy.data());
      for (int64_t o = 0; o < row.past; ++o) row.g[n + o] = row.g[o];  // of the span that follows
      with_taps(p.W, [&](auto taps) {
        row.template activations<decltype(taps)::value>(t0, n);
        for (int64_t i = 0; i < n; i += V)
          store(&row.dx[i], row.template input<decltype(taps)::value>(i, t0 + i));
      });
      write_along<R>(p.dx, row.b, row.d, t0, n, row.dx.data(), stream);
    }
    for (int64_t i = 0; i < row.past && p.dinitial; ++i) {
      const R gradient = row.initial(i);
      write_along<R>(p.dinitial, row.b, row.d, i, 1, &gradient);
    }
    const int64_t at = row.b * p.D + row.d;
    static_cast<R*>(p.dbias)[at] = row.db;
    std::copy(row.dw.begin(), row.dw.end(), static_cast<R*>(p.dweight) + at * p.W);
  });
}

}  // namespace LONGSEQ_ISA
