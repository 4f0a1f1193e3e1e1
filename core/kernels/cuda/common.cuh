// Types, exponentials and warp exchange shared by the CUDA kernels. Needs no header: NVRTC compiles
// it as it is. With LONGSEQ_EMULATE it is C++ for the tests' emulator, which defines threadIdx,
// shuffles and barriers.
#pragma once

typedef long long i64;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

#ifdef LONGSEQ_EMULATE
#define DEVICE inline
#define METHOD inline
#define SHARED(Type, name) Type& name = emulator::shared<Type>()
#define SHARED_BYTES(name) float* name = emulator::dynamic_shared()
#define KERNEL(name, Params, threads, blocks)                                                \
  static void name(const Params& p);                                                         \
  extern "C" void emulate_##name(const void* params, const unsigned* grid, unsigned block,   \
                                 unsigned bytes, unsigned order) {                           \
    emulator::launch([&] { name(*static_cast<const Params*>(params)); }, grid, block, bytes, \
                     order);                                                                 \
  }                                                                                          \
  static void name(const Params& p)
#else
#define DEVICE __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define SHARED(Type, name)                                                  \
  static_assert(sizeof(Type) <= 48 * 1024, "a block's static shared memory"); \
  __shared__ Type name
#define SHARED_BYTES(name) extern __shared__ __align__(16) float name[]
#define KERNEL(name, Params, threads, blocks)                   \
  extern "C" __global__ void __launch_bounds__(threads, blocks) \
      name(const __grid_constant__ Params p)
#endif

constexpr float kLog2e = 1.4426950408889634f;

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};
struct alignas(8) c32 {
  float x, y;
};

#ifdef LONGSEQ_EMULATE
DEVICE float ex2(float x) { return exp2f(x); }
DEVICE float widen(f16 v) {
  _Float16 h;
  memcpy(&h, &v, 2);
  return float(h);
}
DEVICE f16 narrow_f16(float v) {
  const _Float16 h = _Float16(v);
  f16 r;
  memcpy(&r, &h, 2);
  return r;
}
#else
DEVICE float ex2(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEVICE float widen(f16 v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
  return r;
}
DEVICE f16 narrow_f16(float v) {
  f16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}
#endif

DEVICE float widen(float v) { return v; }
DEVICE c32 widen(c32 v) { return v; }
DEVICE float widen(bf16 v) { return __uint_as_float(u32(v.bits) << 16); }

DEVICE void narrow(float v, float* to) { *to = v; }
DEVICE void narrow(c32 v, c32* to) { *to = v; }
DEVICE void narrow(float v, f16* to) { *to = narrow_f16(v); }
DEVICE void narrow(float v, bf16* to) {  // to the nearest, ties to even
  const u32 bits = __float_as_uint(v);
  to->bits = v != v ? u16(0x7fff) : u16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T> DEVICE T* at(i64 address) { return reinterpret_cast<T*>(address); }

DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + ex2(-kLog2e * x)); }

// max(x, 0) + log(1 + e) for e = exp(-|x|), the logarithm as 2 atanh(e / (2 + e)): no branch, good
// for tiny e.
DEVICE float softplus(float x) {
  const float e = ex2(-kLog2e * fabsf(x)), s = __fdividef(e, 2.0f + e), q = s * s;
  float r = fmaf(q, 1.0f / 15, 1.0f / 13);
  r = fmaf(q, r, 1.0f / 11);
  r = fmaf(q, r, 1.0f / 9);
  r = fmaf(q, r, 1.0f / 7);
  r = fmaf(q, r, 1.0f / 5);
  r = fmaf(q, r, 1.0f / 3);
  return fmaxf(x, 0.0f) + 2.0f * fmaf(s * q, r, s);
}

