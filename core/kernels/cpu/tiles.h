// Matrices that lie in the caches, rows padded with zeros to whole blocks: products, transposes,
// triangular systems.
#pragma once
#include <algorithm>

#include "rows.h"

namespace LONGSEQ_ISA {

constexpr int64_t kTile = 16;  // positions of a block, and what the rows of a tile are padded to
inline int64_t padded(int64_t n) { return (n + kTile - 1) / kTile * kTile; }

// A matrix that is read value by value: element (i, k) is at p[i * row + k * column].
template <class R> struct Left {
  const R* p;
  int64_t row, column;
};
enum class Into { kSet, kAdd, kSubtract };

#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 8;  // with three vectors each, the accumulators fill the registers
#else
constexpr int kRowsAtOnce = 4;
#endif

// Rows of tensors that are read or written next, asked for line by line inside the products: the
// rows of a head lie a page or so apart, and would be waited for.
class RowsAhead {
 public:
  template <class X>
  void add(const X& x, int64_t b, int64_t t0, int64_t rows, int64_t offset, int64_t n) {
    if (rows <= 0) return;
    const int64_t size = x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2;
    const char* p = x.ptr + size * (b * x.stride_b + t0 * x.stride_l + offset);
    const int64_t before = int64_t(reinterpret_cast<uintptr_t>(p) % 64);
    spans[count++] = {p - before, size * x.stride_l, (before + n * size + 63) / 64, rows};
  }
  void clear() { count = at = 0, line = 0; }
  void lines(int64_t n) {
    for (; n > 0 && at < count; --n) {
      Span& x = spans[at];
      __builtin_prefetch(x.p + 64 * line, 0, 2);
      if (++line < x.lines) continue;
      line = 0, x.p += x.stride;
      if (--x.rows == 0) ++at;
    }
  }

