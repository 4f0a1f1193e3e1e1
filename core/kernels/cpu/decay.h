// Decays between the positions of a chunk, for chunked linear attentions: exp of sums of log-decays
// times scores, and their gradients. Lanes are the earlier positions s; sums grow position by
// position in double precision, so that none is ever a difference, and -inf (a reset) needs no
// care. Equations in core/ops/_chunk_walk.py.
#pragma once
#include <algorithm>
#include <cmath>

#include "rows.h"

namespace LONGSEQ_ISA {

// exponent - unit of one vector of positions, rounded once.
template <class R> inline Vec<R> less_unit(const double* exponent, double unit) {
  constexpr int V = kLanes<R>;
  R lane[V];
  for (int l = 0; l < V; ++l) lane[l] = R(exponent[l] - unit);
  Vec<R> x = load(lane);
  // whose exponential is zero, and for which -inf would need care
  const Vec<R> floor = splat(R(-1000));
  return x < floor ? floor : x;          // NaN compares false and passes through
}

inline int64_t padded_row(int64_t T) { return (T + 15) / 16 * 16; }

template <class R> struct DecayRow {
  static constexpr int V = kLanes<R>;
  const int64_t T;
  Buffer<double> exponent;  // of every position s, at the row's position; -inf behind it
  Buffer<R> out, scores;
  explicit DecayRow(int64_t T)
      : T(T), exponent(padded_row(T), -INFINITY), out(padded_row(T)), scores(padded_row(T)) {}
  // Moves on to row t and writes exp(exponent - unit) (times scores) to its T values; returns their
  // sum.
  R write(int64_t t, double unit, const R* scores_in, R* to) {
    const bool whole = T % V == 0;
    Vec<R> sum = {};
    R* row = whole ? to : out.data();
    if (scores_in && !whole) {
      std::copy(scores_in, scores_in + T, scores.data());
      scores_in = scores.data();
    }
    int64_t s = 0;
    for (; s <= t; s += V) {
      Vec<R> w = vexp<R>(less_unit<R>(&exponent[s], unit));
      if (scores_in) w *= load(scores_in + s);
      sum += w;
      store(row + s, w);
    }
    for (; s < T; s += V) store(row + s, Vec<R>{});
    if (!whole) std::copy(row, row + T, to);
    return sum_lanes(sum);
  }
};

template <class R> void decay_weights_as(const ChunkDecay& p) {
  const int64_t T = p.T;
  parallel(p.N, p.threads, [&](int64_t n) {
    const R* g = static_cast<const R*>(p.g) + n * T;
    const R* i = p.i ? static_cast<const R*>(p.i) + n * T : nullptr;
    const R* scores = p.scores ? static_cast<const R*>(p.scores) + n / p.shared * T * T : nullptr;
    R *weights = static_cast<R*>(p.weights) + n * T * T,
      *through = static_cast<R*>(p.through) + n * T;
    DecayRow<R> row(T);
    // The exponents of the state that enters, and the largest of all: the unit that the row is
    // counted in.
    double state = p.first ? double(static_cast<const R*>(p.first)[n]) : 0, unit = 0, top = state;
    int32_t winner = -1;
    for (int64_t t = 0; t < T; ++t) {
      const double step = g[t], own = i ? double(i[t]) : 0;
      for (int64_t s = 0; s < t; ++s) row.exponent[s] += step;
      row.exponent[t] = own;
      state += step;
      if (i) {
        top += step;
        if (!(top >= own)) {
          top = own;
          winner = int32_t(t);
        }
        const R rounded = R(top);
        unit = std::max(double(rounded), -1e30);  // -inf: nothing seen yet, and nothing to weigh
        static_cast<R*>(p.units)[n * T + t] = rounded;
        static_cast<int32_t*>(p.winners)[n * T + t] = winner;
      }
      const R sum = row.write(t, unit, scores ? scores + t * T : nullptr, weights + t * T);
      if (p.sums) static_cast<R*>(p.sums)[n * T + t] = sum;
      through[t] = R(std::exp(state - unit));
    }
    R* behind = static_cast<R*>(p.behind) + n * T;
    for (int64_t s = 0; s < T; ++s) behind[s] = R(std::exp(row.exponent[s] - unit));
  });
}

template <class R> void decay_slopes_as(const ChunkDecay& p) {
  constexpr int V = kLanes<R>;
  const int64_t T = p.T;
  parallel(p.N, p.threads, [&](int64_t n) {
    const R* scores = static_cast<const R*>(p.scores) + n / p.shared * T * T;
    R *weights = static_cast<R*>(p.weights) + n * T * T,
      *slopes = static_cast<R*>(p.slopes) + n * T * T;
    const R *entering = static_cast<const R*>(p.entering) + n * T,
            *leaving = static_cast<const R*>(p.leaving) + n * T;
    const R* extra = p.sums ? static_cast<const R*>(p.sums) + n * T : nullptr;
    R* dg = static_cast<R*>(p.dg) + n * T;
    R* di = p.i ? static_cast<R*>(p.di) + n * T : nullptr;
    // What the exponents of the positions got from this row and the later ones; and that of the
    // state.
    Buffer<R> column(padded_row(T), R(0));
    std::copy(leaving, leaving + T, column.data());
    R state = static_cast<const R*>(p.whole)[n];
    for (int64_t t = T - 1; t >= 0; --t) {
      R *w = weights + t * T, *d = slopes + t * T;
      const R* q = scores + t * T;
      const R more = extra ? extra[t] : R(0);
      int64_t s = 0;
      for (; s + V <= t + 1; s += V) {
        const Vec<R> decay = load(w + s), score = load(q + s), slope = (load(d + s) + more) * decay;
        store(w + s, decay * score);
        store(d + s, slope);
        store(&column[s], load(&column[s]) + slope * score);
      }
      for (; s <= t; ++s) {
        const R decay = w[s], slope = (d[s] + more) * decay;
        w[s] = decay * q[s];
        d[s] = slope;
        column[s] += slope * q[s];
      }
      for (; s < T; ++s) d[s] = R(0);
      state += entering[t];
      if (p.winners) {
        const int32_t winner = static_cast<const int32_t*>(p.winners)[n * T + t];
        (winner < 0 ? state : column[winner]) += static_cast<const R*>(p.dunits)[n * T + t];
      }
      // The log-decay of t is part of every sum from before t to t or later.
      if (di) di[t] = column[t];
      column[t] = R(0);
      Vec<R> sum = {};
      for (int64_t u = 0; u < t; u += V) sum += load(&column[u]);
      dg[t] = state + sum_lanes(sum);
    }
    if (p.dfirst) static_cast<R*>(p.dfirst)[n] = state;
  });
}

}  // namespace LONGSEQ_ISA
