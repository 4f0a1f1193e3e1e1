// What a kernel takes: plain pointers, sizes and strides; and the table of kernels of one instruction set.
#pragma once
#include <cstdint>

namespace longseq {

enum Dtype : int64_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

// A (B, L, D) tensor whose last dimension is dense. `ptr` is null where the argument is absent.
struct Tensor3 {
  char* ptr = nullptr;
  int64_t dtype = kFloat32, stride_b = 0, stride_l = 0;
  explicit operator bool() const { return ptr != nullptr; }
};

// The number of time steps between saved states, and the padding of the channels of a group in them.
constexpr int64_t kChunk = 32;
constexpr int64_t kPad = 16;

struct SelectiveScan {
  int64_t B, L, D, N, G;
  bool softplus, complex;
  int64_t compute;  // dtype of A, D, delta_bias, the states and the gradients of B and C
  int threads;
  Tensor3 u, delta, z, Bm, Cm;              // (B, L, D) and (B, L, G, N)
  const void *A, *skip, *delta_bias;        // (D, N), (D,), (D,)
  const void* initial;                      // (B, D, N) or null
  const uint8_t* resets;                    // (B, L) or null
  Tensor3 y;
  void *final_state, *states;               // (B, D, N); (B, chunks, N, G * padded D / G) or null
  // backward
  Tensor3 dy, du, ddelta, dz;
  const void* dfinal;                       // (B, D, N) or null
  void *dB, *dC;                            // (B, L, G, N)
  void *dA, *dskip, *dbias, *dinitial;      // (B, D, N), (B, D), (B, D), (B, D, N)
};

struct LinearScan {
  int64_t B, L, D;
  bool complex;
  int64_t compute;
  int threads;
  Tensor3 a, b, h;                          // D counts complex numbers
  const void* initial;                      // (B, D) or null
  // backward: h is an input
  Tensor3 dh, da, db;
  void* dinitial;
};

struct CausalConv {
  int64_t B, L, D, W;
  bool silu;
  int64_t compute;
  int threads;
  Tensor3 x, initial, y;                    // initial (B, W-1, D) or null
  const void *weight, *bias;                // (D, W), (D,)
  const uint8_t* resets;
  // backward
  Tensor3 dy, dx, dinitial;
  void *dweight, *dbias;                    // (B, D, W), (B, D)
};

struct Kernels {
  const char* name;
  void (*selective_scan_forward)(const SelectiveScan&);
  void (*selective_scan_backward)(const SelectiveScan&);
  void (*linear_scan_forward)(const LinearScan&);
  void (*linear_scan_backward)(const LinearScan&);
  void (*causal_conv_forward)(const CausalConv&);
  void (*causal_conv_backward)(const CausalConv&);
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;

// Runs work(i) for i in [0, n) on up to `threads` threads of the OpenMP runtime that torch has loaded.
void parallel_for(int64_t n, int threads, void (*work)(void*, int64_t), void* context);
const char* thread_runtime();

template <class F> inline void parallel(int64_t n, int threads, const F& f) {
  parallel_for(n, threads, [](void* c, int64_t i) { (*static_cast<const F*>(c))(i); }, const_cast<F*>(&f));
}

}  // namespace longseq
