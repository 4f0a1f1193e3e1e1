// Selective scan backward: tiles from last to first, each recomputed from the state saved at its
// start.
//
// q is the gradient that reaches a state from later positions: G_t = q + C_t' dy_t, q becomes
// conj(a_t) G_t. It is a scan from right to left with the forward's decays, so both directions are
// joined at once. The gradients of B and C are summed over the block's channels inside each warp,
// by halving, and written once per block (dB, dC: (tiles, B, chunks, piece, G, N)); those of A, D
// and delta_bias once per chunk (dA (B, chunks, N, D), dD and dbias (B, chunks, D)): the host adds
// these parts up in a fixed order. No atomics: the same gradients every time. So that the parts of
// dB and dC stay small at any length, a launch may cover one piece of every chunk, the last piece
// first; q goes from one launch to the next through `back`, and the sums of the others are added
// to.
#include "selective_scan.cuh"

struct BackwardShared {
  alignas(16) State b[kMapSize];  // B, then the sums of its gradient
  alignas(16) State c[kMapSize];
  State product[2][kWarps][kGroup][kChannels], state[2][kWarps][kGroup][kChannels];
  State back_product[2][kWarps][kGroup][kChannels], back_state[2][kWarps][kGroup][kChannels];
  // q at the tile's end, h at its start
  State carry[2][kStates][kChannels], start[kStates][kChannels];
  State decay_parts[2][kWarps][kGroup][kChannels], decays[kStates][kChannels];  // the gradient of A
  float sums[kSlots][kChannels];
  int shut[2][kWarps], back_shut[2][kWarps];
};

// The gradient of y before the gate.
DEVICE float through_gate(float dy, float gate) { return dy * gate * sigmoid(gate); }

DEVICE void load_gradient(const ScanParams& p, const Place& place, int t, float (&dy)[kItems]) {
  const InputT* from = at<const InputT>(p.dy) + place.b * p.dy_b + place.d;
  const GateT* z = at<const GateT>(p.z) + place.b * p.z_b + place.d;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    dy[k] = t + k < place.end && place.active ? widen(from[(t + k) * p.dy_t]) : 0.0f;
    if (p.z && t + k < place.end && place.active)
      dy[k] = through_gate(dy[k], widen(z[(t + k) * p.z_t]));
  }
}

// The largest tile start of a chunk; before its begin where it is empty.
DEVICE int last_tile(const Place& place) {
  return place.begin + ((place.end - place.begin + kTile - 1) / kTile - 1) * kTile;
}

DEVICE i64 chunk_row(const ScanParams& p, const Place& place) {
  return ((place.b * p.chunks + place.chunk) * kStates) * p.channels + place.d;
}

// Grid as scan_forward. Writes back_local: the q that leaves a chunk to its left when none enters
// from its right.
KERNEL(scan_back_summary, ScanParams, kThreads, kBlocks) {
  SHARED(BackwardShared, s);
  const Place place(p);
  for (int n = place.slot; n < kStates; n += kSlots) s.carry[0][n][place.channel] = zero<State>();
  int parity = 0, tile = 0;
  for (int t0 = last_tile(place); t0 >= place.begin; t0 -= kTile, ++tile) {
    __syncthreads();
    stage(p, place, p.C, p.C_b, p.C_t, t0, s.c);
    const int t = t0 + place.slot * kItems;
    Items x;
    load_items(p, place, t, x);
    float dy[kItems];
    load_gradient(p, place, t, dy);
    int* warp_shut = s.back_shut[tile & 1];
    const Shut shut = find_shut<true>(place, x.resets != 0, warp_shut);
    __syncthreads();
#pragma unroll 1
    for (int n = 0; n < kStates; n += kGroup) {
      const Decays A(p, place, n);
      State product[kGroup], q[kGroup], own_product[kGroup], own[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        product[i] = one<State>();
        q[i] = zero<State>();
      }
#pragma unroll
      for (int k = kItems - 1; k >= 0; --k) {
        const Pack c = load_pack(s.c + map_row(place.slot * kItems + k) + n);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          const State a = conjugate(decay(x.dt[k], A.raw[i]));
          q[i] = x.reset(k) ? zero<State>() : mul(a, add(q[i], read_in(dy[k], c.v[i])));
          product[i] = mul(product[i], a);
        }
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        own_product[i] = product[i];
        own[i] = q[i];
        join_warp<true>(place, shut, product[i], q[i],
                        &s.back_product[parity][place.warp][i][place.channel],
                        &s.back_state[parity][place.warp][i][place.channel]);
      }
      __syncthreads();
      // the first slot's q leaves the tile; its warp stays together for the shuffles
      if (place.warp == 0) {
        enter<true>(place, shut, &s.carry[tile & 1][n], product, q, warp_shut,
                    s.back_product[parity], s.back_state[parity]);
        if (place.slot == 0)
#pragma unroll
          for (int i = 0; i < kGroup; ++i)
            s.carry[(tile + 1) & 1][n + i][place.channel] =
                shut.own ? own[i] : mad(own_product[i], q[i], own[i]);
      }
      parity ^= 1;
    }
  }
  __syncthreads();
  if (place.active)
    for (int n = place.slot; n < kStates; n += kSlots)
      at<State>(p.back_local)[chunk_row(p, place) + n * p.channels] =
          s.carry[tile & 1][n][place.channel];
}

