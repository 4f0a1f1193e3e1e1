// The sLSTM recurrence (arXiv 2405.04517), forward and backward: a block walks time for one head
// and kRows rows.
//
// The head's recurrent weights stay in shared memory where they fit (LONGSEQ_RESIDENT; 16 P^2 bytes
// of at most about 227 KB on sm_90, so P up to 112); wider heads read them from the L2 cache at
// every step, which is slower. Two barriers per step: pre-activations (a thread per gate row,
// weights read once for all kRows), then cells.
#include "common.cuh"

constexpr int P = LONGSEQ_WIDTH;
constexpr int kRows = LONGSEQ_ROWS;
constexpr int kThreads = LONGSEQ_THREADS;
constexpr bool kResident = LONGSEQ_RESIDENT;
constexpr int kPer = (4 * P + kThreads - 1) / kThreads;  // gate rows of a thread

// As ScanParams; all dense. gates and dgates (B, L, 4, H, P), weights (H, P, 4P) for the forward
// and (H, 4P, P) for the backward, first, last, dlast and dfirst (4, B, H, P), hs and dhs (B, L, H,
// P), saved (7, L, H, B, P): c, n, i, f, tanh z, sigmoid o, sigmoid -f; resets (B, L).
struct SlstmParams {
  i64 batch, length, heads, gates, weights, first, resets, hs, last, saved;
  i64 dhs, dlast, dgates, dfirst;
};

struct SlstmPlace {
  i64 head, b0;
  const SlstmParams& p;
  METHOD SlstmPlace(const SlstmParams& p) : head(blockIdx.x), b0(i64(blockIdx.y) * kRows), p(p) {}
  METHOD bool there(int r) const { return b0 + r < p.batch; }
  METHOD bool reset(int r, i64 t) const {
    return p.resets && there(r) && at<const u8>(p.resets)[(b0 + r) * p.length + t];
  }
  METHOD i64 gate(int r, i64 t, int row) const {
    return ((((b0 + r) * p.length + t) * 4 + row / P) * p.heads + head) * P + row % P;
  }
  METHOD i64 out(int r, i64 t, int o) const {
    return (((b0 + r) * p.length + t) * p.heads + head) * P + o;
  }
  METHOD i64 state(int part, int r, int o) const {
    return ((part * p.batch + b0 + r) * p.heads + head) * P + o;
  }
  METHOD i64 kept(int part, int r, i64 t, int o) const {
    return (((part * p.length + t) * p.heads + head) * p.batch + b0 + r) * P + o;
  }
};

DEVICE float negative_infinity() { return __uint_as_float(0xff800000u); }

// The head's weights: in shared memory at `to`, or where they are.
DEVICE const float* hold_weights(const SlstmPlace& place, float* to) {
  const float* from = at<const float>(place.p.weights) + place.head * 4 * P * P;
  if (!kResident) return from;
  for (int k = threadIdx.x; k < 4 * P * P; k += kThreads) to[k] = from[k];
  return to;
}

