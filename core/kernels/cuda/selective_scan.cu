// Selective scan forward: h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = C_t h_t + D u_t, gated by
// silu(z).
//
// Where rows and channels fill the device, scan_forward runs alone, a block walking the whole
// sequence. Otherwise the sequence is split into chunks: scan_summary (each chunk's own final
// state), scan_join (a short pass over chunks), then scan_forward from each chunk's true start.
#include "selective_scan.cuh"

struct ForwardShared {
  alignas(16) State b[kMapSize];
  alignas(16) State c[kMapSize];
  State product[2][kWarps][kGroup][kChannels], state[2][kWarps][kGroup][kChannels];
  State carry[2][kStates][kChannels];
  float sums[kSlots][kChannels];
  int shut[2][kWarps];
};

template <bool Output> DEVICE void sweep(const ScanParams& p, ForwardShared& s) {
  const Place place(p);
  const i64 row = place.b * p.channels + place.d;
  const i64 summary = ((place.b * p.chunks + place.chunk) * kStates) * p.channels + place.d;
  for (int n = place.slot; n < kStates; n += kSlots) {
    State h = zero<State>();
    if (Output && place.active) {
      if (p.starts) h = at<const State>(p.starts)[summary + n * p.channels];
      else if (p.initial) h = at<const State>(p.initial)[row * kStates + n];
    }
    s.carry[0][n][place.channel] = h;
  }
  const float skip = p.D && place.active ? at<const float>(p.D)[place.d] : 0.0f;
  float all_dt = 0.0f;
  int parity = 0, tile = 0, any_shut = 0;
  for (int t0 = place.begin; t0 < place.end; t0 += kTile, ++tile) {
    __syncthreads();  // the previous tile is done with the maps
    stage(p, place, p.B, p.B_b, p.B_t, t0, s.b);
    if (Output) stage(p, place, p.C, p.C_b, p.C_t, t0, s.c);
    const int t = t0 + place.slot * kItems;
    Items x;
    load_items(p, place, t, x);
    float x_in[kItems], y[kItems];
    const InputT* u = at<const InputT>(p.u) + place.b * p.u_b + place.d;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const float value = t + k < place.end && place.active ? widen(u[(t + k) * p.u_t]) : 0.0f;
      x_in[k] = x.dt[k] * value;
      y[k] = skip * value;
      all_dt += x.dt[k];
    }
    int* warp_shut = s.shut[tile & 1];
    const Shut shut = find_shut<false>(place, x.resets != 0, warp_shut);
    __syncthreads();
    if (kResets)
      for (int w = 0; w < kWarps; ++w) any_shut |= warp_shut[w];
#pragma unroll 1
    for (int n = 0; n < kStates; n += kGroup) {
      const Decays A(p, place, n);
      State a[kGroup][kItems], h[kGroup][kItems], product[kGroup], now[kGroup], own_product[kGroup],
          own[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        product[i] = one<State>();
        now[i] = zero<State>();
      }
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const Pack b = load_pack(s.b + map_row(place.slot * kItems + k) + n);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          a[i][k] = decay(x.dt[k], A.raw[i]);
          h[i][k] = scale(x_in[k], b.v[i]);  // the input, until the state is known
          now[i] = x.reset(k) ? h[i][k] : mad(a[i][k], now[i], h[i][k]);
          product[i] = mul(product[i], a[i][k]);
        }
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        own_product[i] = product[i];
        own[i] = now[i];
        join_warp<false>(place, shut, product[i], now[i],
                         &s.product[parity][place.warp][i][place.channel],
                         &s.state[parity][place.warp][i][place.channel]);
      }
      __syncthreads();
      const bool last = place.slot == kSlots - 1;
      enter<false>(place, shut, &s.carry[tile & 1][n], product, now, warp_shut, s.product[parity],
                   s.state[parity]);
      parity ^= 1;
      if (Output) {
        if (p.saved && t % kSaved == 0 && t < place.end && place.active) {
          State* saved =
              at<State>(p.saved) +
              ((place.b * ((p.length + kSaved - 1) / kSaved) + t / kSaved) * kStates + n) *
                  p.channels +
              place.d;
#pragma unroll
          for (int i = 0; i < kGroup; ++i) saved[i * p.channels] = now[i];
        }
#pragma unroll
        for (int k = 0; k < kItems; ++k) {
          const Pack c = load_pack(s.c + map_row(place.slot * kItems + k) + n);
#pragma unroll
          for (int i = 0; i < kGroup; ++i) {
            now[i] = x.reset(k) ? h[i][k] : mad(a[i][k], now[i], h[i][k]);
            y[k] = read_out(c.v[i], now[i], y[k]);
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < kGroup; ++i)
          now[i] = shut.own ? own[i] : mad(own_product[i], now[i], own[i]);
      }
      if (last)
#pragma unroll
        for (int i = 0; i < kGroup; ++i) s.carry[(tile + 1) & 1][n + i][place.channel] = now[i];
    }
    if (Output && place.active) {
      InputT* out = at<InputT>(p.y) + place.b * p.y_b + place.d;
      const GateT* z = at<const GateT>(p.z) + place.b * p.z_b + place.d;
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        if (t + k >= place.end) break;
        float value = y[k];
        if (p.z) {
          const float gate = widen(z[(t + k) * p.z_t]);
          value *= gate * sigmoid(gate);
        }
        narrow(value, &out[(t + k) * p.y_t]);
      }
    }
  }
  __syncthreads();
  const bool final_chunk = place.chunk == p.chunks - 1;
  if (place.active && (!Output || final_chunk)) {
    for (int n = place.slot; n < kStates; n += kSlots) {
      const State h = s.carry[tile & 1][n][place.channel];
      if (Output) at<State>(p.final)[row * kStates + n] = h;
      else at<State>(p.local)[summary + n * p.channels] = h;
    }
  }
  if (!Output) {
    const float sum = sum_slots(place, all_dt, s.sums);
    if (place.slot == 0 && place.active)
      at<float>(p.sums)[(place.b * p.chunks + place.chunk) * p.channels + place.d] = sum;
    if (threadIdx.x == 0 && place.tile == 0 && place.g == 0)
      at<u8>(p.shut)[place.b * p.chunks + place.chunk] = any_shut != 0;
  }
}

