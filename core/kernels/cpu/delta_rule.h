// The delta rule and linear attention with a decay per head or per key channel, chunk by chunk:
// everything of a chunk and a head stays in the caches. With S₀ the state that enters, F and Q'
// keys and queries decayed from the chunk's start and K' keys decayed to its end, A and P the
// scores of keys and of queries, β diagonal:
//   (I + A β) E = V - F S₀,  U = β E,  O = Q' S₀ + P U,  S₁ = D S₀ + K'ᵀ U.
// The backward walks over segments of kDeltaMark chunks from the state saved before each, last
// segment first: forward again, keeping what every chunk solved, then back through its chunks:
//   dU = Pᵀ dO + K' dS₁,  (I + Aᵀ β) W/β = dU,  dV = W,  dβ = W/β · E,  dA = -W Uᵀ,  dP = dO Uᵀ,
//   dS₀ = D dS₁ + Q'ᵀ dO - Fᵀ W.
// Without β it is linear attention: U is V and W is dU.
#pragma once
#include "delta_scores.h"

namespace LONGSEQ_ISA {

template <class R> struct DeltaWalk {
  const DeltaRule& p;
  DeltaChunk<R> chunk;
  const int64_t T, K, V, KP, VP, h, b;
  Buffer<R> u, sent, y, block;  // U; decayed to the chunk's end; O; a block of A times β
  RowsAhead ahead;
  DeltaWalk(const DeltaRule& p, int64_t unit)
      : p(p),
        chunk(p, unit / p.H, unit % p.H),
        T(p.T),
        K(p.K),
        V(p.V),
        KP(chunk.KP),
        VP(chunk.VP),
        h(chunk.h),
        b(chunk.b),
        u(T * VP),
        sent(chunk.by_channel ? 0 : T * VP),
        y(T * VP),
        block(kTile * kTile) {}

  int64_t rows() const { return chunk.rows; }
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
    const int64_t chunks = (p.L + T - 1) / T, count = (chunks + kDeltaMark - 1) / kDeltaMark;
    return static_cast<R*>(p.marks) + ((b * p.H + h) * count + segment) * K * V;
  }

  // From E, or V where there is no β, to U and to what of it leaves: rows [first, end).
  void weigh(const R* E, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) {
      const R beta = p.beta ? chunk.beta[i] : R(1);
      scale_row(beta, E + i * VP, &u[i * VP], VP);
      if (!chunk.by_channel) scale_row(chunk.behind[i], &u[i * VP], &sent[i * VP], VP);
    }
  }
  // What the products of a chunk ask for: the rows of the next one.
  void look_ahead() {
    const int64_t t1 = chunk.t0 + T, n = std::min(T, p.L - t1), g = chunk.group() * K;
    ahead.clear();
    ahead.add(p.q, b, t1, n, g, K), ahead.add(p.k, b, t1, n, g, K);
    ahead.add(p.v, b, t1, n, h * V, V);
    if (p.y) ahead.add(p.y, b, t1, n, h * V, V);
  }

  // Reads a chunk; writes A, P and E, and leaves U in `u`.
  void solve(int64_t c, const R* S, R* A, R* P, R* E) {
    chunk.read(c);
    read_tile(p.v, b, chunk.t0, chunk.n, rows(), h * V, V, VP, E);
    look_ahead();
    chunk.scores(A, P);
    if (!p.beta) return weigh(E, 0, rows());
    Finish<R> entering;
    entering.sums = chunk.entering(), entering.ahead = &ahead;
    product(rows(), VP, K, {chunk.meeters(), KP, 1}, S, VP, E, VP, Into::kSubtract, entering);
    for (int64_t first = 0; first < rows(); first += kTile) {
      R* x = E + first * VP;
      if (first)
        product(kTile, VP, first, {A + first * T, T, 1}, u.data(), VP, x, VP, Into::kSubtract);
      for (int64_t i = 0; i < kTile; ++i)
        multiply_row(A + (first + i) * T + first, &chunk.beta[first], &block[i * kTile], kTile);
      solve_block(block.data(), x, VP, VP);
      weigh(E, first, first + kTile);
    }
  }
  // How a state goes over the chunk: times its decay, and what is added.
  Finish<R> decaying() {
    Finish<R> finish;
    finish.own = chunk.total.data(), finish.own_stride = chunk.by_channel, finish.ahead = &ahead;
    return finish;
  }
  // The state after the chunk, of U.
  void advance(R* S) {
    const R* left = chunk.by_channel ? u.data() : sent.data();
    product(K, VP, rows(), {chunk.leavers(), 1, KP}, left, VP, S, VP, Into::kAdd, decaying());
  }

  void forward() {
    Buffer<R> S(KP * VP), A(T * T), P(T * T), E(T * VP);
    if (p.initial) load_state(state_of(p.initial), S.data());
    for (int64_t c = 0; c * T < p.L; ++c) {
      if (p.marks && c % kDeltaMark == 0) save_state(S.data(), mark(c / kDeltaMark));
      solve(c, S.data(), A.data(), P.data(), E.data());
      for (int64_t first = 0; first < rows(); first += kTile) {
        Finish<R> inside;
        inside.sums = chunk.entering() ? chunk.entering() + first : nullptr;
        inside.more = {&P[first * T], T, 1}, inside.depth = first + kTile;
        inside.b = u.data(), inside.b_row = VP, inside.ahead = &ahead;
        product(kTile, VP, K, {chunk.readers() + first * KP, KP, 1}, S.data(), VP, &y[first * VP],
                VP, Into::kSet, inside);
      }
      write_tile(p.y, b, chunk.t0, chunk.n, h * V, V, VP, y.data());
      advance(S.data());
    }
    save_state(S.data(), const_cast<R*>(state_of(p.final_state)));
  }
};

