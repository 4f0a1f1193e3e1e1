// Causal depthwise convolution: y_t = act(sum_k w_k x_{t-W+1+k} + bias), with resets and an initial
// state.
//
// A thread takes one channel over kSpan positions with the last W inputs in registers: each input
// is read once and W - 1 more a span, neighbouring threads read neighbouring channels, and nothing
// is shared.
#include "common.cuh"

typedef LONGSEQ_X InputT;  // x and y
typedef LONGSEQ_INITIAL PastT;

constexpr int kTaps = LONGSEQ_TAPS;
constexpr int kPast = kTaps - 1;
constexpr bool kSilu = LONGSEQ_SILU;

// As ScanParams: 64-bit fields, names read by the host. Dense: weight (D, W), bias (D), resets (B,
// L), y and dx (B, L, D), dinitial and after (B, W - 1, D), dweight (B, spans, D, W), dbias (B,
// spans, D).
struct ConvParams {
  i64 batch, length, channels, span, spans;
  i64 x, x_b, x_t, weight, bias, initial, initial_b, initial_t, resets, y;
  i64 dy, dy_b, dy_t, dx, dinitial, dweight, dbias, after;
};

struct ConvPlace {
  i64 b, d, begin, end;
  bool active;
  METHOD ConvPlace(const ConvParams& p) {
    d = i64(blockIdx.x) * 128 + threadIdx.x;
    active = d < p.channels;
    b = blockIdx.y / p.spans;
    begin = blockIdx.y % p.spans * p.span;
    end = begin + p.span < p.length ? begin + p.span : p.length;
  }
  // The input at a position, which may lie before the sequence.
  METHOD float input(const ConvParams& p, i64 t) const {
    if (t >= 0) return widen(at<const InputT>(p.x)[b * p.x_b + t * p.x_t + d]);
    return p.initial && t >= -kPast
               ? widen(at<const PastT>(p.initial)[b * p.initial_b + (t + kPast) * p.initial_t + d])
               : 0.0f;
  }
  METHOD bool reset(const ConvParams& p, i64 t) const {
    return p.resets && t >= 0 && at<const u8>(p.resets)[b * p.length + t];
  }
};

// The last W inputs, oldest first, and how many of them the segment's own are.
struct Window {
  float x[kTaps];
  int seen;  // inputs before the newest that the position may look at
  METHOD Window(const ConvParams& p, const ConvPlace& place, i64 t) {  // as after position t - 1
    seen = kTaps;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      x[k] = place.input(p, t - kTaps + k);
      seen = place.reset(p, t - kTaps + k) ? 0 : seen + 1;
    }
  }
  METHOD void push(float value, bool reset) {
#pragma unroll
    for (int k = 0; k < kPast; ++k) x[k] = x[k + 1];
    x[kPast] = value;
    seen = reset ? 0 : (seen < kTaps ? seen + 1 : kTaps);
  }
  METHOD float dot(const float (&w)[kTaps], float bias) const {
    float sum = bias;
#pragma unroll
    for (int k = 0; k < kTaps; ++k)
      // not a product with 0: what is not seen may be NaN
      if (kPast - k <= seen) sum = fmaf(w[k], x[k], sum);
    return sum;
  }
};

struct Weights {
  float w[kTaps], bias;
  METHOD Weights(const ConvParams& p, i64 d) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) w[k] = at<const float>(p.weight)[d * kTaps + k];
    bias = p.bias ? at<const float>(p.bias)[d] : 0.0f;
  }
};

// Grid (ceil(D / 128), batch * spans).
KERNEL(conv_forward, ConvParams, 128, 1) {
  const ConvPlace place(p);
  if (!place.active) return;
  const Weights weights(p, place.d);
  Window window(p, place, place.begin);
  InputT* y = at<InputT>(p.y) + place.b * p.length * p.channels + place.d;
#pragma unroll 4
  for (i64 t = place.begin; t < place.end; ++t) {
    window.push(place.input(p, t), place.reset(p, t));
    const float sum = window.dot(weights.w, weights.bias);
    narrow(kSilu ? sum * sigmoid(sum) : sum, &y[t * p.channels]);
  }
}

