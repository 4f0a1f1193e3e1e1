// A convolution of every channel of a map by its own KH × KW taps, centred, zeros around the map,
// with a bias and SiLU: y[i, j] = silu(Σ_kl w[k, l] x[i + k - KH/2, j + l - KW/2] + b). Lanes are
// channels; a map is walked row by row, a row over all its channels.
#pragma once
#include "gated_norm.h"
#include "row_walk.h"

namespace LONGSEQ_ISA {

constexpr int kColumnsAtOnce = 4;  // of outputs, that share what they read

// Rows of one image: straight from memory, or the last few of them in the compute type.
template <class R> class MapRows {
 public:
  MapRows(const Grid& x, const DepthwiseConv& p, int64_t b, int64_t kept)
      : x_(x),
        p_(p),
        b_(b),
        kept_(kept),
        direct_(holds<R>(x)),
        room_(direct_ ? 0 : kept * p.W * p.C),
        held_(kept, -1) {}
  // Values of a row, `apart()` from column to column; those of the last `kept` rows stay.
  const R* row(int64_t h) {
    const int64_t size = x_.dtype == kFloat64 ? 8 : x_.dtype == kFloat32 ? 4 : 2;
    char* at = x_.ptr + size * (b_ * x_.stride_b + h * x_.stride_l);
    if (direct_) return reinterpret_cast<const R*>(at);
    R* to = room_.data() + h % kept_ * p_.W * p_.C;
    if (held_[h % kept_] != h) {
      Tensor3 row;
      row.ptr = at, row.dtype = x_.dtype, row.stride_l = x_.stride_w;
      read_rows<R>(row, 0, 0, p_.W, 0, p_.C, p_.C, to);
      held_[h % kept_] = h;
    }
    return to;
  }
  int64_t apart() const { return direct_ ? x_.stride_w : p_.C; }

 private:
  const Grid& x_;
  const DepthwiseConv& p_;
  int64_t b_, kept_;
  bool direct_;
  Room<R> room_;
  std::vector<int64_t> held_;
};

// Writes a row of compute type (W, C), or gives the place to write it to.
template <class R> class MapOut {
 public:
  MapOut(const Grid& y, const DepthwiseConv& p, int64_t b)
      : y_(y), p_(p), b_(b), direct_(holds<R>(y)), room_(direct_ ? 0 : p.W * p.C) {}
  R* row(int64_t h) { return direct_ ? reinterpret_cast<R*>(place(h)) : room_.data(); }
  int64_t apart() const { return direct_ ? y_.stride_w : p_.C; }
  void done(int64_t h) {
    if (direct_) return;
    Tensor3 row;
    row.ptr = place(h), row.dtype = y_.dtype, row.stride_l = y_.stride_w;
    write_rows<R>(row, 0, 0, p_.W, 0, p_.C, p_.C, room_.data());
  }

 private:
  char* place(int64_t h) const {
    const int64_t size = y_.dtype == kFloat64 ? 8 : y_.dtype == kFloat32 ? 4 : 2;
    return y_.ptr + size * (b_ * y_.stride_b + h * y_.stride_l);
  }
  const Grid& y_;
  const DepthwiseConv& p_;
  int64_t b_;
  bool direct_;
  Room<R> room_;
};

// The rows that an output row sees and where their taps begin, in taps [KH][KW][C].
template <class R> struct Window {
  int64_t rows = 0, apart, first;
  std::vector<const R*> at;
  Window(int64_t most, int64_t apart) : apart(apart), at(most) {}
};

// Σ of taps and values over a window, for n lanes of every column: run(column, sum).
template <class R, int KW, class F>
inline void sum_columns(const DepthwiseConv& p, const Window<R>& x, const R* taps, int64_t c, int n,
                        const F& run) {
  const int64_t KX = KW ? KW : p.KW, half = KX / 2;
  const auto alone = [&](int64_t w) {
    Vec<R> sum = {};
    for (int64_t k = 0; k < x.rows; ++k)
      for (int64_t l = std::max<int64_t>(0, half - w); l < std::min(KX, p.W + half - w); ++l)
        sum += load_lanes(taps + ((x.first + k) * KX + l) * p.C + c, n) *
               load_lanes(x.at[k] + (w + l - half) * x.apart + c, n);
    run(w, sum);
  };
  int64_t w = 0;
  if constexpr (KW > 0) {
    constexpr int M = kColumnsAtOnce;
    if (n == kLanes<R>) {
      for (; w < std::min(half, p.W); ++w) alone(w);
      for (; w + M + half <= p.W; w += M) {
        Vec<R> sum[M] = {};
        for (int64_t k = 0; k < x.rows; ++k) {
          const R* from = x.at[k] + (w - half) * x.apart + c;
          const R* tap = taps + (x.first + k) * KW * p.C + c;
          Vec<R> t[KW];
#pragma GCC unroll 7
          for (int l = 0; l < KW; ++l) t[l] = load(tap + l * p.C);
#pragma GCC unroll 16
          for (int j = 0; j < M + KW - 1; ++j) {
            const Vec<R> v = load(from + j * x.apart);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m)
              if (j - m >= 0 && j - m < KW) sum[m] += t[j - m] * v;
          }
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) run(w + m, sum[m]);
      }
    }
  }
  for (; w < p.W; ++w) alone(w);
}

