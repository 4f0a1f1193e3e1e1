// Gated recurrences over a sequence in both directions, of one projection: rows [v, f, g],
//   h_t = h_{t-1} + (1 - σ(f_t)) (v_t - h_{t-1}),  the other with g from the end,  y = h + h'.
// A sequence of one vector of channels is held whole, its gates and states stay in the caches.
#pragma once
#include "row_walk.h"

namespace LONGSEQ_ISA {

// One direction's gates become decays; its states go to h, in the order of time.
template <class R> inline void recur(int64_t L, bool back, const R* v, R* decay, R* h) {
  constexpr int W = kLanes<R>;
  Vec<R> state{};
  for (int64_t i = 0; i < L; ++i) {
    const int64_t t = (back ? L - 1 - i : i) * W;
    const Vec<R> keep = sigmoid<R>(load(decay + t)), value = load(v + t);
    state = value + keep * (state - value);
    store(decay + t, keep);
    store(h + t, state);
  }
}

template <class R> inline void read_parts(const TwoWay& p, const Span& s, int64_t at, R* parts) {
  const int64_t n = std::min<int64_t>(kLanes<R>, p.D - at);
  for (int part = 0; part < 3; ++part)
    read_rows<R>(p.x, s.b, 0, p.L, part * p.D + at, n, kLanes<R>, parts + part * p.L * kLanes<R>);
}

template <class R> void two_way_forward_as(const TwoWay& p) {
  constexpr int W = kLanes<R>;
  each_span<R>(p.B, p.D, W, p.threads, [&](const Span& s) {
    const int64_t all = p.L * W;
    Room<R> parts(3 * all), h(2 * all);
    for (int64_t at = s.at; at < s.at + s.n; at += W) {
      read_parts<R>(p, s, at, parts.data());
      for (int way = 0; way < 2; ++way)
        recur<R>(p.L, way == 1, parts.data(), &parts[(1 + way) * all], &h[way * all]);
      for (int64_t t = 0; t < all; t += W) store(&h[t], load(&h[t]) + load(&h[all + t]));
      write_rows<R>(p.y, s.b, 0, p.L, at, std::min<int64_t>(W, p.D - at), W, h.data());
    }
  });
}

// g_t = dy_t + k_{t+1} g_{t+1};  dv_t = (1 - k_t) g_t;  df_t = g_t (h_{t-1} - v_t) k_t (1 - k_t),
// and the same with times turned round.
template <class R> void two_way_backward_as(const TwoWay& p) {
  constexpr int W = kLanes<R>;
  each_span<R>(p.B, p.D, W, p.threads, [&](const Span& s) {
    const int64_t all = p.L * W;
    Room<R> parts(3 * all), dy(all), dv(all), h(all);
    for (int64_t at = s.at; at < s.at + s.n; at += W) {
      const int64_t n = std::min<int64_t>(W, p.D - at);
      read_parts<R>(p, s, at, parts.data());
      read_rows<R>(p.dy, s.b, 0, p.L, at, n, W, dy.data());
      std::fill(dv.data(), dv.data() + all, R(0));
      for (int way = 0; way < 2; ++way) {
        const R* v = parts.data();
        R* decay = &parts[(1 + way) * all];
        recur<R>(p.L, way == 1, v, decay, h.data());
        Vec<R> later{};
        for (int64_t i = p.L - 1; i >= 0; --i) {
          const int64_t t = (way ? p.L - 1 - i : i) * W, before = way ? t + W : t - W;
          const Vec<R> g = load(&dy[t]) + later, keep = load(decay + t), given = (R(1) - keep) * g;
          const Vec<R> state = i ? load(&h[before]) : Vec<R>{};
          later = keep * g;
          store(&dv[t], load(&dv[t]) + given);
          store(decay + t, given * keep * (state - load(v + t)));
        }
        write_rows<R>(p.dx, s.b, 0, p.L, (1 + way) * p.D + at, n, W, decay);
      }
      write_rows<R>(p.dx, s.b, 0, p.L, at, n, W, dv.data());
    }
  });
}

}  // namespace LONGSEQ_ISA
