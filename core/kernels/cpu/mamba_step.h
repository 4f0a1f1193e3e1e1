// One position of a whole Mamba layer, for decoding: five maps, the convolution and the state
// update in one call. What bounds it is reading the weights, so every thread walks straight through
// its rows of them.
#pragma once
#include "step.h"

namespace LONGSEQ_ISA {

// rows of a map that are one unit of work, a multiple of kTogether
constexpr int64_t kStepUnit = 64;

// out[b][i] = Σ_k matrix[i][k] x[b][k] for `rows` ≤ kTogether rows of width K and NB vectors x.
template <class R, int NB>
inline void map_rows(const R* matrix, int64_t rows, int64_t K, const R* x, int64_t x_stride, R* out,
                     int64_t out_stride) {
  constexpr int W = kLanes<R>, kAhead = 1024 / int(sizeof(R));
  constexpr int NU = NB == 1 ? 4 : 2;  // independent sums, against the latency of a multiply-add
  alignas(64) R lanes[NB][kTogether * W], sums[kTogether];
  const int64_t wide = K / (NU * W) * (NU * W);
  for (int64_t i = 0; i < rows; ++i) {
    const R* row = matrix + i * K;
    Vec<R> sum[NB][NU] = {};
    for (int64_t k = 0; k < wide; k += NU * W) {
#pragma GCC unroll 4
      for (int j = 0; j < NU; ++j) {
        __builtin_prefetch(row + k + j * W + kAhead, 0, 3);
        const Vec<R> w = load(row + k + j * W);
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) sum[b][j] += w * load(x + b * x_stride + k + j * W);
      }
    }
    for (int64_t k = wide; k < K; k += W) {
      const int some = int(std::min<int64_t>(W, K - k));
      const Vec<R> w = load_lanes(row + k, some);
      for (int b = 0; b < NB; ++b) sum[b][0] += w * load_lanes(x + b * x_stride + k, some);
    }
    for (int b = 0; b < NB; ++b) {
      for (int j = 1; j < NU; ++j) sum[b][0] += sum[b][j];
      store(lanes[b] + i * W, sum[b][0]);
    }
  }
  for (int b = 0; b < NB; ++b) {
    sum_rows<R>(rows, lanes[b], sums);
    std::memcpy(out + b * out_stride, sums, rows * sizeof(R));
  }
}

// Rows from … from + count of a map for all vectors of a batch, with its bias.
template <class R>
inline void map_unit(const void* matrix, const void* bias, int64_t from, int64_t count, int64_t K,
                     int64_t batch, const R* x, int64_t x_stride, R* out, int64_t out_stride) {
  for (int64_t i = from; i < from + count; i += kTogether) {
    const int64_t rows = std::min(kTogether, from + count - i);
    const R* m = static_cast<const R*>(matrix) + i * K;
    int64_t b = 0;
    for (; b + 4 <= batch; b += 4)
      map_rows<R, 4>(m, rows, K, x + b * x_stride, x_stride, out + b * out_stride + i, out_stride);
    for (; b < batch; ++b)
      map_rows<R, 1>(m, rows, K, x + b * x_stride, x_stride, out + b * out_stride + i, out_stride);
    if (bias)
      for (b = 0; b < batch; ++b)
        for (int64_t j = 0; j < rows; ++j)
          out[b * out_stride + i + j] += static_cast<const R*>(bias)[i + j];
  }
}

