// Python's view of the blocks: GLU, decays of chunks, block-diagonal maps, norms, the delta rule.
#include "bindings.h"

namespace {

// sizes: N, shared, T
ChunkDecay chunk_decay(const std::array<int64_t, 3>& sizes, int64_t compute, int threads, int64_t i,
                       int64_t scores, int64_t weights, int64_t sums, int64_t winners) {
  ChunkDecay p{};
  p.N = sizes[0], p.shared = sizes[1], p.T = sizes[2], p.compute = compute, p.threads = threads;
  p.i = pointer(i), p.scores = pointer(scores), p.weights = pointer(weights),
  p.sums = pointer(sums);
  p.winners = pointer(winners);
  return p;
}

// sizes: rows, W, P, maps
BlockLinear block_linear(const std::array<int64_t, 4>& sizes, int64_t compute, int threads,
                         const Arg& x, int64_t weight, const std::vector<Arg>& y) {
  BlockLinear p{};
  p.rows = sizes[0], p.W = sizes[1], p.P = sizes[2], p.maps = sizes[3], p.compute = compute,
  p.threads = threads;
  p.x = tensor(x), p.weight = pointer(weight);
  if (y.size() != size_t(p.maps) || p.maps > 3)
    throw nb::value_error("one to three maps, an output for each");
  for (size_t i = 0; i < y.size(); ++i) p.y[i] = tensor(y[i]);
  return p;
}

// sizes: rows, W, groups; flags: centred, norm_first
GatedNorm gated_norm(const std::array<int64_t, 3>& sizes, const std::array<bool, 2>& flags,
                     double eps, int64_t compute, int threads, const Arg& y, const Arg& z,
                     const Arg& u, int64_t weight, int64_t skip) {
  GatedNorm p{};
  p.rows = sizes[0], p.W = sizes[1], p.groups = sizes[2], p.centred = flags[0],
  p.norm_first = flags[1], p.eps = eps;
  p.compute = compute, p.threads = threads, p.y = tensor(y), p.z = tensor(z), p.u = tensor(u);
  p.weight = pointer(weight), p.skip = pointer(skip);
  return p;
}

// sizes: B, L, G, H, K, V, T, decay; rows: q, k, v, beta, g
DeltaRule delta(const std::array<int64_t, 8>& sizes, double scale, int64_t compute, int threads,
                const std::array<Arg, 5>& rows, int64_t resets, int64_t marks) {
  DeltaRule p{};
  p.B = sizes[0], p.L = sizes[1], p.G = sizes[2], p.H = sizes[3], p.K = sizes[4], p.V = sizes[5],
  p.T = sizes[6];
  p.decay = sizes[7], p.scale = scale, p.compute = compute, p.threads = threads;
  p.q = tensor(rows[0]), p.k = tensor(rows[1]), p.v = tensor(rows[2]), p.beta = tensor(rows[3]),
  p.g = tensor(rows[4]);
  p.resets = pointer<uint8_t>(resets), p.marks = pointer(marks);
  return p;
}

}  // namespace

