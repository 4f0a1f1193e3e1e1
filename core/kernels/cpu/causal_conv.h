// Causal depthwise convolution over time with an initial state, segment resets and a fused SiLU. Lanes are channels.
#pragma once
#include <algorithm>

#include "rows.h"

namespace LONGSEQ_ISA {

constexpr int64_t kConvWide = 4;

// One tile of channels of one row: rows t0 - (W - 1) … t0 + T of x, and how far back each position may look.
template <class R> struct ConvTile {
  static constexpr int V = kLanes<R>;
  const CausalConv& p;
  int64_t b, at, n, K;              // K taps
  Buffer<R> x, pre, weight;    // x: [K - 1 + kChunk][V]; weight: [K][V], the newest tap last
  std::vector<int32_t> reach;       // positions that may be looked back over
  int64_t since = 1 << 30;
  Vec<R> bias = {};
  ConvTile(const CausalConv& p, int64_t b, int64_t at, int64_t n)
      : p(p), b(b), at(at), n(n), K(p.W), x((p.W - 1 + kChunk) * V, R(0)), pre(kChunk * V), weight(p.W * V, R(0)),
        reach(kChunk) {
    R first[V] = {};
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < K; ++k) weight[k * V + i] = static_cast<const R*>(p.weight)[(at + i) * K + k];
      if (p.bias) first[i] = static_cast<const R*>(p.bias)[at + i];
    }
    bias = load(first);
    if (p.initial) read_rows<R>(p.initial, b, 0, K - 1, at, n, V, x.data());
  }
  // Reads the chunk and computes the convolution before its activation.
  void forward(int64_t t0, int64_t T) {
    read_rows<R>(p.x, b, t0, T, at, n, V, &x[(K - 1) * V]);
    for (int64_t t = 0; t < T; ++t) {
      since = p.resets && p.resets[b * p.L + t0 + t] ? 0 : since + 1;
      reach[t] = int32_t(std::min<int64_t>(K - 1, since));
      Vec<R> y = bias;
      for (int64_t o = reach[t]; o >= 0; --o) y += load(&weight[(K - 1 - o) * V]) * load(&x[(K - 1 + t - o) * V]);
      store(&pre[t * V], y);
    }
  }
  void advance(int64_t T) { std::memmove(x.data(), &x[T * V], (K - 1) * V * sizeof(R)); }
};

template <class R, class F> inline void conv_units(const CausalConv& p, const F& run) {
  constexpr int V = kLanes<R>;
  const int64_t blocks = (p.D + kConvWide * V - 1) / (kConvWide * V);
  parallel(p.B * blocks, p.threads, [&](int64_t index) {
    const int64_t b = index / blocks, end = std::min(p.D, (index % blocks + 1) * kConvWide * V);
    for (int64_t at = index % blocks * kConvWide * V; at < end; at += V) run(b, at, std::min<int64_t>(V, p.D - at));
  });
}

template <class R> void causal_conv_forward_as(const CausalConv& p) {
  constexpr int V = kLanes<R>;
  conv_units<R>(p, [&](int64_t b, int64_t at, int64_t n) {
    ConvTile<R> tile(p, b, at, n);
    for (int64_t t0 = 0; t0 < p.L; t0 += kChunk) {
      const int64_t T = std::min(kChunk, p.L - t0);
      tile.forward(t0, T);
      if (p.silu)
        for (int64_t t = 0; t < T; ++t) {
          const Vec<R> y = load(&tile.pre[t * V]);
          store(&tile.pre[t * V], y * sigmoid<R>(y));
        }
      write_rows<R>(p.y, b, t0, T, at, n, V, tile.pre.data());
      tile.advance(T);
    }
  });
}

