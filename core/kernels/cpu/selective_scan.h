// Selective scan, forward and backward. Lanes are channels; time is cut into chunks of kChunk
// steps, the outer loop; tiles of one vector of channels are the inner one. The state before each
// chunk is saved, and the backward pass recomputes inside the chunk, so nothing of size (B, L, D,
// N) exists. Equations in core/ops/selective_scan.py.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "scan_tiles.h"

namespace LONGSEQ_ISA {

constexpr double kLog2e = 1.4426950408889634;

// NU states of one tile over one chunk: h = exp(dt A) h + (dt u) B, y += C h.
template <class R, int NU>
__attribute__((noinline)) void forward_group(int64_t T, int64_t N, const R* dt, const R* du,
                                             const R* A, const R* Bc, const R* Cc, R* h_io, R* y,
                                             const uint8_t* resets, Ahead* ahead) {
  constexpr int W = kLanes<R>;
  Vec<R> h[NU];
#pragma GCC unroll 16
  for (int j = 0; j < NU; ++j) h[j] = load(h_io + j * W);
  for (int64_t t = 0; t < T; ++t) {
    const Vec<R> d = load(dt + t * W), x = load(du + t * W);
    Vec<R> y0 = load(y + t * W), y1 = {};
    if (ahead) ahead->fetch();
    if (resets && resets[t]) {
#pragma GCC unroll 16
      for (int j = 0; j < NU; ++j) h[j] = Vec<R>{};
    }
#pragma GCC unroll 16
    for (int j = 0; j < NU; ++j) {
      const Vec<R> a = exp2_product(d, load(A + j * W));
      h[j] = a * h[j] + x * Bc[t * N + j];
      if (j & 1) y1 += h[j] * Cc[t * N + j];
      else y0 += h[j] * Cc[t * N + j];
    }
    store(y + t * W, y0 + y1);
  }
#pragma GCC unroll 16
  for (int j = 0; j < NU; ++j) store(h_io + j * W, h[j]);
}

template <class R> inline void complex_decay(Vec<R> d, const R* A, Vec<R>& ar, Vec<R>& ai) {
  constexpr int W = kLanes<R>;
  const Vec<R> e = exp2_product(d, load(A));
  sincos<R>(d * load(A + W), ai, ar);
  ar *= e;
  ai *= e;
}

// One complex state; real and imaginary parts lie in consecutive rows. y += 2 Re(C h).
template <class R>
__attribute__((noinline)) void forward_complex(int64_t T, int64_t N2, const R* dt, const R* du,
                                               const R* A, const R* Bc, const R* Cc, R* h_io, R* y,
                                               const uint8_t* resets) {
  constexpr int W = kLanes<R>;
  Vec<R> hr = load(h_io), hi = load(h_io + W);
  for (int64_t t = 0; t < T; ++t) {
    const Vec<R> x = load(du + t * W);
    Vec<R> ar, ai;
    complex_decay<R>(load(dt + t * W), A, ar, ai);
    if (resets && resets[t]) hr = hi = Vec<R>{};
    const Vec<R> r = ar * hr - ai * hi + x * Bc[t * N2], i = ar * hi + ai * hr + x * Bc[t * N2 + 1];
    hr = r;
    hi = i;
    store(y + t * W, load(y + t * W) + R(2) * (hr * Cc[t * N2] - hi * Cc[t * N2 + 1]));
  }
  store(h_io, hr);
  store(h_io + W, hi);
}

template <class R>
inline void forward_states(const SelectiveScan& p, int64_t T, int64_t N2, const R* dt, const R* du,
                           const R* A, const R* Bc, const R* Cc, R* h, R* y, const uint8_t* resets,
                           Ahead& ahead) {
  constexpr int W = kLanes<R>;
  constexpr int wide = kBytes == 64 ? 16 : 4;  // as many states as there are registers for
  int64_t n = 0;
  if (p.complex) {
    for (; n < N2; n += 2)
      forward_complex<R>(T, N2, dt, du, A + n * W, Bc + n, Cc + n, h + n * W, y, resets);
    return;
  }
  for (; n + wide <= N2; n += wide)
    forward_group<R, wide>(T, N2, dt, du, A + n * W, Bc + n, Cc + n, h + n * W, y, resets,
                           n ? nullptr : &ahead);
  for (; n + 4 <= N2; n += 4)
    forward_group<R, 4>(T, N2, dt, du, A + n * W, Bc + n, Cc + n, h + n * W, y, resets,
                        n ? nullptr : &ahead);
  for (; n < N2; ++n)
    forward_group<R, 1>(T, N2, dt, du, A + n * W, Bc + n, Cc + n, h + n * W, y, resets,
                        n ? nullptr : &ahead);
}

// The decays in units of log 2: real parts only (imaginary rows stay angles).
template <class R> inline void to_log2(Buffer<R>& A, bool complex) {
  constexpr int W = kLanes<R>;
  for (size_t row = 0; row < A.size() / W; ++row)
    if (!complex || row % 2 == 0)
      for (int i = 0; i < W; ++i) A[row * W + i] *= R(kLog2e);
}

// How many chunks a block goes through before the next one has its turn. One, where rows are dense:
// a row's page serves all blocks of a team. Where time is dense every channel has a page of its
// own, which is left when its part was read.
inline int64_t chunks_together(const SelectiveScan& p) {
  for (const Strided* x :
       {&p.u, &p.delta, &p.z, &p.add, &p.y, &p.dy, &p.du, &p.ddelta, &p.dz, &p.dadd})
    if (*x && x->stride_c != 1) return 64;
  return 1;
}
// Calls run(chunk, block, the chunk and the block that follow) in that order.
template <class F>
inline void each_block(int64_t chunks, int64_t blocks, int64_t together, const F& run) {
  for (int64_t c0 = 0; c0 < chunks; c0 += together)
    for (int64_t k = 0; k < blocks; ++k)
      for (int64_t c = c0, end = std::min(chunks, c0 + together); c < end; ++c) {
        const bool last = c + 1 == end, turn = last && k + 1 == blocks;
        run(c, k, !last ? c + 1 : turn ? end : c0, turn ? 0 : last ? k + 1 : k);
      }
}

// Whether one state per channel can be scanned straight from memory: then a step is so little
// arithmetic that moving it through a tile would cost as much again.
template <class R> inline bool straight(const SelectiveScan& p) {
  if (p.N != 1 || p.complex) return false;
  for (const Strided* x : {&p.u, &p.delta, &p.z, &p.add, &p.y})
    if (*x && !(x == &p.delta && p.rank) &&
        (x->stride_c != 1 || x->dtype != (sizeof(R) == 8 ? kFloat64 : kFloat32)))
      return false;
  return true;
}
// One chunk of a whole tile with one state per channel.
template <class R>
__attribute__((noinline)) void forward_straight(const Unit<R>& unit, int64_t i, int64_t t0,
                                                int64_t T, const R* A, const R* Bc, const R* Cc,
                                                R* h_io, const uint8_t* resets, bool stream,
                                                const R* dt, Ahead& ahead) {
  const SelectiveScan& p = unit.p;
  const int64_t at = unit.channel(i);
  const Vec<R> bias = unit.vector_of(p.delta_bias, i), skip = unit.vector_of(p.skip, i),
               decay = load(A);
  Vec<R> h = load(h_io);
  each_run(p, t0, T, [&](int64_t row, int64_t step, int64_t rows, int64_t offset) {
    const auto place = [&](const Strided& x) {
      return reinterpret_cast<R*>(x.ptr) + unit.b * x.stride_b + row * x.stride_l + at;
    };
    // Low-rank step sizes come from the tile's dt.
    const R* delta = p.rank ? dt + offset * kLanes<R> : place(p.delta);
    const R *u = place(p.u), *z = p.z ? place(p.z) : nullptr,
            *add = p.add ? place(p.add) : nullptr;
    const int64_t apart = p.rank ? kLanes<R> : step * p.delta.stride_l;
    R* y = place(p.y);
    // Copied: what the loop stores might be anything of p, for all that the compiler knows.
    const bool softplus_of = p.softplus;
    const int64_t u_apart = step * p.u.stride_l, y_apart = step * p.y.stride_l,
                  z_apart = step * p.z.stride_l, add_apart = step * p.add.stride_l;
    for (int64_t t = 0; t < rows; ++t) {
      ahead.fetch();
      Vec<R> d = load(delta + t * apart) + bias;
      if (softplus_of) d = softplus<R>(d);
      const Vec<R> x = load(u + t * u_apart);
      if (resets && resets[offset + t]) h = Vec<R>{};
      h = exp2_product(d, decay) * h + d * x * Bc[offset + t];
      Vec<R> out = skip * x;
      if (add) out += load(add + t * add_apart);
      out += h * Cc[offset + t];
      if (z) {
        const Vec<R> gate = load(z + t * z_apart);
        out = out * gate * sigmoid<R>(gate);
      }
      put(y + t * y_apart, out, kLanes<R>, stream);
    }
  });
  store(h_io, h);
}

template <class R> void selective_scan_forward_as(const SelectiveScan& p) {
  constexpr int W = kLanes<R>;
  const Blocks<R> k(p);
  const bool direct = straight<R>(p);
  const int64_t chunks = (p.L + kChunk - 1) / kChunk;
  const bool stream = worth_streaming<R>(p.B * p.L * p.D);
  k.each_team(p, [&](int64_t first, int64_t count) {
    const int64_t N2 = k.N2, per = N2 * W;
    std::vector<Unit<R>> units;
    std::vector<Buffer<R>> states;
    units.reserve(count);
    for (int64_t index = first; index < first + count; ++index) {
      units.emplace_back(p, k, index);
      Unit<R>& unit = units.back();
      to_log2<R>(unit.A, p.complex);
      states.emplace_back(unit.count * per, R(0));
      if (p.initial)
        for (int64_t i = 0; i < unit.count; ++i)
          unit.gather(static_cast<const R*>(p.initial) + unit.row_of_channels() * N2, i,
                      &states.back()[i * per]);
    }
    Buffer<Tile<R>> scratch(1);
    Tile<R>& tile = scratch[0];
    Unit<R>& shared = units[0];  // B, C and resets are those of the whole team
    const uint8_t* resets = nullptr;
    int64_t held = -1;
    each_block(chunks, count, chunks_together(p),
               [&](int64_t c, int64_t k0, int64_t next_c, int64_t next_k) {
                 const int64_t t0 = c * kChunk, T = std::min<int64_t>(kChunk, p.L - t0);
                 Unit<R>& unit = units[k0];
                 Buffer<R>& h = states[k0];
                 if (c != held) {
                   shared.read_BC(t0, T);
                   resets = shared.resets(t0, T);
                   held = c;
                 }
                 Ahead ahead = units[next_k].ahead(next_c * kChunk);
                 for (int64_t i = 0; i < unit.count; ++i) {
                   if (p.states)
                     for (int64_t n = 0; n < N2; ++n)
                       std::memcpy(unit.state_slot(c, i) + n * p.G * k.padded, &h[i * per + n * W],
                                   W * sizeof(R));
                   if (p.rank)
                     widen_steps<R>(T, p.rank, shared.steps.data(),
                                    unit.weight.data() + i * p.rank * W, tile.dt);
                   if (direct && unit.lanes(i) == W) {
                     forward_straight<R>(unit, i, t0, T, unit.A.data() + i * per, shared.Bc.data(),
                                         shared.Cc.data(), h.data() + i * per, resets, stream,
                                         tile.dt, ahead);
                     continue;
                   }
                   tile.read(unit, i, t0, T, false);
                   forward_states<R>(p, T, N2, tile.dt, tile.du, unit.A.data() + i * per,
                                     shared.Bc.data(), shared.Cc.data(), h.data() + i * per, tile.y,
                                     resets, ahead);
                   if (p.z)
                     for (int64_t t = 0; t < T; ++t) {
                       const Vec<R> z = load(tile.z + t * W);
                       store(tile.y + t * W, load(tile.y + t * W) * z * sigmoid<R>(z));
                     }
                   write_steps<R>(p, p.y, unit.b, t0, T, unit.channel(i), unit.lanes(i), W, tile.y,
                                  stream);
                 }
               });
    for (int64_t k0 = 0; k0 < count; ++k0)
      for (int64_t i = 0; i < units[k0].count; ++i)
        units[k0].scatter(states[k0].data() + i * per, i,
                          static_cast<R*>(p.final_state) + units[k0].row_of_channels() * N2);
    end_streaming();
  });
}

}  // namespace LONGSEQ_ISA
