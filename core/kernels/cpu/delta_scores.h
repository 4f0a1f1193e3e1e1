// The decays of a chunk and its scores Σ_c x_ic k_jc exp(g_{j+1,c} + … + g_ic) for x = k (j < i)
// and x = q (j <= i), with their gradients; a decay per head or per key channel. Decays are
// products over real spans: nothing is divided by one, and one of zero (a reset) needs no care. Per
// channel they are measured from the first position of a block of kTile, where rows of later blocks
// meet keys of earlier ones; inside a block key after key is taken along.
#pragma once
#include <cmath>

#include "tiles.h"

namespace LONGSEQ_ISA {

template <class R> inline R decay_of(R g) { return R(std::exp(double(g))); }
template <class R> inline void decays_of(R* g, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes<R>) {
    Vec<R> x = load(g + c);
    // whose exponential is zero, and for which -inf would need care
    const Vec<R> floor = splat(R(-1000));
    store(g + c, vexp<R>(x < floor ? floor : x));
  }
}

template <class R> struct DeltaChunk {
  const DeltaRule& p;
  const int64_t T, K, V, KP, VP;
  const bool by_channel;
  int64_t b, h, t0 = 0, n = 0, rows = 0;  // rows: n, rounded up to whole blocks
  Buffer<R> q, k, kt;                     // (T, KP) twice, (KP, T)
  Buffer<R> beta, a, total;               // (T,); (T,) or (T, KP); (1,) or (KP,): over the chunk
  Buffer<R> through, behind;              // as a: from the chunk's start, to its end
  // q and k decayed from the chunk's start, k decayed to its end (T, KP)
  Buffer<R> reading, meeting, leaving;
  // per channel: q and k decayed from the block's start, decays to its end
  Buffer<R> q_block, k_block, to_block;
  Buffer<R> whole;                        // per channel: decays over blocks (T / kTile, KP)
  Buffer<R> key, dkey, spare;             // (KP, T) or (T, KP), a row of T

  DeltaChunk(const DeltaRule& p, int64_t b, int64_t h)
      : p(p),
        T(p.T),
        K(p.K),
        V(p.V),
        KP(padded(p.K)),
        VP(padded(p.V)),
        by_channel(p.decay == 2),
        b(b),
        h(h) {
    for (Buffer<R>* x : {&q, &k, &kt, &reading, &meeting, &leaving}) x->resize(T * KP);
    beta.resize(T), spare.resize(std::max(T, KP));
    for (Buffer<R>* x : {&a, &through, &behind}) x->resize(by_channel ? T * KP : T);
    total.resize(by_channel ? KP : 1);
    if (!by_channel) return;
    for (Buffer<R>* x : {&q_block, &k_block, &to_block, &key, &dkey}) x->resize(T * KP);
    whole.resize(T / kTile * KP);
  }
  int64_t group() const { return h / (p.H / p.G); }

  // Reads chunk c and computes its decays.
  void read(int64_t c) {
    t0 = c * T, n = std::min(T, p.L - t0), rows = padded(n);
    read_tile(p.q, b, t0, n, rows, group() * K, K, KP, q.data(), R(p.scale));
    read_tile(p.k, b, t0, n, rows, group() * K, K, KP, k.data());
    if (p.beta) read_tile(p.beta, b, t0, n, rows, h, 1, 1, beta.data());
    transpose(rows, KP, k.data(), KP, kt.data(), T);
    by_channel ? channel_decays() : head_decays();
  }
  bool reset(int64_t i) const { return p.resets && i < n && p.resets[b * p.L + t0 + i]; }

  void head_decays() {
    if (p.g)
      read_tile(p.g, b, t0, n, rows, h, 1, 1, a.data());
    else
      std::fill(a.begin(), a.begin() + rows, R(0));
    double product = 1;
    for (int64_t i = 0; i < rows; ++i) {
      a[i] = reset(i) ? R(0) : a[i] == 0 ? R(1) : decay_of(a[i]);
      through[i] = R(product *= double(a[i]));
    }
    total[0] = through[rows - 1];
    product = 1;
    for (int64_t i = rows - 1; i >= 0; --i) {
      behind[i] = R(product);
      product *= double(a[i]);
    }
  }

  // Rows (rows, KP) that meet the state or leave into it. A decay per channel is in them; one per
  // head is left to factors of the products: `entering` (or null), and U times `behind`.
  const R* readers() const { return by_channel ? reading.data() : q.data(); }
  const R* meeters() const { return by_channel ? meeting.data() : k.data(); }
  const R* leavers() const { return by_channel ? leaving.data() : k.data(); }
  const R* entering() const { return by_channel ? nullptr : through.data(); }

  // Queries and keys with the decays of heads in them, for the backward.
  void spread() {
    if (by_channel) return;
    for (int64_t i = 0; i < rows; ++i) {
      scale_row(through[i], &q[i * KP], &reading[i * KP], KP);
      scale_row(through[i], &k[i * KP], &meeting[i * KP], KP);
      scale_row(behind[i], &k[i * KP], &leaving[i * KP], KP);
    }
  }

  void channel_decays() {
    read_tile(p.g, b, t0, n, rows, group() * K, K, KP, a.data());
    decays_of(a.data(), rows * KP);
    for (int64_t i = 0; i < n; ++i)
      if (reset(i)) std::fill(&a[i * KP], &a[i * KP] + KP, R(0));
    std::fill(total.begin(), total.end(), R(1));
    for (int64_t first = 0; first < rows; first += kTile) {
      R* over = &whole[first / kTile * KP];  // grows from position to position
      std::fill(over, over + KP, R(1));
      for (int64_t i = first; i < first + kTile; ++i) {
        const int64_t at = i * KP;
        multiply_row(&a[at], over, over, KP);
        multiply_row(&q[at], over, &q_block[at], KP);
        multiply_row(&k[at], over, &k_block[at], KP);
        multiply_row(total.data(), over, &through[at], KP);
        multiply_row(&q[at], &through[at], &reading[at], KP);
        multiply_row(&k[at], &through[at], &meeting[at], KP);
      }
      std::copy(&through[(first + kTile - 1) * KP], &through[(first + kTile - 1) * KP] + KP,
                total.begin());
    }
    Buffer<R> later(KP, R(1));
    for (int64_t first = rows - kTile; first >= 0; first -= kTile) {
      std::fill(spare.begin(), spare.begin() + KP, R(1));
      for (int64_t i = first + kTile - 1; i >= first; --i) {
        const int64_t at = i * KP;
        std::copy(spare.begin(), spare.begin() + KP, &to_block[at]);
        multiply_row(spare.data(), later.data(), &behind[at], KP);
        multiply_row(&k[at], &behind[at], &leaving[at], KP);
        multiply_row(spare.data(), &a[at], spare.data(), KP);
      }
      multiply_row(later.data(), &whole[first / kTile * KP], later.data(), KP);
    }
  }

  // Writes the scores of keys A and of queries P (T, T), zero above the diagonal of every block on
  // it; A only if asked.
  void scores(R* A, R* P) {
    by_channel ? channel_scores(A, P) : head_scores(A, P);
  }

  void head_scores(R* A, R* P) {
    R* decay = spare.data();
    for (int64_t first = 0; first < rows; first += kTile) {
      const int64_t columns = first + kTile;
      if (p.beta)
        product(kTile, columns, K, {&k[first * KP], KP, 1}, kt.data(), T, A + first * T, T,
                Into::kSet);
      product(kTile, columns, K, {&q[first * KP], KP, 1}, kt.data(), T, P + first * T, T,
              Into::kSet);
      for (int64_t i = first; i < columns; ++i) {
        if (i == first) std::fill(decay + first, decay + columns, R(0));
        if (i > 0) scale_row(a[i], decay, decay, columns);
        if (p.beta) multiply_row(decay, A + i * T, A + i * T, columns);
        decay[i] = R(1);
        multiply_row(decay, P + i * T, P + i * T, columns);
      }
    }
  }

  void channel_scores(R* A, R* P) {
    constexpr int V = kLanes<R>;
    IVec<R> lane;
    for (int l = 0; l < V; ++l) lane[l] = l;
    R* w = key.data();  // keys of earlier blocks, decayed up to this one: (KP, T)
    for (int64_t first = 0; first < rows; first += kTile) {
      if (first) {
        const R* over = &whole[(first / kTile - 1) * KP];
        for (int64_t j = first - kTile; j < first; ++j)
          multiply_row(&k[j * KP], &to_block[j * KP], &dkey[j * KP], KP);
        transpose(kTile, KP, &dkey[(first - kTile) * KP], KP, w + first - kTile, T);
        for (int64_t c = 0; c < K; ++c) scale_row(over[c], w + c * T, w + c * T, first - kTile);
        if (p.beta)
          product(kTile, first, K, {&k_block[first * KP], KP, 1}, w, T, A + first * T, T,
                  Into::kSet);
        product(kTile, first, K, {&q_block[first * KP], KP, 1}, w, T, P + first * T, T, Into::kSet);
      }
      for (int64_t c = 0; c < K; ++c)
        std::copy(&kt[c * T + first], &kt[c * T + first] + kTile, w + c * T + first);
      for (int64_t j = 0; j < kTile; j += V)  // V keys of the block, from row to row
        for (int64_t i = 0; i < kTile; ++i) {
          const int64_t row = (first + i) * KP;
          Vec<R> met[2] = {}, read[2] = {};
          const typename Traits<R>::Int own = i - j;
          const IVec<R> earlier = lane < own, until = lane <= own;
          R* at = w + first + j;
          for (int64_t c = 0; c < KP; c += 2)
            for (int u = 0; u < 2; ++u) {
              Vec<R> x = load(at + (c + u) * T);
              x = earlier ? x * a[row + c + u] : x;
              store(at + (c + u) * T, x);
              met[u] += k[row + c + u] * x;
              read[u] += q[row + c + u] * x;
            }
          const Vec<R> zero = {};
          if (p.beta) store(A + (first + i) * T + first + j, earlier ? met[0] + met[1] : zero);
          store(P + (first + i) * T + first + j, until ? read[0] + read[1] : zero);
        }
    }
  }

  // Adds the gradients of q and k (T, KP), and writes that of g: from those of the scores, dA and
  // dP, which become those of the products without decays; from that of the exponents of what
  // enters, dstart (T, KP), of what leaves, dend (T, KP), and of the state's decay over the chunk,
  // dtotal (KP,). A and P are overwritten.
  void slopes(R* A, R* P, R* dA, R* dP, const R* dstart, const R* dend, const R* dtotal, R* dq,
              R* dk, R* dg) {
    by_channel ? channel_slopes(dA, dP, dstart, dend, dtotal, dq, dk, dg)
               : head_slopes(A, P, dA, dP, dstart, dend, dtotal, dq, dk, dg);
  }

  void head_slopes(R* A, R* P, R* dA, R* dP, const R* dstart, const R* dend, const R* dtotal, R* dq,
                   R* dk, R* dg) {
    R* decay = spare.data();
    for (int64_t first = 0; first < rows; first += kTile) {
      const int64_t columns = first + kTile;
      std::fill(decay + first, decay + columns, R(0));
      for (int64_t i = first; i < columns; ++i) {  // P becomes the gradient of the exponents
        scale_row(a[i], decay, decay, columns);
        multiply_row(dP + i * T, P + i * T, P + i * T, columns);
        if (p.beta) add_products(dA + i * T, A + i * T, P + i * T, columns);
        if (p.beta) multiply_row(decay, dA + i * T, dA + i * T, columns);
        decay[i] = R(1);
        multiply_row(decay, dP + i * T, dP + i * T, columns);
        P[i * T + i] = R(0);
      }
      product(kTile, KP, columns, {dP + first * T, T, 1}, k.data(), KP, dq + first * KP, KP,
              Into::kAdd);
      if (p.beta)
        product(kTile, KP, columns, {dA + first * T, T, 1}, k.data(), KP, dk + first * KP, KP,
                Into::kAdd);
    }
    for (int64_t first = 0; first < rows; first += kTile) {
      const int64_t at = first * T + first;
      product(kTile, KP, rows - first, {dP + at, 1, T}, &q[first * KP], KP, dk + first * KP, KP,
              Into::kAdd);
      if (p.beta)
        product(kTile, KP, rows - first, {dA + at, 1, T}, &k[first * KP], KP, dk + first * KP, KP,
                Into::kAdd);
    }
    if (!p.g) return;
    // What the exponents of the positions got from this row and the later ones; and those of the
    // state.
    R* column = spare.data();
    const Buffer<R> ones(KP, R(1));
    for (int64_t i = 0; i < rows; ++i) column[i] = dot_rows(dend + i * KP, ones.data(), KP);
    R state = dot_rows(dtotal, ones.data(), KP);
    for (int64_t t = rows - 1; t >= 0; --t) {
      add_row(P + t * T, column, padded(t + 1));
      state += dot_rows(dstart + t * KP, ones.data(), KP);
      column[t] = R(0);
      Vec<R> sum = {};
      for (int64_t j = 0; j < padded(t + 1); j += kLanes<R>) {
        alignas(64) R lanes[kLanes<R>];
        store(lanes, load(column + j));
        for (int64_t l = std::max<int64_t>(0, t - j); l < kLanes<R>; ++l) lanes[l] = R(0);
        sum += load(lanes);
      }
      dg[t] = reset(t) ? R(0) : state + sum_lanes(sum);
    }
  }

  void channel_slopes(R* dA, R* dP, const R* dstart, const R* dend, const R* dtotal, R* dq, R* dk,
                      R* dg) {
    // keys of earlier blocks, decayed up to this one, and their gradients: (T, KP)
    R *w = key.data(), *dw = dkey.data();
    Buffer<R> dq_own(kTile * KP), dk_own(kTile * KP), factor(KP), sum(KP);
    // What enters counts for all positions up to its own; what leaves for those behind.
    std::copy(dtotal, dtotal + KP, sum.begin());
    for (int64_t t = rows - 1; t >= 0; --t) {
      add_row(dstart + t * KP, sum.data(), KP);
      std::copy(sum.begin(), sum.end(), dg + t * KP);
    }
    std::fill(sum.begin(), sum.end(), R(0));
    for (int64_t t = 0; t < rows; ++t) {
      add_row(sum.data(), dg + t * KP, KP);
      add_row(dend + t * KP, sum.data(), KP);
    }
    std::fill(dw, dw + rows * KP, R(0));
    for (int64_t first = rows - kTile; first >= 0; first -= kTile) {
      block_slopes(first, dA, dP, dq, dk, dg);
      if (!first) break;
      std::fill(factor.begin(), factor.end(), R(1));
      for (int64_t j = first - 1; j >= 0; --j) {
        multiply_row(&k[j * KP], &to_block[j * KP], w + j * KP, KP);
        multiply_row(factor.data(), w + j * KP, w + j * KP, KP);
        if (j % kTile == 0) multiply_row(&whole[j / kTile * KP], factor.data(), factor.data(), KP);
      }
      const int64_t at = first * T;
      product(kTile, KP, first, {dP + at, T, 1}, w, KP, dq_own.data(), KP, Into::kSet);
      product(first, KP, kTile, {dP + at, 1, T}, &q_block[first * KP], KP, dw, KP, Into::kAdd);
      if (p.beta) {
        product(kTile, KP, first, {dA + at, T, 1}, w, KP, dk_own.data(), KP, Into::kSet);
        product(first, KP, kTile, {dA + at, 1, T}, &k_block[first * KP], KP, dw, KP, Into::kAdd);
      }
      std::fill(factor.begin(), factor.end(), R(1));
      // from here on dq_own holds the gradient of the exponents
      for (int64_t i = 0; i < kTile; ++i) {
        const int64_t row = (first + i) * KP;
        multiply_row(&a[row], factor.data(), factor.data(), KP);
        add_products(factor.data(), &dq_own[i * KP], dq + row, KP);
        multiply_row(&q_block[row], &dq_own[i * KP], &dq_own[i * KP], KP);
        if (!p.beta) continue;
        add_products(factor.data(), &dk_own[i * KP], dk + row, KP);
        add_products(&k_block[row], &dk_own[i * KP], &dq_own[i * KP], KP);
      }
      std::fill(sum.begin(), sum.end(), R(0));
      for (int64_t i = kTile - 1; i >= 0; --i) {
        add_row(&dq_own[i * KP], sum.data(), KP);
        add_row(sum.data(), dg + (first + i) * KP, KP);
      }
      // On to the block before: its decay over all of it is part of every earlier key.
      const int64_t before = first - kTile;
      std::fill(sum.begin(), sum.end(), R(0));
      for (int64_t j = 0; j < before; ++j) {
        add_products(dw + j * KP, w + j * KP, sum.data(), KP);
        multiply_row(&whole[before / kTile * KP], dw + j * KP, dw + j * KP, KP);
      }
      for (int64_t j = before; j < first; ++j) {
        add_row(sum.data(), dg + j * KP, KP);
        add_products(dw + j * KP, w + j * KP, sum.data(), KP);
        add_products(dw + j * KP, &to_block[j * KP], dk + j * KP, KP);
      }
    }
  }

  // The gradients inside a block of kTile positions.
  void block_slopes(int64_t first, const R* dA, const R* dP, R* dq, R* dk, R* dg) {
    const R *met = dA + first * T + first, *read = dP + first * T + first;
    for (int64_t c = 0; c < KP; c += kLanes<R>) {
      Vec<R> w[kTile], slope[kTile];
      for (int i = 0; i < kTile; ++i) {
        const int64_t at = (first + i) * KP + c;
        const Vec<R> decay = load(&a[at]), key = load(&k[at]);
        Vec<R> for_q = {}, for_k = {};
        for (int j = 0; j < i; ++j) {
          w[j] *= decay;
          for_q += read[i * T + j] * w[j];
          if (p.beta) for_k += met[i * T + j] * w[j];
        }
        slope[i] = load(&q[at]) * for_q + key * for_k;
        w[i] = key;
        store(dq + at, load(dq + at) + for_q + read[i * T + i] * key);
        store(dk + at, load(dk + at) + for_k);
      }
      for (int i = 0; i < kTile; ++i) w[i] = Vec<R>{};
      for (int i = kTile - 1; i > 0; --i) {
        const int64_t at = (first + i) * KP + c;
        const Vec<R> decay = load(&a[at]), key = load(&k[at]), query = load(&q[at]);
        for (int j = 0; j < i; ++j) {
          w[j] += read[i * T + j] * query;
          if (p.beta) w[j] += met[i * T + j] * key;
          w[j] *= decay;
        }
      }
      Vec<R> sum = {};
      for (int i = kTile - 1; i >= 0; --i) {
        const int64_t at = (first + i) * KP + c;
        const Vec<R> decay = load(&a[at]), key = load(&k[at]);
        store(dk + at, load(dk + at) + w[i] + read[i * T + i] * load(&q[at]));
        sum += slope[i] - key * w[i];
        // Nothing passes a decay of zero: what the difference leaves there is rounding.
        store(dg + at, load(dg + at) + (decay == Vec<R>{} ? Vec<R>{} : sum));
      }
    }
  }
};

}  // namespace LONGSEQ_ISA
