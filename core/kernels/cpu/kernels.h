// What a kernel takes: plain pointers, sizes and strides; and the table of kernels of one
// instruction set.
#pragma once
#include "layer_kernels.h"

namespace longseq {

struct SelectiveScan {
  int64_t B, L, D, N, G;
  bool softplus, complex;
  int64_t compute;  // dtype of A, D, delta_bias, the states and the gradients of B and C
  int threads;
  Strided u, delta, z, Bm, Cm;              // (B, L, D) and (B, L, G, N)
  int64_t rank;                             // else 0; then delta is (B, L, rank), and the step
  const void* delta_weight;                 // sizes are its products with these rows (D, rank)
  Strided add;                              // (B, L, D), joins y before the gate; may be absent
  bool reverse;                             // steps go from the last row of memory to the first
  int64_t height;                           // else 0; rows of a grid whose columns steps go down
  const void *A, *skip, *delta_bias;        // (D, N), (D,), (D,)
  const void* initial;                      // (B, D, N) or null
  const uint8_t* resets;                    // (B, L) or null
  Strided y;
  void *final_state, *states;               // (B, D, N); (B, chunks, N, G * padded D / G) or null
  // backward; y, if it is there, is made again, without a gate; ddelta is (B, L, D) in any case
  Strided dy, du, ddelta, dz, dadd;
  bool adds;                                // du joins what is in its place
  const void* dfinal;                       // (B, D, N) or null
  void *dB, *dC;                            // (B, L, G, N)
  void *dA, *dskip, *dbias, *dinitial;      // (B, D, N), (B, D), (B, D), (B, D, N)
};

struct LinearScan {
  int64_t B, L, D;
  bool complex;
  int64_t compute;
  int threads;
  Tensor3 a, b, h;                          // D counts complex numbers
  const void* initial;                      // (B, D) or null
  // backward: h is an input
  Tensor3 dh, da, db;
  void* dinitial;
};

// Rows x of [v, f, g] (B, L, 3 D), y (B, L, D); backward: dx from dy.
struct TwoWay {
  int64_t B, L, D, compute;
  int threads;
  Tensor3 x, y, dy, dx;
};

struct CausalConv {
  int64_t B, L, D, W;
  bool silu;
  int64_t compute;
  int threads;
  // initial (B, W-1, D) or null; x, y, dy and dx have the same dense dimension
  Strided x, initial, y;
  const void *weight, *bias;                // (D, W), (D,)
  const uint8_t* resets;
  // Of y by the sum under its activation, channels dense and of the compute type, or absent: filled
  // by the forward pass, and taken by the backward pass instead of being computed again.
  Tensor3 slope;
  // backward
  Strided dy, dx, dinitial;
  bool adds;                                // to what is in dx; channels dense, of the compute type
  void *dweight, *dbias;                    // (B, D, W), (B, D)
  // one position: L is 1
  Strided next;                             // (B, W-1, D)
  // a buffer that is moved on in place, whose last W-1 rows are what comes before x
  int64_t T;
  Strided buffer;                           // (B, T, D)
};

// The number of steps between the saved cells of the sLSTM.
constexpr int64_t kMark = 16;

// Everything is dense and of the compute type. States hold h, c, n and m.
struct SLSTM {
  int64_t B, L, H, P;
  int64_t compute;
  int threads;
  const void *gates, *recurrent, *first;    // (B, L, 4, H, P), (H, 4P, P), (4, B, H, P)
  const uint8_t* resets;                    // (B, L) or null
  // (B, L, H, P); as first; as gates, (marks, 3, B, H, P): null or for backward
  void *hs, *last, *raw, *marks;
  // backward: raw and marks are inputs
  const void *dhs, *dlast;
  void *dgates, *dfirst;
};

// The taps of a long convolution, with any strides of channels and taps; `gradient` is laid out as
// they are.
struct LongTaps {
  int64_t count, stride_d, stride_t;
  const void *taps, *skip;                  // (D, count); (D,) or null, added at lag 0
  void* gradient;
};

// A long convolution y[t] = Σ_j k[j] x[t-j] of the last L of T inputs, in frames of `hop`
// positions.
struct LongConv {
  // 2N values are transformed at a time, at least hop + min(taps, T) - 1
  int64_t B, T, L, D, N, hop;
  int64_t compute;
  int threads;
  Tensor3 x, y;                             // (B, T, D), (B, L, D)
  LongTaps kernel;
  // backward; there are at most T taps
  Tensor3 dy, dx;
};

// Hyena's operator y = s(x₀) ⊙ (k * (s(x₁) ⊙ s(x₂))) of x = [x₀, x₁, x₂], with short convolutions
// s.
struct GatedConv {
  // W short taps; 2N values are transformed, at least 2L - 1
  int64_t B, L, D, W, N;
  int64_t compute;
  int threads;
  // (B, L, 3D), (B, L, D), (B, L, D): what the long convolution takes
  Tensor3 x, y, u;
  // (3D, W), the newest tap last; (3D,); (3D,), added to x, or null
  const void *weight, *bias, *shift;
  LongTaps kernel;                          // at most L taps
  // backward
  Tensor3 dy, du, dx;                       // du may be absent
  void *dweight, *dbias, *dshift;           // (3D, W), (3D,), (3D,)
};

// One position. A head of `width` channels shares its step size; its decay is one number (scalar)
// or a row of N.
struct StateUpdate {
  int64_t B, D, N, G, width;
  bool softplus, log_decay, scalar, skip_per_head;  // log_decay: A is log(-decay)
  double low, high;                         // bounds of the step size
  int64_t compute;
  int threads;
  // (B, D), (B, D / width), (B, D), (B, G, N), (B, D): no time, no stride_l
  Tensor3 x, dt, z, Bm, Cm, y;
  // (D, N) or (D / width,); (D,) or (D / width,); (D / width,); (B, D, N)
  const void *A, *skip, *bias, *state;
  void* next;                               // (B, D, N)
};

// One chunk of T positions of N heads; `shared` consecutive heads have the same scores. Everything
// is dense.
struct ChunkDecay {
  int64_t N, shared, T;
  int64_t compute;
  int threads;
  // (N, T); (N, T) or null; (N,) or null for 0; (N / shared, T, T) or null
  const void *g, *i, *first, *scores;
  void *weights, *through, *behind;         // (N, T, T), (N, T), (N, T)
  // with i: (N, T), and int32; (N, T) or null: row sums of the weights
  void *units, *winners, *sums;
  // backward: weights are the decays, and become their products with the scores; sums are added to
  // the slopes
  void* slopes;                             // (N, T, T): of the weights; become those of the scores
  const void *entering, *leaving, *whole, *dunits;  // (N, T), (N, T), (N,); with i: (N, T)
  void *dg, *di, *dfirst;                   // (N, T); with i: (N, T), (N,)
};

// Chunks between the saved states of the delta rule.
constexpr int64_t kDeltaMark = 4;

// The delta rule, or without beta linear attention; heads of a group share q and k. Decay: 0 none,
// 1 per head, 2 per key channel. States, marks and the gradients of states are dense and of the
// compute type.
struct DeltaRule {
  int64_t B, L, G, H, K, V, T;              // T positions in a chunk, a multiple of 16
  int64_t decay;
  double scale;
  int64_t compute;
  int threads;
  // (B, L, G K) twice, (B, L, H V), (B, L, H) or absent; absent, (B, L, H) or as q
  Tensor3 q, k, v, beta, g;
  const uint8_t* resets;                    // (B, L) or null
  const void* initial;                      // (B, H, K, V) or null
  Tensor3 y;                                // (B, L, H V)
  void *final_state, *marks;                // (B, H, K, V); (B, H, marks, K, V) or null
  // backward: marks are an input
  Tensor3 dy, dq, dk, dv, dbeta, dg;        // dq, dk and a dg per channel: (B, L, H K)
  const void* dfinal;
  void* dinitial;
};

// Chunks of 16 positions between the saved states of the diagonal-plus-rank-one recurrence.
constexpr int64_t kDplrMark = 8;

// The recurrence with any diagonal plus rank-one transition. States, marks and the gradients of
// states are dense and of the compute type.
struct Dplr {
  int64_t B, L, H, K, V;
  double scale;
  int64_t compute;
  int threads;
  Tensor3 q, k, v, a, b, g;                 // (B, L, H K), v (B, L, H V)
  const uint8_t* resets;                    // (B, L) or null
  const void* initial;                      // (B, H, K, V) or null
  Tensor3 y;                                // (B, L, H V)
  void *final_state, *marks;                // (B, H, K, V); (B, H, marks, K, V) or null
  // backward: marks are an input
  Tensor3 dy, dq, dk, dv, da, db, dg;
  const void* dfinal;
  void* dinitial;
};

// Rows of a unit of work, over which the gradients of weights are summed.
constexpr int64_t kBlockRows = 256, kNormRows = 128;

// y_m = W_m x of every row, for `maps` block-diagonal matrices with blocks of P channels. No time:
// rows lie stride_l apart.
struct BlockLinear {
  int64_t rows, W, P, maps;
  int64_t compute;
  int threads;
  // (rows, W), of the compute type; backward: y is its gradient
  Tensor3 x, y[3];
  const void* weight;                       // (maps, W / P, P, P)
  Tensor3 dx;
  void* dweight;                            // (rows / kBlockRows, maps, W / P, P, P)
};

// Rows as above. out = (unit(y) weight + skip u) silu(z), or unit(y silu(z)) weight + skip u.
struct GatedNorm {
  int64_t rows, W, groups;
  bool centred, norm_first;
  double eps;
  int64_t compute;
  int threads;
  Tensor3 y, z, u, out;                     // (rows, W), of the compute type; u may be absent
  const void *weight, *skip;                // (W,)
  Tensor3 dout, dy, dz, du;
  void *dweight, *dskip;                    // (rows / kNormRows, W)
};

struct RmsNorm {
  int64_t rows, W;
  double eps;
  int64_t compute;
  int threads;
  Tensor3 x, residual, out, total;          // (rows, W); residual and total may be absent
  const void* weight;                       // (W,)
  Tensor3 dout, dtotal, dx;
  void* dweight;                            // (rows / kNormRows, W)
};

// The gated linear unit of dense rows of 2W values, with the bias before it.
struct GLU {
  int64_t rows, W;
  int64_t compute;
  int threads;
  const void *x, *bias;                     // (rows, 2W), (2W,) or null
  void* y;                                  // (rows, W); backward: its gradient
  void *dx, *dbias;                         // (rows, 2W), (rows / kNormRows, 2W)
};

// The GELU of dense rows of W values, with the bias before it.
struct BiasedGelu {
  int64_t rows, W;
  int64_t compute;
  int threads;
  const void *x, *bias;                     // (rows, W), (W,)
  void* y;                                  // (rows, W), may be x; backward: its gradient
  void *dx, *dbias;                         // (rows, W), may be y; (rows / kNormRows, W)
  void* again;                              // the backward pass: what y was, or null
};

// A matrix turned round.
struct Turned {
  int64_t rows, columns;
  int64_t compute;
  int threads;
  const void* from;                         // (rows, columns), dense
  void* to;                                 // (columns, rows)
};

// Rows of a map, at most, of a unit of work.
constexpr int64_t kMapRows = 16;

// A (B, H, W, C) tensor whose last dimension is dense; stride_l is that of rows.
struct Grid : Tensor3 {
  int64_t stride_w = 0;
};

// Every channel of a map by its own KH × KW taps, odd, centred, with zeros around.
struct DepthwiseConv {
  int64_t B, H, W, C, KH, KW;
  bool silu;
  int64_t compute;
  int threads;
  Grid x, y;
  const void *taps, *bias;                  // (KH, KW, C), (C,) or null
  // backward: the taps from last to first; sums (B strips, KH KW + 1, C) of taps and bias
  Grid dy, dx;
  const void* turned;
  void* sums;
};

struct Kernels {
  const char* name;
  void (*selective_scan_forward)(const SelectiveScan&);
  void (*selective_scan_backward)(const SelectiveScan&);
  void (*linear_scan_forward)(const LinearScan&);
  void (*linear_scan_backward)(const LinearScan&);
  void (*two_way_forward)(const TwoWay&);
  void (*two_way_backward)(const TwoWay&);
  void (*causal_conv_forward)(const CausalConv&);
  void (*causal_conv_backward)(const CausalConv&);
  void (*causal_conv_update)(const CausalConv&);
  void (*causal_conv_shift)(const CausalConv&);
  void (*state_update)(const StateUpdate&);
  void (*mamba_step)(const MambaStep&);
  void (*mamba_inner)(const MambaInner&);
  void (*mamba_inner_backward)(const MambaInner&);
  void (*cross_scan)(const CrossScan&);
  void (*cross_scan_backward)(const CrossScan&);
  void (*slstm_forward)(const SLSTM&);
  void (*slstm_backward)(const SLSTM&);
  void (*long_conv_forward)(const LongConv&);
  void (*long_conv_backward)(const LongConv&);
  void (*gated_conv_forward)(const GatedConv&);
  void (*gated_conv_backward)(const GatedConv&);
  void (*glu_forward)(const GLU&);
  void (*glu_backward)(const GLU&);
  void (*biased_gelu_forward)(const BiasedGelu&);
  void (*biased_gelu_backward)(const BiasedGelu&);
  void (*turned)(const Turned&);
  void (*depthwise_conv_forward)(const DepthwiseConv&);
  void (*depthwise_conv_backward)(const DepthwiseConv&);
  void (*decay_weights)(const ChunkDecay&);
  void (*decay_slopes)(const ChunkDecay&);
  void (*block_linear_forward)(const BlockLinear&);
  void (*block_linear_backward)(const BlockLinear&);
  void (*gated_norm_forward)(const GatedNorm&);
  void (*gated_norm_backward)(const GatedNorm&);
  void (*rms_norm_forward)(const RmsNorm&);
  void (*rms_norm_backward)(const RmsNorm&);
  void (*delta_rule_forward)(const DeltaRule&);
  void (*delta_rule_backward)(const DeltaRule&);
  void (*dplr_forward)(const Dplr&);
  void (*dplr_backward)(const Dplr&);
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;

// Runs work(i) for i in [0, n) on up to `threads` threads of the OpenMP runtime that torch has
// loaded.
void parallel_for(int64_t n, int threads, void (*work)(void*, int64_t), void* context);
const char* thread_runtime();

template <class F> inline void parallel(int64_t n, int threads, const F& f) {
  parallel_for(
      n, threads, [](void* c, int64_t i) { (*static_cast<const F*>(c))(i); }, const_cast<F*>(&f));
}

}  // namespace longseq
