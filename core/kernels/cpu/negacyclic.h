// The transform under the long convolution: polynomials modulo z^N = i, evaluated at the N roots.
// Lanes are channels.
#pragma once
#include <cmath>
#include <vector>

#include "simd.h"

namespace LONGSEQ_ISA {

// A real sequence x of 2N values is the polynomial Σ_{j<N} (x[j] + i x[j+N]) z^j. Products modulo
// z^N = i are convolutions of period 2N in which what wraps round changes its sign: a real
// transform of 2N values at the price of a complex one of N, without separating conjugate halves.
// One split step takes a node z^m = e^{iφ} to r nodes z^{m/r} = e^{i(φ + 2πk)/r}: the twiddles are
// constant over a node, and the values come out in the order of the tree, which a product does not
// mind. A point is one vector of real parts and one of imaginary parts.
template <class R> class Negacyclic {
 public:
  static constexpr int V = kLanes<R>;
  static constexpr int64_t kPoint = 2 * V;  // values in a point
  const int64_t N;

  explicit Negacyclic(int64_t N) : N(N) {
    int64_t rest = N;
    for (int64_t r : {5, 3})
      while (rest % r == 0) radices_.push_back(int(r)), rest /= r;
    if (__builtin_ctzll(uint64_t(rest)) % 2) radices_.push_back(2), rest /= 2;
    while (rest > 1) radices_.push_back(4), rest /= 4;
    const double turn = 2 * std::acos(-1.0);
    std::vector<double> angles{turn / 4};
    for (int r : radices_) {
      std::vector<double> next;
      next.reserve(angles.size() * r);
      std::vector<R>& table = tables_.emplace_back();
      table.reserve(angles.size() * 2 * (r - 1));
      for (double phi : angles) {
        for (int k = 1; k < r; ++k) {
          table.push_back(R(std::cos(phi * k / r)));
          table.push_back(R(std::sin(phi * k / r)));
        }
        for (int k = 0; k < r; ++k) next.push_back((phi + turn * k) / r);
      }
      angles.swap(next);
    }
  }

  // The first step leaves `parts` polynomials of `size` points that have nothing to do with each
  // other any more: a product goes part by part, so that a part of every factor stays in a near
  // cache from its transform to its inverse.
  int64_t parts() const { return radices_.empty() ? 1 : radices_[0]; }
  int64_t size() const { return N / parts(); }
  R* part(R* x, int64_t i) const { return x + i * size() * kPoint; }
  // The first step, from 2N values in `rows`; where only `half` of them may differ from zero the
  // others are not read.
  void enter(const R* rows, bool half, R* x) const {
    half ? enter_as<true>(rows, x) : enter_as<false>(rows, x);
  }
  void descend(R* x, int64_t i) const { down(part(x, i), size(), radices_.empty() ? 0 : 1, i); }
  // Back again: all parts, then the last step, whose result is N times the values. With `half`, the
  // first N of them.
  void ascend(R* x, int64_t i) const { up(part(x, i), size(), radices_.empty() ? 0 : 1, i); }
  void leave(const R* x, bool half, R scale, R* rows) const {
    half ? leave_as<true>(x, scale, rows) : leave_as<false>(x, scale, rows);
  }

 private:
  typedef Vec<R> Real;
  struct Complex {
    Real re, im;
    Complex operator+(const Complex& o) const { return {re + o.re, im + o.im}; }
    Complex operator-(const Complex& o) const { return {re - o.re, im - o.im}; }
    Complex operator*(const Complex& w) const {
      return {re * w.re - im * w.im, re * w.im + im * w.re};
    }
    Complex operator*(R s) const { return {re * s, im * s}; }
    Complex turned() const { return {-im, re}; }  // times i
  };
  // points that stay in the first cache while a subtree is worked through
  static constexpr int64_t kBlock = 256;

  std::vector<int> radices_;
  std::vector<std::vector<R>> tables_;  // for every level and node: r - 1 powers of its twiddle

  static Complex get(const R* p) { return {load(p), load(p + V)}; }
  static void put(R* p, const Complex& c) { store(p, c.re), store(p + V, c.im); }
  template <bool conj> static Complex twiddle(const R* w) {
    return {splat<R>(w[0]), splat<R>(conj ? -w[1] : w[1])};
  }

  // The discrete Fourier transform of r values; `inv` that of the other sign.
  template <int r, bool inv> static void small(Complex* a) {
    if constexpr (r == 2) {
      const Complex b = a[1];
      a[1] = a[0] - b, a[0] = a[0] + b;
    } else if constexpr (r == 3) {
      const Complex s = a[1] + a[2], d = ((a[1] - a[2]) * R(0.86602540378443864676)).turned(),
                    c = a[0] - s * R(0.5);
      a[0] = a[0] + s;
      a[inv ? 2 : 1] = c + d, a[inv ? 1 : 2] = c - d;
    } else if constexpr (r == 4) {
      const Complex s = a[0] + a[2], d = a[0] - a[2], t = a[1] + a[3], e = (a[1] - a[3]).turned();
      a[0] = s + t, a[2] = s - t;
      a[inv ? 3 : 1] = d + e, a[inv ? 1 : 3] = d - e;
    } else {
      constexpr R c1 = R(0.30901699437494742410), c2 = R(-0.80901699437494742410);
      constexpr R s1 = R(0.95105651629515357212), s2 = R(0.58778525229247312917);
      const Complex p = a[1] + a[4], m = a[1] - a[4], q = a[2] + a[3], n = a[2] - a[3];
      const Complex u = a[0] + p * c1 + q * c2, v = a[0] + p * c2 + q * c1;
      const Complex x = (m * s1 + n * s2).turned(), y = (m * s2 - n * s1).turned();
      a[0] = a[0] + p + q;
      a[inv ? 4 : 1] = u + x, a[inv ? 1 : 4] = u - x;
      a[inv ? 3 : 2] = v + y, a[inv ? 2 : 3] = v - y;
    }
  }

  template <int r> static void split(R* x, int64_t q, const R* w) {
    Complex t[r];
    for (int k = 1; k < r; ++k) t[k] = twiddle<false>(w + 2 * (k - 1));
    for (R* p = x; p != x + q * kPoint; p += kPoint) {
      Complex a[r];
      a[0] = get(p);
      for (int k = 1; k < r; ++k) a[k] = get(p + k * q * kPoint) * t[k];
      small<r, false>(a);
      for (int k = 0; k < r; ++k) put(p + k * q * kPoint, a[k]);
    }
  }
  template <int r> static void join(R* x, int64_t q, const R* w) {
    Complex t[r];
    for (int k = 1; k < r; ++k) t[k] = twiddle<true>(w + 2 * (k - 1));
    for (R* p = x; p != x + q * kPoint; p += kPoint) {
      Complex a[r];
      for (int k = 0; k < r; ++k) a[k] = get(p + k * q * kPoint);
      small<r, true>(a);
      put(p, a[0]);
      for (int k = 1; k < r; ++k) put(p + k * q * kPoint, a[k] * t[k]);
    }
  }

  template <int r, bool half> void first(const R* rows, R* x) const {
    const int64_t q = N / r;
    const R* w = r > 1 ? tables_[0].data() : nullptr;
    Complex t[r];
    for (int k = 1; k < r; ++k) t[k] = twiddle<false>(w + 2 * (k - 1));
    for (int64_t j = 0; j < q; ++j) {
      Complex a[r];
      for (int k = 0; k < r; ++k) {
        const Real re = load(rows + (j + k * q) * V);
        if constexpr (half) {
          a[k] = k ? Complex{re * t[k].re, re * t[k].im} : Complex{re, Real{}};
        } else {
          a[k] = {re, load(rows + (N + j + k * q) * V)};
          if (k) a[k] = a[k] * t[k];
        }
      }
      if constexpr (r > 1) small<r, false>(a);
      for (int k = 0; k < r; ++k) put(x + (j + k * q) * kPoint, a[k]);
    }
  }
  template <int r, bool half> void last(const R* x, R scale, R* rows) const {
    const int64_t q = N / r;
    const R* w = r > 1 ? tables_[0].data() : nullptr;
    Complex t[r];
    t[0] = {splat(scale), Real{}};
    for (int k = 1; k < r; ++k) t[k] = twiddle<true>(w + 2 * (k - 1)) * scale;
    for (int64_t j = 0; j < q; ++j) {
      Complex a[r];
      for (int k = 0; k < r; ++k) a[k] = get(x + (j + k * q) * kPoint);
      if constexpr (r > 1) small<r, true>(a);
      for (int k = 0; k < r; ++k) {
        const int64_t at = j + k * q;
        store(rows + at * V, k ? a[k].re * t[k].re - a[k].im * t[k].im : a[k].re * t[k].re);
        if constexpr (!half)
          store(rows + (N + at) * V, k ? a[k].re * t[k].im + a[k].im * t[k].re : a[k].im * t[k].re);
      }
    }
  }
  template <bool half> void enter_as(const R* rows, R* x) const {
    switch (parts()) {
      case 1: return first<1, half>(rows, x);
      case 2: return first<2, half>(rows, x);
      case 3: return first<3, half>(rows, x);
      case 4: return first<4, half>(rows, x);
      default: return first<5, half>(rows, x);
    }
  }
  template <bool half> void leave_as(const R* x, R scale, R* rows) const {
    switch (parts()) {
      case 1: return last<1, half>(x, scale, rows);
      case 2: return last<2, half>(x, scale, rows);
      case 3: return last<3, half>(x, scale, rows);
      case 4: return last<4, half>(x, scale, rows);
      default: return last<5, half>(x, scale, rows);
    }
  }

  template <bool fwd> void step(R* x, int64_t q, int level, int64_t node) const {
    const int r = radices_[level];
    const R* w = &tables_[level][node * 2 * (r - 1)];
    switch (r) {
      case 2: return fwd ? split<2>(x, q, w) : join<2>(x, q, w);
      case 3: return fwd ? split<3>(x, q, w) : join<3>(x, q, w);
      case 4: return fwd ? split<4>(x, q, w) : join<4>(x, q, w);
      default: return fwd ? split<5>(x, q, w) : join<5>(x, q, w);
    }
  }
  // A subtree in depth-first order, so that it is read from slower memory once for each level above
  // kBlock only.
  void down(R* x, int64_t m, int level, int64_t node) const {
    if (m > kBlock) {
      const int r = radices_[level];
      step<true>(x, m / r, level, node);
      for (int k = 0; k < r; ++k) down(x + k * (m / r) * kPoint, m / r, level + 1, node * r + k);
      return;
    }
    for (int64_t nodes = 1; m > 1; ++level) {
      const int r = radices_[level];
      for (int64_t n = 0; n < nodes; ++n)
        step<true>(x + n * m * kPoint, m / r, level, node * nodes + n);
      nodes *= r, m /= r;
    }
  }
  void up(R* x, int64_t m, int level, int64_t node) const {
    if (m == 1) return;
    const int r = radices_[level];
    for (int k = 0; k < r; ++k) up(x + k * (m / r) * kPoint, m / r, level + 1, node * r + k);
    step<false>(x, m / r, level, node);
  }
};

}  // namespace LONGSEQ_ISA
