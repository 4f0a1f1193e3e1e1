// Causal depthwise convolution over time with an initial state, segment resets and a fused SiLU.
// Lanes are channels.
#pragma once
#include "across.h"
#include "causal_conv_along.h"
#include "row_walk.h"

namespace LONGSEQ_ISA {

// The channels of a unit of work: their taps, and how far back each position may look.
template <class R> struct ConvSpan {
  static constexpr int V = kLanes<R>;
  const CausalConv& p;
  const Span s;
  const int64_t K, width;           // taps; channels padded to whole vectors
  // [K][width], the newest tap last; [width]; [K - 1][width], what comes before
  Buffer<R> weight, bias, first;
  RowsIn<R> x;
  std::vector<const R*> rows;       // of positions t0 - (K - 1) … t0 + T
  std::vector<int64_t> reach;       // of the same positions: so many before it may be looked at
  int64_t since = 1 << 30;

  ConvSpan(const CausalConv& p, const Span& s)
      : p(p),
        s(s),
        K(p.W),
        width((s.n + V - 1) / V * V),
        weight(K * width, R(0)),
        bias(width, R(0)),
        first(std::max<int64_t>(1, (K - 1) * width), R(0)),
        x(p.x, s, K - 1),
        rows(K - 1 + kWalkRows),
        reach(K - 1 + kWalkRows, K - 1) {
    for (int64_t i = 0; i < s.n; ++i) {
      for (int64_t k = 0; k < K; ++k)
        weight[k * width + i] = static_cast<const R*>(p.weight)[(s.at + i) * K + k];
      if (p.bias) bias[i] = static_cast<const R*>(p.bias)[s.at + i];
    }
    if (p.initial)
      for (int64_t t = 0; t + 1 < K; ++t)
        read_rows<R>(p.initial, s.b, t, 1, s.at, s.n, s.n, &first[t * width]);
  }
  int lanes(int64_t i) const { return int(std::min<int64_t>(V, s.n - i)); }
  void step(int64_t t0, int64_t T) {
    x.step(t0, T);
    if (t0)
      for (int64_t t = 0; t < K - 1; ++t) reach[t] = reach[kWalkRows + t];
    for (int64_t t = -(K - 1); t < T; ++t)
      rows[K - 1 + t] = t0 + t < 0 ? &first[(K - 1 + t0 + t) * width] : x.row(t0 + t);
    for (int64_t t = 0; t < T; ++t) {
      since = p.resets && p.resets[s.b * p.L + t0 + t] ? 0 : since + 1;
      reach[K - 1 + t] = std::min(K - 1, since);
    }
  }
  // Of position t of the step, channels i …: the sum over taps before its activation. KS: the taps
  // if they are known, all within reach.
  template <int KS> Vec<R> sum(int64_t t, int64_t i, int some) const {
    Vec<R> y = load(&bias[i]);
    if constexpr (KS > 0) {
#pragma GCC unroll 4
      for (int k = 0; k < KS; ++k)
        y += load(&weight[k * width + i]) * load_lanes(rows[t + k] + i, some);
    } else {
      for (int64_t o = reach[K - 1 + t]; o >= 0; --o)
        y += load(&weight[(K - 1 - o) * width + i]) * load_lanes(rows[K - 1 + t - o] + i, some);
    }
    return y;
  }
};

template <class R> void causal_conv_forward_as(const CausalConv& p) {
  if (p.x.stride_c != 1) return causal_conv_forward_along<R>(p);
  constexpr int V = kLanes<R>;
  const bool stream = worth_streaming<R>(p.B * p.L * p.D);
  each_span<R>(p.B, p.D, V, p.threads, [&](const Span& s) {
    ConvSpan<R> span(p, s);
    RowsOut<R> y(p.y, s);
    for (int64_t t0 = 0; t0 < p.L; t0 += kWalkRows) {
      const int64_t T = std::min(kWalkRows, p.L - t0);
      span.step(t0, T);
      with_taps(p.resets ? 0 : p.W, [&](auto taps) {
        for (int64_t i = 0; i < s.n; i += V) {
          const int some = span.lanes(i);
          for (int64_t t = 0; t < T; ++t) {
            Vec<R> v = span.template sum<decltype(taps)::value>(t, i, some);
            if (p.silu) {
              const Vec<R> a = sigmoid<R>(v);
              if (p.slope)
                store_lanes(row_at<R>(p.slope, s.b, t0 + t, s.at) + i, a * (R(1) + v * (R(1) - a)),
                            some);
              v *= a;
            }
            put(y.row(t0 + t, t) + i, v, some, stream);
          }
        }
      });
      y.done(t0, T);
    }
    end_streaming();
  });
}

// One position and no resets: the state moves up by one row.
template <class R> void causal_conv_update_as(const CausalConv& p) {
  constexpr int V = kLanes<R>;
  each_span<R>(p.B, p.D, V, p.threads, [&](const Span& s) {
    ConvSpan<R> span(p, s);
    RowsOut<R> y(p.y, s);
    span.step(0, 1);
    for (int64_t i = 0; i < s.n; i += V) {
      const int some = span.lanes(i);
      Vec<R> v = span.template sum<0>(0, i, some);
      if (p.silu) v *= sigmoid<R>(v);
      store_lanes(y.row(0, 0) + i, v, some);
    }
    y.done(0, 1);
    for (int64_t t = 0; t + 1 < p.W; ++t)
      write_rows<R>(p.next, s.b, t, 1, s.at, s.n, s.n, span.rows[t + 1]);
  });
}

// L positions after a buffer of T, which moves on by L in place; anything may be dense.
template <class R> void causal_conv_shift_as(const CausalConv& p) {
  constexpr int V = kLanes<R>;
  const int64_t rows = p.T + p.L;
  each_span<R>(p.B, p.D, V, p.threads, [&](const Span& s) {
    Buffer<R> seen(rows * V, R(0)), y(p.L * V), taps(p.W * V, R(0)), bias(V, R(0));
    for (int64_t at = s.at; at < s.at + s.n; at += V) {
      const int64_t n = std::min<int64_t>(V, s.at + s.n - at);
      read_tile<R>(p.buffer, s.b, 0, p.T, at, n, V, seen.data());
      read_tile<R>(p.x, s.b, 0, p.L, at, n, V, &seen[p.T * V]);
      const R* weight = static_cast<const R*>(p.weight) + at * p.W;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t k = 0; k < p.W; ++k) taps[k * V + i] = weight[i * p.W + k];
        if (p.bias) bias[i] = static_cast<const R*>(p.bias)[at + i];
      }
      for (int64_t t = 0; t < p.L; ++t) {
        Vec<R> sum = load(bias.data());
        for (int64_t k = 0; k < p.W; ++k)
          sum += load(&taps[k * V]) * load(&seen[(p.T + t - p.W + 1 + k) * V]);
        if (p.silu) sum *= sigmoid<R>(sum);
        store(&y[t * V], sum);
      }
      write_tile<R>(p.y, s.b, 0, p.L, at, n, V, y.data(), false);
      write_tile<R>(p.buffer, s.b, 0, p.T, at, n, V, &seen[p.L * V], false);
    }
  });
}