 private:
  struct Span {
    const char* p;
    int64_t stride, lines, rows;
  };
  Span spans[4];
  int64_t count = 0, at = 0, line = 0;
};

// What becomes of a product, row by row: its sums times `sums`, then a second product (more, b)
// added to them, and C times `own` before they are added to it. Null: ones, or nothing.
template <class R> struct Finish {
  const R *sums = nullptr, *own = nullptr;
  int64_t own_stride = 1;  // 0: one factor for all rows
  Left<R> more = {nullptr, 0, 0};
  int64_t depth = 0;
  const R* b = nullptr;
  int64_t b_row = 0;
  RowsAhead* ahead = nullptr;
};

template <class R, int M, int N>
__attribute__((always_inline)) inline void accumulate(Vec<R> (&sum)[M][N], const Left<R>& a,
                                                      int64_t depth, const R* b, int64_t b_row) {
  const R* left = a.p;
  for (int64_t k = 0; k < depth; ++k, b += b_row, left += a.column) {
    Vec<R> right[N];
    for (int n = 0; n < N; ++n) right[n] = load(b + n * kLanes<R>);
    for (int i = 0; i < M; ++i)
      for (int n = 0; n < N; ++n) sum[i][n] += left[i * a.row] * right[n];
  }
}

template <class R, int M, int N, bool kPlain>
inline void product_block(const Left<R>& a, int64_t depth, const R* b, int64_t b_row, R* c,
                          int64_t c_row, Into into, const Finish<R>& finish, int64_t row,
                          int64_t column) {
  Vec<R> sum[M][N] = {};
  if constexpr (kPlain) {
    accumulate<R, M, N>(sum, a, depth, b, b_row);
    for (int i = 0; i < M; ++i)
      for (int n = 0; n < N; ++n) {
        R* to = c + i * c_row + n * kLanes<R>;
        store(to, into == Into::kSet   ? sum[i][n]
                  : into == Into::kAdd ? load<R>(to) + sum[i][n]
                                       : load<R>(to) - sum[i][n]);
      }
    return;
  }
  // Read now: to the compiler any store below may be one to them.
  const R *sums = finish.sums ? finish.sums + row : nullptr, *own = finish.own;
  const int64_t own_stride = finish.own_stride;
  RowsAhead* const ahead = finish.ahead;
  const int64_t step = ahead ? kTile : depth;
  for (int64_t k = 0; k < depth; k += step) {
    accumulate<R, M, N>(sum, {a.p + k * a.column, a.row, a.column}, std::min(step, depth - k),
                        b + k * b_row, b_row);
    if (ahead) ahead->lines(kTile / 4);
  }
  if (sums)
    for (int i = 0; i < M; ++i)
      for (int n = 0; n < N; ++n) sum[i][n] *= sums[i];
  if (finish.depth)
    accumulate<R, M, N>(
        sum, {finish.more.p + row * finish.more.row, finish.more.row, finish.more.column},
        finish.depth, finish.b + column, finish.b_row);
  if (into == Into::kSet) {
    for (int i = 0; i < M; ++i)
      for (int n = 0; n < N; ++n) store(c + i * c_row + n * kLanes<R>, sum[i][n]);
    return;
  }
  if (into == Into::kSubtract)
    for (int i = 0; i < M; ++i)
      for (int n = 0; n < N; ++n) sum[i][n] = -sum[i][n];
  for (int i = 0; i < M; ++i) {
    R* to = c + i * c_row;
    if (own) {
      const R factor = own[(row + i) * own_stride];
      for (int n = 0; n < N; ++n)
        store(to + n * kLanes<R>, factor * load(to + n * kLanes<R>) + sum[i][n]);
    } else {
      for (int n = 0; n < N; ++n) store(to + n * kLanes<R>, load(to + n * kLanes<R>) + sum[i][n]);
    }
  }
}

template <class R, int N, bool kPlain>
inline void product_panel(int64_t rows, Left<R> a, int64_t depth, const R* b, int64_t b_row, R* c,
                          int64_t c_row, Into into, const Finish<R>& finish, int64_t column) {
  const int64_t together = rows / kRowsAtOnce * kRowsAtOnce;
  int64_t row = 0;
  for (; row < together;
       row += kRowsAtOnce, a.p += kRowsAtOnce * a.row, c += kRowsAtOnce * c_row)
    product_block<R, kRowsAtOnce, N, kPlain>(a, depth, b, b_row, c, c_row, into, finish, row,
                                             column);
  for (; row < rows; ++row, a.p += a.row, c += c_row)
    product_block<R, 1, N, kPlain>(a, depth, b, b_row, c, c_row, into, finish, row, column);
}

// C = A B, C += A B or C -= A B with C (rows, columns), columns a multiple of kTile.
template <class R, bool kPlain = false>
inline void product(int64_t rows, int64_t columns, int64_t depth, const Left<R>& a, const R* b,
                    int64_t b_row, R* c, int64_t c_row, Into into, const Finish<R>& finish) {
  const int64_t vectors = columns / kLanes<R>;
  for (int64_t done = 0, n; done < vectors; done += n) {
    const int64_t left = vectors - done, at = done * kLanes<R>;
    n = left == 4 ? 2 : std::min<int64_t>(left, 3);
    if (n == 3)
      product_panel<R, 3, kPlain>(rows, a, depth, b + at, b_row, c + at, c_row, into, finish, at);
    if (n == 2)
      product_panel<R, 2, kPlain>(rows, a, depth, b + at, b_row, c + at, c_row, into, finish, at);
    if (n == 1)
      product_panel<R, 1, kPlain>(rows, a, depth, b + at, b_row, c + at, c_row, into, finish, at);
  }
}

template <class R>
inline void product(int64_t rows, int64_t columns, int64_t depth, const Left<R>& a, const R* b,
                    int64_t b_row, R* c, int64_t c_row, Into into) {
  product<R, true>(rows, columns, depth, a, b, b_row, c, c_row, into, {});
}

#if defined(__AVX512F__)
// One block of 16 x 16: rows in, columns out.
inline void transpose_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m512 r[16], s[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(from + i * from_row);
  for (int i = 0; i < 16; i += 2)
    s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(s[i]), b = _mm512_castps_pd(s[i + 2]),
                  c = _mm512_castps_pd(s[i + 1]), d = _mm512_castps_pd(s[i + 3]);
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
          r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88),
                 b = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88),
                 d = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
    _mm512_storeu_ps(to + i * to_row, _mm512_shuffle_f32x4(a, c, 0x88));
    _mm512_storeu_ps(to + (8 + i) * to_row, _mm512_shuffle_f32x4(a, c, 0xdd));
    _mm512_storeu_ps(to + (4 + i) * to_row, _mm512_shuffle_f32x4(b, d, 0x88));
    _mm512_storeu_ps(to + (12 + i) * to_row, _mm512_shuffle_f32x4(b, d, 0xdd));
  }
}
#endif
template <class R>
inline void transpose_block(const R* from, int64_t from_row, R* to, int64_t to_row) {
  for (int j = 0; j < kTile; ++j)
    for (int i = 0; i < kTile; ++i) to[j * to_row + i] = from[i * from_row + j];
}

// (rows, columns) to (columns, rows), both multiples of kTile.
template <class R>
inline void transpose(int64_t rows, int64_t columns, const R* from, int64_t from_row, R* to,
                      int64_t to_row) {
  for (int64_t i = 0; i < rows; i += kTile)
    for (int64_t j = 0; j < columns; j += kTile)
      transpose_block(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
}

// Solves (I + M) x = b in place for a block of kTile rows of b; of M what is below the diagonal
// counts.
template <class R> inline void solve_block(const R* m, R* x, int64_t x_row, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kLanes<R>) {
    Vec<R> row[kTile];
    for (int i = 0; i < kTile; ++i) row[i] = load(x + i * x_row + c);
#pragma GCC unroll 16
    for (int j = 0; j < kTile; ++j)
#pragma GCC unroll 16
      for (int i = j + 1; i < kTile; ++i) row[i] -= m[i * kTile + j] * row[j];
    for (int i = 1; i < kTile; ++i) store(x + i * x_row + c, row[i]);
  }
}

