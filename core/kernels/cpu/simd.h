// Vectors of one instruction set: arithmetic on GCC/Clang vector types, exp2, softplus, sine and
// cosine. Included once per instruction set inside namespace LONGSEQ_ISA; everything here is
// inline.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <utility>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace LONGSEQ_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;  // SSE2 or NEON
#endif

template <class R> struct Traits;
template <> struct Traits<float> {
  typedef float V __attribute__((vector_size(kBytes)));
  typedef int32_t I __attribute__((vector_size(kBytes)));
  typedef int32_t Int;
  static constexpr int mantissa = 23, bias_floor = -125, bias_ceil = 127;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
};
template <> struct Traits<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef int64_t I __attribute__((vector_size(kBytes)));
  typedef int64_t Int;
  static constexpr int mantissa = 52, bias_floor = -1021, bias_ceil = 1023;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
};
template <class R> using Vec = typename Traits<R>::V;
template <class R> using IVec = typename Traits<R>::I;
template <class R> constexpr int kLanes = kBytes / int(sizeof(R));

// Working memory that starts on a cache line: a vector that straddles two lines costs twice, more
// if just stored.
template <class T> struct LineAllocator {
  typedef T value_type;
  LineAllocator() = default;
  template <class U> LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) {
    return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64)));
  }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  template <class U> bool operator==(const LineAllocator<U>&) const { return true; }
  template <class U> bool operator!=(const LineAllocator<U>&) const { return false; }
};
template <class T> using Buffer = std::vector<T, LineAllocator<T>>;
// The same for what is written before it is read: nothing fills it with zeros.
template <class T> class Room {
 public:
  explicit Room(size_t n) : at_(n ? LineAllocator<T>().allocate(n) : nullptr) {}
  Room(const Room&) = delete;
  ~Room() {
    if (at_) LineAllocator<T>().deallocate(at_, 0);
  }
  T* data() { return at_; }
  T& operator[](size_t i) { return at_[i]; }
  void swap(Room& other) { std::swap(at_, other.at_); }

 private:
  T* at_;
};

template <class R> inline Vec<R> load(const R* p) {
  Vec<R> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class R> inline void store(R* p, Vec<R> v) { std::memcpy(p, &v, sizeof v); }
template <class R> inline Vec<R> splat(R x) { return Vec<R>{} + x; }
template <class To, class From> inline To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
#if defined(__AVX512F__)
// Four vectors to one: lane 4k + j of the result is the sum of lanes 4k … 4k + 3 of vector j.
inline __m512 sum_quads(const float* p) {
  const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16), c = _mm512_loadu_ps(p + 32),
               d = _mm512_loadu_ps(p + 48);
  const __m512d ab =
      _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  const __m512d cd =
      _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
// out[i] = the sum of the 16 lanes of row i, for 16 rows.
inline void sum_16_rows(const float* p, float* out) {
  const __m512 a = sum_quads(p), b = sum_quads(p + 64), c = sum_quads(p + 128),
               d = sum_quads(p + 192);
  const __m512 ab =
      _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  const __m512 cd =
      _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd));
  _mm512_storeu_ps(
      out, _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd)));
}
inline float sum_lanes(Vec<float> v) { return _mm512_reduce_add_ps((__m512)v); }
inline double sum_lanes(Vec<double> v) { return _mm512_reduce_add_pd((__m512d)v); }
#else
template <class V> inline auto sum_lanes(V v) -> decltype(v[0] + v[0]) {
  auto total = v[0];
  for (size_t i = 1; i < sizeof(V) / sizeof(total); ++i) total += v[i];
  return total;
}
#endif

// out[i] = the sum of the lanes of row i.
template <class R> inline void sum_rows(int64_t rows, const R* p, R* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(R) == 4)
    for (; i + 16 <= rows; i += 16) sum_16_rows(p + i * 16, out + i);
#endif
  for (; i < rows; ++i) out[i] = sum_lanes(load<R>(p + i * kLanes<R>));
}

