// The sLSTM recurrence, forward and backward. A head's recurrent weights mix only its own units, so
// a head is walked through all of time by one thread while its weights stay in that core's second
// cache; a few rows of the batch share each pass over them. Lanes are units. Equations in
// core/ops/slstm.py.
#pragma once
#include <algorithm>

#include "rows.h"

namespace LONGSEQ_ISA {

// The rows of the batch that share a pass over the weights: as many as there are registers for.
constexpr int kRows = kBytes == 64 ? 4 : 2;

// `out` [ROWS][PANELS][4][W] += x [ROWS][K] · w, whose panels are [K][4][W]. Every output is one
// chain of sums over K in order, so that neither the number of rows nor that of panels changes a
// bit.
template <class R, int ROWS, int PANELS>
__attribute__((noinline)) void product(int64_t K, const R* w, const R* x, int64_t x_pitch, R* out,
                                       int64_t out_pitch) {
  constexpr int W = kLanes<R>, N = 4 * PANELS;
  Vec<R> acc[ROWS][N];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) acc[r][j] = load(out + r * out_pitch + j * W);
#pragma GCC unroll 2
  for (int64_t k = 0; k < K; ++k) {
    Vec<R> s[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) s[r] = splat(x[r * x_pitch + k]);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      const Vec<R> v = load(w + ((j / 4) * K + k) * 4 * W + j % 4 * W);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) acc[r][j] += v * s[r];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(out + r * out_pitch + j * W, acc[r][j]);
}

template <class R, int ROWS>
inline void products_of(int64_t panels, int64_t K, const R* w, const R* x, int64_t x_pitch, R* out,
                        int64_t out_pitch) {
  constexpr int W = kLanes<R>;
  // measured: chains enough, one stream of weights else
  constexpr int wide = ROWS == (kBytes == 64 ? 2 : 1) ? 2 : 1;
  int64_t i = 0;
  for (; i + wide <= panels; i += wide)
    product<R, ROWS, wide>(K, w + i * K * 4 * W, x, x_pitch, out + i * 4 * W, out_pitch);
  for (; i < panels; ++i)
    product<R, ROWS, 1>(K, w + i * K * 4 * W, x, x_pitch, out + i * 4 * W, out_pitch);
}

template <class R>
inline void products(int64_t rows, int64_t panels, int64_t K, const R* w, const R* x,
                     int64_t x_pitch, R* out, int64_t out_pitch) {
  switch (rows) {
    case 1: return products_of<R, 1>(panels, K, w, x, x_pitch, out, out_pitch);
    case 2: return products_of<R, 2>(panels, K, w, x, x_pitch, out, out_pitch);
    case 3: return products_of<R, 3>(panels, K, w, x, x_pitch, out, out_pitch);
    default: return products_of<R, 4>(panels, K, w, x, x_pitch, out, out_pitch);
  }
}

// How heads and rows are cut into units of work, and where things lie.
template <class R> struct HeadLayout {
  static constexpr int W = kLanes<R>;
  const SLSTM& p;
  int64_t tiles, padded, back_panels, rows, blocks;
  explicit HeadLayout(const SLSTM& p)
      : p(p), tiles((p.P + W - 1) / W), padded(tiles * W), back_panels((tiles + 3) / 4) {
    // Fewer rows to a unit where that keeps more threads busy.
    const int64_t wanted = (p.threads + p.H - 1) / p.H;
    rows = std::min<int64_t>(kRows, std::max<int64_t>(1, (p.B + wanted - 1) / wanted));
    blocks = (p.B + rows - 1) / rows;
  }
  int64_t forward_size() const { return tiles * p.P * 4 * W; }
  int64_t backward_size() const { return back_panels * 4 * padded * 4 * W; }
  int lanes(int64_t tile) const { return int(std::min<int64_t>(W, p.P - tile * W)); }
  // Panels of one tile's four gates, by source unit.
  void pack_forward(int64_t h, R* to) const {
    const R* from = static_cast<const R*>(p.recurrent) + h * 4 * p.P * p.P;
    for (int64_t i = 0; i < tiles; ++i)
      for (int64_t k = 0; k < 4; ++k)
        for (int lane = 0; lane < lanes(i); ++lane) {
          const R* row = from + (k * p.P + i * W + lane) * p.P;
          for (int64_t s = 0; s < p.P; ++s) to[((i * p.P + s) * 4 + k) * W + lane] = row[s];
        }
  }
  // The transposed weights: panels of four tiles of source units, by (gate, unit).
  void pack_backward(int64_t h, R* to) const {
    const R* from = static_cast<const R*>(p.recurrent) + h * 4 * p.P * p.P;
    for (int64_t i = 0; i < tiles; ++i)
      for (int64_t k = 0; k < 4; ++k)
        for (int64_t o = 0; o < p.P; ++o)
          std::memcpy(to + ((i / 4 * 4 * padded + k * padded + o) * 4 + i % 4) * W,
                      from + (k * p.P + o) * p.P + i * W, lanes(i) * sizeof(R));
  }
  template <class F> Buffer<R> pack(int64_t size, const F& one) const {
    Buffer<R> all(p.H * size, R(0));
    parallel(p.H, p.threads, [&](int64_t h) { one(h, &all[h * size]); });
    return all;
  }
  int64_t row(int64_t b, int64_t t, int64_t h) const {
    return ((b * p.L + t) * p.H + h) * p.P;
  }  // in (B, L, H, P)
  // (B, L, 4, H, P)
  int64_t gate_row(int64_t b, int64_t t, int64_t k, int64_t h) const {
    return (((b * p.L + t) * 4 + k) * p.H + h) * p.P;
  }
  int64_t state_row(int64_t part, int64_t b, int64_t h) const {
    return ((part * p.B + b) * p.H + h) * p.P;
  }
  bool reset(int64_t b, int64_t t) const { return p.resets && p.resets[b * p.L + t]; }
};

