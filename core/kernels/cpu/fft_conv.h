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

// Working memory of one thread, kept over all groups of a call and never cleared: a fresh page costs as much as
// transforming it. Large ones ask for large pages, because a transform strides through them.
template <class R> class FieldMemory {
 public:
  FieldMemory(int64_t fields, int64_t values) : values_(values), size_(size_t(fields * values) * sizeof(R)) {
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

// One group of channels: moves rows between tensors and fields, in which value i < N of a sequence of 2N is the real
// part of point i and value N + i its imaginary part.
template <class R> class FieldMover {
 public:
  static constexpr int V = kLanes<R>;
  static constexpr int64_t kTile = 32;
  FieldMover(int64_t N, int64_t at, int64_t n, bool stream) : N_(N), at_(at), n_(n), stream_(stream) {}

  // Values [0, rows) from rows t0 … of x; zeros behind.
  void read(const Tensor3& x, int64_t b, int64_t t0, int64_t rows, R* field, int64_t place = 0) const {
    clear(0, place, field);
    for (int64_t done = 0; done < rows; done += kTile) {
      const int64_t count = std::min(kTile, rows - done);
      R tile[kTile * V];
      ask(x, b, t0 + done + kTile, std::min(kTile, rows - done - kTile));
      read_rows<R>(x, b, t0 + done, count, at_, n_, V, tile);
      for (int64_t t = 0; t < count; ++t) store(value(field, place + done + t), load(tile + t * V));
    }
    clear(place + rows, 2 * N_, field);
  }
  // Values [from, from + rows), scaled, to rows t0 … of y.
  void write(const Tensor3& y, int64_t b, int64_t t0, int64_t rows, const R* field, int64_t from, R scale) const {
    for (int64_t done = 0; done < rows; done += kTile) {
      const int64_t count = std::min(kTile, rows - done);
      R tile[kTile * V];
      for (int64_t t = 0; t < count; ++t) store(tile + t * V, load(value(field, from + done + t)) * scale);
      write_rows<R>(y, b, t0 + done, count, at_, n_, V, tile, stream_);
    }
  }
  // Kernels lie one channel after the other, or one tap after the other.
  void read_taps(const LongConv& p, R* field) const {
    const R *k = static_cast<const R*>(p.kernel), *skip = static_cast<const R*>(p.skip);
    if (p.kernel_d == 1 && n_ == V) {
      for (int64_t j = 0; j < p.taps; ++j) store(value(field, j), load(k + at_ + j * p.kernel_t));
    } else {
      for (int64_t j = 0; j < p.taps; j += kTile) {
        const int64_t count = std::min(kTile, p.taps - j);
        R tile[kTile * V] = {};
        for (int64_t i = 0; i < n_; ++i) {
          const R* from = k + (at_ + i) * p.kernel_d + j * p.kernel_t;
          for (int64_t t = 0; t < count; ++t) tile[t * V + i] = from[t * p.kernel_t];
        }
        for (int64_t t = 0; t < count; ++t) store(value(field, j + t), load(tile + t * V));
      }
    }
    clear(p.taps, 2 * N_, field);
    if (skip)
      for (int64_t i = 0; i < n_; ++i) field[i] += skip[at_ + i];  // a direct connection is one more weight at lag 0
  }
  void write_taps(const LongConv& p, const R* field, R scale) const {
    R* dk = static_cast<R*>(p.dkernel);
    if (p.kernel_d == 1 && n_ == V) {
      for (int64_t j = 0; j < p.taps; ++j) store(dk + at_ + j * p.kernel_t, load(value(field, j)) * scale);
      return;
    }
    for (int64_t j = 0; j < p.taps; j += kTile) {
      const int64_t count = std::min(kTile, p.taps - j);
      R tile[kTile * V];
      for (int64_t t = 0; t < count; ++t) store(tile + t * V, load(value(field, j + t)) * scale);
      for (int64_t i = 0; i < n_; ++i) {
        R* to = dk + (at_ + i) * p.kernel_d + j * p.kernel_t;
        for (int64_t t = 0; t < count; ++t) to[t * p.kernel_t] = tile[t * V + i];
      }
    }
  }

 private:
  const int64_t N_, at_, n_;
  const bool stream_;

  // Rows lie too far apart for the hardware to guess the next.
  void ask(const Tensor3& x, int64_t b, int64_t t0, int64_t rows) const {
    const int64_t size = x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2;
    const char* p = x.ptr + size * (b * x.stride_b + t0 * x.stride_l + at_);
    for (int64_t t = 0; t < rows; ++t) __builtin_prefetch(p + t * size * x.stride_l);
  }
  R* value(R* field, int64_t t) const { return field + (t < N_ ? 2 * t * V : (2 * (t - N_) + 1) * V); }
  const R* value(const R* field, int64_t t) const { return value(const_cast<R*>(field), t); }
  void clear(int64_t from, int64_t to, R* field) const {
    for (int64_t t = from; t < to; ++t) store(value(field, t), Vec<R>{});
  }
};

// a ← a · b, a ← a · conj b, or sum += a · conj b and a ← a · conj c: products of fields.
template <class R, bool conj> inline void multiply(R* a, const R* b, int64_t N) {
  constexpr int V = kLanes<R>;
  for (int64_t i = 0; i < N; ++i, a += 2 * V, b += 2 * V) {
    const Vec<R> x = load(a), y = load(a + V), u = load(b), v = conj ? -load(b + V) : load(b + V);
    store(a, x * u - y * v);
    store(a + V, x * v + y * u);
  }
}
template <class R> inline void correlate(R* sum, R* a, const R* b, const R* c, int64_t N, bool first) {
  constexpr int V = kLanes<R>;
  for (int64_t i = 0; i < N; ++i, sum += 2 * V, a += 2 * V, b += 2 * V, c += 2 * V) {
    const Vec<R> x = load(a), y = load(a + V), u = load(b), v = load(b + V), s = load(c), t = load(c + V);
    const Vec<R> re = x * u + y * v, im = y * u - x * v;
    store(sum, first ? re : load(sum) + re);
    store(sum + V, first ? im : load(sum + V) + im);
    store(a, x * s + y * t);
    store(a + V, y * s - x * t);
  }
}

template <class R, class F> inline void long_conv_groups(const LongConv& p, int64_t fields, const F& run) {
  constexpr int V = kLanes<R>;
  const Negacyclic<R> transform(p.N);
  const int64_t groups = (p.D + V - 1) / V;
  const int64_t workers = std::min<int64_t>(std::max(1, p.threads), groups);
  std::atomic<int64_t> next{0};
  const bool stream = worth_streaming<R>(p.B * p.T * p.D);
  parallel(workers, p.threads, [&](int64_t) {
    const FieldMemory<R> memory(fields, p.N * 2 * V);
    for (int64_t g; (g = next.fetch_add(1)) < groups;) {
      const FieldMover<R> mover(p.N, g * V, std::min<int64_t>(V, p.D - g * V), stream);
      run(transform, mover, memory);
    }
    end_streaming();
  });
}

template <class R> void long_conv_forward_as(const LongConv& p) {
  const R scale = R(1) / R(p.N);
  const int64_t begin = p.T - p.L, reach = std::min(p.taps, p.T) - 1;
  long_conv_groups<R>(p, 2, [&](const Negacyclic<R>& transform, const FieldMover<R>& mover, const FieldMemory<R>& f) {
    R *k = f[0], *x = f[1];
    mover.read_taps(p, k);
    transform.forward(k);
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t at = begin; at < p.T; at += p.hop) {
        // Inputs from `low` on; what wraps round falls on places before `at`, which are thrown away.
        const int64_t low = std::max<int64_t>(0, at - reach), end = std::min(at + p.hop, p.T);
        mover.read(p.x, b, low, end - low, x);
        transform.forward(x);
        multiply<R, false>(x, k, p.N);
        transform.inverse(x);
        mover.write(p.y, b, at - begin, end - at, x, at - low, scale);
      }
  });
}

template <class R> void long_conv_backward_as(const LongConv& p) {
  const R scale = R(1) / R(p.N);
  const int64_t begin = p.T - p.L, reach = std::min(p.taps, p.T) - 1;
  long_conv_groups<R>(p, 4, [&](const Negacyclic<R>& transform, const FieldMover<R>& mover, const FieldMemory<R>& f) {
    R *k = f[0], *x = f[1], *dy = f[2], *dk = f[3];
    mover.read_taps(p, k);
    transform.forward(k);
    bool first = true;
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t at = 0; at < p.T; at += p.hop) {
        // The inputs of this frame and every output that they reach; both are placed from `at` on.
        const int64_t end = std::min(at + p.hop, p.T), from = std::max(at, begin), to = std::min(end + reach, p.T);
        mover.read(p.x, b, at, end - at, x);
        mover.read(p.dy, b, from - begin, std::max<int64_t>(0, to - from), dy, std::min(from - at, 2 * p.N));
        transform.forward(x);
        transform.forward(dy);
        correlate(dk, dy, x, k, p.N, first);
        first = false;
        transform.inverse(dy);
        mover.write(p.dx, b, at, end - at, dy, 0, scale);
      }
    transform.inverse(dk);
    mover.write_taps(p, dk, scale);
  });
}

}  // namespace LONGSEQ_ISA