// One position and no resets: the state moves up by one row.
template <class R> void causal_conv_update_as(const CausalConv& p) {
  constexpr int V = kLanes<R>;
  conv_units<R>(p, [&](int64_t b, int64_t at, int64_t n) {
    const int64_t past = p.W - 1;
    R x[32 * V], weight[32 * V], bias[V] = {};
    std::fill(x, x + past * V, R(0));
    std::fill(weight, weight + p.W * V, R(0));
    if (p.initial) read_rows<R>(p.initial, b, 0, past, at, n, V, x);
    read_rows<R>(p.x, b, 0, 1, at, n, V, x + past * V);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < p.W; ++k) weight[k * V + i] = static_cast<const R*>(p.weight)[(at + i) * p.W + k];
      if (p.bias) bias[i] = static_cast<const R*>(p.bias)[at + i];
    }
    Vec<R> y = load(bias);
    for (int64_t k = 0; k < p.W; ++k) y += load(weight + k * V) * load(x + k * V);
    if (p.silu) y *= sigmoid<R>(y);
    R out[V];
    store(out, y);
    write_rows<R>(p.y, b, 0, 1, at, n, V, out);
    write_rows<R>(p.next, b, 0, past, at, n, V, x + V);
  });
}

template <class R> void causal_conv_backward_as(const CausalConv& p) {
  constexpr int V = kLanes<R>;
  conv_units<R>(p, [&](int64_t b, int64_t at, int64_t n) {
    ConvTile<R> tile(p, b, at, n);
    const int64_t K = p.W;
    // dx of rows t0 - (K - 1) … t0 + T: a row is final once the K - 1 positions after it were seen.
    Buffer<R> dx((K - 1 + kChunk) * V, R(0)), dy(kChunk * V), dw(K * V, R(0)), part(K * V);
    Vec<R> db = {};
    for (int64_t t0 = 0; t0 < p.L; t0 += kChunk) {
      const int64_t T = std::min(kChunk, p.L - t0);
      tile.forward(t0, T);
      read_rows<R>(p.dy, b, t0, T, at, n, V, dy.data());
      std::fill(part.begin(), part.end(), R(0));  // summed chunk by chunk: float32 stays accurate over long L
      Vec<R> db_part = {};
      for (int64_t t = 0; t < T; ++t) {
        Vec<R> g = load(&dy[t * V]);
        if (p.silu) {
          const Vec<R> y = load(&tile.pre[t * V]), s = sigmoid<R>(y);
          g *= s * (R(1) + y * (R(1) - s));
        }
        db_part += g;
        for (int64_t o = tile.reach[t]; o >= 0; --o) {
          R* w = &part[(K - 1 - o) * V];
          R* d = &dx[(K - 1 + t - o) * V];
          store(w, load(w) + g * load(&tile.x[(K - 1 + t - o) * V]));
          store(d, load(d) + g * load(&tile.weight[(K - 1 - o) * V]));
        }
      }
      db += db_part;
      for (int64_t k = 0; k < K; ++k) store(&dw[k * V], load(&dw[k * V]) + load(&part[k * V]));
      const int64_t before = t0 == 0 ? K - 1 : 0;  // rows that lie before the sequence; K - 1 < kChunk
      if (before && p.dinitial) write_rows<R>(p.dinitial, b, 0, K - 1, at, n, V, dx.data());
      const bool last = t0 + T == p.L;
      const int64_t from = before, to = last ? K - 1 + T : T;
      if (to > from) write_rows<R>(p.dx, b, t0 - (K - 1) + from, to - from, at, n, V, &dx[from * V]);
      tile.advance(T);
      std::memmove(dx.data(), &dx[T * V], (K - 1) * V * sizeof(R));
      std::fill(dx.begin() + (K - 1) * V, dx.end(), R(0));
    }
    R lane[V];
    store(lane, db);
    for (int64_t i = 0; i < n; ++i) {
      static_cast<R*>(p.dbias)[b * p.D + at + i] = lane[i];
      for (int64_t k = 0; k < K; ++k) static_cast<R*>(p.dweight)[(b * p.D + at + i) * K + k] = dw[k * V + i];
    }
  });
}

}  // namespace LONGSEQ_ISA
