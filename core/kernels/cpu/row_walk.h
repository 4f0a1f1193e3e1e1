// Rows of a (B, L, D) tensor walked in order, straight from memory or through the compute type, for
// kernels that do little arithmetic: row by row, over as many channels as a thread has, is how the
// memory system reads ahead by itself.
#pragma once
#include <algorithm>

#include "rows.h"

namespace LONGSEQ_ISA {

// rows of a step of the walk: so many streams the processor follows
constexpr int64_t kWalkRows = 8;

template <class R> constexpr bool holds(const Tensor3& x) {
  return x.dtype == (sizeof(R) == 8 ? kFloat64 : kFloat32);
}
template <class R> inline R* row_at(const Tensor3& x, int64_t b, int64_t t, int64_t at) {
  return reinterpret_cast<R*>(x.ptr) + b * x.stride_b + t * x.stride_l + at;
}

// The channels of every row that one unit of work has: contiguous, a multiple of a vector but for
// the last.
struct Span {
  int64_t b, at, n;
};
template <class R, class F>
inline void each_span(int64_t B, int64_t D, int64_t multiple, int threads, const F& run) {
  const int64_t tiles = (D + multiple - 1) / multiple;
  const int64_t per =
      std::min<int64_t>(64, std::max<int64_t>(1, (B * tiles + threads - 1) / threads));
  const int64_t spans = (tiles + per - 1) / per;
  parallel(B * spans, threads, [&](int64_t index) {
    const int64_t at = index % spans * per * multiple;
    run(Span{index / spans, at, std::min(per * multiple, D - at)});
  });
}

// Rows that are read, `before` of them before the first one of a step.
template <class R> class RowsIn {
 public:
  RowsIn(const Tensor3& x, const Span& s, int64_t before = 0)
      : x_(x),
        s_(s),
        before_(before),
        direct_(holds<R>(x)),
        kept_(direct_ ? 0 : (before + kWalkRows) * s.n) {}
  // Makes rows t0 - before … t0 + T readable; steps follow one another upwards, or have nothing
  // before.
  void step(int64_t t0, int64_t T) {
    t0_ = t0;
    if (direct_) return;
    if (before_ && t0)
      std::memmove(kept_.data(), &kept_[kWalkRows * s_.n], before_ * s_.n * sizeof(R));
    for (int64_t t = 0; t < T; ++t)
      read_rows<R>(x_, s_.b, t0 + t, 1, s_.at, s_.n, s_.n, &kept_[(before_ + t) * s_.n]);
  }
  const R* row(int64_t t) const {
    return direct_ ? row_at<R>(x_, s_.b, t, s_.at) : &kept_[(before_ + t - t0_) * s_.n];
  }

 private:
  const Tensor3& x_;
  Span s_;
  int64_t before_, t0_ = 0;
  bool direct_;
  Buffer<R> kept_;
};

// A row that is written: in place, or converted when it is done.
template <class R> class RowsOut {
 public:
  RowsOut(const Tensor3& x, const Span& s)
      : x_(x), s_(s), direct_(holds<R>(x)), kept_(direct_ ? 0 : kWalkRows * s.n) {}
  R* row(int64_t t, int64_t slot) {
    return direct_ ? row_at<R>(x_, s_.b, t, s_.at) : &kept_[slot * s_.n];
  }
  void done(int64_t t, int64_t T) {
    if (direct_) return;
    for (int64_t i = 0; i < T; ++i)
      write_rows<R>(x_, s_.b, t + i, 1, s_.at, s_.n, s_.n, &kept_[i * s_.n]);
  }

 private:
  const Tensor3& x_;
  Span s_;
  bool direct_;
  Buffer<R> kept_;
};

// A vector of a row, past the caches if that is asked for and possible.
template <class R> inline void put(R* to, Vec<R> v, int lanes, bool stream) {
#if defined(__AVX512F__)
  if (stream && lanes == kLanes<R> && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits<__m512i>(v));
    return;
  }
#endif
  store_lanes(to, v, lanes);
}

}  // namespace LONGSEQ_ISA
