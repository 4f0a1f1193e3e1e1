// Causal long convolution, forward and backward, through negacyclic transforms. Lanes are channels.
#pragma once
#include <algorithm>
#include <atomic>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "negacyclic.h"
#include "rows.h"

namespace LONGSEQ_ISA {

// Working memory of one thread, kept over all groups of a call and never cleared: a fresh page
// costs as much as transforming it. Large ones ask for large pages, because a transform strides
// through them.
template <class R> class FieldMemory {
 public:
  FieldMemory(int64_t fields, int64_t values)
      : values_(values), size_(size_t(fields * values) * sizeof(R)) {
    memory_ = static_cast<R*>(::operator new(size_, std::align_val_t(kAlign)));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (size_ >= kAlign) madvise(memory_, size_, MADV_HUGEPAGE);
#endif
  }
  ~FieldMemory() { ::operator delete(memory_, std::align_val_t(kAlign)); }
  FieldMemory(const FieldMemory&) = delete;
  R* operator[](int64_t i) const { return memory_ + i * values_; }

 private:
  static constexpr size_t kAlign = 1 << 21;
  int64_t values_;
  size_t size_;
  R* memory_;
};

// One group of channels: moves rows between tensors and buffers of one vector per value.
template <class R> class FieldMover {
 public:
  static constexpr int V = kLanes<R>;
  static constexpr int64_t kTile = 32;
  FieldMover(int64_t at, int64_t n, bool stream) : at(at), n(n), stream(stream) {}
  const int64_t at, n;
  const bool stream;

  // Rows t0 … of x become values [place, place + count) of `size`; zeros before and behind.
  void read(const Tensor3& x, int64_t b, int64_t t0, int64_t count, R* rows, int64_t place,
            int64_t size) const {
    std::fill(rows, rows + place * V, R(0));
    for (int64_t done = 0; done < count; done += kTile) {
      ask(x, b, t0 + done + kTile, std::min(kTile, count - done - kTile));
      read_rows<R>(x, b, t0 + done, std::min(kTile, count - done), at, n, V,
                   rows + (place + done) * V);
    }
    std::fill(rows + (place + count) * V, rows + size * V, R(0));
  }
  void write(const Tensor3& y, int64_t b, int64_t t0, int64_t count, const R* rows) const {
    write_rows<R>(y, b, t0, count, at, n, V, rows, stream);
  }
  // Kernels lie one channel after the other, or one tap after the other.
  void read_taps(const LongTaps& p, R* rows, int64_t size) const {
    const R *k = static_cast<const R*>(p.taps), *skip = static_cast<const R*>(p.skip);
    if (p.stride_d == 1 && n == V) {
      for (int64_t j = 0; j < p.count; ++j) store(rows + j * V, load(k + at + j * p.stride_t));
    } else {
      if (n < V) std::fill(rows, rows + p.count * V, R(0));
      for (int64_t j = 0; j < p.count; j += kTile) {
        const int64_t end = std::min(j + kTile, p.count);
        for (int64_t i = 0; i < n; ++i) {
          const R* from = k + (at + i) * p.stride_d;
          for (int64_t t = j; t < end; ++t) rows[t * V + i] = from[t * p.stride_t];
        }
      }
    }
    std::fill(rows + p.count * V, rows + size * V, R(0));
    if (skip)
      // a direct connection is one more weight at lag 0
      for (int64_t i = 0; i < n; ++i) rows[i] += skip[at + i];
  }
  void write_taps(const LongTaps& p, const R* rows) const {
    R* dk = static_cast<R*>(p.gradient);
    if (p.stride_d == 1 && n == V) {
      for (int64_t j = 0; j < p.count; ++j) store(dk + at + j * p.stride_t, load(rows + j * V));
      return;
    }
    for (int64_t j = 0; j < p.count; j += kTile) {
      const int64_t end = std::min(j + kTile, p.count);
      for (int64_t i = 0; i < n; ++i) {
        R* to = dk + (at + i) * p.stride_d;
        for (int64_t t = j; t < end; ++t) to[t * p.stride_t] = rows[t * V + i];
      }
    }
  }
  const char* address(const Tensor3& x, int64_t b, int64_t t) const {
    return x.ptr + (x.dtype == kFloat64   ? 8
                    : x.dtype == kFloat32 ? 4
                                          : 2) *
                       (b * x.stride_b + t * x.stride_l + at);
  }
  // Rows lie too far apart for the hardware to guess the next.
  void ask(const Tensor3& x, int64_t b, int64_t t0, int64_t count) const {
    const char* p = address(x, b, t0);
    const int64_t pitch = address(x, b, t0 + 1) - p;
    for (int64_t t = 0; t < count; ++t) __builtin_prefetch(p + t * pitch);
  }
};

// Products of parts of spectra: a ← a · b; and for the backward, dk (+)= g · conj x, x ← x · k, g ←
// g · conj k.
template <class R> inline void multiply(R* a, const R* b, int64_t N) {
  constexpr int V = kLanes<R>;
  for (int64_t i = 0; i < N; ++i, a += 2 * V, b += 2 * V) {
    const Vec<R> x = load(a), y = load(a + V), u = load(b), v = load(b + V);
    store(a, x * u - y * v);
    store(a + V, x * v + y * u);
  }
}
// dk may be k itself. Without `forward`, x is left as it was.
template <class R, bool forward>
inline void correlate(R* dk, R* g, R* x, const R* k, int64_t N, bool first) {
  constexpr int V = kLanes<R>;
  for (int64_t i = 0; i < N; ++i, dk += 2 * V, g += 2 * V, x += 2 * V, k += 2 * V) {
    const Vec<R> a = load(g), b = load(g + V), u = load(x), v = load(x + V), s = load(k),
                 t = load(k + V);
    const Vec<R> re = a * u + b * v, im = b * u - a * v;
    store(g, a * s + b * t);
    store(g + V, b * s - a * t);
    if constexpr (forward) {
      store(x, u * s - v * t);
      store(x + V, u * t + v * s);
    }
    store(dk, first ? re : load(dk) + re);
    store(dk + V, first ? im : load(dk + V) + im);
  }
}

// Runs run(transform, mover, memory) for every vector of channels, with working memory for so many
// points of two vectors.
template <class R, class F>
inline void channel_groups(int64_t D, int64_t N, int64_t fields, int threads, bool stream,
                           const F& run) {
  constexpr int V = kLanes<R>;
  const Negacyclic<R> transform(N);
  const int64_t groups = (D + V - 1) / V;
  const int64_t workers = std::min<int64_t>(std::max(1, threads), groups);
  std::atomic<int64_t> next{0};
  parallel(workers, threads, [&](int64_t) {
    const FieldMemory<R> memory(fields, N * 2 * V);
    for (int64_t g; (g = next.fetch_add(1)) < groups;)
      run(transform, FieldMover<R>(g * V, std::min<int64_t>(V, D - g * V), stream), memory);
    end_streaming();
  });
}

template <class R> void long_conv_forward_as(const LongConv& p) {
  constexpr int V = kLanes<R>;
  const R scale = R(1) / R(p.N);
  const int64_t begin = p.T - p.L, reach = std::min(p.kernel.count, p.T) - 1;
  const bool stream = worth_streaming<R>(p.B * p.T * p.D);
  const auto run = [&](const Negacyclic<R>& transform, const FieldMover<R>& mover,
                       const FieldMemory<R>& f) {
    R *k = f[0], *x = f[1], *rows = f[2];
    const bool small = p.kernel.count <= p.N;
    mover.read_taps(p.kernel, rows, small ? p.N : 2 * p.N);
    transform.enter(rows, small, k);
    bool first = true;
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t at = begin; at < p.T; at += p.hop) {
        // Inputs from `low` on; what wraps round falls on places before `at`, which are thrown
        // away.
        const int64_t low = std::max<int64_t>(0, at - reach), end = std::min(at + p.hop, p.T);
        const bool half = end - low <= p.N;
        mover.read(p.x, b, low, end - low, rows, 0, half ? p.N : 2 * p.N);
        transform.enter(rows, half, x);
        for (int64_t i = 0; i < transform.parts(); ++i) {
          if (first) transform.descend(k, i);
          transform.descend(x, i);
          multiply(transform.part(x, i), transform.part(k, i), transform.size());
          transform.ascend(x, i);
        }
        first = false;
        transform.leave(x, half, scale, rows);
        mover.write(p.y, b, at - begin, end - at, rows + (at - low) * V);
      }
  };
  channel_groups<R>(p.D, p.N, 3, p.threads, stream, run);
}