// The gates of one step from its pre-activations, and the cells after it.
template <class R> struct Cell {
  typedef Vec<R> V;
  V i, f, z, o_inverse, c, n, m;
  Cell(V i_raw, V f_raw, V z_raw, V o_raw, V c_before, V n_before, V m_before) {
    const V kept = m_before - softplus<R>(-f_raw);
    m = kept > i_raw ? kept : i_raw;
    m = kept != kept ? kept : m;
    i = vexp<R>(i_raw - m);
    f = vexp<R>(kept - m);
    z = tanh<R>(z_raw);
    o_inverse = R(1) + vexp<R>(-o_raw);
    c = f * c_before + i * z;
    n = f * n_before + i;
  }
  V h() const { return c / (o_inverse * n); }
};

// The product of `forward` panels on the weights as they lie: for sequences too short to be worth
// packing them.
template <class R>
inline void dots(const HeadLayout<R>& k, int64_t head, int64_t rows, const R* h, R* step) {
  constexpr int W = kLanes<R>;
  const int64_t P = k.p.P, full = P / W * W;
  const R* weights = static_cast<const R*>(k.p.recurrent) + head * 4 * P * P;
  R lanes[W * W], sums[W];
  for (int64_t i = 0; i < k.tiles; ++i)
    for (int64_t g = 0; g < 4; ++g)
      for (int64_t r = 0; r < rows; ++r) {
        const R *x = h + r * k.padded, *w = weights + (g * P + i * W) * P;
        for (int lane = 0; lane < k.lanes(i); ++lane, w += P) {
          Vec<R> sum = load_lanes(w + full, int(P - full)) * load_lanes(x + full, int(P - full));
          for (int64_t s = 0; s < full; s += W) sum += load(w + s) * load(x + s);
          store(lanes + lane * W, sum);
        }
        sum_rows<R>(k.lanes(i), lanes, sums);
        R* out = step + (r * k.tiles + i) * 4 * W + g * W;
        store(out, load(out) + load_lanes(sums, k.lanes(i)));
      }
}