// Grid as conv_forward. A span owns the gradients of its own inputs, so it walks W - 1 positions
// beyond its end; of the weights it sums only what its own outputs give. dweight and dbias are
// added up by the host, in order.
KERNEL(conv_backward, ConvParams, 128, 1) {
  const ConvPlace place(p);
  if (!place.active) return;
  const Weights weights(p, place.d);
  Window window(p, place, place.begin);
  const InputT* dy = at<const InputT>(p.dy) + place.b * p.dy_b + place.d;
  InputT* dx = at<InputT>(p.dx) + place.b * p.length * p.channels + place.d;
  // open: gradients of the window's inputs, not yet complete
  float sum_w[kTaps], open[kTaps], sum_bias = 0.0f;
#pragma unroll
  for (int k = 0; k < kTaps; ++k) sum_w[k] = open[k] = 0.0f;
  const i64 stop = place.end + kPast;
#pragma unroll 2
  for (i64 t = place.begin; t < stop; ++t) {
    const bool there = t < p.length;
    window.push(there ? place.input(p, t) : 0.0f, there && place.reset(p, t));
    float g = there ? widen(dy[t * p.dy_t]) : 0.0f;
    if (kSilu && there) {
      const float sum = window.dot(weights.w, weights.bias), s = sigmoid(sum);
      g *= s * fmaf(sum, 1.0f - s, 1.0f);
    }
#pragma unroll
    for (int k = 0; k < kPast; ++k) open[k] = open[k + 1];
    open[kPast] = 0.0f;
    if (there) {
      const bool own = t < place.end;
      if (own) sum_bias += g;
#pragma unroll
      for (int k = 0; k < kTaps; ++k)
        if (kPast - k <= window.seen) {
          open[k] = fmaf(weights.w[k], g, open[k]);
          if (own) sum_w[k] = fmaf(window.x[k], g, sum_w[k]);
        }
    }
    const i64 done = t - kPast;
    if (done >= place.begin) narrow(open[0], &dx[done * p.channels]);
    else if (place.begin == 0 && p.dinitial)
      narrow(open[0],
             &at<PastT>(p.dinitial)[(place.b * kPast + done + kPast) * p.channels + place.d]);
  }
  const i64 part = i64(blockIdx.y) * p.channels + place.d;
#pragma unroll
  for (int k = 0; k < kTaps; ++k) at<float>(p.dweight)[part * kTaps + k] = sum_w[k];
  at<float>(p.dbias)[part] = sum_bias;
}

// One position: y (B, D) and the W - 1 inputs after it. Grid (ceil(D / 128), batch); x_t is not
// used.
KERNEL(conv_update, ConvParams, 128, 1) {
  const i64 d = i64(blockIdx.x) * 128 + threadIdx.x, b = blockIdx.y;
  if (d >= p.channels) return;
  const Weights weights(p, d);
  const PastT* past = at<const PastT>(p.initial) + b * p.initial_b + d;
  PastT* after = at<PastT>(p.after) + b * kPast * p.channels + d;
  const float x = widen(at<const InputT>(p.x)[b * p.x_b + d]);
  float sum = fmaf(weights.w[kPast], x, weights.bias);
#pragma unroll
  for (int k = 0; k < kPast; ++k) {
    const float value = widen(past[k * p.initial_t]);
    sum = fmaf(weights.w[k], value, sum);
    if (k > 0) narrow(value, &after[(k - 1) * p.channels]);
  }
  if (kPast > 0) narrow(x, &after[(kPast - 1) * p.channels]);
  narrow(kSilu ? sum * sigmoid(sum) : sum, &at<InputT>(p.y)[b * p.channels + d]);
}