// Grid (heads, ceil(batch / kRows)); shared memory 8 P kRows floats, and 4 P^2 where resident.
KERNEL(slstm_forward, SlstmParams, kThreads, 1) {
  SHARED_BYTES(memory);
  const SlstmPlace place(p);
  float *h = memory, *raw = h + P * kRows, *c = raw + 4 * P * kRows, *n = c + P * kRows,
        *m = n + P * kRows;
  const float* weights = hold_weights(place, m + P * kRows);
  for (int k = threadIdx.x; k < P * kRows; k += kThreads) {
    const int o = k / kRows, r = k % kRows;
    const bool fresh = !place.there(r) || place.reset(r, 0);
    const float* first = at<const float>(p.first);
    h[k] = fresh ? 0.0f : first[place.state(0, r, o)];
    c[k] = fresh ? 0.0f : first[place.state(1, r, o)];
    n[k] = fresh ? 0.0f : first[place.state(2, r, o)];
    m[k] = fresh ? negative_infinity() : first[place.state(3, r, o)];
  }
  const float* gates = at<const float>(p.gates);
  float next[kPer][kRows];
#pragma unroll
  for (int j = 0; j < kPer; ++j)
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = threadIdx.x + j * kThreads;
      next[j][r] = row < 4 * P && place.there(r) ? gates[place.gate(r, 0, row)] : 0.0f;
    }
  __syncthreads();
  for (i64 t = 0; t < p.length; ++t) {
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int row = threadIdx.x + j * kThreads;
      float sum[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sum[r] = next[j][r];
        if (t + 1 < p.length && row < 4 * P && place.there(r))
          next[j][r] = gates[place.gate(r, t + 1, row)];
      }
      if (row < 4 * P) {
#pragma unroll 8
        for (int s = 0; s < P; ++s) {
          const float w = weights[s * 4 * P + row];
#pragma unroll
          for (int r = 0; r < kRows; ++r) sum[r] = fmaf(w, h[s * kRows + r], sum[r]);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) raw[row * kRows + r] = sum[r];
      }
    }
    __syncthreads();
    for (int k = threadIdx.x; k < P * kRows; k += kThreads) {
      const int o = k / kRows, r = k % kRows;
      const float i_raw = raw[k], f_raw = raw[k + P * kRows], z_raw = raw[k + 2 * P * kRows];
      const float o_raw = raw[k + 3 * P * kRows];
      const float held = m[k] - softplus(-f_raw);
      float most = held > i_raw ? held : i_raw;
      if (held != held) most = held;
      const float i = ex2(kLog2e * (i_raw - most)), f = ex2(kLog2e * (held - most));
      const float z = tanhf(z_raw), open = sigmoid(o_raw);
      const float cell = fmaf(f, c[k], i * z), norm = fmaf(f, n[k], i), out = open * cell / norm;
      const bool end = t + 1 == p.length;
      if (place.there(r)) {
        at<float>(p.hs)[place.out(r, t, o)] = out;
        if (p.saved) {
          float* saved = at<float>(p.saved);
          saved[place.kept(0, r, t, o)] = cell;
          saved[place.kept(1, r, t, o)] = norm;
          saved[place.kept(2, r, t, o)] = i;
          saved[place.kept(3, r, t, o)] = f;
          saved[place.kept(4, r, t, o)] = z;
          saved[place.kept(5, r, t, o)] = open;
          saved[place.kept(6, r, t, o)] = sigmoid(-f_raw);
        }
        if (end) {
          float* last = at<float>(p.last);
          last[place.state(0, r, o)] = out;
          last[place.state(1, r, o)] = cell;
          last[place.state(2, r, o)] = norm;
          last[place.state(3, r, o)] = most;
        }
      }
      const bool fresh = !end && place.reset(r, t + 1);
      h[k] = fresh ? 0.0f : out;
      c[k] = fresh ? 0.0f : cell;
      n[k] = fresh ? 0.0f : norm;
      m[k] = fresh ? negative_infinity() : most;
    }
    __syncthreads();
  }
}