// dx[t] = Σ_o g[t + o] w[K-1-o], g = dy silu'(pre): of the K - 1 positions before a step, what it
// adds comes last.
template <class R> void causal_conv_backward_as(const CausalConv& p) {
  if (p.x.stride_c != 1) return causal_conv_backward_along<R>(p);
  constexpr int V = kLanes<R>;
  const bool stream = worth_streaming<R>(p.B * p.L * p.D);
  each_span<R>(p.B, p.D, V, p.threads, [&](const Span& s) {
    ConvSpan<R> span(p, s);
    RowsIn<R> dy(p.dy, s);
    const int64_t K = p.W, width = span.width;
    Buffer<R> dw(K * width, R(0)), db(width, R(0)), g((K - 1 + kWalkRows) * width, R(0)),
        part(K * V), row(width);
    // Rows before the sequence, the first K - 1, have gradients of their own; the last ones follow
    // after its end.
    const auto finish = [&](int64_t t, auto value) {  // value(i, lanes): the gradient of position t
      if (t < 0 && !p.dinitial) return;
      const bool direct = t >= 0 && holds<R>(p.dx);
      R* to = direct ? row_at<R>(p.dx, s.b, t, s.at) : row.data();
      if (p.adds && t >= 0)
        for (int64_t i = 0; i < s.n; i += V)
          store_lanes(to + i, load_lanes(to + i, span.lanes(i)) + value(i), span.lanes(i));
      else
        for (int64_t i = 0; i < s.n; i += V) put(to + i, value(i), span.lanes(i), direct && stream);
      if (!direct)
        write_rows<R>(t < 0 ? p.dinitial : p.dx, s.b, t < 0 ? K - 1 + t : t, 1, s.at, s.n, s.n, to);
    };
    for (int64_t t0 = 0; t0 < p.L; t0 += kWalkRows) {
      const int64_t T = std::min(kWalkRows, p.L - t0);
      span.step(t0, T);
      dy.step(t0, T);
      with_taps(p.resets ? 0 : p.W, [&](auto taps) {
        constexpr int KS = decltype(taps)::value;
        for (int64_t i = 0; i < s.n; i += V) {
          const int some = span.lanes(i);
          Vec<R> db_part = {};  // summed step by step: float32 stays accurate over long L
          Vec<R> dw_part[KS > 0 ? KS : 1] = {};
          if constexpr (KS == 0) std::fill(part.begin(), part.end(), R(0));
          for (int64_t t = 0; t < T; ++t) {
            Vec<R> d = load_lanes(dy.row(t0 + t) + i, some);
            if (p.slope) {
              d *= load_lanes(row_at<R>(p.slope, s.b, t0 + t, s.at) + i, some);
            } else if (p.silu) {
              const Vec<R> y = span.template sum<KS>(t, i, some), a = sigmoid<R>(y);
              d *= a * (R(1) + y * (R(1) - a));
            }
            store(&g[(K - 1 + t) * width + i], d);
            db_part += d;
            if constexpr (KS > 0) {
#pragma GCC unroll 4
              for (int k = 0; k < KS; ++k) dw_part[k] += d * load_lanes(span.rows[t + k] + i, some);
            } else {
              for (int64_t o = span.reach[K - 1 + t]; o >= 0; --o) {
                R* w = &part[(K - 1 - o) * V];
                store(w, load(w) + d * load_lanes(span.rows[K - 1 + t - o] + i, some));
              }
            }
          }
          store(&db[i], load(&db[i]) + db_part);
          for (int64_t k = 0; k < K; ++k) {
            R* w = &dw[k * width + i];
            if constexpr (KS > 0) store(w, load(w) + dw_part[k]);
            else store(w, load(w) + load(&part[k * V]));
          }
        }
      });
      // Positions t0 - (K - 1) … t0 + T - (K - 1) have now been seen by all that look at them.
      // in positions of the step; seen: computed
      const auto emit = [&](int64_t from, int64_t to, int64_t seen) {
        for (int64_t t = from; t < to; ++t) {
          if (!p.resets && t0 + t >= 0 && t + K <= seen) {  // all that look at it are there
            with_taps(K, [&](auto taps) {
              constexpr int KS = decltype(taps)::value;
              finish(t0 + t, [&](int64_t i) {
                Vec<R> sum = {};
#pragma GCC unroll 4
                for (int64_t o = 0; o < (KS > 0 ? KS : K); ++o)
                  sum += load(&g[(K - 1 + t + o) * width + i]) *
                         load(&span.weight[(K - 1 - o) * width + i]);
                return sum;
              });
            });
            continue;
          }
          finish(t0 + t, [&](int64_t i) {
            Vec<R> sum = {};
            for (int64_t o = 0; o < K && t + o < seen; ++o)
              if (t + o >= -(K - 1) && span.reach[K - 1 + t + o] >= o && t0 + t + o >= 0)
                sum += load(&g[(K - 1 + t + o) * width + i]) *
                       load(&span.weight[(K - 1 - o) * width + i]);
            return sum;
          });
        }
      };
      emit(-(K - 1), T - (K - 1), T);
      if (t0 + T == p.L) emit(T - (K - 1), T, T);
      for (int64_t t = 0; t + 1 < K; ++t)
        std::memmove(&g[t * width], &g[(kWalkRows + t) * width], width * sizeof(R));
    }
    end_streaming();
    for (int64_t i = 0; i < s.n; ++i) {
      static_cast<R*>(p.dbias)[s.b * p.D + s.at + i] = db[i];
      for (int64_t k = 0; k < K; ++k)
        static_cast<R*>(p.dweight)[(s.b * p.D + s.at + i) * K + k] = dw[k * width + i];
    }
  });
}

}  // namespace LONGSEQ_ISA