// Sums `count` values over the lanes that share a slot; afterwards a lane holds count / kChannels
// of the sums at the front of `v`, and the return value is the index of the first.
template <int count> DEVICE int sum_channels(const Place& place, State (&v)[count]) {
  int base = 0, half = count / 2;
#pragma unroll
  for (int by = kChannels / 2; by > 0; by /= 2, half /= 2) {
    const bool upper = place.channel & by;
    base += upper ? half : 0;
#pragma unroll
    for (int j = 0; j < count / 2; ++j) {
      if (j < half) {
        const State kept = upper ? v[j + half] : v[j], sent = upper ? v[j] : v[j + half];
        v[j] = add(kept, shuffle_xor<State>(sent, by));
      }
    }
  }
  return base;
}

// Adds the warps' parts of the gradient of A for the states from n on, which a barrier has made
// visible.
DEVICE void fold_decays(BackwardShared& s, int parity, int n) {
  for (int k = threadIdx.x; k < kGroup * kChannels; k += kThreads) {
    const int i = k / kChannels, channel = k % kChannels;
    State sum = s.decays[n + i][channel];
    for (int w = 0; w < kWarps; ++w) sum = add(sum, s.decay_parts[parity][w][i][channel]);
    s.decays[n + i][channel] = sum;
  }
}

// Grid as scan_forward. Writes du, ddelta, dz, the parts of dA, dB, dC, dD and dbias, and dinitial.
KERNEL(scan_backward, ScanParams, kThreads, kBlocks) {
  SHARED(BackwardShared, s);
  const Place place(p);
  const i64 row = place.b * p.channels + place.d, saved_rows = (p.length + kSaved - 1) / kSaved;
  for (int n = place.slot; n < kStates; n += kSlots) {
    State q = zero<State>();
    if (place.active) {
      if (p.back) q = at<const State>(p.back)[chunk_row(p, place) + n * p.channels];
      else if (p.dfinal) q = at<const State>(p.dfinal)[row * kStates + n];
    }
    s.carry[0][n][place.channel] = q;
    s.decays[n][place.channel] = p.resume && place.active
                                     ? at<const State>(p.dA)[chunk_row(p, place) + n * p.channels]
                                     : zero<State>();
  }
  const float skip = p.D && place.active ? at<const float>(p.D)[place.d] : 0.0f;
  float sum_D = 0.0f, sum_bias = 0.0f;
  int parity = 0, tile = 0;
  for (int t0 = last_tile(place); t0 >= place.begin; t0 -= kTile, ++tile) {
    __syncthreads();
    stage(p, place, p.B, p.B_b, p.B_t, t0, s.b);
    stage(p, place, p.C, p.C_b, p.C_t, t0, s.c);
    const int t = t0 + place.slot * kItems;
    Items x;
    load_items(p, place, t, x);
    float dy[kItems], x_in[kItems], ddt[kItems], dx[kItems], y[kItems];
    load_gradient(p, place, t, dy);
    const InputT* u = at<const InputT>(p.u) + place.b * p.u_b + place.d;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      x_in[k] = t + k < place.end && place.active ? x.dt[k] * widen(u[(t + k) * p.u_t]) : 0.0f;
      ddt[k] = dx[k] = y[k] = 0.0f;
    }
    for (int n = place.slot; n < kStates; n += kSlots)
      s.start[n][place.channel] =
          place.active
              ? at<const State>(
                    p.saved)[((place.b * saved_rows + t0 / kSaved) * kStates + n) * p.channels +
                             place.d]
              : zero<State>();
    int *warp_shut = s.shut[tile & 1], *back_shut = s.back_shut[tile & 1];
    const Shut shut = find_shut<false>(place, x.resets != 0, warp_shut);
    const Shut shut_back = find_shut<true>(place, x.resets != 0, back_shut);
    __syncthreads();
#pragma unroll 1
    for (int n = 0; n < kStates; n += kGroup) {
      const Decays A(p, place, n);
      State v[2 * kGroup * kItems];  // decays and inputs, then the gradients of B and C
      State product[kGroup], h[kGroup], back_product[kGroup], q[kGroup];
      State *a = v, *in = v + kGroup * kItems;
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        product[i] = one<State>();
        h[i] = q[i] = zero<State>();
      }
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const Pack b = load_pack(s.b + map_row(place.slot * kItems + k) + n);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          const State d = decay(x.dt[k], A.raw[i]), input = scale(x_in[k], b.v[i]);
          h[i] = x.reset(k) ? input : mad(d, h[i], input);
          product[i] = mul(product[i], d);
          a[i * kItems + k] = d;
          in[i * kItems + k] = input;
        }
      }
