// Linear scan h_t = a_t h_{t-1} + b_t, and its gradient, which is the same scan from right to left.
//
// A block serves 32 adjacent channels; its warps share a tile of positions, each a chain of kItems,
// joined through shared memory. Split as the selective scan is: linear_summary, linear_join,
// linear_forward.
#include "common.cuh"

#if LONGSEQ_COMPLEX
typedef c32 State;
#else
typedef float State;
#endif
typedef LONGSEQ_A DecayT;
typedef LONGSEQ_B InputT;
typedef LONGSEQ_OUT OutT;

constexpr int kWarps = 8;
constexpr int kItems = 8;
constexpr int kTile = kWarps * kItems;
constexpr bool kReverse = LONGSEQ_REVERSE;

// As ScanParams. Dense: initial and dinitial (B, D), h, da and out (B, L, D); local, product and
// starts (B, chunks, D). Reversed, b is the gradient of h, position 0 is the last, and a decay is
// the conjugate of the next position's; out is then the gradient of b, and da = conj(h_{t-1}) times
// it, with h the forward's states.
struct LinearParams {
  i64 batch, length, channels, tiles, chunk, chunks;
  i64 a, a_b, a_t, b, b_b, b_t, initial, out, local, product, starts, h, da, dinitial;
};

struct LinearShared {
  State product[2][kWarps][32], state[2][kWarps][32];
};

template <bool Output> DEVICE void linear_sweep(const LinearParams& p, LinearShared& s) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const i64 row = blockIdx.x / p.tiles, d = blockIdx.x % p.tiles * 32 + lane, chunk = blockIdx.y;
  const bool active = d < p.channels;
  const i64 begin = chunk * p.chunk, end = begin + p.chunk < p.length ? begin + p.chunk : p.length;
  const i64 summary = (row * p.chunks + chunk) * p.channels + d;
  const DecayT* a = at<const DecayT>(p.a) + row * p.a_b + d;
  const InputT* b = at<const InputT>(p.b) + row * p.b_b + d;
  State carry = zero<State>(), all = one<State>();
  if (Output && active) {
    if (p.starts) carry = at<const State>(p.starts)[summary];
    else if (p.initial && !kReverse) carry = at<const State>(p.initial)[row * p.channels + d];
  }
  int parity = 0;
  for (i64 t0 = begin; t0 < end; t0 += kTile, parity ^= 1) {
    const i64 first = t0 + warp * kItems;
    State decay[kItems], input[kItems], product = one<State>(), state = zero<State>();
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const i64 t = kReverse ? p.length - 1 - first - k : first + k;
      decay[k] = one<State>();
      input[k] = zero<State>();
      if (first + k < end && active) {
        input[k] = State(widen(b[t * p.b_t]));
        if (!kReverse) decay[k] = State(widen(a[t * p.a_t]));
        else
          decay[k] = t + 1 < p.length ? conjugate(State(widen(a[(t + 1) * p.a_t]))) : zero<State>();
      }
      product = mul(product, decay[k]);
      state = mad(decay[k], state, input[k]);
    }
    s.product[parity][warp][lane] = product;
    s.state[parity][warp][lane] = state;
    __syncthreads();
    State h = carry;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) h = carry;
      carry = mad(s.product[parity][w][lane], carry, s.state[parity][w][lane]);
      if (!Output) all = mul(all, s.product[parity][w][lane]);
    }
    if (Output && active) {
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        if (first + k >= end) break;
        const i64 t = kReverse ? p.length - 1 - first - k : first + k,
                  to = (row * p.length + t) * p.channels + d;
        h = mad(decay[k], h, input[k]);
        if (!kReverse) {
          narrow(h, &at<OutT>(p.out)[to]);
          continue;
        }
        narrow(h, &at<OutT>(p.out)[to]);
        State before = zero<State>();
        if (t > 0) before = at<const State>(p.h)[to - p.channels];
        else if (p.initial) before = at<const State>(p.initial)[row * p.channels + d];
        narrow(mul(conjugate(before), h), &at<DecayT>(p.da)[to]);
        if (t == 0)
          at<State>(p.dinitial)[row * p.channels + d] = mul(conjugate(State(widen(a[0]))), h);
      }
    }
  }
  if (!Output && active && warp == 0) {
    at<State>(p.local)[summary] = carry;
    at<State>(p.product)[summary] = all;
  }
}

// Grid (batch * tiles, chunks).
KERNEL(linear_forward, LinearParams, 256, LONGSEQ_COMPLEX ? 1 : 2) {
  SHARED(LinearShared, s);
  linear_sweep<true>(p, s);
}

KERNEL(linear_summary, LinearParams, 256, LONGSEQ_COMPLEX ? 1 : 2) {
  SHARED(LinearShared, s);
  linear_sweep<false>(p, s);
}

// A thread a (row, channel): turns local into starts.
KERNEL(linear_join, LinearParams, 128, 1) {
  const i64 index = i64(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.batch * p.channels) return;
  const i64 row = index / p.channels, d = index % p.channels;
  State h = p.initial && !kReverse ? at<const State>(p.initial)[index] : zero<State>();
  for (i64 chunk = 0; chunk < p.chunks; ++chunk) {
    const i64 k = (row * p.chunks + chunk) * p.channels + d;
    at<State>(p.starts)[k] = h;
    h = mad(at<const State>(p.product)[k], h, at<const State>(p.local)[k]);
  }
}
