// Normalisation of groups of channels, with a weight, a weighted skip connection and a swish gate,
// in one pass over each row: out = (unit(y) w + s u) silu(z), or unit(y silu(z)) w + s u. Equations
// in core/ops/gated_norm.py.
#pragma once
#include <algorithm>
#include <cmath>

#include "rows.h"

namespace LONGSEQ_ISA {

template <class R> inline Vec<R> first_lanes(Vec<R> v, int n) {
  if (n == kLanes<R>) return v;
  R lane[kLanes<R>] = {};
  for (int i = 0; i < n; ++i) lane[i] = v[i];
  return load(lane);
}

// Calls f(first channel, number of channels) for every vector of `width` channels from `from`.
template <class R, class F> inline void over_lanes(int64_t from, int64_t width, const F& f) {
  int64_t c = 0;
  for (; c + kLanes<R> <= width; c += kLanes<R>) f(from + c, kLanes<R>);
  if (c < width) f(from + c, int(width - c));
}

// Values up to the first have a square, and its root's third power, far from overflow and
// underflow; what is greater is brought to the second. As `bounded` in core/ops/precision.py.
template <class R> constexpr R kLargest = R(sizeof(R) == 8 ? 0x1p256 : 0x1p32);
template <class R> constexpr R kBrought = R(sizeof(R) == 8 ? 0x1p128 : 0x1p16);

template <class R> struct NormRow {
  const GatedNorm& p;
  const int64_t width;
  const R *y, *z, *u, *weight, *skip;
  R mean = 0, scale = 1;
  R slope = 1;            // of a unit value by what is normalised, without the norm's own change
  Buffer<R> gate, value;  // silu(z) and what is normalised, of one group
  explicit NormRow(const GatedNorm& p)
      : p(p),
        width(p.W / p.groups),
        weight(static_cast<const R*>(p.weight)),
        skip(static_cast<const R*>(p.skip)),
        gate(width + kLanes<R>),
        value(width + kLanes<R>) {}
  static R* row(const Tensor3& x, int64_t r) {
    return x ? reinterpret_cast<R*>(x.ptr) + r * x.stride_l : nullptr;
  }
  void start(int64_t r) { y = row(p.y, r), z = row(p.z, r), u = row(p.u, r); }
  // Reads the group that starts at channel `from`.
  void read(int64_t from) {
    Vec<R> sum = {};
    over_lanes<R>(from, width, [&](int64_t c, int n) {
      Vec<R> v = load_lanes(y + c, n);
      const Vec<R> x = load_lanes(z + c, n), g = x * sigmoid<R>(x);
      store(&gate[c - from], g);
      if (!p.norm_first) v *= g;
      store(&value[c - from], v);
      sum += v;
    });
    R square = moments(sum_lanes(sum) / R(width)), factor = 1;
    if (!(square < kLargest<R> * kLargest<R>)) square = rescued(&factor);
    scale = R(1) / std::sqrt(square + R(p.eps));
    slope = scale * factor;
  }
  // Sets the mean and returns the mean square.
  R moments(R average) {
    mean = p.centred ? average : R(0);
    Vec<R> squares = {};
    over_lanes<R>(0, width, [&](int64_t c, int n) {
      const Vec<R> v = first_lanes<R>(load(&value[c]) - mean, n);
      squares += v * v;
    });
    return sum_lanes(squares) / R(width);
  }
  // The same of a group whose squares are too large, after it was made smaller.
  R rescued(R* factor) {
    R greatest = 0, sum = 0;
    for (int64_t c = 0; c < width; ++c) greatest = std::max(greatest, std::abs(value[c]));
    *factor = greatest > kBrought<R> ? kBrought<R> / greatest : R(1);
    for (int64_t c = 0; c < width; ++c) sum += (value[c] *= *factor);
    return moments(sum / R(width));
  }
  Vec<R> unit(int64_t at) const { return (load(&value[at]) - mean) * scale; }
  // unit w + s u
  Vec<R> inner(int64_t from, int64_t c, int n) const {
    Vec<R> x = unit(c - from) * load_lanes(weight + c, n);
    if (u) x += load_lanes(skip + c, n) * load_lanes(u + c, n);
    return x;
  }
};

template <class R> void gated_norm_forward_as(const GatedNorm& p) {
  parallel((p.rows + kNormRows - 1) / kNormRows, p.threads, [&](int64_t block) {
    NormRow<R> row(p);
    for (int64_t r = block * kNormRows; r < std::min(p.rows, (block + 1) * kNormRows); ++r) {
      row.start(r);
      R* out = row.row(p.out, r);
      for (int64_t from = 0; from < p.W; from += row.width) {
        row.read(from);
        over_lanes<R>(from, row.width, [&](int64_t c, int n) {
          Vec<R> x = row.inner(from, c, n);
          if (p.norm_first) x *= load(&row.gate[c - from]);
          store_lanes(out + c, x, n);
        });
      }
    }
  });
}

template <class R> void gated_norm_backward_as(const GatedNorm& p) {
  parallel((p.rows + kNormRows - 1) / kNormRows, p.threads, [&](int64_t block) {
    NormRow<R> row(p);
    R* dweight = static_cast<R*>(p.dweight) + block * p.W;
    R* dskip = p.u ? static_cast<R*>(p.dskip) + block * p.W : nullptr;
    std::fill(dweight, dweight + p.W, R(0));
    if (dskip) std::fill(dskip, dskip + p.W, R(0));
    for (int64_t r = block * kNormRows; r < std::min(p.rows, (block + 1) * kNormRows); ++r) {
      row.start(r);
      const R* dout = row.row(p.dout, r);
      R *dy = row.row(p.dy, r), *dz = row.row(p.dz, r), *du = row.row(p.du, r);
      for (int64_t from = 0; from < p.W; from += row.width) {
        row.read(from);
        // The gradient of `inner`, with the gate where it comes after it.
        const auto slope = [&](int64_t c, int n) {
          const Vec<R> d = load_lanes(dout + c, n);
          return p.norm_first ? d * load(&row.gate[c - from]) : d;
        };
        Vec<R> sum = {}, product = {};
        over_lanes<R>(from, row.width, [&](int64_t c, int n) {
          const Vec<R> d = slope(c, n), weighted = d * load_lanes(row.weight + c, n),
                       unit = row.unit(c - from);
          sum += weighted;
          product += weighted * unit;
          store_lanes(dweight + c, load_lanes(dweight + c, n) + d * unit, n);
          if (!du) return;
          store_lanes(dskip + c, load_lanes(dskip + c, n) + d * load_lanes(row.u + c, n), n);
          store_lanes(du + c, d * load_lanes(row.skip + c, n), n);
        });
        const R mean = p.centred ? sum_lanes(sum) / R(row.width) : R(0),
                along = sum_lanes(product) / R(row.width);
        over_lanes<R>(from, row.width, [&](int64_t c, int n) {
          const Vec<R> weighted = slope(c, n) * load_lanes(row.weight + c, n);
          const Vec<R> dvalue = (weighted - mean - row.unit(c - from) * along) * row.slope;
          const Vec<R> x = load_lanes(row.z + c, n), s = sigmoid<R>(x);
          const Vec<R> dgate = p.norm_first ? load_lanes(dout + c, n) * row.inner(from, c, n)
                                            : dvalue * load_lanes(row.y + c, n);
          store_lanes(dz + c, dgate * s * (R(1) + x * (R(1) - s)), n);
          store_lanes(dy + c, p.norm_first ? dvalue : dvalue * load(&row.gate[c - from]), n);
        });
      }
    }
  });
}

}  // namespace LONGSEQ_ISA