#pragma unroll
      for (int k = kItems - 1; k >= 0; --k) {
        const Pack c = load_pack(s.c + map_row(place.slot * kItems + k) + n);
#pragma unroll
        for (int i = 0; i < kGroup; ++i)
          q[i] = x.reset(k) ? zero<State>()
                            : mul(conjugate(a[i * kItems + k]), add(q[i], read_in(dy[k], c.v[i])));
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        back_product[i] = conjugate(product[i]);
        join_warp<false>(place, shut, product[i], h[i],
                         &s.product[parity][place.warp][i][place.channel],
                         &s.state[parity][place.warp][i][place.channel]);
        join_warp<true>(place, shut_back, back_product[i], q[i],
                        &s.back_product[parity][place.warp][i][place.channel],
                        &s.back_state[parity][place.warp][i][place.channel]);
      }
      __syncthreads();
      if (n > 0) fold_decays(s, parity ^ 1, n - kGroup);
      enter<false>(place, shut, &s.start[n], product, h, warp_shut, s.product[parity],
                   s.state[parity]);
      enter<true>(place, shut_back, &s.carry[tile & 1][n], back_product, q, back_shut,
                  s.back_product[parity], s.back_state[parity]);
      State first[kGroup], sum_A[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        sum_A[i] = zero<State>();
        first[i] = h[i];
      }
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const Pack c = load_pack(s.c + map_row(place.slot * kItems + k) + n);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          State& state = in[i * kItems + k];
          state = h[i] = x.reset(k) ? state : mad(a[i * kItems + k], h[i], state);
          if (LONGSEQ_GATED) y[k] = read_out(c.v[i], h[i], y[k]);
        }
      }
#pragma unroll
      for (int k = kItems - 1; k >= 0; --k) {
        const int item = place.slot * kItems + k;
        const Pack b = load_pack(s.b + map_row(item) + n), c = load_pack(s.c + map_row(item) + n);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          const State G = add(q[i], read_in(dy[k], c.v[i]));
          State &d = a[i * kItems + k], &state = in[i * kItems + k];
          const State before = k > 0 ? in[i * kItems + (k > 0 ? k - 1 : 0)] : first[i];
          dx[k] = real_dot(b.v[i], G, dx[k]);
          if (x.reset(k)) {  // nothing, not even NaN, passes from one segment to the other
            q[i] = zero<State>();
          } else {
            q[i] = mul(conjugate(d), G);
            const State through = mul(q[i], conjugate(before));  // the gradient of dt A
            ddt[k] = real_dot(A.raw[i], through, ddt[k]);
            sum_A[i] = mad(x.dt[k], through, sum_A[i]);
          }
          d = scale(x_in[k], G);
          state = read_in(dy[k], state);
        }
      }
      if (place.slot == 0)