void bind_blocks(nb::module_& m) {
  m.def("glu_forward", [](int64_t rows, int64_t W, int64_t compute, int threads, int64_t x,
                          int64_t bias, int64_t y) {
    const GLU p{rows, W, compute, threads, pointer(x), pointer(bias), pointer(y), nullptr, nullptr};
    nb::gil_scoped_release release;
    current->glu_forward(p);
  });
  m.def("glu_backward", [](int64_t rows, int64_t W, int64_t compute, int threads, int64_t x,
                           int64_t bias, int64_t dy, int64_t dx, int64_t dbias) {
    const GLU p{rows,          W,           compute,     threads,       pointer(x),
                pointer(bias), pointer(dy), pointer(dx), pointer(dbias)};
    nb::gil_scoped_release release;
    current->glu_backward(p);
  });
  m.def("biased_gelu_forward", [](int64_t rows, int64_t W, int64_t compute, int threads, int64_t x,
                                  int64_t bias, int64_t y) {
    const BiasedGelu p{rows,       W,       compute, threads, pointer(x), pointer(bias),
                       pointer(y), nullptr, nullptr, nullptr};
    nb::gil_scoped_release release;
    current->biased_gelu_forward(p);
  });
  m.def("biased_gelu_backward", [](int64_t rows, int64_t W, int64_t compute, int threads, int64_t x,
                                   int64_t bias, int64_t dy, int64_t dx, int64_t dbias,
                                   int64_t again) {
    const BiasedGelu p{rows,          W,           compute,     threads,        pointer(x),
                       pointer(bias), pointer(dy), pointer(dx), pointer(dbias), pointer(again)};
    nb::gil_scoped_release release;
    current->biased_gelu_backward(p);
  });
  m.def("turned", [](int64_t rows, int64_t columns, int64_t compute, int threads, int64_t from,
                     int64_t to) {
    const Turned p{rows, columns, compute, threads, pointer(from), pointer(to)};
    nb::gil_scoped_release release;
    current->turned(p);
  });
  m.def("decay_weights",
        [](std::array<int64_t, 3> sizes, int64_t compute, int threads, int64_t i, int64_t scores,
           int64_t weights, int64_t sums, int64_t winners, int64_t g, int64_t first,
           int64_t through, int64_t behind, int64_t units) {
          ChunkDecay p = chunk_decay(sizes, compute, threads, i, scores, weights, sums, winners);
          p.g = pointer(g), p.first = pointer(first), p.through = pointer(through),
          p.behind = pointer(behind);
          p.units = pointer(units);
          nb::gil_scoped_release release;
          current->decay_weights(p);
        });
  m.def("decay_slopes", [](std::array<int64_t, 3> sizes, int64_t compute, int threads, int64_t i,
                           int64_t scores, int64_t weights, int64_t sums, int64_t winners,
                           int64_t slopes, int64_t entering, int64_t leaving, int64_t whole,
                           int64_t dunits, int64_t dg, int64_t di, int64_t dfirst) {
    ChunkDecay p = chunk_decay(sizes, compute, threads, i, scores, weights, sums, winners);
    p.slopes = pointer(slopes), p.entering = pointer(entering), p.leaving = pointer(leaving);
    p.whole = pointer(whole), p.dunits = pointer(dunits), p.dg = pointer(dg), p.di = pointer(di);
    p.dfirst = pointer(dfirst);
    nb::gil_scoped_release release;
    current->decay_slopes(p);
  });
  m.attr("BLOCK_ROWS") = kBlockRows;
  m.attr("NORM_ROWS") = kNormRows;
  m.def("block_linear_forward", [](std::array<int64_t, 4> sizes, int64_t compute, int threads,
                                   Arg x, int64_t weight, std::vector<Arg> y) {
    BlockLinear p = block_linear(sizes, compute, threads, x, weight, y);
    nb::gil_scoped_release release;
    current->block_linear_forward(p);
  });
  m.def("block_linear_backward",
        [](std::array<int64_t, 4> sizes, int64_t compute, int threads, Arg x, int64_t weight,
           std::vector<Arg> dy, Arg dx, int64_t dweight) {
          BlockLinear p = block_linear(sizes, compute, threads, x, weight, dy);
          p.dx = tensor(dx), p.dweight = pointer(dweight);
          nb::gil_scoped_release release;
          current->block_linear_backward(p);
        });
  m.def("gated_norm_forward",
        [](std::array<int64_t, 3> sizes, std::array<bool, 2> flags, double eps, int64_t compute,
           int threads, Arg y, Arg z, Arg u, int64_t weight, int64_t skip, Arg out) {
          GatedNorm p = gated_norm(sizes, flags, eps, compute, threads, y, z, u, weight, skip);
          p.out = tensor(out);
          nb::gil_scoped_release release;
          current->gated_norm_forward(p);
        });
  m.def("gated_norm_backward",
        [](std::array<int64_t, 3> sizes, std::array<bool, 2> flags, double eps, int64_t compute,
           int threads, Arg y, Arg z, Arg u, int64_t weight, int64_t skip, Arg dout, Arg dy, Arg dz,
           Arg du, int64_t dweight, int64_t dskip) {
          GatedNorm p = gated_norm(sizes, flags, eps, compute, threads, y, z, u, weight, skip);
          p.dout = tensor(dout), p.dy = tensor(dy), p.dz = tensor(dz), p.du = tensor(du),
          p.dweight = pointer(dweight);
          p.dskip = pointer(dskip);
          nb::gil_scoped_release release;
          current->gated_norm_backward(p);
        });
  // sizes: rows, W
  m.def("rms_norm_forward", [](std::array<int64_t, 2> sizes, double eps, int64_t compute,
                               int threads, Arg x, Arg residual, int64_t weight, Arg out,
                               Arg total) {
    RmsNorm p{};
    p.rows = sizes[0], p.W = sizes[1], p.eps = eps, p.compute = compute, p.threads = threads;
    p.x = tensor(x), p.residual = tensor(residual), p.weight = pointer(weight);
    p.out = tensor(out), p.total = tensor(total);
    nb::gil_scoped_release release;
    current->rms_norm_forward(p);
  });
  m.def("rms_norm_backward",
        [](std::array<int64_t, 2> sizes, double eps, int64_t compute, int threads, Arg x,
           int64_t weight, Arg dout, Arg dtotal, Arg dx, int64_t dweight) {
          RmsNorm p{};
          p.rows = sizes[0], p.W = sizes[1], p.eps = eps, p.compute = compute, p.threads = threads;
          p.x = tensor(x), p.weight = pointer(weight), p.dout = tensor(dout);
          p.dtotal = tensor(dtotal), p.dx = tensor(dx), p.dweight = pointer(dweight);
          nb::gil_scoped_release release;
          current->rms_norm_backward(p);
        });
  m.attr("DELTA_MARK") = kDeltaMark;
  m.def("delta_rule_forward", [](std::array<int64_t, 8> sizes, double scale, int64_t compute,
                                 int threads, std::array<Arg, 5> rows, int64_t resets,
                                 int64_t marks, int64_t initial, Arg y, int64_t last) {
    DeltaRule p = delta(sizes, scale, compute, threads, rows, resets, marks);
    p.initial = pointer(initial), p.y = tensor(y), p.final_state = pointer(last);
    nb::gil_scoped_release release;
    current->delta_rule_forward(p);
  });
  m.def("delta_rule_backward",
        [](std::array<int64_t, 8> sizes, double scale, int64_t compute, int threads,
           std::array<Arg, 5> rows, int64_t resets, int64_t marks, Arg dy, int64_t dlast,
           std::array<Arg, 5> grads, int64_t dfirst) {
          DeltaRule p = delta(sizes, scale, compute, threads, rows, resets, marks);
          p.dy = tensor(dy), p.dfinal = pointer(dlast), p.dinitial = pointer(dfirst);
          p.dq = tensor(grads[0]), p.dk = tensor(grads[1]), p.dv = tensor(grads[2]),
          p.dbeta = tensor(grads[3]);
          p.dg = tensor(grads[4]);
          nb::gil_scoped_release release;
          current->delta_rule_backward(p);
        });
}