template <class R> struct DeltaBack : DeltaWalk<R> {
  using DeltaWalk<R>::p, DeltaWalk<R>::chunk, DeltaWalk<R>::T, DeltaWalk<R>::K, DeltaWalk<R>::V,
      DeltaWalk<R>::KP;
  using DeltaWalk<R>::VP, DeltaWalk<R>::h, DeltaWalk<R>::b, DeltaWalk<R>::u, DeltaWalk<R>::block,
      DeltaWalk<R>::rows;
  struct Kept {
    Buffer<R> S, A, P, E;
  };
  std::vector<Kept> kept;
  Buffer<R> dS, dy, w, turned, dA, dP, dq, dk, dg, dbeta, one, dstart, dend, dtotal;
  DeltaBack(const DeltaRule& p, int64_t unit) : DeltaWalk<R>(p, unit), kept(kDeltaMark) {
    for (Kept& x : kept)
      x.S.resize(KP * VP), x.A.resize(T * T), x.P.resize(T * T), x.E.resize(T * VP);
    for (Buffer<R>* x : {&dy, &w}) x->resize(T * VP);
    for (Buffer<R>* x : {&dq, &dk, &dg, &one, &dstart, &dend}) x->resize(T * KP);
    dS.resize(KP * VP), turned.resize(VP * std::max(KP, T)), dA.resize(T * T), dP.resize(T * T),
        dbeta.resize(T);
    dtotal.resize(KP);
  }

  void backward() {
    const int64_t chunks = (p.L + T - 1) / T;
    if (p.dfinal) this->load_state(this->state_of(p.dfinal), dS.data());
    for (int64_t first = (chunks - 1) / kDeltaMark * kDeltaMark; first >= 0; first -= kDeltaMark) {
      const int64_t end = std::min(chunks, first + kDeltaMark);
      this->load_state(this->mark(first / kDeltaMark), kept[0].S.data());
      for (int64_t c = first; c < end; ++c) {
        Kept& x = kept[c - first];
        this->solve(c, x.S.data(), x.A.data(), x.P.data(), x.E.data());
        if (c + 1 == end) break;
        kept[c + 1 - first].S = x.S;
        this->advance(kept[c + 1 - first].S.data());
      }
      for (int64_t c = end - 1; c >= first; --c) back(c, kept[c - first], c == end - 1);
    }
    this->save_state(dS.data(), static_cast<R*>(p.dinitial) + (b * p.H + h) * K * V);
  }

  // From dO, the scores and dS₁ to W.
  void solve_back(const Kept& x) {
    product(rows(), VP, K, {chunk.leaving.data(), KP, 1}, dS.data(), VP, w.data(), VP, Into::kSet);
    for (int64_t first = rows() - kTile; first >= 0; first -= kTile) {
      const int64_t at = first * T + first, later = first + kTile;
      R* to = &w[first * VP];
      product(kTile, VP, rows() - first, {&x.P[at], 1, T}, &dy[first * VP], VP, to, VP, Into::kAdd);
      if (!p.beta) continue;
      if (later < rows())
        product(kTile, VP, rows() - later, {&x.A[at + kTile * T], 1, T}, &w[later * VP], VP, to, VP,
                Into::kSubtract);
      for (int64_t i = 0; i < kTile; ++i)
        scale_row(chunk.beta[first + i], &x.A[at + i * T], &block[i * kTile], kTile);
      solve_block_transposed(block.data(), to, VP, VP);
      for (int64_t i = 0; i < kTile; ++i) {
        dbeta[first + i] = dot_rows(to + i * VP, &x.E[(first + i) * VP], VP);
        scale_row(chunk.beta[first + i], to + i * VP, to + i * VP, VP);
      }
    }
  }

  void back(int64_t c, Kept& x, bool is_read) {
    if (!is_read) {
      chunk.read(c);
      this->weigh(x.E.data(), 0, rows());
    }
    chunk.spread();
    read_tile(p.dy, b, chunk.t0, chunk.n, rows(), h * V, V, VP, dy.data());
    solve_back(x);
    // The scores.
    transpose(rows(), VP, u.data(), VP, turned.data(), T);
    for (int64_t first = 0; first < rows(); first += kTile) {
      const int64_t columns = first + kTile;
      product(kTile, columns, V, {&dy[first * VP], VP, 1}, turned.data(), T, &dP[first * T], T,
              Into::kSet);
      clear(&dP[first * T], first, 1);
      if (!p.beta) continue;
      std::fill(&dA[first * T], &dA[first * T] + kTile * T, R(0));
      product(kTile, columns, V, {&w[first * VP], VP, 1}, turned.data(), T, &dA[first * T], T,
              Into::kSubtract);
      clear(&dA[first * T], first, 0);
    }
    // What enters and what leaves.
    std::fill(dk.begin(), dk.end(), R(0));
    std::fill(dstart.begin(), dstart.end(), R(0));
    transpose(KP, VP, x.S.data(), VP, turned.data(), KP);
    product(rows(), KP, V, {dy.data(), VP, 1}, turned.data(), KP, dq.data(), KP, Into::kSet);
    decayed(dq.data(), dq.data(), chunk.q.data(), chunk.through, dstart.data());
    if (p.beta) {
      product(rows(), KP, V, {w.data(), VP, 1}, turned.data(), KP, dk.data(), KP, Into::kSubtract);
      decayed(dk.data(), dk.data(), chunk.k.data(), chunk.through, dstart.data());
    }
    transpose(KP, VP, dS.data(), VP, turned.data(), KP);
    product(rows(), KP, V, {u.data(), VP, 1}, turned.data(), KP, one.data(), KP, Into::kSet);
    std::fill(dend.begin(), dend.end(), R(0));
    decayed(one.data(), one.data(), chunk.k.data(), chunk.behind, dend.data());
    add_row(one.data(), dk.data(), rows() * KP);
    for (int64_t i = 0; i < K; ++i)
      dtotal[i] = chunk.total[chunk.by_channel ? i : 0] * dot_rows(&x.S[i * VP], &dS[i * VP], VP);
    chunk.slopes(x.A.data(), x.P.data(), dA.data(), dP.data(), dstart.data(), dend.data(),
                 dtotal.data(), dq.data(), dk.data(), dg.data());
    product(K, VP, rows(), {chunk.reading.data(), 1, KP}, dy.data(), VP, dS.data(), VP, Into::kAdd,
            this->decaying());
    if (p.beta)
      product(K, VP, rows(), {chunk.meeting.data(), 1, KP}, w.data(), VP, dS.data(), VP,
              Into::kSubtract);
    write();
  }
  // Makes the part of a block of rows zero that lies above the diagonal, from `offset` behind it.
  void clear(R* x, int64_t first, int64_t offset) const {
    for (int64_t i = 0; i < kTile; ++i)
      std::fill(x + i * T + first + std::min(i + offset, kTile), x + i * T + first + kTile, R(0));
  }
  // to = from times the decays; and adds the gradient of their exponents.
  void decayed(const R* from, R* to, const R* x, const Buffer<R>& decay, R* slope) const {
    for (int64_t i = 0; i < rows(); ++i) {
      const int64_t at = i * KP;
      if (chunk.by_channel)
        multiply_row(&decay[at], from + at, to + at, KP);
      else
        scale_row(decay[i], from + at, to + at, KP);
      add_products(x + at, to + at, slope + at, KP);
    }
  }
  void write() {
    if (p.scale != 1) scale_row(R(p.scale), dq.data(), dq.data(), rows() * KP);
    write_tile(p.dq, b, chunk.t0, chunk.n, h * K, K, KP, dq.data());
    write_tile(p.dk, b, chunk.t0, chunk.n, h * K, K, KP, dk.data());
    write_tile(p.dv, b, chunk.t0, chunk.n, h * V, V, VP, w.data());
    if (p.beta) write_tile(p.dbeta, b, chunk.t0, chunk.n, h, 1, 1, dbeta.data());
    if (p.decay == 1) write_tile(p.dg, b, chunk.t0, chunk.n, h, 1, 1, dg.data());
    if (p.decay == 2) write_tile(p.dg, b, chunk.t0, chunk.n, h * K, K, KP, dg.data());
  }
};

template <class R> void delta_rule_forward_as(const DeltaRule& p) {
  parallel(p.B * p.H, p.threads, [&](int64_t unit) { DeltaWalk<R>(p, unit).forward(); });
}
template <class R> void delta_rule_backward_as(const DeltaRule& p) {
  parallel(p.B * p.H, p.threads, [&](int64_t unit) { DeltaBack<R>(p, unit).backward(); });
}

}  // namespace LONGSEQ_ISA
