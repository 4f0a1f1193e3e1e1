// Four floats at once, one for each base, and the logarithms and exponentials of them.
#pragma once

#include <cstdint>
#include <cstring>

namespace genomics {

typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

inline V4 all4(float x) { return V4{x, x, x, x}; }
inline float sum4(V4 x) { return (x[0] + x[1]) + (x[2] + x[3]); }

// Natural logarithm of positive normal numbers, to 2e-7 relative: x = 2^e m, ln m by atanh's
// series.
inline V4 log4(V4 x) {
  I4 bits;
  std::memcpy(&bits, &x, 16);
  I4 e = (bits - 0x3f3504f3) >> 23;  // m between sqrt(1/2) and sqrt(2)
  I4 mantissa = bits - (e << 23);
  V4 m;
  std::memcpy(&m, &mantissa, 16);
  const V4 r = (m - 1.0f) / (m + 1.0f), r2 = r * r;
  const V4 series = ((r2 * (1.0f / 9) + 1.0f / 7) * r2 + 0.2f) * r2 + 1.0f / 3;
  return __builtin_convertvector(e, V4) * 0.69314718f + 2.0f * (r + r * r2 * series);
}

// e^x for x between -87 and 87, to 3e-7 relative; smaller and larger ones count as these.
inline V4 exp4(V4 x) {
  x = x < -87.0f ? all4(-87.0f) : x;
  x = x > 87.0f ? all4(87.0f) : x;
  const V4 shifted = x * 1.44269504f + 12582912.0f;  // rounds to whole numbers in the low bits
  const V4 whole = shifted - 12582912.0f;
  const V4 f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  V4 p = ((((f * (1.0f / 720) + 1.0f / 120) * f + 1.0f / 24) * f + 1.0f / 6) * f + 0.5f) * f + 1.0f;
  p = p * f + 1.0f;
  I4 bits = (__builtin_convertvector(whole, I4) + 127) << 23;
  V4 scale;
  std::memcpy(&scale, &bits, 16);
  return p * scale;
}

inline V4 normalised(V4 p) { return p * (1.0f / sum4(p)); }

inline V4 softmax4(V4 z) {
  const float a = z[0] > z[1] ? z[0] : z[1], b = z[2] > z[3] ? z[2] : z[3];
  return normalised(exp4(z - (a > b ? a : b)));
}

}  // namespace genomics
