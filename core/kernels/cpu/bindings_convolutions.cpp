// Python's view of the convolutions: short ones, long ones, Hyena's gated ones.
#include "bindings.h"

namespace {

// sizes: B, L, D, W
CausalConv short_conv(const std::array<int64_t, 4>& sizes, bool silu, int64_t compute, int threads,
                      int64_t weight, int64_t bias) {
  CausalConv p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.W = sizes[3], p.silu = silu,
  p.compute = compute;
  p.threads = threads, p.weight = pointer(weight), p.bias = pointer(bias);
  return p;
}

// (pointer, dtype, strides of batch, rows and columns)
Grid grid(const Wide& a) {
  Grid t;
  static_cast<Tensor3&>(t) = tensor({a[0], a[1], a[2], a[3]});
  t.stride_w = a[4];
  return t;
}

// sizes: B, H, W, C, KH, KW
DepthwiseConv depthwise(const std::array<int64_t, 6>& sizes, bool silu, int64_t compute,
                        int threads, const Wide& x, int64_t taps, int64_t bias) {
  DepthwiseConv p{};
  p.B = sizes[0], p.H = sizes[1], p.W = sizes[2], p.C = sizes[3], p.KH = sizes[4], p.KW = sizes[5];
  p.silu = silu, p.compute = compute, p.threads = threads, p.x = grid(x);
  p.taps = pointer(taps), p.bias = pointer(bias);
  return p;
}

// kernel: pointer, taps, strides of channels and taps
LongTaps taps(const std::array<int64_t, 4>& kernel, int64_t skip, int64_t gradient = 0) {
  return {kernel[1], kernel[2], kernel[3], pointer(kernel[0]), pointer(skip), pointer(gradient)};
}

// sizes: B, T, L, D, N, hop
LongConv long_conv(const std::array<int64_t, 6>& sizes, int64_t compute, int threads,
                   const Arg& x) {
  LongConv p{};
  p.B = sizes[0], p.T = sizes[1], p.L = sizes[2], p.D = sizes[3], p.N = sizes[4], p.hop = sizes[5];
  p.compute = compute, p.threads = threads, p.x = tensor(x);
  return p;
}

// sizes: B, L, D, W, N
GatedConv gated_conv(const std::array<int64_t, 5>& sizes, int64_t compute, int threads,
                     const Arg& x, const std::array<int64_t, 3>& short_taps) {
  GatedConv p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.W = sizes[3], p.N = sizes[4];
  p.compute = compute, p.threads = threads, p.x = tensor(x);
  p.weight = pointer(short_taps[0]), p.bias = pointer(short_taps[1]),
  p.shift = pointer(short_taps[2]);
  return p;
}

}  // namespace