// (2^r - 1) / r for |r| <= 1/2.
inline Vec<float> exp2_slope(Vec<float> r) {
  Vec<float> p = splat<float>(1.3264764565974474e-3f);
  p = p * r + 9.671513922512531e-3f;
  p = p * r + 5.550733581185341e-2f;
  p = p * r + 2.4022242426872253e-1f;
  return p * r + 6.931470036506653e-1f;
}
inline Vec<double> exp2_slope(Vec<double> r) {
  // Taylor: ln(2)^k / k!, the remainder is below 2e-16 on |r| <= 1/2.
  constexpr double c[] = {2.5678435993488196e-11, 4.4455382718708101e-10, 7.0549116208011209e-09,
                          1.0178086009239699e-07, 1.3215486790144305e-06, 1.5252733804059841e-05,
                          1.5403530393381606e-04, 1.3333558146428443e-03, 9.6181291076284769e-03,
                          5.5504108664821580e-02, 2.4022650695910069e-01, 6.9314718055994529e-01};
  Vec<double> p = splat<double>(c[0]);
  for (int i = 1; i < 12; ++i) p = p * r + c[i];
  return p;
}
// 2^r for |r| <= 1/2, as 1 + r q(r): exact at 0, so that slow decays keep their time constant.
inline Vec<float> exp2_poly(Vec<float> r) { return exp2_slope(r) * r + 1.0f; }
inline Vec<double> exp2_poly(Vec<double> r) { return exp2_slope(r) * r + 1.0; }

// 2^(d*a). The product is not rounded before its fraction is taken.
#if defined(__AVX512F__)
inline Vec<float> exp2_product(Vec<float> d, Vec<float> a) {
  __m512 x = (__m512)(d * a);
  __m512 r = _mm512_reduce_ps(x, 0x08);  // x minus the nearest integer
  return (Vec<float>)_mm512_scalef_ps((__m512)exp2_poly((Vec<float>)r), _mm512_sub_ps(x, r));
}
inline Vec<double> exp2_product(Vec<double> d, Vec<double> a) {
  __m512d x = (__m512d)(d * a);
  __m512d r = _mm512_reduce_pd(x, 0x08);
  return (Vec<double>)_mm512_scalef_pd((__m512d)exp2_poly((Vec<double>)r), _mm512_sub_pd(x, r));
}
#else
template <class V> struct ScalarOf;
template <> struct ScalarOf<Vec<float>> { typedef float R; };
template <> struct ScalarOf<Vec<double>> { typedef double R; };
template <class V> inline V exp2_product(V d, V a) {
  typedef typename ScalarOf<V>::R R;
  typedef Traits<R> T;
  V x = d * a;
  const V lo = splat<R>(R(T::bias_floor)), hi = splat<R>(R(T::bias_ceil));
  V y = x < lo ? lo : x;  // NaN compares false and passes through
  y = y > hi ? hi : y;
  V t = y + T::magic;
  V n = t - T::magic;
  V p = exp2_poly(y - n);
  IVec<R> e = bits<IVec<R>>(t) << T::mantissa;
  p = bits<V>(bits<IVec<R>>(p) + e);
  p = x < lo ? V{} : p;  // what lies below the normal range is zero
  // Above the range, infinity; and NaN, whose payload the shift above has mixed into p.
  return x <= hi ? p : x * std::numeric_limits<R>::max();
}
#endif

template <class R> inline Vec<R> vexp(Vec<R> x) {
  return exp2_product(x, splat<R>(R(1.4426950408889634)));
}
template <class R> inline Vec<R> sigmoid(Vec<R> x) { return R(1) / (R(1) + vexp<R>(-x)); }

