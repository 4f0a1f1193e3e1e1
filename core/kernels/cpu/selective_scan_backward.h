// The backward pass of the selective scan: chunks from last to first, each recomputed from its
// saved state.
#pragma once
#include "selective_scan.h"

namespace LONGSEQ_ISA {

// Steps between two reductions of the per-block gradients of B and C: bounds that buffer for any L.
constexpr int64_t kSpan = 32 * kChunk;

// Working memory of one unit, for one tile and one group of states at a time.
template <class R> struct Gradients {
  static constexpr int W = kLanes<R>;
  alignas(64) R dy[kChunk * W], ddt[kChunk * W], ddu[kChunk * W];
  R a[kChunk * 4 * W], h[(kChunk + 1) * 4 * W];
};

// NU states of one tile over one chunk, first forwards (filling a, h and y), then backwards.
template <class R, int NU>
__attribute__((noinline)) void backward_group(int64_t T, int64_t N, bool need_y, const R* dt,
                                              const R* du, const R* A2, const R* A, const R* Bc,
                                              const R* Cc, Gradients<R>& s, R* y, R* g_io, R* dA,
                                              R* dB, R* dC, const uint8_t* resets, Ahead* ahead) {
  constexpr int W = kLanes<R>;
  {
    Vec<R> h[NU];
#pragma GCC unroll 4
    for (int j = 0; j < NU; ++j) h[j] = load(s.h + j * W);
    for (int64_t t = 0; t < T; ++t) {
      const Vec<R> d = load(dt + t * W), x = load(du + t * W);
      if (ahead) ahead->fetch();
      const bool reset = resets && resets[t];
      Vec<R> acc = {};
#pragma GCC unroll 4
      for (int j = 0; j < NU; ++j) {
        const Vec<R> a = exp2_product(d, load(A2 + j * W));
        store(s.a + (t * NU + j) * W, a);
        h[j] = a * (reset ? Vec<R>{} : h[j]) + x * Bc[t * N + j];
        store(s.h + ((t + 1) * NU + j) * W, h[j]);
        if (need_y) acc += h[j] * Cc[t * N + j];
      }
      if (need_y) store(y + t * W, load(y + t * W) + acc);
    }
  }
  Vec<R> g[NU], ga[NU];
#pragma GCC unroll 4
  for (int j = 0; j < NU; ++j) {
    g[j] = load(g_io + j * W);
    ga[j] = Vec<R>{};
  }
  for (int64_t t = T - 1; t >= 0; --t) {
    const Vec<R> d = load(dt + t * W), x = load(du + t * W), dy = load(s.dy + t * W);
    Vec<R> ddt = load(s.ddt + t * W), ddu = load(s.ddu + t * W);
    const bool reset = resets && resets[t];
#pragma GCC unroll 4
    for (int j = 0; j < NU; ++j) {
      R* pB = dB + (t * N + j) * W;
      R* pC = dC + (t * N + j) * W;
      store(pC, load(pC) + dy * load(s.h + ((t + 1) * NU + j) * W));
      g[j] += dy * Cc[t * N + j];
      store(pB, load(pB) + g[j] * x);
      ddu += g[j] * Bc[t * N + j];
      if (reset) {  // nothing, not even NaN, passes from one segment to the other
        g[j] = Vec<R>{};
        continue;
      }
      g[j] *= load(s.a + (t * NU + j) * W);
      const Vec<R> q = g[j] * load(s.h + (t * NU + j) * W);  // the gradient of dt A
      ddt += q * load(A + j * W);
      ga[j] += q * d;
    }
    store(s.ddt + t * W, ddt);
    store(s.ddu + t * W, ddu);
  }
#pragma GCC unroll 4
  for (int j = 0; j < NU; ++j) {
    store(g_io + j * W, g[j]);
    store(dA + j * W, load(dA + j * W) + ga[j]);
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
    R* pB = dB + t * N2 * W;
    R* pC = dC + t * N2 * W;
    store(pC, load(pC) + dy * load(s.h + (2 * t + 2) * W));
    store(pC + W, load(pC + W) - dy * load(s.h + (2 * t + 3) * W));
    gr += dy * Cc[t * N2];
    gi -= dy * Cc[t * N2 + 1];
    store(pB, load(pB) + gr * x);
    store(pB + W, load(pB + W) + gi * x);
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

// Working memory that the blocks of a team share.
template <class R> struct BackwardScratch {
  Buffer<R> sumB, sumC;
  Buffer<Tile<R>> tile;
  Buffer<Gradients<R>> gradients;
  explicit BackwardScratch(const Blocks<R>& k)
      : sumB(kChunk * k.N2 * kLanes<R>), sumC(kChunk * k.N2 * kLanes<R>), tile(1), gradients(1) {}
};

template <class R> struct BackwardUnit {
  static constexpr int W = kLanes<R>;
  const SelectiveScan& p;
  const bool stream;
  Unit<R> unit;
  Buffer<R> A2, &sumB, &sumC;
  Tile<R>& x;
  Gradients<R>& s;
  BackwardUnit(const SelectiveScan& p, const Blocks<R>& k, int64_t index,
               BackwardScratch<R>& scratch)
      : p(p),
        stream(worth_streaming<R>(p.B * p.L * p.D)),
        unit(p, k, index),
        A2(unit.A),
        sumB(scratch.sumB),
        sumC(scratch.sumC),
        x(scratch.tile[0]),
        s(scratch.gradients[0]) {
    to_log2<R>(A2, p.complex);
  }

  template <int NU>
  void group(int64_t T, int64_t i, int64_t n, int64_t c, R* g, R* dA, const uint8_t* resets,
             Ahead& ahead) {
    const int64_t N2 = unit.N2, at = (i * N2 + n) * W;
    for (int j = 0; j < NU; ++j)
      std::memcpy(s.h + j * W, unit.state_slot(c, i) + (n + j) * p.G * unit.padded, W * sizeof(R));
    if (p.complex)
      backward_complex<R>(T, N2, x.dt, x.du, &A2[at], &unit.A[at], &unit.Bc[n], &unit.Cc[n], s, x.y,
                          g + at, dA + at, &sumB[n * W], &sumC[n * W], resets);
    else
      backward_group<R, NU>(T, N2, bool(p.z), x.dt, x.du, &A2[at], &unit.A[at], &unit.Bc[n],
                            &unit.Cc[n], s, x.y, g + at, dA + at, &sumB[n * W], &sumC[n * W],
                            resets, n == 0 ? &ahead : nullptr);
  }

  // Steps t0 … t0 + T of every tile; `ahead` and `next_states` are what the block after this one
  // will read. g, dA: [count][N2][W]; dskip, dbias: [count][W]; partB, partC: rows of N2.
  void chunk(int64_t c, Ahead ahead, const R* next_states, R* g, R* dA, R* dskip, R* dbias,
             R* partB, R* partC) {
    const int64_t t0 = c * kChunk, T = std::min<int64_t>(kChunk, p.L - t0), N2 = unit.N2;
    const uint8_t* resets = unit.resets(t0, T);
    unit.read_BC(t0, T);
    std::fill(sumB.begin(), sumB.end(), R(0));
    std::fill(sumC.begin(), sumC.end(), R(0));
    for (int64_t i = 0; i < unit.count; ++i) {
      const R* soon = i + 1 < unit.count ? unit.state_slot(c, i + 1) : next_states;
      if (soon)
        for (int64_t n = 0; n < N2; ++n) __builtin_prefetch(soon + n * p.G * unit.padded, 0, 2);
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
      int64_t n = 0;
      constexpr int wide = kBytes == 64 ? 4 : 2;
      if (p.complex)
        for (; n < N2; n += 2) group<2>(T, i, n, c, g, dA, resets, ahead);
      for (; n + wide <= N2; n += wide) group<wide>(T, i, n, c, g, dA, resets, ahead);
      for (; n < N2; ++n) group<1>(T, i, n, c, g, dA, resets, ahead);
      finish_tile(i, t0, T, dskip + i * W, dbias + i * W);
    }
    sum_rows<R>(T * N2, sumB.data(), partB);
    sum_rows<R>(T * N2, sumC.data(), partC);
  }

  void finish_tile(int64_t i, int64_t t0, int64_t T, R* dskip, R* dbias) {
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
    write_steps<R>(p, p.du, unit.b, t0, T, at, n, W, s.ddu, stream);
    write_steps<R>(p, p.ddelta, unit.b, t0, T, at, n, W, s.ddt, stream);
    if (p.z) write_steps<R>(p, p.dz, unit.b, t0, T, at, n, W, x.z, stream);
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
  Buffer<R> partB(units * rows), partC(units * rows);
  if (p.dfinal)
    for (int64_t index = 0; index < units; ++index) {
      Unit<R> unit(p, k, index);
      for (int64_t i = 0; i < unit.count; ++i)
        unit.gather(static_cast<const R*>(p.dfinal) + unit.row_of_channels() * N2, i,
                    g.data() + (index * tiles + i) * per);
    }
  for (int64_t span = spans - 1; span >= 0; --span) {
    const int64_t c0 = span * per_span, c1 = std::min(chunks, c0 + per_span);
    k.each_team(p, [&](int64_t first, int64_t count) {
      BackwardScratch<R> scratch(k);
      std::vector<BackwardUnit<R>> team;
      team.reserve(count);
      for (int64_t i = 0; i < count; ++i) team.emplace_back(p, k, first + i, scratch);
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
    Unit<R> unit(p, k, index);
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