// Grid as slstm_forward; shared memory 11 P kRows floats, and 4 P^2 where resident. The gradient of
// the weights is the host's: one GEMM over the whole of time.
KERNEL(slstm_backward, SlstmParams, kThreads, 1) {
  SHARED_BYTES(memory);
  const SlstmPlace place(p);
  float *step = memory, *parts = step + 4 * P * kRows, *dc = parts + 4 * P * kRows,
        *dn = dc + P * kRows;
  float* dm = dn + P * kRows;
  const float* weights = hold_weights(place, dm + P * kRows);
  const float *dlast = at<const float>(p.dlast), *saved = at<const float>(p.saved),
              *first = at<const float>(p.first);
  for (int k = threadIdx.x; k < P * kRows; k += kThreads) {
    const int o = k / kRows, r = k % kRows;
    parts[k] = place.there(r) ? dlast[place.state(0, r, o)] : 0.0f;
    for (int g = 1; g < 4; ++g) parts[k + g * P * kRows] = 0.0f;
    dc[k] = place.there(r) ? dlast[place.state(1, r, o)] : 0.0f;
    dn[k] = place.there(r) ? dlast[place.state(2, r, o)] : 0.0f;
    dm[k] = place.there(r) ? dlast[place.state(3, r, o)] : 0.0f;
  }
  __syncthreads();
  for (i64 t = p.length - 1; t >= 0; --t) {
    for (int k = threadIdx.x; k < P * kRows; k += kThreads) {
      const int o = k / kRows, r = k % kRows;
      if (!place.there(r)) {
        for (int g = 0; g < 4; ++g) step[k + g * P * kRows] = 0.0f;
        continue;
      }
      const bool reset = place.reset(r, t), cut = t + 1 < p.length && place.reset(r, t + 1);
      const float n_now = saved[place.kept(1, r, t, o)], i = saved[place.kept(2, r, t, o)];
      const float f = saved[place.kept(3, r, t, o)], z = saved[place.kept(4, r, t, o)];
      const float open = saved[place.kept(5, r, t, o)], leak = saved[place.kept(6, r, t, o)];
      float c_before = 0.0f, n_before = 0.0f;
      if (!reset) {
        c_before = t > 0 ? saved[place.kept(0, r, t - 1, o)] : first[place.state(1, r, o)];
        n_before = t > 0 ? saved[place.kept(1, r, t - 1, o)] : first[place.state(2, r, o)];
      }
      const float h = open * saved[place.kept(0, r, t, o)] / n_now;
      float dh = at<const float>(p.dhs)[place.out(r, t, o)];
      if (!cut)
        dh += (parts[k] + parts[k + P * kRows]) +
              (parts[k + 2 * P * kRows] + parts[k + 3 * P * kRows]);
      const float gc = fmaf(dh / n_now, open, dc[k]), gn = dn[k] - dh / n_now * h, gm = dm[k];
      const float through_i = fmaf(gc, z, gn) * i,
                  through_f = fmaf(gc, c_before, gn * n_before) * f;
      // the maximum is differentiated too, whichever of its arguments it is
      const bool input_won = i >= f;
      const float to_m = input_won ? through_f : gm - through_i;
      const float d[4] = {input_won ? gm - through_f : through_i, to_m * leak,
                          gc * i * (1.0f - z * z), dh * h * (1.0f - open)};
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        step[k + g * P * kRows] = d[g];
        at<float>(p.dgates)[place.gate(r, t, g * P + o)] = d[g];
      }
      dc[k] = reset ? 0.0f : gc * f;
      dn[k] = reset ? 0.0f : gn * f;
      dm[k] = reset ? 0.0f : to_m;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int index = threadIdx.x + j * kThreads, gate = index / P, s = index % P;
      if (index >= 4 * P) break;
      float sum[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] = 0.0f;
#pragma unroll 8
      for (int o = 0; o < P; ++o) {
        const float w = weights[(gate * P + o) * P + s];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r] = fmaf(w, step[(gate * P + o) * kRows + r], sum[r]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) parts[index * kRows + r] = sum[r];
    }
    __syncthreads();
  }
  for (int k = threadIdx.x; k < P * kRows; k += kThreads) {
    const int o = k / kRows, r = k % kRows;
    if (!place.there(r)) continue;
    float* dfirst = at<float>(p.dfirst);
    const float dh =
        (parts[k] + parts[k + P * kRows]) + (parts[k + 2 * P * kRows] + parts[k + 3 * P * kRows]);
    dfirst[place.state(0, r, o)] = place.reset(r, 0) ? 0.0f : dh;
    dfirst[place.state(1, r, o)] = dc[k];
    dfirst[place.state(2, r, o)] = dn[k];
    dfirst[place.state(3, r, o)] = dm[k];
  }
}
