// The backward pass of the selective scan: chunks from last to first, each recomputed from its
// saved state.
#pragma once
#include "scan_straight_backward.h"

namespace LONGSEQ_ISA {

// Steps between two reductions of the per-block gradients of B and C: bounds that buffer for any L.
constexpr int64_t kSpan = 32 * kChunk;

// NU states of NT tiles over one chunk, first forwards (filling a, h and y), then backwards. Rows
// of a tile's states in A2, A, g and dA are `apart` from those of the tile before; dB and dC
// (T, NU) are the sums over tiles.
template <class R, int NT, int NU>
__attribute__((noinline)) void backward_group(int64_t T, int64_t N, bool need_y, const R* A2,
                                              const R* A, int64_t apart, const R* Bc, const R* Cc,
                                              Tile<R>* x, Gradients<R>* s, R* g_io, R* dA, R* dB,
                                              R* dC, const uint8_t* resets, Ahead* ahead) {
  constexpr int W = kLanes<R>;
  for (int k = 0; k < NT; ++k) {
    Vec<R> h[NU];
#pragma GCC unroll 8
    for (int j = 0; j < NU; ++j) h[j] = load(s[k].h + j * W);
    for (int64_t t = 0; t < T; ++t) {
      const Vec<R> d = load(x[k].dt + t * W), u = load(x[k].du + t * W);
      if (ahead) ahead->fetch();
      const bool reset = resets && resets[t];
      Vec<R> acc = {};
#pragma GCC unroll 8
      for (int j = 0; j < NU; ++j) {
        const Vec<R> a = exp2_product(d, load(A2 + k * apart + j * W));
        store(s[k].a + (t * NU + j) * W, a);
        h[j] = a * (reset ? Vec<R>{} : h[j]) + u * Bc[t * N + j];
        store(s[k].h + ((t + 1) * NU + j) * W, h[j]);
        if (need_y) acc += h[j] * Cc[t * N + j];
      }
      if (need_y) store(x[k].y + t * W, load(x[k].y + t * W) + acc);
    }
  }
  Vec<R> g[NT][NU], ga[NT][NU];
#pragma GCC unroll 2
  for (int k = 0; k < NT; ++k)
#pragma GCC unroll 8
    for (int j = 0; j < NU; ++j) {
      g[k][j] = load(g_io + k * apart + j * W);
      ga[k][j] = Vec<R>{};
    }
  for (int64_t t = T - 1; t >= 0; --t) {
    Vec<R> d[NT], u[NT], dy[NT], ddt[NT], ddu[NT];
#pragma GCC unroll 2
    for (int k = 0; k < NT; ++k) {
      d[k] = load(x[k].dt + t * W), u[k] = load(x[k].du + t * W), dy[k] = load(s[k].dy + t * W);
      ddt[k] = load(s[k].ddt + t * W), ddu[k] = load(s[k].ddu + t * W);
    }
    const bool reset = resets && resets[t];
#pragma GCC unroll 8
    for (int j = 0; j < NU; ++j) {
      const R b = Bc[t * N + j], c = Cc[t * N + j];
      Vec<R> into_C, into_B;
#pragma GCC unroll 2
      for (int k = 0; k < NT; ++k) {
        const Vec<R> through = dy[k] * load(s[k].h + ((t + 1) * NU + j) * W);
        into_C = k ? into_C + through : through;
        g[k][j] += dy[k] * c;
        into_B = k ? into_B + g[k][j] * u[k] : g[k][j] * u[k];
        ddu[k] += g[k][j] * b;
        if (reset) {  // nothing, not even NaN, passes from one segment to the other
          g[k][j] = Vec<R>{};
          continue;
        }
        g[k][j] *= load(s[k].a + (t * NU + j) * W);
        // the gradient of dt A
        const Vec<R> q = g[k][j] * load(s[k].h + (t * NU + j) * W);
        ddt[k] += q * load(A + k * apart + j * W);
        ga[k][j] += q * d[k];
      }
      store(dC + (t * NU + j) * W, into_C);
      store(dB + (t * NU + j) * W, into_B);
    }
#pragma GCC unroll 2
    for (int k = 0; k < NT; ++k) {
      store(s[k].ddt + t * W, ddt[k]);
      store(s[k].ddu + t * W, ddu[k]);
    }
  }
#pragma GCC unroll 2
  for (int k = 0; k < NT; ++k)
#pragma GCC unroll 8
    for (int j = 0; j < NU; ++j) {
      store(g_io + k * apart + j * W, g[k][j]);
      R* const to = dA + k * apart + j * W;
      store(to, load(to) + ga[k][j]);
    }
}

// One complex state; gradients follow torch's convention, dL/dRe + i dL/dIm.
template <class R>
__attribute__((noinline)) void backward_complex(int64_t T, int64_t N2, const R* dt, const R* du,
                                                const R* A2, const R* A, const R* Bc, const R* Cc,
                                                Gradients<R>& s, R* y, R* g_io, R* dA, R* dB, R* dC,
                                                const uint8_t* resets) {
  constexpr int W = kLanes<R>;
  Vec<R> hr = load(s.h), hi = load(s.h + W);
  for (int64_t t = 0; t < T; ++t) {
    const Vec<R> x = load(du + t * W);
    Vec<R> ar, ai;
    complex_decay<R>(load(dt + t * W), A2, ar, ai);
    if (resets && resets[t]) hr = hi = Vec<R>{};
    const Vec<R> r = ar * hr - ai * hi + x * Bc[t * N2], i = ar * hi + ai * hr + x * Bc[t * N2 + 1];
    hr = r;
    hi = i;
    store(s.a + 2 * t * W, ar);
    store(s.a + (2 * t + 1) * W, ai);
    store(s.h + 2 * (t + 1) * W, hr);
    store(s.h + (2 * t + 3) * W, hi);
    store(y + t * W, load(y + t * W) + R(2) * (hr * Cc[t * N2] - hi * Cc[t * N2 + 1]));
  }
  Vec<R> gr = load(g_io), gi = load(g_io + W), gar = {}, gai = {};
  const Vec<R> Ar = load(A), Ai = load(A + W);
  for (int64_t t = T - 1; t >= 0; --t) {
    const Vec<R> d = load(dt + t * W), x = load(du + t * W), dy = R(2) * load(s.dy + t * W);
    store(dC + 2 * t * W, dy * load(s.h + (2 * t + 2) * W));
    store(dC + (2 * t + 1) * W, -dy * load(s.h + (2 * t + 3) * W));
    gr += dy * Cc[t * N2];
    gi -= dy * Cc[t * N2 + 1];
    store(dB + 2 * t * W, gr * x);
    store(dB + (2 * t + 1) * W, gi * x);
    store(s.ddu + t * W, load(s.ddu + t * W) + gr * Bc[t * N2] + gi * Bc[t * N2 + 1]);
    if (resets && resets[t]) {
      gr = gi = Vec<R>{};
      continue;
    }
    const Vec<R> ar = load(s.a + 2 * t * W), ai = load(s.a + (2 * t + 1) * W);
    // g conj(a), the gradient of the previous state
    const Vec<R> pr = gr * ar + gi * ai, pi = gi * ar - gr * ai;
    gr = pr;
    gi = pi;
    const Vec<R> lr = load(s.h + 2 * t * W), li = load(s.h + (2 * t + 1) * W);
    const Vec<R> qr = gr * lr + gi * li, qi = gi * lr - gr * li;
    store(s.ddt + t * W, load(s.ddt + t * W) + qr * Ar + qi * Ai);
    gar += qr * d;
    gai += qi * d;
  }
  store(g_io, gr);
  store(g_io + W, gi);
  store(dA, load(dA) + gar);
  store(dA + W, load(dA + W) + gai);
}

template <class R> struct BackwardUnit {
  static constexpr int W = kLanes<R>;
  const SelectiveScan& p;
  const bool stream, straight;
  Unit<R> unit;
  Buffer<R> A2;
  BackwardScratch<R>& scratch;
  BackwardUnit(const SelectiveScan& p, const Blocks<R>& k, int64_t index,
               BackwardScratch<R>& scratch)
      : p(p),
        stream(worth_streaming<R>(p.B * p.L * p.D)),
        straight(straight_backward<R>(p)),
        unit(p, k, index),
        A2(unit.A),
        scratch(scratch) {
    to_log2<R>(A2, p.complex);
  }

  // States n … of tiles i …; adds what they give B and C to partB and partC, which begin with those
  // of the unit's first tile.
  template <int NT, int NU>
  void group(int64_t T, int64_t i, int64_t n, int64_t c, R* g, R* dA, const uint8_t* resets,
             Ahead& ahead, R* partB, R* partC) {
    const int64_t N2 = unit.N2, at = (i * N2 + n) * W;
    Tile<R>* const x = scratch.tiles.data();
    Gradients<R>* const s = scratch.gradients.data();
    R *const sumB = scratch.sumB.data(), *const sumC = scratch.sumC.data();
    for (int k = 0; k < NT; ++k)
      for (int j = 0; j < NU; ++j)
        std::memcpy(s[k].h + j * W, unit.state_slot(c, i + k) + (n + j) * p.G * unit.padded,
                    W * sizeof(R));
    const R *const Bc = &scratch.shared->Bc[n], *const Cc = &scratch.shared->Cc[n];
    if (p.complex)
      backward_complex<R>(T, N2, x->dt, x->du, &A2[at], &unit.A[at], Bc, Cc, *s, x->y, g + at,
                          dA + at, sumB, sumC, resets);
    else
      backward_group<R, NT, NU>(T, N2, p.z || p.y, &A2[at], &unit.A[at], N2 * W, Bc, Cc, x, s,
                                g + at, dA + at, sumB, sumC, resets, n == 0 ? &ahead : nullptr);
    const auto keep = [&](const R* sums, R* part) {
      R total[kChunk * NU];
      sum_rows<R>(T * NU, sums, total);
      for (int64_t t = 0; t < T; ++t)
        for (int j = 0; j < NU; ++j) {
          R& to = part[t * N2 + n + j];
          to = i ? to + total[t * NU + j] : total[t * NU + j];
        }
    };
    keep(sumB, partB);
    keep(sumC, partC);
  }

  // Steps t0 … t0 + T of NT tiles from i on. g, dA: [count][N2][W]; dskip, dbias: [count][W].
  template <int NT>
  void tiles(int64_t c, int64_t i, Ahead& ahead, const R* next_states, const uint8_t* resets, R* g,
             R* dA, R* dskip, R* dbias, R* partB, R* partC) {
    const int64_t t0 = c * kChunk, T = std::min<int64_t>(kChunk, p.L - t0), N2 = unit.N2;
    for (int k = 0; k < NT; ++k) {
      const R* soon = next_states ? next_states + k * W : nullptr;
      if (i + k + NT < unit.count) soon = unit.state_slot(c, i + k + NT);
      if (soon)
        for (int64_t n = 0; n < N2; ++n) __builtin_prefetch(soon + n * p.G * unit.padded, 0, 2);
      start_tile(scratch.tiles[k], scratch.gradients[k], i + k, t0, T);
    }
    int64_t n = 0;
    constexpr int wide = kStatesAtOnce;
    if (p.complex)
      for (; n < N2; n += 2)
        group<1, 2>(T, i, n, c, g, dA, resets, ahead, partB, partC);
    for (; n + wide <= N2; n += wide)
      group<NT, wide>(T, i, n, c, g, dA, resets, ahead, partB, partC);
    for (; n < N2; ++n) group<NT, 1>(T, i, n, c, g, dA, resets, ahead, partB, partC);
    for (int k = 0; k < NT; ++k)
      finish_tile(scratch.tiles[k], scratch.gradients[k], i + k, t0, T, dskip + (i + k) * W,
                  dbias + (i + k) * W);
  }

  // Steps t0 … t0 + T of every tile; `ahead` and `next_states` are what the block after this one
  // will read. partB, partC: rows of N2.
  void chunk(int64_t c, Ahead ahead, const R* next_states, R* g, R* dA, R* dskip, R* dbias,
             R* partB, R* partC) {
    const int64_t t0 = c * kChunk, T = std::min<int64_t>(kChunk, p.L - t0);
    scratch.read(c, t0, T);
    const Unit<R>& shared = *scratch.shared;
    const uint8_t* const resets = scratch.resets;
    int64_t i = 0;
    if (straight) {
      int64_t places[kChunk];
      each_run(p, t0, T, [&](int64_t row, int64_t step, int64_t some, int64_t offset) {
        for (int64_t t = 0; t < some; ++t) places[offset + t] = row + t * step;
      });
      for (; i < unit.count && unit.lanes(i) == W; ++i) {
        if (p.rank)
          widen_steps<R>(T, p.rank, shared.steps.data(), unit.weight.data() + i * p.rank * W,
                         scratch.tiles[0].dt);
        straight_tile<R>(unit, shared, c, i, T, places, &A2[i * W], stream, ahead, resets,
                         scratch.tiles[0], scratch.gradients[0], scratch.sumB.data(),
                         scratch.sumC.data(), g + i * W, dA + i * W, dskip + i * W, dbias + i * W);
      }
      if (i) {
        sum_rows<R>(T, scratch.sumB.data(), partB);
        sum_rows<R>(T, scratch.sumC.data(), partC);
      }
    }
    if (!p.complex)
      for (; i + kTilesAtOnce <= unit.count; i += kTilesAtOnce)
        tiles<kTilesAtOnce>(c, i, ahead, next_states, resets, g, dA, dskip, dbias, partB, partC);
    for (; i < unit.count; ++i)
      tiles<1>(c, i, ahead, next_states, resets, g, dA, dskip, dbias, partB, partC);
  }

  void start_tile(Tile<R>& x, Gradients<R>& s, int64_t i, int64_t t0, int64_t T) {
    if (p.rank)
      widen_steps<R>(T, p.rank, scratch.shared->steps.data(), unit.weight.data() + i * p.rank * W,
                     x.dt);
    x.read(unit, i, t0, T, true);
    read_steps<R>(p, p.dy, unit.b, t0, T, unit.channel(i), unit.lanes(i), W, s.dy);
    std::memset(s.ddt, 0, sizeof s.ddt);
    std::memset(s.ddu, 0, sizeof s.ddu);
    if (p.z)
      for (int64_t t = 0; t < T; ++t) {  // dz needs the ungated y, so only dy is gated now
        const Vec<R> z = load(x.z + t * W), gate = sigmoid<R>(z), dy = load(s.dy + t * W);
        store(s.dy + t * W, dy * z * gate);
        store(x.z + t * W, dy * gate * (R(1) + z * (R(1) - gate)));
      }
  }

  void finish_tile(Tile<R>& x, Gradients<R>& s, int64_t i, int64_t t0, int64_t T, R* dskip,
                   R* dbias) {
    const Vec<R> skip = unit.vector_of(p.skip, i);
    Vec<R> skips = {}, biases = {};
    for (int64_t t = 0; t < T; ++t) {
      const Vec<R> ddu = load(s.ddu + t * W), u = load(x.u + t * W), dy = load(s.dy + t * W);
      const Vec<R> ddelta = (load(s.ddt + t * W) + ddu * u) * load(x.slope + t * W);
      skips += dy * u;
      biases += ddelta;
      store(s.ddu + t * W, ddu * load(x.dt + t * W) + dy * skip);
      store(s.ddt + t * W, ddelta);
      if (p.z) store(x.z + t * W, load(x.z + t * W) * load(x.y + t * W));
    }
    store(dskip, load(dskip) + skips);
    store(dbias, load(dbias) + biases);
    const int64_t at = unit.channel(i), n = unit.lanes(i);
    if (p.adds) {
      read_steps<R>(p, p.du, unit.b, t0, T, at, n, W, x.u);
      for (int64_t t = 0; t < T; ++t) store(s.ddu + t * W, load(s.ddu + t * W) + load(x.u + t * W));
    }
    write_steps<R>(p, p.du, unit.b, t0, T, at, n, W, s.ddu, stream && !p.adds);
    write_steps<R>(p, p.ddelta, unit.b, t0, T, at, n, W, s.ddt, stream);
    if (p.z) write_steps<R>(p, p.dz, unit.b, t0, T, at, n, W, x.z, stream);
    if (p.y) write_steps<R>(p, p.y, unit.b, t0, T, at, n, W, x.y, stream);
    if (p.dadd) write_steps<R>(p, p.dadd, unit.b, t0, T, at, n, W, s.dy, stream);
  }
};

template <class R> void selective_scan_backward_as(const SelectiveScan& p) {
  constexpr int W = kLanes<R>;
  const Blocks<R> k(p);
  const int64_t N2 = k.N2, per = N2 * W, units = p.B * p.G * k.blocks,
                chunks = (p.L + kChunk - 1) / kChunk;
  const int64_t per_span = kSpan / kChunk, spans = (chunks + per_span - 1) / per_span;
  const int64_t tiles = k.per_block, rows = std::min(kSpan, chunks * kChunk) * N2;
  Buffer<R> g(units * tiles * per, R(0)), dA(units * tiles * per, R(0));
  Buffer<R> dskip(units * tiles * W, R(0)), dbias(units * tiles * W, R(0));
  Room<R> partB(units * rows), partC(units * rows);
  if (p.dfinal)
    for (int64_t index = 0; index < units; ++index) {
      const Unit<R> unit(p, k, index, false);
      for (int64_t i = 0; i < unit.count; ++i)
        unit.gather(static_cast<const R*>(p.dfinal) + unit.row_of_channels() * N2, i,
                    g.data() + (index * tiles + i) * per);
    }
  for (int64_t span = spans - 1; span >= 0; --span) {
    const int64_t c0 = span * per_span, c1 = std::min(chunks, c0 + per_span);
    k.each_team(p, [&](int64_t first, int64_t count) {
      BackwardScratch<R> scratch;
      std::vector<BackwardUnit<R>> team;
      team.reserve(count);
      for (int64_t i = 0; i < count; ++i) team.emplace_back(p, k, first + i, scratch);
      scratch.shared = &team[0].unit;
      each_block(c1 - c0, count, chunks_together(p),
                 [&](int64_t back, int64_t i, int64_t back_next, int64_t next) {
                   // when, next: what follows this block
                   const int64_t c = c1 - 1 - back, when = c1 - 1 - back_next;
                   const Ahead ahead = team[next].unit.ahead(when * kChunk);
                   const R* soon = when < 0 ? nullptr : team[next].unit.state_slot(when, 0);
                   const int64_t index = first + i, at = index * rows + (c - c0) * kChunk * N2;
                   team[i].chunk(c, ahead, soon, g.data() + index * tiles * per,
                                 dA.data() + index * tiles * per, &dskip[index * tiles * W],
                                 &dbias[index * tiles * W], partB.data() + at, partC.data() + at);
                 });
      end_streaming();
    });
    const int64_t t0 = c0 * kChunk, T = std::min<int64_t>(p.L, c1 * kChunk) - t0;
    parallel(p.B * p.G, p.threads, [&](int64_t index) {  // blocks are added in a fixed order
      const int64_t b = index / p.G, gr = index % p.G;
      each_run(p, t0, T, [&](int64_t row, int64_t step, int64_t count, int64_t offset) {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t t = offset + i, place = ((b * p.L + row + i * step) * p.G + gr) * N2;
          R *outB = static_cast<R*>(p.dB) + place, *outC = static_cast<R*>(p.dC) + place;
          for (int64_t n = 0; n < N2; ++n) outB[n] = outC[n] = R(0);
          for (int64_t block = 0; block < k.blocks; ++block) {
            const R* inB = partB.data() + (index * k.blocks + block) * rows + t * N2;
            const R* inC = partC.data() + (index * k.blocks + block) * rows + t * N2;
            for (int64_t n = 0; n < N2; ++n) {
              outB[n] += inB[n];
              outC[n] += inC[n];
            }
          }
        }
      });
    });
  }
  for (int64_t index = 0; index < units; ++index) {
    const Unit<R> unit(p, k, index, false);
    for (int64_t i = 0; i < unit.count; ++i) {
      const int64_t at = index * tiles + i;
      unit.scatter(dA.data() + at * per, i, static_cast<R*>(p.dA) + unit.row_of_channels() * N2);
      if (p.dinitial)
        unit.scatter(g.data() + at * per, i,
                     static_cast<R*>(p.dinitial) + unit.row_of_channels() * N2);
      for (int lane = 0; lane < unit.lanes(i); ++lane) {
        static_cast<R*>(p.dskip)[unit.b * p.D + unit.channel(i) + lane] = dskip[at * W + lane];
        static_cast<R*>(p.dbias)[unit.b * p.D + unit.channel(i) + lane] = dbias[at * W + lane];
      }
    }
  }
}

}  // namespace LONGSEQ_ISA