template <class R> void long_conv_backward_as(const LongConv& p) {
  const R scale = R(1) / R(p.N);
  const int64_t begin = p.T - p.L, reach = std::min(p.kernel.count, p.T) - 1;
  const bool stream = worth_streaming<R>(p.B * p.T * p.D), once = p.B == 1 && p.hop >= p.T;
  const auto run = [&](const Negacyclic<R>& transform, const FieldMover<R>& mover,
                       const FieldMemory<R>& f) {
    R *k = f[0], *x = f[1], *dy = f[2], *rows = f[3], *dk = once ? k : f[4];
    const bool small = p.kernel.count <= p.N;
    mover.read_taps(p.kernel, rows, small ? p.N : 2 * p.N);
    transform.enter(rows, small, k);
    bool first = true;
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t at = 0; at < p.T; at += p.hop) {
        // The inputs of this frame and every output that they reach; both are placed from `at` on.
        const int64_t end = std::min(at + p.hop, p.T), from = std::max(at, begin),
                      to = std::min(end + reach, p.T);
        const int64_t count = std::max<int64_t>(0, to - from), place = std::min(from - at, 2 * p.N);
        const bool few = end - at <= p.N, half = place + count <= p.N;
        mover.read(p.x, b, at, end - at, rows, 0, few ? p.N : 2 * p.N);
        transform.enter(rows, few, x);
        mover.read(p.dy, b, from - begin, count, rows, place, half ? p.N : 2 * p.N);
        transform.enter(rows, half, dy);
        for (int64_t i = 0; i < transform.parts(); ++i) {
          if (first) transform.descend(k, i);
          transform.descend(x, i);
          transform.descend(dy, i);
          correlate<R, false>(transform.part(dk, i), transform.part(dy, i), transform.part(x, i),
                              transform.part(k, i), transform.size(), first);
          transform.ascend(dy, i);
        }
        first = false;
        transform.leave(dy, few, scale, rows);
        mover.write(p.dx, b, at, end - at, rows);
      }
    for (int64_t i = 0; i < transform.parts(); ++i) transform.ascend(dk, i);
    transform.leave(dk, small, scale, rows);
    mover.write_taps(p.kernel, rows);
  };
  channel_groups<R>(p.D, p.N, once ? 4 : 5, p.threads, stream, run);
}

}  // namespace LONGSEQ_ISA