template <class R> void slstm_forward_as(const SLSTM& p) {
  constexpr int W = kLanes<R>;
  const HeadLayout<R> k(p);
  const bool packed = p.L >= kMark;
  Buffer<R> weights;
  if (packed) weights = k.pack(k.forward_size(), [&](int64_t h, R* to) { k.pack_forward(h, to); });
  const R* gates = static_cast<const R*>(p.gates);
  const R* first = static_cast<const R*>(p.first);
  R *hs = static_cast<R*>(p.hs), *last = static_cast<R*>(p.last), *raw = static_cast<R*>(p.raw),
    *marks = static_cast<R*>(p.marks);
  parallel(p.H * k.blocks, p.threads, [&](int64_t index) {
    const int64_t head = index / k.blocks, b0 = index % k.blocks * k.rows,
                  rows = std::min(k.rows, p.B - b0);
    const int64_t size = rows * k.padded, pitch = 4 * k.padded;
    // h, c, n, m; the pre-activations [tile][gate][W]
    Buffer<R> state(4 * size, R(0)), step(rows * pitch);
    for (int64_t part = 0; part < 4; ++part)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(&state[part * size + r * k.padded], first + k.state_row(part, b0 + r, head),
                    p.P * sizeof(R));
    R *h = &state[0], *c = &state[size], *n = &state[2 * size], *m = &state[3 * size];
    for (int64_t t = 0; t < p.L; ++t) {
      for (int64_t r = 0; r < rows; ++r) {
        if (k.reset(b0 + r, t))
          for (int64_t part = 0; part < 4; ++part) {
            R* s = &state[part * size + r * k.padded];
            std::fill(s, s + k.padded, part == 3 ? -std::numeric_limits<R>::infinity() : R(0));
          }
        for (int64_t g = 0; g < 4; ++g) {
          const R* from = gates + k.gate_row(b0 + r, t, g, head);
          const R* next = from + (t + 1 < p.L ? 4 * p.H * p.P : 0);
          for (int64_t i = 0; i < k.tiles; ++i) {
            store(&step[r * pitch + (i * 4 + g) * W], load_lanes(from + i * W, k.lanes(i)));
            __builtin_prefetch(next + i * W, 0, 2);
          }
        }
      }
      if (marks && t % kMark == 0)
        for (int64_t part = 0; part < 3; ++part)
          for (int64_t r = 0; r < rows; ++r)
            std::memcpy(marks + t / kMark * 3 * p.B * p.H * p.P + k.state_row(part, b0 + r, head),
                        &state[(part + 1) * size + r * k.padded], p.P * sizeof(R));
      if (packed)
        products<R>(rows, k.tiles, p.P, &weights[head * k.forward_size()], h, k.padded, step.data(),
                    pitch);
      else dots<R>(k, head, rows, h, step.data());
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < k.tiles; ++i) {
          const R* s = &step[r * pitch + i * 4 * W];
          const int64_t at = r * k.padded + i * W;
          const int lanes = k.lanes(i);
          const Cell<R> cell(load(s), load(s + W), load(s + 2 * W), load(s + 3 * W), load(c + at),
                             load(n + at), load(m + at));
          const Vec<R> out = cell.h();
          store(h + at, out);
          store(c + at, cell.c);
          store(n + at, cell.n);
          store(m + at, cell.m);
          store_lanes(hs + k.row(b0 + r, t, head) + i * W, out, lanes);
          if (raw)
            for (int64_t g = 0; g < 4; ++g)
              store_lanes(raw + k.gate_row(b0 + r, t, g, head) + i * W, load(s + g * W), lanes);
        }
    }
    for (int64_t part = 0; part < 4; ++part)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(last + k.state_row(part, b0 + r, head), &state[part * size + r * k.padded],
                    p.P * sizeof(R));
  });
}

// What the backward pass needs of one step and tile: the gates, and the cells after it.
template <class R> struct Kept {
  Vec<R> i, f, z, o, c, n;
};