// Grid (batch * groups * tiles, chunks). Writes y, final and, where asked for, saved.
KERNEL(scan_forward, ScanParams, kThreads, kBlocks) {
  SHARED(ForwardShared, s);
  sweep<true>(p, s);
}

// Grid as scan_forward. Writes local, sums and shut: what a chunk makes of a state of zero, its sum
// of dt, and whether it has a reset.
KERNEL(scan_summary, ScanParams, kThreads, kBlocks) {
  SHARED(ForwardShared, s);
  sweep<false>(p, s);
}

// A thread a (row, state, channel); grid (ceil(batch * N * D / 128)). Turns local into starts,
// front to back.
KERNEL(scan_join, ScanParams, 128, 1) {
  const i64 index = i64(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.batch * kStates * p.channels) return;
  const i64 d = index % p.channels, n = index / p.channels % kStates,
            b = index / p.channels / kStates;
  const State A = at<const State>(p.A)[d * kStates + n];
  State h =
      p.initial ? at<const State>(p.initial)[(b * p.channels + d) * kStates + n] : zero<State>();
  for (i64 chunk = 0; chunk < p.chunks; ++chunk) {
    const i64 k = b * p.chunks + chunk, place = (k * kStates + n) * p.channels + d;
    at<State>(p.starts)[place] = h;
    const State local = at<const State>(p.local)[place];
    h = at<const u8>(p.shut)[k]
            ? local
            : mad(decay(at<const float>(p.sums)[k * p.channels + d], A), h, local);
  }
}

// As scan_join, back to front: the gradient that enters each chunk from its right, and that of the
// initial state.
KERNEL(scan_join_back, ScanParams, 128, 1) {
  const i64 index = i64(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.batch * kStates * p.channels) return;
  const i64 d = index % p.channels, n = index / p.channels % kStates,
            b = index / p.channels / kStates;
  const State A = conjugate(at<const State>(p.A)[d * kStates + n]);
  State q =
      p.dfinal ? at<const State>(p.dfinal)[(b * p.channels + d) * kStates + n] : zero<State>();
  for (i64 chunk = p.chunks - 1; chunk >= 0; --chunk) {
    const i64 k = b * p.chunks + chunk, place = (k * kStates + n) * p.channels + d;
    at<State>(p.back)[place] = q;
    const State local = at<const State>(p.back_local)[place];
    q = at<const u8>(p.shut)[k]
            ? local
            : mad(decay(at<const float>(p.sums)[k * p.channels + d], A), q, local);
  }
}
