// Selective scan: what its forward and backward kernels share. See docs/architecture.md, "The CUDA
// kernels".
//
// A block serves kChannels adjacent channels of one row, so that B and C are read once for all of
// them, and splits a tile of kTile positions over kWarps * kSubs "slots", each of which runs kItems
// positions as a chain. Chains are joined through (product of decays, state) pairs: by shuffles
// inside a warp, through shared memory across warps. Each decay exp(dt A) is evaluated once. States
// are taken kGroup at a time, which bounds the registers.
#pragma once
#include "common.cuh"

#if LONGSEQ_COMPLEX
typedef c32 State;
#else
typedef float State;
#endif
typedef LONGSEQ_U InputT;      // u and y
typedef LONGSEQ_DELTA DeltaT;  // delta
typedef LONGSEQ_MAPS MapT;     // B and C
typedef LONGSEQ_Z GateT;       // z

constexpr int kStates = LONGSEQ_STATES;      // N
constexpr int kChannels = LONGSEQ_CHANNELS;  // 8, 16 or 32
constexpr int kWarps = LONGSEQ_WARPS;
constexpr int kGroup = LONGSEQ_GROUP;  // divides kStates
constexpr int kItems = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kSubs = 32 / kChannels;
constexpr int kSlots = kWarps * kSubs;
constexpr int kTile = kSlots * kItems;
constexpr int kSaved = LONGSEQ_SAVED;  // positions between saved states
constexpr int kBlocks = LONGSEQ_BLOCKS;  // of a multiprocessor, which the registers must allow
constexpr bool kResets = LONGSEQ_RESETS;  // whether any position may reset the state
static_assert(kStates % kGroup == 0 && kTile % kSaved == 0 && kSaved % kItems == 0,
              "selective scan: sizes");

// All fields are 64 bits wide: numbers, strides in elements, and addresses (0 for an absent
// tensor). The host reads their names from here. A launch covers, of each chunk, the `piece`
// positions from `offset` on: all of it but in the backward pass. Dense: A (D, N), D and bias (D),
// initial and final (B, D, N), resets (B, L), starts, local, back and back_local (B, chunks, N, D),
// sums (B, chunks, D), shut (B, chunks), saved (B, ceil(L / kSaved), N, D), and the partial
// gradients as their kernels say.
struct ScanParams {
  i64 batch, length, channels, groups, tiles, chunk, chunks, piece, offset, softplus;
  i64 u, u_b, u_t, delta, delta_b, delta_t, B, B_b, B_t, C, C_b, C_t, z, z_b, z_t, y, y_b, y_t;
  i64 A, D, bias, initial, resets, final, saved, starts, local, sums, shut;
  i64 dy, dy_b, dy_t, dfinal, du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial, back, back_local,
      resume;
};

struct alignas(kGroup * sizeof(State)) Pack {
  State v[kGroup];
};

// Offset of a position's maps in shared memory: rows of slots that one warp reads together lie in
// different banks.
constexpr int kMapSize = kTile * kStates + kSlots * kGroup;
DEVICE int map_row(int t) { return t * kStates + t / kItems * kGroup; }

// Where a thread is.
struct Place {
  int warp, channel, sub, slot;  // slot: which of the tile's chains
  // below 2^31 each; their products with strides are 64 bits wide
  int b, g, d, tile, chunk, begin, end;
  bool active;
  METHOD Place(const ScanParams& p) {
    const int lane = threadIdx.x & 31;
    warp = threadIdx.x >> 5;
    channel = lane % kChannels;
    sub = lane / kChannels;
    slot = warp * kSubs + sub;
    i64 index = blockIdx.x;
    tile = index % p.tiles;
    index /= p.tiles;
    g = index % p.groups;
    b = index / p.groups;
    const int width = p.channels / p.groups, within = tile * kChannels + channel;
    active = within < width;
    d = g * width + (active ? within : 0);
    chunk = blockIdx.y;
    const i64 first = chunk * p.chunk + p.offset,
              stop = first + p.piece < p.length ? first + p.piece : p.length;
    begin = first;
    end = stop < first ? first : stop;  // the last chunk may be shorter than `offset`
  }
};

// A tile's rows of B or C of one group to shared memory; zeros beyond the end.
DEVICE void stage(const ScanParams& p, const Place& place, i64 maps, i64 b_stride, i64 t_stride,
                  int t0, State* to) {
  const MapT* from = at<const MapT>(maps) + place.b * b_stride + place.g * kStates;
  for (int k = threadIdx.x; k < kTile * kStates; k += kThreads) {
    const int t = k / kStates, n = k % kStates;
    to[map_row(t) + n] =
        t0 + t < place.end ? State(widen(from[(t0 + t) * t_stride + n])) : zero<State>();
  }
}

DEVICE Pack load_pack(const State* row) { return *reinterpret_cast<const Pack*>(row); }

// A thread's items: step sizes after softplus (0 beyond the end, where the state then stays as it
// is), and which of them reset the state.
struct Items {
  float dt[kItems];
  u32 resets;
  METHOD bool reset(int k) const { return kResets && (resets >> k & 1); }
};

DEVICE void load_items(const ScanParams& p, const Place& place, int t, Items& x) {
  const DeltaT* delta = at<const DeltaT>(p.delta) + place.b * p.delta_b + place.d;
  const u8* resets = at<const u8>(p.resets) + place.b * p.length;
  const float bias = p.bias ? at<const float>(p.bias)[place.d] : 0.0f;
  x.resets = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const bool there = t + k < place.end;
    float raw = there && place.active ? widen(delta[(t + k) * p.delta_t]) + bias : 0.0f;
    if (p.softplus) raw = softplus(raw);
    x.dt[k] = there && place.active ? raw : 0.0f;
    if (kResets && there && resets[t + k]) x.resets |= 1u << k;
  }
}

