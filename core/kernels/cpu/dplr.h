// The recurrence S_t = (diag(e_t) + a_t b_tᵀ) S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t, chunk by chunk of
// kTile positions: everything of a chunk and a head stays in the caches. With S₀ the state that
// enters, X the rows [k; a] and Y the rows [v; p], p_t = S_{t-1}ᵀ b_t what is found, F and Q' the
// rows b and q decayed from the chunk's start, X' the rows X decayed to its end, and the scores
//   M_ij = Σ_c b_ic x_jc e_{j+1,c} … e_{i-1,c} (j < i),  N_ij = Σ_c q_ic x_jc e_{j+1,c} … e_{i,c}
// (j <= i), M = [M_k, M_a]:
//   (I - M_a) P = F S₀ + M_k V,  O = Q' S₀ + N Y,  S₁ = D S₀ + X'ᵀ Y.
// Decays are products over real spans: nothing is divided by one, and one of zero needs no care.
// The backward walks over segments of kDplrMark chunks from the state saved before each, last
// segment first: forward again, keeping what every chunk solved, then back through its chunks:
//   dY = Nᵀ dO + X' dS₁,  (I - M_aᵀ) W = dP,  dV += M_kᵀ W,  dM = W Yᵀ,  dN = dO Yᵀ,
//   dS₀ = D dS₁ + Q'ᵀ dO + Fᵀ W.
#pragma once
#include "tiles.h"