template <class F> inline void with_width(int64_t KW, const F& run) {
  if (KW == 3) run(std::integral_constant<int, 3>{});
  else if (KW == 5) run(std::integral_constant<int, 5>{});
  else if (KW == 7) run(std::integral_constant<int, 7>{});
  else run(std::integral_constant<int, 0>{});
}

// One image: its rows, the taps as they are read, and windows.
template <class R> struct MapWalk {
  const DepthwiseConv& p;
  MapRows<R> x;
  Window<R> window;
  MapWalk(const DepthwiseConv& p, int64_t b)
      : p(p), x(p.x, p, b, p.KH), window(p.KH, x.apart()) {}
  // The window of x around row h.
  void see(int64_t h) {
    const int64_t half = p.KH / 2, low = std::max<int64_t>(0, h - half),
                  high = std::min(p.H, h + half + 1);
    window.rows = high - low, window.first = low - h + half;
    for (int64_t k = low; k < high; ++k) window.at[k - low] = x.row(k);
  }
  Vec<R> bias(int64_t c, int n) const {
    return p.bias ? load_lanes(static_cast<const R*>(p.bias) + c, n) : Vec<R>{};
  }
};

// How the rows of maps are cut into units of work: by H alone.
struct MapUnits {
  int64_t per, strips;
  explicit MapUnits(int64_t H) {
    const int64_t about = (H + kMapRows - 1) / kMapRows;
    per = (H + about - 1) / about;
    strips = (H + per - 1) / per;
  }
};

template <class R> void depthwise_conv_forward_as(const DepthwiseConv& p) {
  const MapUnits units(p.H);
  const R* taps = static_cast<const R*>(p.taps);
  parallel(p.B * units.strips, p.threads, [&](int64_t index) {
    const int64_t b = index / units.strips, from = index % units.strips * units.per;
    MapWalk<R> walk(p, b);
    MapOut<R> out(p.y, p, b);
    for (int64_t h = from; h < std::min(p.H, from + units.per); ++h) {
      walk.see(h);
      R* y = out.row(h);
      const int64_t apart = out.apart();
      with_width(p.KW, [&](auto width) {
        over_lanes<R>(0, p.C, [&](int64_t c, int n) {
          const Vec<R> bias = walk.bias(c, n);
          sum_columns<R, decltype(width)::value>(p, walk.window, taps, c, n,
                                                 [&](int64_t w, Vec<R> sum) {
                                                   sum += bias;
                                                   if (p.silu) sum *= sigmoid<R>(sum);
                                                   store_lanes(y + w * apart + c, sum, n);
                                                 });
        });
      });
      out.done(h);
    }
  });
}

