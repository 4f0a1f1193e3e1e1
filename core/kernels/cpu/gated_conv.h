// Hyena's operator in one pass each way: short convolutions and both gates where the long
// convolution reads and writes.
#pragma once
#include "fft_conv.h"

namespace LONGSEQ_ISA {

// One of the three parts of the input, a vector of channels wide, through its short convolution of
// K taps (K = W, or any number for W = 0); tile after tile, forwards, and backwards with a delay of
// K - 1 positions.
template <class R, int W> class Strand {
 public:
  static constexpr int V = kLanes<R>;
  static constexpr int64_t kTile = FieldMover<R>::kTile, kMost = W ? W : 32;

  Strand(const GatedConv& p, const FieldMover<R>& mover, int part)
      : mover_(mover), p_(p), part_(part), K(W ? W : p.W) {
    R lane[kMost * V] = {}, first[V] = {}, shift[V] = {};
    for (int64_t i = 0; i < mover.n; ++i) {
      const int64_t channel = part * p.D + mover.at + i;
      for (int64_t k = 0; k < K; ++k)
        lane[k * V + i] = static_cast<const R*>(p.weight)[channel * K + k];
      if (p.bias) first[i] = static_cast<const R*>(p.bias)[channel];
      if (p.shift) shift[i] = static_cast<const R*>(p.shift)[channel];
    }
    for (int64_t k = 0; k < K; ++k) weight_[k] = load(lane + k * V), dweight_[k] = Vec<R>{};
    bias_ = load(first), shift_ = load(shift), dbias_ = dshift_ = Vec<R>{};
  }
  void start() {
    std::fill(x_, x_ + (K - 1) * V, R(0));
    std::fill(g_, g_ + (K - 1) * V, R(0));
    last_ = 0;
  }
  // The convolution at positions t0 … t0 + T.
  void forward(int64_t b, int64_t t0, int64_t T, R* out) {
    std::memmove(x_, x_ + last_ * V, (K - 1) * V * sizeof(R));
    const Tensor3 x = slice(p_.x);
    read_rows<R>(x, b, t0, T, mover_.at, mover_.n, V, x_ + (K - 1) * V);
    if (p_.shift)
      for (int64_t t = K - 1; t < K - 1 + T; ++t) store(x_ + t * V, load(x_ + t * V) + shift_);
    last_ = T;
    const char* ahead = mover_.address(x, b, t0 + T);
    const int64_t pitch = mover_.address(x, b, t0 + T + 1) - ahead,
                  coming = std::min(T, p_.L - t0 - T);
    for (int64_t t = 0; t < T; ++t) {
      // Rows lie too far apart for the hardware to guess the next; asked for all at once they would
      // block each other.
      if (t < coming) __builtin_prefetch(ahead + t * pitch);
      Vec<R> y = bias_;
      for (int64_t k = 0; k < K; ++k) y += weight_[k] * load(x_ + (t + k) * V);
      store(out + t * V, y);
    }
  }
  // After `forward` of the same positions: their gradient g turns into that of the input, K - 1
  // positions behind.
  void backward(int64_t b, int64_t t0, int64_t T, const R* g) {
    std::memcpy(g_ + (K - 1) * V, g, T * V * sizeof(R));
    // summed tile by tile: float32 stays accurate over a long sequence
    Vec<R> part[kMost] = {}, sum = {};
    for (int64_t t = 0; t < T; ++t) {
      const Vec<R> v = load(g + t * V);
      sum += v;
      for (int64_t k = 0; k < K; ++k) part[k] += v * load(x_ + (t + k) * V);
    }
    dbias_ += sum;
    for (int64_t k = 0; k < K; ++k) dweight_[k] += part[k];
    put(b, t0 - (K - 1), T);
    std::memmove(g_, g_ + T * V, (K - 1) * V * sizeof(R));
  }
  // The gradients of the last K - 1 positions, which nothing follows.
  void finish(int64_t b) {
    if (K == 1) return;
    std::fill(g_ + (K - 1) * V, g_ + 2 * (K - 1) * V, R(0));
    put(b, p_.L - (K - 1), K - 1);
  }
  void write_weights() const {
    for (int64_t k = 0; k < K; ++k)
      for (int64_t i = 0; i < mover_.n; ++i)
        static_cast<R*>(p_.dweight)[(part_ * p_.D + mover_.at + i) * K + k] = dweight_[k][i];
    for (int64_t i = 0; i < mover_.n; ++i) {
      static_cast<R*>(p_.dbias)[part_ * p_.D + mover_.at + i] = dbias_[i];
      if (p_.shift) static_cast<R*>(p_.dshift)[part_ * p_.D + mover_.at + i] = dshift_[i];
    }
  }

 private:
  const FieldMover<R>& mover_;
  const GatedConv& p_;
  const int part_;
  const int64_t K;
  int64_t last_ = 0;
  Vec<R> weight_[kMost], dweight_[kMost], bias_, shift_, dbias_, dshift_;
  alignas(64) R x_[(kMost - 1 + kTile) * V], g_[(kMost - 1 + kTile) * V];

  Tensor3 slice(Tensor3 x) const {
    x.ptr += part_ * p_.D * (x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2);
    return x;
  }
  // Positions from … from + T of the input's gradient, of which g_ holds the K - 1 + T that they
  // reach.
  void put(int64_t b, int64_t from, int64_t T) {
    alignas(64) R dx[kTile * V];
    for (int64_t t = 0; t < T; ++t) {
      Vec<R> sum = {};
      for (int64_t k = 0; k < K; ++k) sum += weight_[k] * load(g_ + (t + K - 1 - k) * V);
      store(dx + t * V, sum);
    }
    const int64_t skip = std::min(T, std::max<int64_t>(0, -from));  // what lies before the sequence
    Vec<R> total = {};
    for (int64_t t = skip; t < T; ++t) total += load(dx + t * V);
    dshift_ += total;
    if (skip < T)
      write_rows<R>(slice(p_.dx), b, from + skip, T - skip, mover_.at, mover_.n, V, dx + skip * V,
                    mover_.stream);
  }
};

template <class R, int W> void gated_conv_forward_taps(const GatedConv& p) {
  constexpr int V = kLanes<R>;
  constexpr int64_t kTile = FieldMover<R>::kTile;
  const R scale = R(1) / R(p.N);
  const auto run = [&](const Negacyclic<R>& transform, const FieldMover<R>& mover,
                       const FieldMemory<R>& f) {
    R *k = f[0], *x = f[1], *rows = f[2];
    alignas(64) R one[kTile * V], two[kTile * V];
    Strand<R, W> gate(p, mover, 0), factor(p, mover, 1), value(p, mover, 2);
    mover.read_taps(p.kernel, rows, p.N);
    transform.enter(rows, true, k);
    for (int64_t b = 0; b < p.B; ++b) {
      factor.start(), value.start(), gate.start();
      for (int64_t t0 = 0; t0 < p.L; t0 += kTile) {
        const int64_t T = std::min(kTile, p.L - t0);
        factor.forward(b, t0, T, one);
        value.forward(b, t0, T, two);
        for (int64_t t = 0; t < T; ++t)
          store(rows + (t0 + t) * V, load(one + t * V) * load(two + t * V));
        mover.write(p.u, b, t0, T, rows + t0 * V);
      }
      std::fill(rows + p.L * V, rows + p.N * V, R(0));
      transform.enter(rows, true, x);
      for (int64_t i = 0; i < transform.parts(); ++i) {
        if (b == 0) transform.descend(k, i);
        transform.descend(x, i);
        multiply(transform.part(x, i), transform.part(k, i), transform.size());
        transform.ascend(x, i);
      }
      transform.leave(x, true, scale, rows);
      for (int64_t t0 = 0; t0 < p.L; t0 += kTile) {
        const int64_t T = std::min(kTile, p.L - t0);
        gate.forward(b, t0, T, one);
        for (int64_t t = 0; t < T; ++t)
          store(one + t * V, load(one + t * V) * load(rows + (t0 + t) * V));
        mover.write(p.y, b, t0, T, one);
      }
    }
  };
  channel_groups<R>(p.D, p.N, 3, p.threads, worth_streaming<R>(p.B * p.L * p.D), run);
}

template <class R, int W> void gated_conv_backward_taps(const GatedConv& p) {
  constexpr int V = kLanes<R>;
  constexpr int64_t kTile = FieldMover<R>::kTile;
  const R scale = R(1) / R(p.N);
  const auto run = [&](const Negacyclic<R>& transform, const FieldMover<R>& mover,
                       const FieldMemory<R>& f) {
    R *k = f[0], *x = f[1], *g = f[2], *inputs = f[3], *grads = inputs + p.N * V,
      *dk = p.B == 1 ? k : f[4];
    alignas(64) R first[kTile * V], one[kTile * V], two[kTile * V], dy[kTile * V];
    Strand<R, W> gate(p, mover, 0), factor(p, mover, 1), value(p, mover, 2);
    mover.read_taps(p.kernel, inputs, p.N);
    transform.enter(inputs, true, k);
    for (int64_t b = 0; b < p.B; ++b) {
      factor.start(), value.start(), gate.start();
      for (int64_t t0 = 0; t0 < p.L; t0 += kTile) {
        const int64_t T = std::min(kTile, p.L - t0);
        gate.forward(b, t0, T, first);
        factor.forward(b, t0, T, one);
        value.forward(b, t0, T, two);
        mover.ask(p.dy, b, t0 + T, std::min(kTile, p.L - t0 - T));
        read_rows<R>(p.dy, b, t0, T, mover.at, mover.n, V, dy);
        for (int64_t t = 0; t < T; ++t) {
          store(inputs + (t0 + t) * V, load(one + t * V) * load(two + t * V));
          store(grads + (t0 + t) * V, load(first + t * V) * load(dy + t * V));
        }
      }
      std::fill(inputs + p.L * V, inputs + p.N * V, R(0));
      std::fill(grads + p.L * V, grads + p.N * V, R(0));
      transform.enter(inputs, true, x);
      transform.enter(grads, true, g);
      for (int64_t i = 0; i < transform.parts(); ++i) {
        if (b == 0) transform.descend(k, i);
        transform.descend(x, i);
        transform.descend(g, i);
        correlate<R, true>(transform.part(dk, i), transform.part(g, i), transform.part(x, i),
                           transform.part(k, i), transform.size(), b == 0);
        transform.ascend(x, i);
        transform.ascend(g, i);
      }
      transform.leave(x, true, scale, inputs);  // what the gate multiplied
      transform.leave(g, true, scale, grads);   // the gradient of what entered the long convolution
      factor.start(), value.start(), gate.start();
      for (int64_t t0 = 0; t0 < p.L; t0 += kTile) {
        const int64_t T = std::min(kTile, p.L - t0);
        gate.forward(b, t0, T, first);
        factor.forward(b, t0, T, one);
        value.forward(b, t0, T, two);
        read_rows<R>(p.dy, b, t0, T, mover.at, mover.n, V, dy);
        for (int64_t t = 0; t < T; ++t)
          store(first + t * V, load(dy + t * V) * load(inputs + (t0 + t) * V));
        if (p.du) read_rows<R>(p.du, b, t0, T, mover.at, mover.n, V, dy);
        for (int64_t t = 0; t < T; ++t) {
          Vec<R> d = load(grads + (t0 + t) * V);
          if (p.du) d += load(dy + t * V);
          const Vec<R> a = load(one + t * V);
          store(one + t * V, d * load(two + t * V));
          store(two + t * V, d * a);
        }
        gate.backward(b, t0, T, first);
        factor.backward(b, t0, T, one);
        value.backward(b, t0, T, two);
      }
      gate.finish(b), factor.finish(b), value.finish(b);
    }
    gate.write_weights(), factor.write_weights(), value.write_weights();
    for (int64_t i = 0; i < transform.parts(); ++i) transform.ascend(dk, i);
    transform.leave(dk, true, scale, inputs);
    mover.write_taps(p.kernel, inputs);
  };
  channel_groups<R>(p.D, p.N, p.B == 1 ? 4 : 5, p.threads, worth_streaming<R>(p.B * p.L * p.D),
                    run);
}

template <class R> void gated_conv_forward_as(const GatedConv& p) {
  p.W == 3 ? gated_conv_forward_taps<R, 3>(p) : gated_conv_forward_taps<R, 0>(p);
}
template <class R> void gated_conv_backward_as(const GatedConv& p) {
  p.W == 3 ? gated_conv_backward_taps<R, 3>(p) : gated_conv_backward_taps<R, 0>(p);
}

}  // namespace LONGSEQ_ISA