#pragma unroll
        for (int i = 0; i < kGroup; ++i) s.carry[(tile + 1) & 1][n + i][place.channel] = q[i];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
#pragma unroll
        for (int by = kChannels; by < 32; by *= 2)
          sum_A[i] = add(sum_A[i], shuffle_xor<State>(sum_A[i], by));
        if (place.sub == 0) s.decay_parts[parity][place.warp][i][place.channel] = sum_A[i];
      }
      parity ^= 1;
      // The maps' rows of this group are done with (each belongs to one warp); their gradients take
      // their place.
      const int base = sum_channels(place, v);
      __syncwarp();
      constexpr int kKept = 2 * kGroup * kItems / kChannels;
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        const int index = base + j, i = index / kItems % kGroup,
                  item = place.slot * kItems + index % kItems;
        State* to = index < kGroup * kItems ? s.b : s.c;
        to[map_row(item) + n + i] = v[j];
      }
    }
    __syncthreads();
    fold_decays(s, parity ^ 1, kStates - kGroup);
    const i64 part =
        ((place.tile * p.batch + place.b) * p.chunks + place.chunk) * p.piece - place.begin;
    for (int k = threadIdx.x; k < kTile * kStates; k += kThreads) {
      const int item = k / kStates, n = k % kStates;
      if (t0 + item >= place.end) break;
      const i64 to = ((part + t0 + item) * p.groups + place.g) * kStates + n;
      at<State>(p.dB)[to] = s.b[map_row(item) + n];
      at<State>(p.dC)[to] = s.c[map_row(item) + n];
    }
    if (place.active) {
      const InputT* out_gradient = at<const InputT>(p.dy) + place.b * p.dy_b + place.d;
      const GateT* z = at<const GateT>(p.z) + place.b * p.z_b + place.d;
      const DeltaT* delta = at<const DeltaT>(p.delta) + place.b * p.delta_b + place.d;
      const float bias = p.bias ? at<const float>(p.bias)[place.d] : 0.0f;
      const i64 dense = place.b * p.length * p.channels + place.d;
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        if (t + k >= place.end) break;
        const i64 to = dense + (t + k) * p.channels;
        const float value = widen(u[(t + k) * p.u_t]);
        float gradient = fmaf(dx[k], value, ddt[k]);
        if (p.softplus) gradient *= sigmoid(widen(delta[(t + k) * p.delta_t]) + bias);
        narrow(gradient, &at<DeltaT>(p.ddelta)[to]);
        narrow(fmaf(dx[k], x.dt[k], dy[k] * skip), &at<InputT>(p.du)[to]);
        sum_bias += gradient;
        sum_D = fmaf(dy[k], value, sum_D);
        if (LONGSEQ_GATED) {
          const float gate = widen(z[(t + k) * p.z_t]), part = sigmoid(gate);
          const float slope = part * fmaf(gate, 1.0f - part, 1.0f);
          narrow(widen(out_gradient[(t + k) * p.dy_t]) * fmaf(skip, value, y[k]) * slope,
                 &at<GateT>(p.dz)[to]);
        }
      }
    }
  }
  sum_D = sum_slots(place, sum_D, s.sums);
  sum_bias = sum_slots(place, sum_bias, s.sums);
  if (!place.active) return;
  if (place.slot == 0) {
    const i64 to = (place.b * p.chunks + place.chunk) * p.channels + place.d;
    at<float>(p.dD)[to] = (p.resume ? at<const float>(p.dD)[to] : 0.0f) + sum_D;
    at<float>(p.dbias)[to] = (p.resume ? at<const float>(p.dbias)[to] : 0.0f) + sum_bias;
  }
  for (int n = place.slot; n < kStates; n += kSlots) {
    at<State>(p.dA)[chunk_row(p, place) + n * p.channels] = s.decays[n][place.channel];
    const State q = s.carry[tile & 1][n][place.channel];
    if (p.offset > 0) at<State>(p.back)[chunk_row(p, place) + n * p.channels] = q;
    else if (p.dinitial && place.chunk == 0) at<State>(p.dinitial)[row * kStates + n] = q;
  }
}