// One strip of the backward pass: g = dy silu'(sum) of every row and those around it, what it gives
// the taps, and dx, its convolution with the taps turned round.
template <class R> struct MapGradient {
  const DepthwiseConv& p;
  MapWalk<R> walk;
  MapRows<R> dy;
  MapOut<R> dx;
  Room<R> g;  // the last KH rows, (KH, W, C)
  R *dtaps, *dbias;
  MapGradient(const DepthwiseConv& p, int64_t b, R* sums)
      : p(p),
        walk(p, b),
        dy(p.dy, p, b, 1),
        dx(p.dx, p, b),
        g(p.KH * p.W * p.C),
        dtaps(sums),
        dbias(sums + p.KH * p.KW * p.C) {}
  R* gradient_row(int64_t h) { return g.data() + h % p.KH * p.W * p.C; }

  template <int KW> void through(int64_t h, bool counts) {
    const R* from = dy.row(h);
    R* to = gradient_row(h);
    if (p.silu || counts) walk.see(h);
    over_lanes<R>(0, p.C, [&](int64_t c, int n) {
      if (p.silu) {
        const Vec<R> bias = walk.bias(c, n);
        sum_columns<R, KW>(p, walk.window, static_cast<const R*>(p.taps), c, n,
                           [&](int64_t w, Vec<R> sum) {
                             sum += bias;
                             const Vec<R> s = sigmoid<R>(sum);
                             const Vec<R> d = load_lanes(from + w * dy.apart() + c, n);
                             store_lanes(to + w * p.C + c, d * s * (R(1) + sum * (R(1) - s)), n);
                           });
      } else {
        for (int64_t w = 0; w < p.W; ++w)
          store_lanes(to + w * p.C + c, load_lanes(from + w * dy.apart() + c, n), n);
      }
      if (counts) taps_of<KW>(to, c, n);
    });
  }

  // Adds what a row of g gives the taps and the bias.
  template <int KW> void taps_of(const R* to, int64_t c, int n) {
    const int64_t KX = KW ? KW : p.KW, half = KX / 2;
    Vec<R> bias = {};
    for (int64_t w = 0; w < p.W; ++w) bias += load_lanes(to + w * p.C + c, n);
    store_lanes(dbias + c, load_lanes(dbias + c, n) + bias, n);
    for (int64_t k = 0; k < walk.window.rows; ++k) {
      const R* x = walk.window.at[k] + c;
      const int64_t apart = walk.window.apart;
      R* sums = dtaps + (walk.window.first + k) * KX * p.C + c;
      if constexpr (KW > 0)
        if (n == kLanes<R> && p.W > 2 * half) {
          Vec<R> sum[KW] = {};
          const auto edge = [&](int64_t w) {
            const Vec<R> d = load(to + w * p.C + c);
#pragma GCC unroll 7
            for (int l = 0; l < KW; ++l)
              if (w + l - half >= 0 && w + l - half < p.W)
                sum[l] += d * load(x + (w + l - half) * apart);
          };
          for (int64_t w = 0; w < half; ++w) edge(w);
          for (int64_t w = half; w + half < p.W; ++w) {
            const Vec<R> d = load(to + w * p.C + c);
#pragma GCC unroll 7
            for (int l = 0; l < KW; ++l) sum[l] += d * load(x + (w + l - half) * apart);
          }
          for (int64_t w = p.W - half; w < p.W; ++w) edge(w);
#pragma GCC unroll 7
          for (int l = 0; l < KW; ++l) store(sums + l * p.C, load(sums + l * p.C) + sum[l]);
          continue;
        }
      for (int64_t l = 0; l < KX; ++l) {
        Vec<R> sum = {};
        for (int64_t w = std::max<int64_t>(0, half - l); w < std::min(p.W, p.W + half - l); ++w)
          sum += load_lanes(to + w * p.C + c, n) * load_lanes(x + (w + l - half) * apart, n);
        store_lanes(sums + l * p.C, load_lanes(sums + l * p.C, n) + sum, n);
      }
    }
  }

  template <int KW> void finish(int64_t h) {
    const int64_t half = p.KH / 2, low = std::max<int64_t>(0, h - half),
                  high = std::min(p.H, h + half + 1);
    Window<R> window(p.KH, p.C);
    window.rows = high - low, window.first = low - h + half;
    for (int64_t k = low; k < high; ++k) window.at[k - low] = gradient_row(k);
    R* to = dx.row(h);
    over_lanes<R>(0, p.C, [&](int64_t c, int n) {
      sum_columns<R, KW>(
          p, window, static_cast<const R*>(p.turned), c, n,
          [&](int64_t w, Vec<R> sum) { store_lanes(to + w * dx.apart() + c, sum, n); });
    });
    dx.done(h);
  }
};

template <class R> void depthwise_conv_backward_as(const DepthwiseConv& p) {
  const MapUnits units(p.H);
  const int64_t sums = (p.KH * p.KW + 1) * p.C, half = p.KH / 2;
  parallel(p.B * units.strips, p.threads, [&](int64_t index) {
    const int64_t b = index / units.strips, from = index % units.strips * units.per,
                  to = std::min(p.H, from + units.per);
    R* part = static_cast<R*>(p.sums) + index * sums;
    std::fill(part, part + sums, R(0));
    MapGradient<R> map(p, b, part);
    with_width(p.KW, [&](auto width) {
      constexpr int KW = decltype(width)::value;
      int64_t seen = std::max<int64_t>(0, from - half);
      for (int64_t h = from; h < to; ++h) {
        for (; seen < std::min(p.H, h + half + 1); ++seen)
          map.template through<KW>(seen, seen >= from && seen < to);
        map.template finish<KW>(h);
      }
    });
  });
}

}  // namespace LONGSEQ_ISA