void bind_convolutions(nb::module_& m) {
  m.attr("MAP_ROWS") = kMapRows;
  m.def("depthwise_conv_forward",
        [](std::array<int64_t, 6> sizes, bool silu, int64_t compute, int threads, Wide x,
           int64_t taps, int64_t bias, Wide y) {
          DepthwiseConv p = depthwise(sizes, silu, compute, threads, x, taps, bias);
          p.y = grid(y);
          nb::gil_scoped_release release;
          current->depthwise_conv_forward(p);
        });
  m.def("depthwise_conv_backward",
        [](std::array<int64_t, 6> sizes, bool silu, int64_t compute, int threads, Wide x,
           int64_t taps, int64_t bias, Wide dy, Wide dx, int64_t turned, int64_t sums) {
          DepthwiseConv p = depthwise(sizes, silu, compute, threads, x, taps, bias);
          p.dy = grid(dy), p.dx = grid(dx), p.turned = pointer(turned), p.sums = pointer(sums);
          nb::gil_scoped_release release;
          current->depthwise_conv_backward(p);
        });
  // sizes: B, L, D, W
  m.def("causal_conv_forward",
        [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Wide x,
           int64_t weight, int64_t bias, Arg initial, int64_t resets, Wide y) {
          CausalConv p = short_conv(sizes, silu, compute, threads, weight, bias);
          p.x = strided(x), p.initial = strided(initial), p.resets = pointer<uint8_t>(resets),
          p.y = strided(y);
          nb::gil_scoped_release release;
          current->causal_conv_forward(p);
        });
  m.def("causal_conv_backward",
        [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Wide x,
           int64_t weight, int64_t bias, Arg initial, int64_t resets, Wide dy, Wide dx,
           Arg dinitial, int64_t dweight, int64_t dbias) {
          CausalConv p = short_conv(sizes, silu, compute, threads, weight, bias);
          p.x = strided(x), p.initial = strided(initial), p.resets = pointer<uint8_t>(resets),
          p.dy = strided(dy);
          p.dx = strided(dx), p.dinitial = strided(dinitial), p.dweight = pointer(dweight),
          p.dbias = pointer(dbias);
          nb::gil_scoped_release release;
          current->causal_conv_backward(p);
        });
  m.def("causal_conv_update",
        [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Arg x,
           int64_t weight, int64_t bias, Arg initial, Arg y, Arg next) {
          CausalConv p = short_conv(sizes, silu, compute, threads, weight, bias);
          p.x = strided(x), p.initial = strided(initial), p.y = strided(y), p.next = strided(next);
          nb::gil_scoped_release release;
          current->causal_conv_update(p);
        });
  m.def("causal_conv_shift",
        [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Wide x,
           int64_t weight, int64_t bias, int64_t T, Wide buffer, Wide y) {
          CausalConv p = short_conv(sizes, silu, compute, threads, weight, bias);
          p.x = strided(x), p.y = strided(y), p.T = T, p.buffer = strided(buffer);
          nb::gil_scoped_release release;
          current->causal_conv_shift(p);
        });
  m.def("long_conv_forward", [](std::array<int64_t, 6> sizes, int64_t compute, int threads, Arg x,
                                std::array<int64_t, 4> kernel, int64_t skip, Arg y) {
    LongConv p = long_conv(sizes, compute, threads, x);
    p.kernel = taps(kernel, skip), p.y = tensor(y);
    nb::gil_scoped_release release;
    current->long_conv_forward(p);
  });
  m.def("long_conv_backward",
        [](std::array<int64_t, 6> sizes, int64_t compute, int threads, Arg x,
           std::array<int64_t, 4> kernel, int64_t skip, Arg dy, Arg dx, int64_t dkernel) {
          LongConv p = long_conv(sizes, compute, threads, x);
          p.kernel = taps(kernel, skip, dkernel), p.dy = tensor(dy), p.dx = tensor(dx);
          nb::gil_scoped_release release;
          current->long_conv_backward(p);
        });
  m.def("gated_conv_forward", [](std::array<int64_t, 5> sizes, int64_t compute, int threads, Arg x,
                                 std::array<int64_t, 3> short_taps, std::array<int64_t, 4> kernel,
                                 int64_t skip, Arg y, Arg u) {
    GatedConv p = gated_conv(sizes, compute, threads, x, short_taps);
    p.kernel = taps(kernel, skip), p.y = tensor(y), p.u = tensor(u);
    nb::gil_scoped_release release;
    current->gated_conv_forward(p);
  });
  m.def("gated_conv_backward", [](std::array<int64_t, 5> sizes, int64_t compute, int threads, Arg x,
                                  std::array<int64_t, 3> short_taps, std::array<int64_t, 4> kernel,
                                  int64_t skip, Arg dy, Arg du, Arg dx,
                                  std::array<int64_t, 3> gradients, int64_t dkernel) {
    GatedConv p = gated_conv(sizes, compute, threads, x, short_taps);
    p.kernel = taps(kernel, skip, dkernel), p.dy = tensor(dy), p.du = tensor(du), p.dx = tensor(dx);
    p.dweight = pointer(gradients[0]), p.dbias = pointer(gradients[1]),
    p.dshift = pointer(gradients[2]);
    nb::gil_scoped_release release;
    current->gated_conv_backward(p);
  });
}