// The taps of some channels on what they have seen and the new value, which they then have seen
// too.
template <class R>
inline void convolve(const MambaStep& p, int64_t b, int64_t from, int64_t count, R* u) {
  constexpr int W = kLanes<R>;
  const R *seen = static_cast<const R*>(p.conv) + b * (p.W - 1) * p.D,
          *taps = static_cast<const R*>(p.taps);
  R* next = static_cast<R*>(p.next_conv) + b * (p.W - 1) * p.D;
  for (int64_t i = from; i < from + count; i += W) {
    const int64_t n = std::min<int64_t>(W, from + count - i);
    R sum[W] = {};
    for (int64_t j = 0; j < n; ++j) {
      const R* w = taps + (i + j) * p.W;
      R s =
          w[p.W - 1] * u[i + j] + (p.conv_bias ? static_cast<const R*>(p.conv_bias)[i + j] : R(0));
      for (int64_t k = 0; k + 1 < p.W; ++k) s += w[k] * seen[k * p.D + i + j];
      sum[j] = s;
    }
    for (int64_t k = 0; k + 2 < p.W; ++k)
      std::memcpy(next + k * p.D + i, seen + (k + 1) * p.D + i, n * sizeof(R));
    if (p.W > 1) std::memcpy(next + (p.W - 2) * p.D + i, u + i, n * sizeof(R));
    const Vec<R> y = load(sum);
    store_lanes(u + i, y * sigmoid<R>(y), int(n));
  }
}

template <class R> void mamba_step_as(const MambaStep& p) {
  const int64_t rows = 2 * p.D, low = p.rank + 2 * p.N;
  Buffer<R> mapped(p.B * rows), small(p.B * low), dt(p.B * p.D), y(p.B * p.D);
  const auto units = [](int64_t n) { return (n + kStepUnit - 1) / kStepUnit; };
  const R* x = reinterpret_cast<const R*>(p.x);
  R* const out = reinterpret_cast<R*>(p.y);
  const int64_t per_half = units(p.D);
  parallel(2 * per_half, p.threads, [&](int64_t index) {  // a unit has either u or z
    const int64_t half = index / per_half, at = index % per_half * kStepUnit,
                  count = std::min(kStepUnit, p.D - at);
    map_unit<R>(p.in_proj, p.in_bias, half * p.D + at, count, p.model, p.B, x, p.model,
                mapped.data(), rows);
    if (half == 0)
      for (int64_t b = 0; b < p.B; ++b) convolve<R>(p, b, at, count, &mapped[b * rows]);
  });
  parallel((low + kTogether - 1) / kTogether, p.threads, [&](int64_t index) {
    const int64_t at = index * kTogether;
    map_unit<R>(p.x_proj, nullptr, at, std::min(kTogether, low - at), p.D, p.B, mapped.data(), rows,
                small.data(), low);
  });
  StateUpdate s{};
  const auto rows_of = [&](R* from, int64_t stride) {
    Tensor3 t;
    t.ptr = reinterpret_cast<char*>(from), t.dtype = sizeof(R) == 8 ? kFloat64 : kFloat32,
    t.stride_b = stride;
    return t;
  };
  s.B = p.B, s.D = p.D, s.N = p.N, s.G = 1, s.width = 1, s.softplus = true, s.log_decay = true;
  s.low = -std::numeric_limits<double>::infinity(), s.high = -s.low;
  s.x = rows_of(mapped.data(), rows), s.z = rows_of(mapped.data() + p.D, rows),
  s.dt = rows_of(dt.data(), p.D);
  s.Bm = rows_of(small.data() + p.rank, low), s.Cm = rows_of(small.data() + p.rank + p.N, low);
  s.y = rows_of(y.data(), p.D), s.A = p.A_log, s.skip = p.skip, s.bias = p.dt_bias,
  s.state = p.state, s.next = p.next;
  parallel(per_half, p.threads, [&](int64_t index) {
    const int64_t at = index * kStepUnit, count = std::min(kStepUnit, p.D - at);
    map_unit<R>(p.dt_proj, nullptr, at, count, p.rank, p.B, small.data(), low, dt.data(), p.D);
    for (int64_t b = 0; b < p.B; ++b) ChannelUpdate<R>(s, b, at, count).run();
  });
  parallel((p.model + kTogether - 1) / kTogether, p.threads, [&](int64_t index) {
    const int64_t at = index * kTogether;
    map_unit<R>(p.out_proj, p.out_bias, at, std::min(kTogether, p.model - at), p.D, p.B, y.data(),
                p.D, out, p.model);
  });
}

}  // namespace LONGSEQ_ISA
