// The backward pass of the selective scan with one state per channel, straight from memory.
#pragma once
#include "scan_backward_memory.h"
#include "selective_scan.h"

namespace LONGSEQ_ISA {

// Whether the gradients of one state per channel can be made straight from memory, as `straight`
// has it for the forward pass.
template <class R> inline bool straight_backward(const SelectiveScan& p) {
  if (p.N != 1 || p.complex || p.z || p.y) return false;
  for (const Strided* x : {&p.u, &p.delta, &p.dy, &p.du, &p.ddelta, &p.dadd})
    if (*x && !(x == &p.delta && p.rank) && (x->stride_c != 1 || !holds<R>(*x))) return false;
  return true;
}

// One state per channel of a whole tile over a chunk whose steps lie in rows `places`; what it
// gives B and C is added to that of the tiles before it. Low-rank step sizes are in the tile's dt.
template <class R>
__attribute__((noinline)) void straight_tile(const Unit<R>& unit, const Unit<R>& shared, int64_t c,
                                             int64_t i, int64_t T, const int64_t* places,
                                             const R* A2, bool stream, Ahead& ahead,
                                             const uint8_t* resets, Tile<R>& x, Gradients<R>& s,
                                             R* sumB, R* sumC, R* g_io, R* dA, R* dskip,
                                             R* dbias) {
  constexpr int W = kLanes<R>;
  const SelectiveScan& p = unit.p;
  const int64_t at = unit.channel(i);
  const auto place = [&](const Strided& x) {
    return reinterpret_cast<R*>(x.ptr) + unit.b * x.stride_b + at;
  };
  const R *u = place(p.u), *delta = place(p.delta), *dy = place(p.dy);
  R *du = place(p.du), *ddelta = place(p.ddelta), *dadd = p.dadd ? place(p.dadd) : nullptr;
  const Vec<R> bias = unit.vector_of(p.delta_bias, i), skip = unit.vector_of(p.skip, i),
               decay = load(&unit.A[i * W]), decay2 = load(A2);
  const R *Bc = shared.Bc.data(), *Cc = shared.Cc.data();
  // Copied: what the loops store might be anything of p, for all that the compiler knows.
  const bool softplus_of = p.softplus, adds = p.adds, low_rank = p.rank > 0;
  const int64_t u_apart = p.u.stride_l, dy_apart = p.dy.stride_l, du_apart = p.du.stride_l,
                delta_apart = p.delta.stride_l, ddelta_apart = p.ddelta.stride_l,
                dadd_apart = p.dadd.stride_l;
  Vec<R> h = load(unit.state_slot(c, i));
  store(s.h, h);
  for (int64_t t = 0; t < T; ++t) {
    ahead.fetch();
    const R* const step = low_rank ? x.dt + t * W : delta + places[t] * delta_apart;
    Vec<R> d = load(step) + bias, rise = splat(R(1));
    if (softplus_of) d = softplus<R>(d, &rise);
    const Vec<R> a = exp2_product(d, decay2);
    if (resets && resets[t]) h = Vec<R>{};
    h = a * h + d * load(u + places[t] * u_apart) * Bc[t];
    store(x.dt + t * W, d);
    store(x.slope + t * W, rise);
    store(s.a + t * W, a);
    store(s.h + (t + 1) * W, h);
  }
  Vec<R> g = load(g_io), rates = load(dA), skips = load(dskip), biases = load(dbias);
  for (int64_t t = T - 1; t >= 0; --t) {
    const Vec<R> d = load(x.dt + t * W), ut = load(u + places[t] * u_apart),
                 dyt = load(dy + places[t] * dy_apart);
    g += dyt * Cc[t];
    const Vec<R> into_C = dyt * load(s.h + (t + 1) * W), into_B = g * (d * ut), ddu = g * Bc[t];
    store(sumC + t * W, i ? load(sumC + t * W) + into_C : into_C);
    store(sumB + t * W, i ? load(sumB + t * W) + into_B : into_B);
    Vec<R> ddt = ddu * ut;
    if (resets && resets[t]) {  // nothing, not even NaN, passes from one segment to the other
      g = Vec<R>{};
    } else {
      g *= load(s.a + t * W);
      const Vec<R> q = g * load(s.h + t * W);  // the gradient of dt A
      ddt += q * decay;
      rates += q * d;
    }
    const Vec<R> rise = ddt * load(x.slope + t * W);
    skips += dyt * ut;
    biases += rise;
    R* const into = du + places[t] * du_apart;
    const Vec<R> own = ddu * d + dyt * skip;
    put(into, adds ? load(into) + own : own, W, stream && !adds);
    put(ddelta + places[t] * ddelta_apart, rise, W, stream);
    if (dadd) put(dadd + places[t] * dadd_apart, dyt, W, stream);
  }
  store(g_io, g);
  store(dA, rates);
  store(dskip, skips);
  store(dbias, biases);
}

}  // namespace LONGSEQ_ISA