// Sine and cosine of moderate arguments, without the local memory that sincosf takes for huge ones.
DEVICE void sine_cosine(float x, float& sine, float& cosine) {
  const float k = rintf(x * 0.63661977236758134f);
  float r = fmaf(k, -1.5707963705062866f, x);
  r = fmaf(k, 4.3711388286737929e-8f, r);
  const float q = r * r;
  const float s =
      fmaf(r * q, fmaf(q, fmaf(q, -1.9515295891e-4f, 8.3321608736e-3f), -1.6666654611e-1f), r);
  const float c = fmaf(
      q * q, fmaf(q, fmaf(q, 2.443315711809948e-5f, -1.388731625493765e-3f), 4.166664568298827e-2f),
      fmaf(q, -0.5f, 1.0f));
  const int quadrant = int(k) & 3;
  sine = quadrant & 1 ? c : s;
  cosine = quadrant & 1 ? s : c;
  if (quadrant & 2) sine = -sine;
  if (quadrant == 1 || quadrant == 2) cosine = -cosine;
}

// One algebra for real and complex states. Gradients follow torch: dL/dRe + i dL/dIm.
template <class S> DEVICE S zero();
template <> DEVICE float zero<float>() { return 0.0f; }
template <> DEVICE c32 zero<c32>() { return c32{0.0f, 0.0f}; }
template <class S> DEVICE S one();
template <> DEVICE float one<float>() { return 1.0f; }
template <> DEVICE c32 one<c32>() { return c32{1.0f, 0.0f}; }

DEVICE float mul(float a, float b) { return a * b; }
DEVICE c32 mul(c32 a, c32 b) { return c32{a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
DEVICE float mad(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE c32 mad(c32 a, c32 b, c32 c) {
  return c32{fmaf(a.x, b.x, fmaf(-a.y, b.y, c.x)), fmaf(a.x, b.y, fmaf(a.y, b.x, c.y))};
}
DEVICE c32 mad(float a, c32 b, c32 c) { return c32{fmaf(a, b.x, c.x), fmaf(a, b.y, c.y)}; }
DEVICE float conjugate(float a) { return a; }
DEVICE c32 conjugate(c32 a) { return c32{a.x, -a.y}; }
DEVICE float scale(float s, float v) { return s * v; }
DEVICE c32 scale(float s, c32 v) { return c32{s * v.x, s * v.y}; }
DEVICE float add(float a, float b) { return a + b; }
DEVICE c32 add(c32 a, c32 b) { return c32{a.x + b.x, a.y + b.y}; }
DEVICE float real_dot(float a, float b, float acc) {
  return fmaf(a, b, acc);
}  // Re(conj(a) b) + acc
DEVICE float real_dot(c32 a, c32 b, float acc) { return fmaf(a.x, b.x, fmaf(a.y, b.y, acc)); }

template <class S> DEVICE S shuffle_up(S v, int by);
template <> DEVICE float shuffle_up<float>(float v, int by) {
  return __shfl_up_sync(0xffffffffu, v, by);
}
template <> DEVICE c32 shuffle_up<c32>(c32 v, int by) {
  return c32{__shfl_up_sync(0xffffffffu, v.x, by), __shfl_up_sync(0xffffffffu, v.y, by)};
}
template <class S> DEVICE S shuffle_down(S v, int by);
template <> DEVICE float shuffle_down<float>(float v, int by) {
  return __shfl_down_sync(0xffffffffu, v, by);
}
template <> DEVICE c32 shuffle_down<c32>(c32 v, int by) {
  return c32{__shfl_down_sync(0xffffffffu, v.x, by), __shfl_down_sync(0xffffffffu, v.y, by)};
}
template <class S> DEVICE S shuffle_xor(S v, int by);
template <> DEVICE float shuffle_xor<float>(float v, int by) {
  return __shfl_xor_sync(0xffffffffu, v, by);
}
template <> DEVICE c32 shuffle_xor<c32>(c32 v, int by) {
  return c32{__shfl_xor_sync(0xffffffffu, v.x, by), __shfl_xor_sync(0xffffffffu, v.y, by)};
}