// The same with (I + Mᵀ).
template <class R>
inline void solve_block_transposed(const R* m, R* x, int64_t x_row, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kLanes<R>) {
    Vec<R> row[kTile];
    for (int i = 0; i < kTile; ++i) row[i] = load(x + i * x_row + c);
#pragma GCC unroll 16
    for (int j = kTile - 1; j >= 0; --j)
#pragma GCC unroll 16
      for (int i = 0; i < j; ++i) row[i] -= m[j * kTile + i] * row[j];
    for (int i = 0; i < kTile - 1; ++i) store(x + i * x_row + c, row[i]);
  }
}

// to = factor x from, over n values, a multiple of kTile.
template <class R> inline void scale_row(R factor, const R* from, R* to, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes<R>) store(to + c, factor * load(from + c));
}
template <class R> inline void multiply_row(const R* a, const R* b, R* to, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes<R>) store(to + c, load(a + c) * load(b + c));
}
// to += a x b
template <class R> inline void add_products(const R* a, const R* b, R* to, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes<R>)
    store(to + c, load(to + c) + load(a + c) * load(b + c));
}
template <class R> inline void add_row(const R* a, R* to, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes<R>) store(to + c, load(to + c) + load(a + c));
}
template <class R> inline R dot_rows(const R* a, const R* b, int64_t n) {
  Vec<R> sum = {};
  for (int64_t c = 0; c < n; c += kLanes<R>) sum += load(a + c) * load(b + c);
  return sum_lanes(sum);
}

template <class R, class S, class F>
inline void read_tile_as(const S* __restrict p, int64_t stride, int64_t rows, int64_t n,
                         int64_t pitch, R* __restrict out, F convert) {
  for (int64_t t = 0; t < rows; ++t, p += stride, out += pitch) {
    for (int64_t i = 0; i < n; ++i) out[i] = R(convert(p[i]));
    for (int64_t i = n; i < pitch; ++i) out[i] = R(0);
  }
}
template <class R, class S, class F>
inline void write_tile_as(S* __restrict p, int64_t stride, int64_t rows, int64_t n, int64_t pitch,
                          const R* __restrict in, F convert) {
  for (int64_t t = 0; t < rows; ++t, p += stride, in += pitch)
    for (int64_t i = 0; i < n; ++i) p[i] = S(convert(in[i]));
}
inline char* tile_at(const Tensor3& x, int64_t b, int64_t t0, int64_t offset) {
  const int64_t size = x.dtype == kFloat64 ? 8 : x.dtype == kFloat32 ? 4 : 2;
  return x.ptr + size * (b * x.stride_b + t0 * x.stride_l + offset);
}

// Reads `rows` rows of n values from position t0 of batch b, times `factor`; the rest of `all` rows
// of `pitch` values becomes zero.
template <class R>
inline void read_tile(const Tensor3& x, int64_t b, int64_t t0, int64_t rows, int64_t all,
                      int64_t offset, int64_t n, int64_t pitch, R* out, R factor = R(1)) {
  const char* p = tile_at(x, b, t0, offset);
  const uint16_t* two = reinterpret_cast<const uint16_t*>(p);
  switch (x.dtype) {
    case kFloat32:
      read_tile_as(reinterpret_cast<const float*>(p), x.stride_l, rows, n, pitch, out,
                   [factor](float v) { return R(v) * factor; });
      break;
    case kFloat64:
      read_tile_as(reinterpret_cast<const double*>(p), x.stride_l, rows, n, pitch, out,
                   [factor](double v) { return R(v) * factor; });
      break;
    case kBFloat16: read_tile_as(two, x.stride_l, rows, n, pitch, out,
                   [factor](uint16_t v) { return R(from_bf16(v)) * factor; }); break;
    default: read_tile_as(two, x.stride_l, rows, n, pitch, out,
                   [factor](uint16_t v) { return R(from_half(v)) * factor; });
  }
  std::fill(out + rows * pitch, out + all * pitch, R(0));
}

template <class R>
inline void write_tile(const Tensor3& x, int64_t b, int64_t t0, int64_t rows, int64_t offset,
                       int64_t n, int64_t pitch, const R* in) {
  char* p = tile_at(x, b, t0, offset);
  uint16_t* two = reinterpret_cast<uint16_t*>(p);
  switch (x.dtype) {
    case kFloat32:
      write_tile_as(reinterpret_cast<float*>(p), x.stride_l, rows, n, pitch, in,
                    [](R v) { return v; });
      break;
    case kFloat64:
      write_tile_as(reinterpret_cast<double*>(p), x.stride_l, rows, n, pitch, in,
                    [](R v) { return v; });
      break;
    case kBFloat16:
      write_tile_as(two, x.stride_l, rows, n, pitch, in, [](R v) { return to_bf16(float(v)); });
      break;
    default:
      write_tile_as(two, x.stride_l, rows, n, pitch, in, [](R v) { return to_half(float(v)); });
  }
}

}  // namespace LONGSEQ_ISA
