// What the kernels of several operations in one call take.
#pragma once
#include "kernel_tensors.h"

namespace longseq {

// One position of a Mamba layer. Everything is dense and of the compute type.
struct MambaStep {
  int64_t B, model, D, N, rank, W;
  int64_t compute;
  int threads;
  const void *x, *conv, *state;             // (B, model), (B, W-1, D), (B, D, N)
  const void *in_proj, *in_bias;            // (2D, model), (2D,) or null
  const void *taps, *conv_bias;             // (D, W), (D,) or null
  const void *x_proj, *dt_proj, *dt_bias;   // (rank + 2N, D), (D, rank), (D,)
  const void *A_log, *skip;                 // log(-decay) (D, N), (D,)
  const void *out_proj, *out_bias;          // (model, D), (model,) or null
  void *y, *next_conv, *next;               // as x, conv, state
};

// One direction of a Mamba layer between its outer maps; everything dense and of the compute type.
struct MambaWay {
  bool reverse;                             // from the last position to the first
  const void *taps, *conv_bias;             // (D, W), (D,) or null
  const void *x_proj, *dt_proj, *dt_bias;   // (rank + 2N, D), (D, rank), (D,) or null
  const void *A_log, *skip;                 // log(-decay) (D, N), (D,) or null
  // kept for the backward pass, or null: as those of SelectiveScan; what x_proj gives a position,
  // C scaled (B, L, rank + 2N)
  void *states, *values;
  // backward: gradients, shaped as what they are of; none is null
  void *dtaps, *dconv_bias, *dx_proj, *ddt_proj, *ddt_bias, *dA_log, *dskip;
};
// Several of them over the same positions: y = scale silu(z) Σ ways.
struct MambaInner {
  int64_t B, L, D, N, rank, W;
  double scale;
  int64_t compute;
  int threads;
  Tensor3 x, z, y;                          // (B, L, D), of the compute type
  int64_t ways;
  const MambaWay* way;
  Tensor3 dy, dx, dz;                       // backward
};

// Several scans of the same positions, each along a path of its own, with low-rank step sizes: the
// sum of their outputs. Everything is of the compute type, and what has no stride is dense.
struct CrossScan {
  int64_t B, L, D, N, rank;
  int64_t compute;
  int threads;
  Tensor3 x, y;                             // (B, L, D)
  Tensor3 low;                              // (B, L, ways, rank + 2N): steps, B and C
  const void *weight, *bias, *A, *skip;     // (ways, D, rank), (ways, D), (ways, D, N), (ways, D)
  int64_t ways;
  const int64_t *reverse, *height;          // of each, as those of SelectiveScan
  void* states;                             // (ways, B, …), as those of SelectiveScan, or null
  Tensor3 dy, dx, dlow;                     // backward
  void *dweight, *dbias, *dA, *dskip;
};

}  // namespace longseq