// A channel's decays, and what multiplies dt in exp(dt A): the real part times log2(e).
struct Decays {
  State raw[kGroup];
  METHOD Decays(const ScanParams& p, const Place& place, int n) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
      raw[i] = place.active ? at<const State>(p.A)[place.d * kStates + n + i] : zero<State>();
  }
};
DEVICE float decay(float dt, float a) { return ex2(dt * (a * kLog2e)); }
DEVICE c32 decay(float dt, c32 a) {
  c32 r;
  sine_cosine(dt * a.y, r.y, r.x);
  return scale(ex2(dt * (a.x * kLog2e)), r);
}

// The contribution of a state to the output, and its transpose.
DEVICE float read_out(float c, float h, float acc) { return fmaf(c, h, acc); }
DEVICE float read_out(c32 c, c32 h, float acc) {
  return fmaf(2.0f * c.x, h.x, fmaf(-2.0f * c.y, h.y, acc));
}
DEVICE float read_in(float dy, float c) { return dy * c; }
DEVICE c32 read_in(float dy, c32 c) { return c32{2.0f * dy * c.x, -2.0f * dy * c.y}; }

// What has to be known about resets to join chains: whether the chain of this slot, of the warp's
// slots up to (from) each distance, and of whole warps has one. A chain with a reset takes nothing,
// not even NaN, from before.
struct Shut {
  bool own, before;  // before: the warp's slots ahead of this one, in scanning order
  bool step[2];      // at each step of the scan inside the warp
};

template <bool Reverse> DEVICE float from_slot(float v, int by) {
  return Reverse ? __shfl_down_sync(0xffffffffu, v, by) : __shfl_up_sync(0xffffffffu, v, by);
}
template <bool Reverse> DEVICE State state_from_slot(State v, int by) {
  return Reverse ? shuffle_down<State>(v, by) : shuffle_up<State>(v, by);
}

template <bool Reverse> DEVICE Shut find_shut(const Place& place, bool own, int* warp_shut) {
  Shut s;
  s.own = kResets && own;
  s.before = false;
  s.step[0] = s.step[1] = false;
  if (!kResets) return s;
  float any = own ? 1.0f : 0.0f;
  const int rank = Reverse ? kSubs - 1 - place.sub : place.sub;
  int k = 0;
#pragma unroll
  for (int by = 1; by < kSubs; by *= 2, ++k) {
    s.step[k] = any != 0.0f;
    const float other = from_slot<Reverse>(any, by * kChannels);
    if (rank >= by) any += other;
  }
  if (kSubs > 1) {
    const float ahead = from_slot<Reverse>(any, kChannels);
    s.before = rank > 0 && ahead != 0.0f;
  }
  if (place.channel == 0 && rank == kSubs - 1) warp_shut[place.warp] = any != 0.0f;
  return s;
}

// Joins the chains of the warp's slots: (product, state) of the slots ahead of this one, and at the
// last slot in scanning order the warp's own pair is written for the other warps.
template <bool Reverse>
DEVICE void join_warp(const Place& place, const Shut& shut, State& product, State& state,
                      State* warp_product, State* warp_state) {
  const int rank = Reverse ? kSubs - 1 - place.sub : place.sub;
  int k = 0;
#pragma unroll
  for (int by = 1; by < kSubs; by *= 2, ++k) {
    const State p = state_from_slot<Reverse>(product, by * kChannels),
                h = state_from_slot<Reverse>(state, by * kChannels);
    if (rank >= by) {
      if (!shut.step[k]) state = mad(product, h, state);
      product = mul(product, p);
    }
  }
  if (rank == kSubs - 1) {
    *warp_product = product;
    *warp_state = state;
  }
  if (kSubs > 1) {
    product = state_from_slot<Reverse>(product, kChannels);
    state = state_from_slot<Reverse>(state, kChannels);
  }
}

// What enters a slot: `carry` into the tile, through the warps ahead of this one, then through the
// slots ahead. On entry product and state are what join_warp left; on return state is what enters.
template <bool Reverse>
DEVICE void enter(const Place& place, const Shut& shut, const State (*carry)[kChannels],
                  const State (&product)[kGroup], State (&state)[kGroup], const int* warp_shut,
                  const State (*warp_product)[kGroup][kChannels],
                  const State (*warp_state)[kGroup][kChannels]) {
  State h[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) h[i] = carry[i][place.channel];
  const int ahead = Reverse ? kWarps - 1 - place.warp : place.warp;
#pragma unroll 1
  for (int k = 0; k < ahead; ++k) {
    const int w = Reverse ? kWarps - 1 - k : k;
    const bool closed = kResets && warp_shut[w];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const State s = warp_state[w][i][place.channel];
      h[i] = closed ? s : mad(warp_product[w][i][place.channel], h[i], s);
    }
  }
  const int rank = Reverse ? kSubs - 1 - place.sub : place.sub;
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (rank == 0) state[i] = h[i];
    else if (!shut.before) state[i] = mad(product[i], h[i], state[i]);
}

// The sum over a block's slots of one number per channel; valid in slot 0. Ordered, so the same
// each time.
DEVICE float sum_slots(const Place& place, float value, float (*memory)[kChannels]) {
  __syncthreads();
  memory[place.slot][place.channel] = value;
  __syncthreads();
  float sum = 0.0f;
  if (place.slot == 0)
    for (int k = 0; k < kSlots; ++k) sum += memory[k][place.channel];
  return sum;
}
