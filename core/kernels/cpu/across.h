// Tiles of a (B, L, D) tensor whose time is dense, as (B, D, L) memory has it: turned round in
// registers, vector by vector.
#pragma once
#include <utility>

#include "rows.h"

namespace LONGSEQ_ISA {

// Lanes of a and b by a constant index: below W from a, from W on from b.
template <class R, int... index>
inline Vec<R> pick(Vec<R> a, Vec<R> b, std::integer_sequence<int, index...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, index...);
#else
  return __builtin_shuffle(a, b, IVec<R>{index...});
#endif
}
// Exchanges the off-diagonal blocks of S by S lanes between two vectors that lie S rows apart.
template <class R, int S, int... lane>
inline void exchange(Vec<R>& a, Vec<R>& b, std::integer_sequence<int, lane...>) {
  constexpr int W = kLanes<R>;
  const Vec<R> low =
      pick<R>(a, b, std::integer_sequence<int, (lane & S ? W + lane - S : lane)...>{});
  b = pick<R>(a, b, std::integer_sequence<int, (lane & S ? W + lane : lane + S)...>{});
  a = low;
}
template <class R, int S = kLanes<R> / 2> inline void transpose(Vec<R> (&v)[kLanes<R>]) {
  if constexpr (S > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<R>; ++i)
      if (!(i & S)) exchange<R, S>(v[i], v[i + S], std::make_integer_sequence<int, kLanes<R>>{});
    transpose<R, S / 2>(v);
  }
}

template <class R, class S, class F>
inline void read_across_as(const char* base, int64_t stride_l, int64_t stride_c, int64_t rows,
                           int64_t n, int64_t pitch, R* out, F convert) {
  constexpr int W = kLanes<R>;
  const S* p = reinterpret_cast<const S*>(base);
  for (int64_t i0 = 0; i0 < n; i0 += W) {
    int64_t t = 0;
    if (stride_l == 1 && n - i0 >= W)
      for (; t + W <= rows; t += W) {
        Vec<R> v[W];
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k) {
          R lane[W];
          convert_lanes<R, S, W>(lane, p + (i0 + k) * stride_c + t, convert);
          v[k] = load(lane);
        }
        transpose<R>(v);
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k) store(out + (t + k) * pitch + i0, v[k]);
      }
    const int64_t end = std::min<int64_t>(n, i0 + W);
    for (; t < rows; ++t)
      for (int64_t i = i0; i < end; ++i)
        out[t * pitch + i] = R(convert(p[i * stride_c + t * stride_l]));
  }
  for (int64_t t = 0; t < rows && n < pitch; ++t)
    for (int64_t i = n; i < pitch; ++i) out[t * pitch + i] = R(0);
}

template <class R, class S, class F>
inline void write_across_as(char* base, int64_t stride_l, int64_t stride_c, int64_t rows, int64_t n,
                            int64_t pitch, const R* in, F convert) {
  constexpr int W = kLanes<R>;
  S* p = reinterpret_cast<S*>(base);
  int64_t t = 0;
  if (stride_l == 1 && n == W)
    for (; t + W <= rows; t += W) {
      Vec<R> v[W];
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) v[k] = load(in + (t + k) * pitch);
      transpose<R>(v);
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) {
        R lane[W];
        store(lane, v[k]);
        convert_lanes<S, R, W>(p + k * stride_c + t, lane, convert);
      }
    }
  for (; t < rows; ++t)
    for (int64_t i = 0; i < n; ++i) p[i * stride_c + t * stride_l] = S(convert(in[t * pitch + i]));
}

// As read_rows and write_rows, for tensors of any strides.
template <class R>
inline void read_tile(const Strided& x, int64_t b, int64_t t0, int64_t rows, int64_t offset,
                      int64_t n, int64_t pitch, R* out) {
  if (x.stride_c == 1) return read_rows<R>(x, b, t0, rows, offset, n, pitch, out);
  const int64_t size = x.dtype == kFloat64   ? 8
                       : x.dtype == kFloat32 ? 4
                                             : 2,
                l = x.stride_l, c = x.stride_c;
  const char* p = x.ptr + size * (b * x.stride_b + t0 * l + offset * c);
  switch (x.dtype) {
    case kFloat32:
      read_across_as<R, float>(p, l, c, rows, n, pitch, out, [](float v) { return v; });
      break;
    case kFloat64:
      read_across_as<R, double>(p, l, c, rows, n, pitch, out, [](double v) { return v; });
      break;
    case kBFloat16: read_across_as<R, uint16_t>(p, l, c, rows, n, pitch, out, from_bf16); break;
    default: read_across_as<R, uint16_t>(p, l, c, rows, n, pitch, out, from_half);
  }
}
template <class R>
inline void write_tile(const Strided& x, int64_t b, int64_t t0, int64_t rows, int64_t offset,
                       int64_t n, int64_t pitch, const R* in, bool stream) {
  if (x.stride_c == 1) return write_rows<R>(x, b, t0, rows, offset, n, pitch, in, stream);
  const int64_t size = x.dtype == kFloat64   ? 8
                       : x.dtype == kFloat32 ? 4
                                             : 2,
                l = x.stride_l, c = x.stride_c;
  char* p = x.ptr + size * (b * x.stride_b + t0 * l + offset * c);
  switch (x.dtype) {
    case kFloat32:
      write_across_as<R, float>(p, l, c, rows, n, pitch, in, [](R v) { return v; });
      break;
    case kFloat64:
      write_across_as<R, double>(p, l, c, rows, n, pitch, in, [](R v) { return v; });
      break;
    case kBFloat16:
      write_across_as<R, uint16_t>(p, l, c, rows, n, pitch, in,
                                   [](R v) { return to_bf16(float(v)); });
      break;
    default:
      write_across_as<R, uint16_t>(p, l, c, rows, n, pitch, in,
                                   [](R v) { return to_half(float(v)); });
  }
}

}  // namespace LONGSEQ_ISA
