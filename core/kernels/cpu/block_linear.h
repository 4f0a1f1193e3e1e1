// Block-diagonal linear maps with small blocks, several of one input at a time: bound by memory,
// not by arithmetic. Lanes are channels; a block's product is a sum over rotations of its lanes.
// Equations in core/ops/block_linear.py.
#pragma once
#include <algorithm>

#include "rows.h"

namespace LONGSEQ_ISA {

constexpr int64_t kBlockAtOnce = 8;  // rows whose weight gradients are summed in registers

// Lane l of the result is lane index[l] of v.
template <class R> inline Vec<R> shuffled(Vec<R> v, IVec<R> index) {
#if defined(__clang__)
  R from[kLanes<R>], to[kLanes<R>];
  store(from, v);
  for (int l = 0; l < kLanes<R>; ++l) to[l] = from[index[l]];
  return load(to);
#else
  return __builtin_shuffle(v, index);
#endif
}

template <class R> struct BlockRotations {
  static constexpr int V = kLanes<R>;
  IVec<R> index[V];
  explicit BlockRotations(int64_t P) {
    for (int64_t d = 0; d < P; ++d)
      for (int l = 0; l < V; ++l)
        index[d][l] = typename Traits<R>::Int((l & ~(P - 1)) | ((l + d) & (P - 1)));
  }
};

// Whether whole blocks lie in whole vectors.
template <class R> inline bool by_rotations(const BlockLinear& p) {
  return p.P <= kLanes<R> && (p.P & (p.P - 1)) == 0 && p.W % kLanes<R> == 0;
}
template <class R> inline R* block_row(const Tensor3& x, int64_t r) {
  return reinterpret_cast<R*>(x.ptr) + r * x.stride_l;
}

// The weights of every rotation of every vector of channels: what lane c gets from, or (turned)
// gives to, lane c + d.
template <class R> inline Buffer<R> rotated_weights(const BlockLinear& p, bool turned) {
  Buffer<R> out(p.maps * p.W * p.P);
  const R* w = static_cast<const R*>(p.weight);
  for (int64_t m = 0; m < p.maps; ++m)
    for (int64_t c = 0; c < p.W; ++c)
      for (int64_t d = 0; d < p.P; ++d) {
        const int64_t at = c % p.P, other = (at + d) % p.P,
                      block = m * p.W * p.P + c / p.P * p.P * p.P;
        const int64_t vector = c / kLanes<R>, lane = c % kLanes<R>;
        out[((m * (p.W / kLanes<R>) + vector) * p.P + d) * kLanes<R> + lane] =
            w[block + (turned ? other * p.P + at : at * p.P + other)];
      }
  return out;
}

template <class R> inline void block_forward_plain(const BlockLinear& p, int64_t r) {
  const R* x = block_row<R>(p.x, r);
  for (int64_t m = 0; m < p.maps; ++m) {
    const R* w = static_cast<const R*>(p.weight) + m * p.W * p.P;
    R* y = block_row<R>(p.y[m], r);
    for (int64_t c = 0; c < p.W; ++c) {
      R sum = 0;
      for (int64_t i = 0; i < p.P; ++i) sum += w[c * p.P + i] * x[c / p.P * p.P + i];
      y[c] = sum;
    }
  }
}

template <class R> void block_linear_forward_as(const BlockLinear& p) {
  constexpr int V = kLanes<R>;
  const bool fast = by_rotations<R>(p);
  const Buffer<R> weights = fast ? rotated_weights<R>(p, false) : Buffer<R>();
  const BlockRotations<R> turn(fast ? p.P : 1);
  parallel((p.rows + kBlockRows - 1) / kBlockRows, p.threads, [&](int64_t unit) {
    const int64_t end = std::min(p.rows, (unit + 1) * kBlockRows);
    for (int64_t r = unit * kBlockRows; r < end; ++r) {
      if (!fast) {
        block_forward_plain<R>(p, r);
        continue;
      }
      const R* x = block_row<R>(p.x, r);
      for (int64_t m = 0; m < p.maps; ++m) {
        R* y = block_row<R>(p.y[m], r);
        const R* w = &weights[m * p.W * p.P];
        for (int64_t c = 0; c < p.W; c += V) {
          const Vec<R> in = load(x + c);
          Vec<R> sum = {};
          for (int64_t d = 0; d < p.P; ++d, w += V) sum += shuffled<R>(in, turn.index[d]) * load(w);
          store(y + c, sum);
        }
      }
    }
  });
}

template <class R> inline void block_backward_plain(const BlockLinear& p, int64_t r, R* dweight) {
  const R* x = block_row<R>(p.x, r);
  R* dx = block_row<R>(p.dx, r);
  std::fill(dx, dx + p.W, R(0));
  for (int64_t m = 0; m < p.maps; ++m) {
    const R *w = static_cast<const R*>(p.weight) + m * p.W * p.P, *dy = block_row<R>(p.y[m], r);
    for (int64_t c = 0; c < p.W; ++c)
      for (int64_t i = 0; i < p.P; ++i) {
        const int64_t from = c / p.P * p.P + i;
        dx[from] += w[c * p.P + i] * dy[c];
        dweight[(m * p.W + c) * p.P + i] += dy[c] * x[from];
      }
  }
}

template <class R> void block_linear_backward_as(const BlockLinear& p) {
  constexpr int V = kLanes<R>;
  const bool fast = by_rotations<R>(p);
  const Buffer<R> weights = fast ? rotated_weights<R>(p, true) : Buffer<R>();
  const BlockRotations<R> turn(fast ? p.P : 1);
  const int64_t size = p.maps * p.W * p.P;
  parallel((p.rows + kBlockRows - 1) / kBlockRows, p.threads, [&](int64_t unit) {
    const int64_t end = std::min(p.rows, (unit + 1) * kBlockRows);
    R* dweight = static_cast<R*>(p.dweight) + unit * size;
    std::fill(dweight, dweight + size, R(0));
    if (!fast) {
      for (int64_t r = unit * kBlockRows; r < end; ++r) block_backward_plain<R>(p, r, dweight);
      return;
    }
    Buffer<R> sums(size, R(0));  // as the rotated weights
    for (int64_t first = unit * kBlockRows; first < end; first += kBlockAtOnce) {
      const int64_t behind = std::min(end, first + kBlockAtOnce);
      for (int64_t c = 0; c < p.W; c += V)
        for (int64_t m = 0; m < p.maps; ++m) {
          const int64_t at = (m * p.W + c) * p.P;
          const R* w = &weights[at];
          R* s = &sums[at];
          for (int64_t r = first; r < behind; ++r) {
            const Vec<R> x = load(block_row<R>(p.x, r) + c), dy = load(block_row<R>(p.y[m], r) + c);
            R* to = block_row<R>(p.dx, r) + c;
            Vec<R> dx = m ? load(to) : Vec<R>{};
            for (int64_t d = 0; d < p.P; ++d) {
              dx += shuffled<R>(dy, turn.index[d]) * load(w + d * V);
              store(s + d * V, load(s + d * V) + dy * shuffled<R>(x, turn.index[d]));
            }
            store(to, dx);
          }
        }
    }
    for (int64_t m = 0; m < p.maps; ++m)
      for (int64_t c = 0; c < p.W; ++c)
        for (int64_t d = 0; d < p.P; ++d)
          dweight[(m * p.W + c) * p.P + (c + d) % p.P] =
              sums[((m * p.W + c / V * V) * p.P) + d * V + c % V];
  });
}

}  // namespace LONGSEQ_ISA