namespace LONGSEQ_ISA {

template <class R> struct DplrWalk {
  static constexpr int64_t T = kTile, W = 2 * kTile;  // positions of a chunk; rows of X and Y
  const Dplr& p;
  const int64_t K, V, KP, VP, h, b;
  int64_t t0 = 0, n = 0;
  Buffer<R> q, look, keys, decay;  // q scaled, b and e (T, KP); X (2T, KP)
  Buffer<R> through;               // decays from the start to before each position (T + 1, KP)
  Buffer<R> reading, meeting;      // Q' and F (T, KP)
  Buffer<R> leaving;               // X'ᵀ (KP, 2T)
  Buffer<R> both, y, block;        // Y (2T, VP); O (T, VP); -M_a (T, T)

  DplrWalk(const Dplr& p, int64_t unit)
      : p(p),
        K(p.K),
        V(p.V),
        KP(padded(p.K)),
        VP(padded(p.V)),
        h(unit % p.H),
        b(unit / p.H) {
    for (Buffer<R>* x : {&q, &look, &decay, &reading, &meeting}) x->resize(T * KP);
    for (Buffer<R>* x : {&keys, &leaving}) x->resize(W * KP);
    through.resize((T + 1) * KP, R(1)), both.resize(W * VP), y.resize(T * VP), block.resize(T * T);
  }

  R* found() { return &both[T * VP]; }
  int64_t chunks() const { return (p.L + T - 1) / T; }
  const R* state_of(const void* all) const {
    return static_cast<const R*>(all) + (b * p.H + h) * K * V;
  }
  void load_state(const R* from, R* S) const {
    for (int64_t i = 0; i < K; ++i) std::copy(from + i * V, from + (i + 1) * V, S + i * VP);
  }
  void save_state(const R* S, R* to) const {
    for (int64_t i = 0; i < K; ++i) std::copy(S + i * VP, S + i * VP + V, to + i * V);
  }
  R* mark(int64_t segment) const {
    const int64_t count = (chunks() + kDplrMark - 1) / kDplrMark;
    return static_cast<R*>(p.marks) + ((b * p.H + h) * count + segment) * K * V;
  }
  bool reset(int64_t i) const { return p.resets && p.resets[b * p.L + t0 + i]; }

  // Reads chunk c and computes its decays; rows behind the end are zeros, and their decays ones.
  void read(int64_t c) {
    t0 = c * T, n = std::min(T, p.L - t0);
    read_tile(p.q, b, t0, n, T, h * K, K, KP, q.data(), R(p.scale));
    read_tile(p.k, b, t0, n, T, h * K, K, KP, keys.data());
    read_tile(p.a, b, t0, n, T, h * K, K, KP, &keys[T * KP]);
    read_tile(p.b, b, t0, n, T, h * K, K, KP, look.data());
    read_tile(p.v, b, t0, n, T, h * V, V, VP, both.data());
    read_tile(p.g, b, t0, n, T, h * K, K, KP, decay.data());
    const Vec<R> floor = splat(R(-1000));  // whose exponential is zero; -inf would need care
    for (int64_t i = 0; i < T * KP; i += kLanes<R>) {
      const Vec<R> x = load(&decay[i]);
      store(&decay[i], vexp<R>(x < floor ? floor : x));
    }
    for (int64_t i = 0; i < n; ++i) {
      if (!reset(i)) continue;
      std::fill(&decay[i * KP], &decay[i * KP] + KP, R(0));
      std::fill(&look[i * KP], &look[i * KP] + KP, R(0));
    }
    for (int64_t at = 0; at < T * KP; at += KP) {
      multiply_row(&look[at], &through[at], &meeting[at], KP);
      multiply_row(&decay[at], &through[at], &through[at + KP], KP);
      multiply_row(&q[at], &through[at + KP], &reading[at], KP);
    }
  }

  // Writes M and N (T, 2T), zero where they are not defined, and leaves X'ᵀ in `leaving`: the rows
  // X are taken along from position to position.
  void scores(R* M, R* N) {
    IVec<R> lane;
    for (int l = 0; l < kLanes<R>; ++l) lane[l] = l;
    transpose(W, KP, keys.data(), KP, leaving.data(), W);
    for (int64_t j = 0; j < T; j += kLanes<R>)
      for (int64_t i = 0; i < T; ++i) {
        const R *see = &look[i * KP], *ask = &q[i * KP], *keep = &decay[i * KP];
        const typename Traits<R>::Int own = i - j;
        const IVec<R> earlier = lane < own, until = lane <= own;
        Vec<R> met[2] = {}, read[2] = {};
        R* at = &leaving[j];
        for (int64_t c = 0; c < KP; ++c, at += W)
          for (int u = 0; u < 2; ++u) {
            Vec<R> x = load(at + u * T);
            met[u] += see[c] * x;
            x = earlier ? x * keep[c] : x;
            store(at + u * T, x);
            read[u] += ask[c] * x;
          }
        const Vec<R> zero = {};
        for (int u = 0; u < 2; ++u) {
          store(M + i * W + u * T + j, earlier ? met[u] : zero);
          store(N + i * W + u * T + j, until ? read[u] : zero);
        }
      }
  }

  void turn_sign(const R* M) {
    for (int64_t i = 0; i < T; ++i) scale_row(R(-1), M + i * W + T, &block[i * T], T);
  }
  // Reads a chunk; writes M, N and what is found.
  void solve(int64_t c, const R* S, R* M, R* N) {
    read(c);
    scores(M, N);
    Finish<R> inside;
    inside.more = {M, W, 1}, inside.depth = T, inside.b = both.data(), inside.b_row = VP;
    product(T, VP, K, {meeting.data(), KP, 1}, S, VP, found(), VP, Into::kSet, inside);
    turn_sign(M);
    solve_block(block.data(), found(), VP, VP);
  }
  void advance(R* S) {
    Finish<R> decaying;
    decaying.own = &through[T * KP];
    product(K, VP, W, {leaving.data(), W, 1}, both.data(), VP, S, VP, Into::kAdd, decaying);
  }

  void forward() {
    Buffer<R> S(KP * VP), M(T * W), N(T * W);
    if (p.initial) load_state(state_of(p.initial), S.data());
    for (int64_t c = 0; c < chunks(); ++c) {
      if (p.marks && c % kDplrMark == 0) save_state(S.data(), mark(c / kDplrMark));
      solve(c, S.data(), M.data(), N.data());
      Finish<R> inside;
      inside.more = {N.data(), W, 1}, inside.depth = W, inside.b = both.data(), inside.b_row = VP;
      product(T, VP, K, {reading.data(), KP, 1}, S.data(), VP, y.data(), VP, Into::kSet, inside);
      write_tile(p.y, b, t0, n, h * V, V, VP, y.data());
      advance(S.data());
    }
    save_state(S.data(), const_cast<R*>(state_of(p.final_state)));
  }
};

template <class R> struct DplrBack : DplrWalk<R> {
  using Walk = DplrWalk<R>;
  using Walk::T, Walk::W, Walk::p, Walk::K, Walk::V, Walk::KP, Walk::VP, Walk::h, Walk::b, Walk::t0;
  using Walk::n, Walk::q, Walk::look, Walk::keys, Walk::decay, Walk::through, Walk::reading;
  using Walk::meeting, Walk::leaving, Walk::both, Walk::block, Walk::chunks, Walk::found;
  struct Kept {
    Buffer<R> S, M, N, leaving, found;
  };
  std::vector<Kept> kept;
  // Gradients: of the state, O, Y, M and N, Q', F, X', D; and of q, b, g and X.
  Buffer<R> dS, dy, dboth, dM, dN, dreading, dmeeting, dleaving, dtotal, dq, dlook, dg, dkeys;
  Buffer<R> turned;

  DplrBack(const Dplr& p, int64_t unit) : Walk(p, unit), kept(kDplrMark) {
    for (Kept& x : kept)
      x.S.resize(KP * VP), x.M.resize(T * W), x.N.resize(T * W), x.leaving.resize(W * KP),
          x.found.resize(T * VP);
    for (Buffer<R>* x : {&dreading, &dmeeting, &dq, &dlook, &dg}) x->resize(T * KP);
    for (Buffer<R>* x : {&dleaving, &dkeys}) x->resize(W * KP);
    dS.resize(KP * VP), dy.resize(T * VP), dboth.resize(W * VP), dM.resize(T * W), dN.resize(T * W);
    dtotal.resize(KP), turned.resize(VP * std::max(KP, W));
  }

  void backward() {
    if (p.dfinal) this->load_state(this->state_of(p.dfinal), dS.data());
    const int64_t last = (chunks() - 1) / kDplrMark * kDplrMark;
    for (int64_t first = last; first >= 0; first -= kDplrMark) {
      const int64_t end = std::min(chunks(), first + kDplrMark);
      this->load_state(this->mark(first / kDplrMark), kept[0].S.data());
      for (int64_t c = first; c < end; ++c) {
        Kept& x = kept[c - first];
        this->solve(c, x.S.data(), x.M.data(), x.N.data());
        if (c + 1 == end) break;
        std::copy(leaving.begin(), leaving.end(), x.leaving.begin());
        std::copy(found(), found() + T * VP, x.found.begin());
        std::copy(x.S.begin(), x.S.end(), kept[c + 1 - first].S.begin());
        this->advance(kept[c + 1 - first].S.data());
      }
      for (int64_t c = end - 1; c >= first; --c) {
        const Kept& x = kept[c - first];
        if (c + 1 < end) {
          this->read(c);
          std::copy(x.leaving.begin(), x.leaving.end(), leaving.begin());
          std::copy(x.found.begin(), x.found.end(), found());
        }
        back(x.S.data(), x.M.data(), x.N.data());
      }
    }
    this->save_state(dS.data(), const_cast<R*>(this->state_of(p.dinitial)));
  }

  // Back through the chunk that was read and solved.
  void back(const R* S, const R* M, const R* N) {
    read_tile(p.dy, b, t0, n, T, h * V, V, VP, dy.data());
    R* w = &dboth[T * VP];
    Finish<R> inside;
    inside.more = {N, 1, W}, inside.depth = T, inside.b = dy.data(), inside.b_row = VP;
    product(W, VP, K, {leaving.data(), 1, W}, dS.data(), VP, dboth.data(), VP, Into::kSet, inside);
    this->turn_sign(M);
    solve_block_transposed(block.data(), w, VP, VP);
    product(T, VP, T, {M, 1, W}, w, VP, dboth.data(), VP, Into::kAdd);
    // The scores.
    transpose(W, VP, both.data(), VP, turned.data(), W);
    product(T, W, V, {w, VP, 1}, turned.data(), W, dM.data(), W, Into::kSet);
    product(T, W, V, {dy.data(), VP, 1}, turned.data(), W, dN.data(), W, Into::kSet);
    // What enters and what leaves.
    transpose(KP, VP, S, VP, turned.data(), KP);
    product(T, KP, V, {dy.data(), VP, 1}, turned.data(), KP, dreading.data(), KP, Into::kSet);
    product(T, KP, V, {w, VP, 1}, turned.data(), KP, dmeeting.data(), KP, Into::kSet);
    transpose(KP, VP, dS.data(), VP, turned.data(), KP);
    product(W, KP, V, {both.data(), VP, 1}, turned.data(), KP, dleaving.data(), KP, Into::kSet);
    for (int64_t i = 0; i < K; ++i) dtotal[i] = dot_rows(S + i * VP, &dS[i * VP], VP);
    for (int64_t c = 0; c < KP; c += kLanes<R>) slopes(c);
    Finish<R> decaying;
    decaying.own = &through[T * KP], decaying.more = {meeting.data(), 1, KP};
    decaying.depth = T, decaying.b = w, decaying.b_row = VP;
    product(K, VP, T, {reading.data(), 1, KP}, dy.data(), VP, dS.data(), VP, Into::kAdd, decaying);
    write();
  }

  // From the gradients of the scores and of what enters and leaves to those of q, b, g and X, for
  // the channels of one vector: X is taken along over the positions again, and its gradient back.
  // That of a decay is a sum of products, never a difference.
  void slopes(int64_t c) {
    Vec<R> was[T][2][T], x[2][T];  // X before each position; now, and then its gradient
    for (int64_t i = 0; i < T; ++i) {
      const int64_t at = i * KP + c;
      const Vec<R> keep = load(&decay[at]);
      Vec<R> for_b = load(&dmeeting[at]) * load(&through[at]),
             for_q = load(&dreading[at]) * load(&through[at + KP]);
      for (int u = 0; u < 2; ++u) {
        const R *m = &dM[i * W + u * T], *r = &dN[i * W + u * T];
        for (int64_t j = 0; j < i; ++j) {
          was[i][u][j] = x[u][j];
          for_b += m[j] * x[u][j];
          x[u][j] *= keep;
          for_q += r[j] * x[u][j];
        }
        x[u][i] = load(&keys[(u * T + i) * KP + c]);
        for_q += r[i] * x[u][i];
      }
      store(&dlook[at], for_b), store(&dq[at], for_q);
    }
    for (int u = 0; u < 2; ++u)
      for (int64_t j = 0; j < T; ++j) x[u][j] = load(&dleaving[(u * T + j) * KP + c]);
    Vec<R> entering = load(&dtotal[c]);  // the gradient of the decay from the start
    for (int64_t i = T - 1; i >= 0; --i) {
      const int64_t at = i * KP + c;
      const Vec<R> keep = load(&decay[at]), ask = load(&q[at]), see = load(&look[at]);
      entering += ask * load(&dreading[at]);
      Vec<R> slope = entering * load(&through[at]);
      entering = entering * keep + see * load(&dmeeting[at]);
      for (int u = 0; u < 2; ++u) {
        const R *m = &dM[i * W + u * T], *r = &dN[i * W + u * T];
        store(&dkeys[(u * T + i) * KP + c], x[u][i] + r[i] * ask);
        for (int64_t j = 0; j < i; ++j) {
          const Vec<R> later = x[u][j] + r[j] * ask;
          slope += later * was[i][u][j];
          x[u][j] = later * keep + m[j] * see;
        }
      }
      store(&dg[at], slope * keep);
    }
  }

  void write() {
    for (int64_t i = 0; i < n; ++i) {
      if (!this->reset(i)) continue;
      std::fill(&dlook[i * KP], &dlook[i * KP] + KP, R(0));
      std::fill(&dg[i * KP], &dg[i * KP] + KP, R(0));
    }
    if (p.scale != 1) scale_row(R(p.scale), dq.data(), dq.data(), T * KP);
    write_tile(p.dq, b, t0, n, h * K, K, KP, dq.data());
    write_tile(p.dk, b, t0, n, h * K, K, KP, dkeys.data());
    write_tile(p.da, b, t0, n, h * K, K, KP, &dkeys[T * KP]);
    write_tile(p.db, b, t0, n, h * K, K, KP, dlook.data());
    write_tile(p.dg, b, t0, n, h * K, K, KP, dg.data());
    write_tile(p.dv, b, t0, n, h * V, V, VP, dboth.data());
  }
};

template <class R> void dplr_forward_as(const Dplr& p) {
  parallel(p.B * p.H, p.threads, [&](int64_t unit) { DplrWalk<R>(p, unit).forward(); });
}
template <class R> void dplr_backward_as(const Dplr& p) {
  parallel(p.B * p.H, p.threads, [&](int64_t unit) { DplrBack<R>(p, unit).backward(); });
}

}  // namespace LONGSEQ_ISA