// tanh |x| = (1 - e) / (1 + e) with e = exp(-2 |x|) = 2^n (1 + r q(r)): e - 1 is summed exactly, so
// that a tiny x is kept.
template <class R> inline Vec<R> tanh(Vec<R> x) {
  typedef Vec<R> V;
  constexpr R magic = Traits<R>::magic, floor = R(Traits<R>::bias_floor);
  V ax = x < V{} ? x : -x;
  V y = ax * R(2.8853900817779268);
  y = y < floor ? splat(floor) : y;  // NaN compares false and passes through
  V t = y + magic;
  V n = t - magic, r = y - n;
  V scale = bits<V>(bits<IVec<R>>(splat(R(1))) + (bits<IVec<R>>(t) << Traits<R>::mantissa));
  V less = scale * (r * exp2_slope(r)) + (scale - R(1));
  V positive = -less / (R(2) + less);
  return x < V{} ? -positive : positive;
}

// atanh(s) / s by t = s^2 <= 1/9: of least relative error (4.5e-9), or Taylor's series.
inline Vec<float> atanh_ratio(Vec<float> t) {
  Vec<float> p = splat<float>(0.14005975929897704f);
  p = p * t + 0.14000905912197842f;
  p = p * t + 0.20010763439200735f;
  p = p * t + 0.3333320814553548f;
  return p * t + 1.0f;
}
inline Vec<double> atanh_ratio(Vec<double> t) {
  constexpr int K = 17;
  Vec<double> p = splat<double>(1.0 / (2 * K + 1));
#pragma GCC unroll 17
  for (int k = K - 1; k >= 0; --k) p = p * t + 1.0 / (2 * k + 1);
  return p;
}

// log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)); log1p(y) = 2 atanh(y / (2 + y)) keeps tiny y
// exact. `slope`, if it is there, becomes sigmoid(x), by the same division.
template <class R>
__attribute__((always_inline)) inline Vec<R> softplus(Vec<R> x, Vec<R>* slope = nullptr) {
  typedef Vec<R> V;
  const V ax = x < V{} ? x : -x, y = vexp<R>(ax);
  V s;
  if (slope) {
    const V less = R(1) + y, more = R(2) + y, part = R(1) / (less * more);
    s = y * (less * part);
    *slope = (x < V{} ? y : splat(R(1))) * (more * part);
  } else {
    s = y / (R(2) + y);
  }
  const V positive = x < V{} ? V{} : x;
  return positive + R(2) * s * atanh_ratio(s * s);
}

// sine and cosine by quadrants of pi/2, with a three-part pi/2 (accurate for |x| up to about 1e4 in
// float).
template <class R> inline void sincos(Vec<R> x, Vec<R>& sine, Vec<R>& cosine) {
  typedef Vec<R> V;
  constexpr R magic = Traits<R>::magic;
  V t = x * R(0.63661977236758134) + magic;
  V n = t - magic;
  V r;
  if constexpr (sizeof(R) == 4)
    r = ((x - n * R(1.5703125)) - n * R(4.837512969970703e-4)) - n * R(7.549789948768648e-8);
  else
    r = ((x - n * R(1.5707963267341256)) - n * R(6.0771005063039e-11)) -
        n * R(2.0222662487959506e-21);
  V r2 = r * r;
  constexpr int K = sizeof(R) == 4 ? 5 : 9;
  V s = V{}, c = V{};
  for (int k = K; k >= 1; --k) {  // Horner on the Taylor series, coefficient ratios written out
    s = (s + R(1)) * r2 * (R(-1) / (R(2 * k) * R(2 * k + 1)));
    c = (c + R(1)) * r2 * (R(-1) / (R(2 * k - 1) * R(2 * k)));
  }
  s = r + r * s;
  c = c + R(1);
  IVec<R> q = bits<IVec<R>>(t);  // the low bits of the magic sum are the quadrant
  IVec<R> swap = (q & 1) != 0;
  V a = swap ? c : s, b = swap ? s : c;
  sine = ((q & 2) != 0) ? -a : a;
  cosine = (((q + 1) & 2) != 0) ? -b : b;
}

}  // namespace LONGSEQ_ISA
