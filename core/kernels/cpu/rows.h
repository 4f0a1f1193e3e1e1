// Tiles of a (B, L, D) tensor: kChunk rows by one vector of channels, converted to the compute type
// and back.
#pragma once
#include <type_traits>

#include "kernels.h"
#include "simd.h"

namespace LONGSEQ_ISA {
using namespace longseq;

inline float from_bf16(uint16_t x) { return bits<float>(uint32_t(x) << 16); }
inline uint16_t to_bf16(float x) {
  uint32_t u = bits<uint32_t>(x);
  if (x != x) return uint16_t((u >> 16) | 0x40);
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);  // to nearest, ties to even
}
inline float from_half(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits<float>(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // The exponent's bias differs by 112; a multiplication also normalises the subnormals.
  return bits<float>(sign | bits<uint32_t>(bits<float>(rest << 13) * 5.192296858534828e+33f));
}
inline uint16_t to_half(float x) {
  uint32_t u = bits<uint32_t>(x), sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (u >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (u < 0x38800000u)  // subnormal in half: adding 0.5 leaves the rounded fraction in the low bits
    return uint16_t(sign | (bits<uint32_t>(bits<float>(u) + 0.5f) - 0x3f000000u));
  return uint16_t(sign | ((u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13));
}

template <class R> inline R get(const char* p, int64_t dtype, int64_t i) {
  switch (dtype) {
    case kFloat32: return R(reinterpret_cast<const float*>(p)[i]);
    case kFloat64: return R(reinterpret_cast<const double*>(p)[i]);
    case kBFloat16: return R(from_bf16(reinterpret_cast<const uint16_t*>(p)[i]));
    default: return R(from_half(reinterpret_cast<const uint16_t*>(p)[i]));
  }
}

// The first n lanes; the others are zero, or not written.
template <class R> inline Vec<R> load_lanes(const R* from, int n) {
  if (n == kLanes<R>) return load(from);
  R lane[kLanes<R>] = {};
  for (int i = 0; i < n; ++i) lane[i] = from[i];
  return load(lane);
}
template <class R> inline void store_lanes(R* to, Vec<R> v, int n) {
  if (n == kLanes<R>) return store(to, v);
  for (int i = 0; i < n; ++i) to[i] = v[i];
}

// One full vector of S to R or back. The same type is a plain move; otherwise a fixed-length loop
// that the compiler turns into vector conversions (restrict: without it, it would store lane by
// lane and the next load would stall).
template <class To, class From, int n, class F>
inline void convert_lanes(To* __restrict out, const From* __restrict in, F convert) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(out, in, n * sizeof(To));
  } else {
    To lane[n];
    for (int i = 0; i < n; ++i) lane[i] = To(convert(in[i]));
    std::memcpy(out, lane, sizeof lane);
  }
}

template <class R, class S, class F>
inline void read_as(const char* base, int64_t stride, int64_t rows, int64_t n, int64_t pitch,
                    R* out, F convert) {
  const S* p = reinterpret_cast<const S*>(base);
  for (int64_t t = 0; t < rows; ++t, p += stride, out += pitch) {
    if (n == kLanes<R>) {
      convert_lanes<R, S, kLanes<R>>(out, p, convert);
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = R(convert(p[i]));
      for (int64_t i = n; i < pitch; ++i) out[i] = R(0);
    }
  }
}

// Reads rows t0 … t0+rows of batch b, elements offset … offset+n, into rows of `pitch` values
// padded with zeros.
template <class R>
inline void read_rows(const Tensor3& x, int64_t b, int64_t t0, int64_t rows, int64_t offset,
                      int64_t n, int64_t pitch, R* out) {
  const int64_t size = x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2;
  const char* p = x.ptr + size * (b * x.stride_b + t0 * x.stride_l + offset);
  switch (x.dtype) {
    case kFloat32:
      read_as<R, float>(p, x.stride_l, rows, n, pitch, out, [](float v) { return v; });
      break;
    case kFloat64:
      read_as<R, double>(p, x.stride_l, rows, n, pitch, out, [](double v) { return v; });
      break;
    case kBFloat16: read_as<R, uint16_t>(p, x.stride_l, rows, n, pitch, out, from_bf16); break;
    default: read_as<R, uint16_t>(p, x.stride_l, rows, n, pitch, out, from_half);
  }
}

// What the next chunk will read, asked for line by line inside the arithmetic of this one, into the
// second cache. Rows lie a whole (B, L, D) row apart, too far for the hardware to guess; inside a
// row the lines are asked for in order, so that it runs along.
struct Ahead {
  const char* base[6];
  int64_t stride[6];
  int count = 0;
  // lines of 64 bytes in a row of the unit; how far it is
  int64_t lines = 1, rows = 0, line = 0, row = 0;
  void add(const Strided& x, int64_t b, int64_t t0, int64_t offset) {
    if (!x) return;
    const int64_t size = x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2;
    base[count] = x.ptr + size * (b * x.stride_b + t0 * x.stride_l + offset * x.stride_c);
    stride[count++] = size * (x.stride_c == 1 ? x.stride_l : x.stride_c);
  }
  __attribute__((always_inline)) void fetch() {
    if (row >= rows) return;
    for (int i = 0; i < count; ++i) __builtin_prefetch(base[i] + row * stride[i] + line * 64, 0, 2);
    if (++line == lines) {
      line = 0;
      ++row;
    }
  }
};

// Whether the outputs of a call are too large to stay in the caches for whoever reads them next.
template <class R> inline bool worth_streaming(int64_t values) {
  return values * int64_t(sizeof(R)) > (4 << 20);
}
inline void end_streaming() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

template <class R, class S, class F>
inline void write_as(char* base, int64_t stride, int64_t rows, int64_t n, int64_t pitch,
                     const R* in, bool stream, F convert) {
  S* p = reinterpret_cast<S*>(base);
  for (int64_t t = 0; t < rows; ++t, p += stride, in += pitch) {
    if (n == kLanes<R>) {
      
#if defined(__AVX512F__)
      // A large output is written past the caches: reading its lines first, only to overwrite them,
      // is a quarter of the traffic of a scan.
      if constexpr (std::is_same_v<S, R>) {
        if (stream && reinterpret_cast<uintptr_t>(p) % 64 == 0) {
          _mm512_stream_si512(reinterpret_cast<__m512i*>(p), _mm512_loadu_si512(in));
          continue;
        }
      }
#endif
      convert_lanes<S, R, kLanes<R>>(p, in, convert);
    } else {
      for (int64_t i = 0; i < n; ++i) p[i] = S(convert(in[i]));
    }
  }
}

template <class R>
inline void write_rows(const Tensor3& x, int64_t b, int64_t t0, int64_t rows, int64_t offset,
                       int64_t n, int64_t pitch, const R* in, bool stream = false) {
  const int64_t size = x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2;
  char* p = x.ptr + size * (b * x.stride_b + t0 * x.stride_l + offset);
  switch (x.dtype) {
    case kFloat32:
      write_as<R, float>(p, x.stride_l, rows, n, pitch, in, stream, [](R v) { return v; });
      break;
    case kFloat64:
      write_as<R, double>(p, x.stride_l, rows, n, pitch, in, stream, [](R v) { return v; });
      break;
    case kBFloat16:
      write_as<R, uint16_t>(p, x.stride_l, rows, n, pitch, in, stream,
                            [](R v) { return to_bf16(float(v)); });
      break;
    default:
      write_as<R, uint16_t>(p, x.stride_l, rows, n, pitch, in, stream,
                            [](R v) { return to_half(float(v)); });
  }
}

}  // namespace LONGSEQ_ISA
