// One position at a time, for decoding: the state update of a diagonal state-space layer, read and
// written once. Lanes are states. Equations in core/ops/state_update.py.
#pragma once
#include <algorithm>

#include "rows.h"

namespace LONGSEQ_ISA {

constexpr int64_t kUpdateUnit = 256;  // channels of a unit of work
constexpr int64_t kTogether = 16;     // channels whose outputs are summed together

template <class R>
inline Buffer<R> row_of(const Tensor3& x, int64_t b, int64_t from, int64_t n, int64_t padded) {
  Buffer<R> out(padded, R(0));
  if (x) read_rows<R>(x, b, 0, 1, from, n, n, out.data());
  return out;
}

// Channels from … from + count of row b.
template <class R> struct ChannelUpdate {
  static constexpr int W = kLanes<R>;
  const StateUpdate& p;
  const int64_t b, from, count, per_group, head, heads;
  Buffer<R> u, z, dt, decays, Bm, Cm;
  int64_t group = -1;
  alignas(64) R lanes[kTogether * W], y[kTogether];

  static R at(const void* vector, int64_t i) {
    return vector ? static_cast<const R*>(vector)[i] : R(0);
  }
  static int64_t up(int64_t n) { return (n + kTogether - 1) / kTogether * kTogether; }

  ChannelUpdate(const StateUpdate& p, int64_t b, int64_t from, int64_t count)
      : p(p),
        b(b),
        from(from),
        count(count),
        per_group(p.D / p.G),
        head(from / p.width),
        heads((from + count - 1) / p.width - head + 1),
        u(row_of<R>(p.x, b, from, count, up(count))),
        z(row_of<R>(p.z, b, from, count, up(count))),
        dt(row_of<R>(p.dt, b, head, heads, up(heads))) {
    for (int64_t i = 0; i < heads; ++i) dt[i] += at(p.bias, head + i);
    for (int64_t i = 0; i < heads; i += W) {
      Vec<R> d = load(&dt[i]);
      if (p.softplus) d = softplus<R>(d);
      d = d < R(p.low) ? splat(R(p.low)) : d;  // NaN compares false and passes through
      store(&dt[i], d > R(p.high) ? splat(R(p.high)) : d);
    }
    if (!p.scalar) return;
    decays.resize(dt.size());
    for (int64_t i = 0; i < heads; i += W)
      store(&decays[i], exp2_product(load(&dt[i]), rate(static_cast<const R*>(p.A) + head + i,
                                                        int(std::min<int64_t>(W, heads - i)))));
  }
  // The exponent per unit of time, in units of log 2.
  Vec<R> rate(const R* A, int n) const {
    const Vec<R> a = load_lanes(A, n);
    return (p.log_decay ? -vexp<R>(a) : a) * R(1.4426950408889634);
  }
  // h = a h + dt u B over all states of one channel; returns the lanes of C h.
  Vec<R> update(int64_t i) {
    const int64_t d = from + i, h = d / p.width - head, row = (b * p.D + d) * p.N;
    if (d / per_group != group) {
      group = d / per_group;
      Bm = row_of<R>(p.Bm, b, group * p.N, p.N, p.N + W);
      Cm = row_of<R>(p.Cm, b, group * p.N, p.N, p.N + W);
    }
    const R *before = static_cast<const R*>(p.state) + row,
            *A = static_cast<const R*>(p.A) + (p.scalar ? 0 : d * p.N);
    R* after = static_cast<R*>(p.next) + row;
    const Vec<R> step = splat(dt[h]), input = splat(dt[h] * u[i]),
                 shared = p.scalar ? splat(decays[h]) : Vec<R>{};
    Vec<R> sum = {};
    for (int64_t n = 0; n < p.N; n += W) {
      const int some = int(std::min<int64_t>(W, p.N - n));
      const Vec<R> a = p.scalar ? shared : exp2_product(step, rate(A + n, some));
      const Vec<R> s = a * load_lanes(before + n, some) + input * load(&Bm[n]);
      store_lanes(after + n, s, some);
      Vec<R> part = s * load(&Cm[n]);
      if (some < W)
        // not what an infinite input makes of the padding
        for (int lane = some; lane < W; ++lane) part[lane] = R(0);
      sum += part;
    }
    return sum;
  }
  void run() {
    for (int64_t i0 = 0; i0 < count; i0 += kTogether) {
      const int64_t together = std::min(kTogether, count - i0);
      for (int64_t i = 0; i < together; ++i) store(lanes + i * W, update(i0 + i));
      sum_rows<R>(together, lanes, y);
      for (int64_t i = 0; i < together; ++i) {
        const int64_t d = from + i0 + i;
        y[i] += at(p.skip, p.skip_per_head ? d / p.width : d) * u[i0 + i];
      }
      if (p.z)
        for (int64_t i = 0; i < kTogether; i += W) {
          const Vec<R> gate = load(&z[i0 + i]);
          store(y + i, load(y + i) * gate * sigmoid<R>(gate));
        }
      write_rows<R>(p.y, b, 0, 1, from + i0, together, together, y);
    }
  }
};

template <class R> void state_update_as(const StateUpdate& p) {
  const int64_t units = (p.D + kUpdateUnit - 1) / kUpdateUnit;
  parallel(p.B * units, p.threads, [&](int64_t index) {
    const int64_t from = index % units * kUpdateUnit;
    ChannelUpdate<R>(p, index / units, from, std::min(kUpdateUnit, p.D - from)).run();
  });
}

}  // namespace LONGSEQ_ISA