// Runs from mark to mark, last first: the gates and cells are computed again from the
// pre-activations, then walked back.
template <class R> void slstm_backward_as(const SLSTM& p) {
  constexpr int W = kLanes<R>;
  typedef Vec<R> V;
  const HeadLayout<R> k(p);
  const Buffer<R> weights =
      k.pack(k.backward_size(), [&](int64_t h, R* to) { k.pack_backward(h, to); });
  const R *raw = static_cast<const R*>(p.raw), *marks = static_cast<const R*>(p.marks);
  const R *dhs = static_cast<const R*>(p.dhs), *dlast = static_cast<const R*>(p.dlast);
  R *dgates = static_cast<R*>(p.dgates), *dfirst = static_cast<R*>(p.dfirst);
  parallel(p.H * k.blocks, p.threads, [&](int64_t index) {
    const int64_t head = index / k.blocks, b0 = index % k.blocks * k.rows,
                  rows = std::min(k.rows, p.B - b0);
    const int64_t wide = k.back_panels * 4 * W, size = rows * wide;  // one state of all rows
    Buffer<R> grads(4 * size, R(0)), dstep(rows * 4 * k.padded, R(0));
    Buffer<Kept<R>> kept((kMark + 1) * rows * k.tiles);  // slot 0: the cells before the mark
    for (int64_t part = 0; part < 4; ++part)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(&grads[part * size + r * wide], dlast + k.state_row(part, b0 + r, head),
                    p.P * sizeof(R));
    R *dh = &grads[0], *dc = &grads[size], *dn = &grads[2 * size], *dm = &grads[3 * size];
    for (int64_t t0 = (p.L - 1) / kMark * kMark; t0 >= 0; t0 -= kMark) {
      const int64_t T = std::min<int64_t>(kMark, p.L - t0);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < k.tiles; ++i) {
          const int lanes = k.lanes(i);
          V start[3];
          for (int64_t part = 0; part < 3; ++part)
            start[part] = load_lanes(
                marks + t0 / kMark * 3 * p.B * p.H * p.P + k.state_row(part, b0 + r, head) + i * W,
                lanes);
          V c = start[0], n = start[1], m = start[2];
          Kept<R>* slot = &kept[r * k.tiles + i];
          slot->c = c;
          slot->n = n;
          for (int64_t t = 0; t < T; ++t) {
            if (k.reset(b0 + r, t0 + t)) {
              c = n = V{};
              m = splat(-std::numeric_limits<R>::infinity());
            }
            V g[4];
            for (int64_t j = 0; j < 4; ++j)
              g[j] = load_lanes(raw + k.gate_row(b0 + r, t0 + t, j, head) + i * W, lanes);
            const Cell<R> cell(g[0], g[1], g[2], g[3], c, n, m);
            c = cell.c;
            n = cell.n;
            m = cell.m;
            slot += rows * k.tiles;
            *slot = {cell.i, cell.f, cell.z, R(1) / cell.o_inverse, c, n};
          }
        }
      for (int64_t t = T - 1; t >= 0; --t) {
        for (int64_t r = 0; r < rows; ++r) {
          const bool reset = k.reset(b0 + r, t0 + t);
          for (int64_t i = 0; i < k.tiles; ++i) {
            const Kept<R>& s = kept[((t + 1) * rows + r) * k.tiles + i];
            const Kept<R>& before = kept[(t * rows + r) * k.tiles + i];
            const int lanes = k.lanes(i);
            const int64_t at = r * wide + i * W;
            const V zero = {}, c_before = reset ? zero : before.c,
                    n_before = reset ? zero : before.n;
            const V per_n = R(1) / s.n, h = s.o * s.c * per_n,
                    f_raw = load_lanes(raw + k.gate_row(b0 + r, t0 + t, 1, head) + i * W, lanes);
            const V gh =
                load(dh + at) + load_lanes(dhs + k.row(b0 + r, t0 + t, head) + i * W, lanes);
            const V gc = load(dc + at) + gh * per_n * s.o, gn = load(dn + at) - gh * per_n * h;
            const V through_i = (gn + gc * s.z) * s.i,
                    through_f = (gc * c_before + gn * n_before) * s.f;
            // The maximum is differentiated too, whichever of its arguments it is.
            const auto input_won = s.i >= s.f;
            const V gm = load(dm + at), to_m = input_won ? through_f : gm - through_i;
            const V d[4] = {input_won ? gm - through_f : through_i, to_m * sigmoid<R>(-f_raw),
                            gc * s.i * (R(1) - s.z * s.z), gh * h * (R(1) - s.o)};
            for (int64_t g = 0; g < 4; ++g) {
              store(&dstep[(r * 4 + g) * k.padded + i * W], d[g]);
              store_lanes(dgates + k.gate_row(b0 + r, t0 + t, g, head) + i * W, d[g], lanes);
            }
            store(dc + at, gc * s.f);
            store(dn + at, gn * s.f);
            store(dm + at, to_m);
          }
        }
        std::fill(dh, dh + size, R(0));
        products<R>(rows, k.back_panels, 4 * k.padded, &weights[head * k.backward_size()],
                    dstep.data(), 4 * k.padded, dh, wide);
        for (int64_t r = 0; r < rows; ++r)
          // nothing, not even NaN, passes from one segment to the other
          if (k.reset(b0 + r, t0 + t))
            for (int64_t part = 0; part < 4; ++part)
              std::fill(&grads[part * size + r * wide], &grads[part * size + (r + 1) * wide], R(0));
      }
    }
    for (int64_t part = 0; part < 4; ++part)
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(dfirst + k.state_row(part, b0 + r, head), &grads[part * size + r * wide],
                    p.P * sizeof(R));
  });
}

}  // namespace LONGSEQ_ISA
