// How kernels are given tensors: dtypes, pointers, strides.
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
// The same with a distance between channels: 1 where they are dense, L or more where time is.
struct Strided : Tensor3 {
  int64_t stride_c = 1;
};

// The number of time steps between saved states, and the padding of the channels of a group in
// them.
constexpr int64_t kChunk = 32;
constexpr int64_t kPad = 16;

}  // namespace longseq
