// What the files of Python's view share: how arguments reach the kernels' records.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using namespace longseq;

extern const Kernels* current;  // the instruction set in use

void bind_recurrences(nb::module_& m);
void bind_convolutions(nb::module_& m);
void bind_blocks(nb::module_& m);

// (pointer, dtype, batch stride, time stride), strides in elements; a null pointer stands for an
// absent tensor.
typedef std::array<int64_t, 4> Arg;

inline Tensor3 tensor(const Arg& a) {
  Tensor3 t;
  t.ptr = reinterpret_cast<char*>(a[0]);
  t.dtype = a[1];
  t.stride_b = a[2];
  t.stride_l = a[3];
  return t;
}
// The same with the stride of channels at the end.
typedef std::array<int64_t, 5> Wide;

inline Strided strided(const Wide& a) {
  Strided t;
  static_cast<Tensor3&>(t) = tensor({a[0], a[1], a[2], a[3]});
  t.stride_c = a[4];
  return t;
}
inline Strided strided(const Arg& a) { return strided(Wide{a[0], a[1], a[2], a[3], 1}); }
template <class T = void> T* pointer(int64_t address) { return reinterpret_cast<T*>(address); }
