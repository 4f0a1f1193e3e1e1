// The way of a selective scan through memory: forwards, backwards, or down the columns of a grid.
#pragma once
#include <algorithm>

#include "across.h"

namespace LONGSEQ_ISA {

// Calls run(row, step, rows, offset) for every run of evenly spaced rows of memory that the steps
// t0 … t0 + T visit: step t0 + offset + i is at row + i * step.
template <class F>
inline void each_run(const SelectiveScan& p, int64_t t0, int64_t T, const F& run) {
  if (!p.height) return p.reverse ? run(p.L - 1 - t0, -1, T, 0) : run(t0, 1, T, 0);
  const int64_t H = p.height, width = p.L / H;
  for (int64_t done = 0; done < T;) {
    const int64_t at = p.reverse ? p.L - 1 - t0 - done : t0 + done, h = at % H;
    const int64_t n = std::min(T - done, p.reverse ? h + 1 : H - h);
    run(h * width + at / H, p.reverse ? -width : width, n, done);
    done += n;
  }
}
// A tensor whose rows are every `step`th of x from `row` on.
inline Strided rows_from(Strided x, int64_t row, int64_t step) {
  x.ptr += (x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2) * row * x.stride_l;
  x.stride_l *= step;
  return x;
}
// The rows of steps t0 … t0 + T, in the order of the steps.
template <class R>
inline void read_steps(const SelectiveScan& p, const Strided& x, int64_t b, int64_t t0, int64_t T,
                       int64_t at, int64_t n, int64_t pitch, R* out) {
  each_run(p, t0, T, [&](int64_t row, int64_t step, int64_t rows, int64_t offset) {
    read_tile<R>(rows_from(x, row, step), b, 0, rows, at, n, pitch, out + offset * pitch);
  });
}
template <class R>
inline void write_steps(const SelectiveScan& p, const Strided& x, int64_t b, int64_t t0, int64_t T,
                        int64_t at, int64_t n, int64_t pitch, const R* in, bool stream) {
  each_run(p, t0, T, [&](int64_t row, int64_t step, int64_t rows, int64_t offset) {
    write_tile<R>(rows_from(x, row, step), b, 0, rows, at, n, pitch, in + offset * pitch, stream);
  });
}

}  // namespace LONGSEQ_ISA
