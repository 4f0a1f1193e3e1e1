// Python's view of the kernels: sizes, pointers and strides. Arguments are checked in core/ops, not here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using namespace longseq;

namespace {

// (pointer, dtype, batch stride, time stride), strides in elements; a null pointer stands for an absent tensor.
typedef std::array<int64_t, 4> Arg;

Tensor3 tensor(const Arg& a) {
  Tensor3 t;
  t.ptr = reinterpret_cast<char*>(a[0]);
  t.dtype = a[1];
  t.stride_b = a[2];
  t.stride_l = a[3];
  return t;
}
// The same with the stride of channels at the end.
typedef std::array<int64_t, 5> Wide;

Strided strided(const Wide& a) {
  Strided t;
  static_cast<Tensor3&>(t) = tensor({a[0], a[1], a[2], a[3]});
  t.stride_c = a[4];
  return t;
}
Strided strided(const Arg& a) { return strided(Wide{a[0], a[1], a[2], a[3], 1}); }
template <class T = void> T* pointer(int64_t address) { return reinterpret_cast<T*>(address); }

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> list;
#if defined(LONGSEQ_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    list.push_back(&kernels_avx512);
#endif
#if defined(LONGSEQ_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(&kernels_avx2);
#endif
  list.push_back(&kernels_baseline);
  return list;
}

const Kernels* current = nullptr;

bool select(const std::string& name) {
  for (const Kernels* k : available())
    if (name == k->name) {
      current = k;
      return true;
    }
  return false;
}

// Asks for large pages under memory that was not touched yet: its first writing then takes hundreds of times fewer faults.
void advise_huge_pages(int64_t address, int64_t bytes) {
#if defined(__linux__)
  const int64_t page = 4096, start = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (end > start) madvise(reinterpret_cast<void*>(start), size_t(end - start), MADV_HUGEPAGE);  // may be refused: no harm
#endif
}

// sizes: B, L, D, N, G
SelectiveScan scan(const std::array<int64_t, 5>& sizes, bool softplus, bool complex, int64_t compute, int threads,
                   const Wide& u, const Wide& delta, int64_t A, const Wide& B, const Wide& C, int64_t skip, const Wide& z,
                   int64_t bias, int64_t initial, int64_t resets, int64_t states) {
  SelectiveScan p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.N = sizes[3], p.G = sizes[4];
  p.softplus = softplus, p.complex = complex, p.compute = compute, p.threads = threads;
  p.u = strided(u), p.delta = strided(delta), p.z = strided(z), p.Bm = strided(B), p.Cm = strided(C);
  p.A = pointer(A), p.skip = pointer(skip), p.delta_bias = pointer(bias), p.initial = pointer(initial);
  p.resets = pointer<uint8_t>(resets), p.states = pointer(states);
  return p;
}

// sizes: B, L, D, W
CausalConv short_conv(const std::array<int64_t, 4>& sizes, bool silu, int64_t compute, int threads, int64_t weight,
                      int64_t bias) {
  CausalConv p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.W = sizes[3], p.silu = silu, p.compute = compute;
  p.threads = threads, p.weight = pointer(weight), p.bias = pointer(bias);
  return p;
}

// sizes: B, L, H, P
SLSTM cells(const std::array<int64_t, 4>& sizes, int64_t compute, int threads, int64_t recurrent, int64_t resets,
            int64_t raw, int64_t marks) {
  SLSTM p{};
  p.B = sizes[0], p.L = sizes[1], p.H = sizes[2], p.P = sizes[3], p.compute = compute, p.threads = threads;
  p.recurrent = pointer(recurrent), p.resets = pointer<uint8_t>(resets), p.raw = pointer(raw);
  p.marks = pointer(marks);
  return p;
}

// kernel: pointer, taps, strides of channels and taps
LongTaps taps(const std::array<int64_t, 4>& kernel, int64_t skip, int64_t gradient = 0) {
  return {kernel[1], kernel[2], kernel[3], pointer(kernel[0]), pointer(skip), pointer(gradient)};
}

// sizes: B, T, L, D, N, hop
LongConv long_conv(const std::array<int64_t, 6>& sizes, int64_t compute, int threads, const Arg& x) {
  LongConv p{};
  p.B = sizes[0], p.T = sizes[1], p.L = sizes[2], p.D = sizes[3], p.N = sizes[4], p.hop = sizes[5];
  p.compute = compute, p.threads = threads, p.x = tensor(x);
  return p;
}

// sizes: B, L, D, W, N
GatedConv gated_conv(const std::array<int64_t, 5>& sizes, int64_t compute, int threads, const Arg& x,
                     const std::array<int64_t, 3>& short_taps) {
  GatedConv p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.W = sizes[3], p.N = sizes[4];
  p.compute = compute, p.threads = threads, p.x = tensor(x);
  p.weight = pointer(short_taps[0]), p.bias = pointer(short_taps[1]), p.shift = pointer(short_taps[2]);
  return p;
}

// sizes: N, shared, T
ChunkDecay chunk_decay(const std::array<int64_t, 3>& sizes, int64_t compute, int threads, int64_t i, int64_t scores,
                       int64_t weights, int64_t sums, int64_t winners) {
  ChunkDecay p{};
  p.N = sizes[0], p.shared = sizes[1], p.T = sizes[2], p.compute = compute, p.threads = threads;
  p.i = pointer(i), p.scores = pointer(scores), p.weights = pointer(weights), p.sums = pointer(sums);
  p.winners = pointer(winners);
  return p;
}

// sizes: rows, W, P, maps
BlockLinear block_linear(const std::array<int64_t, 4>& sizes, int64_t compute, int threads, const Arg& x,
                         int64_t weight, const std::vector<Arg>& y) {
  BlockLinear p{};
  p.rows = sizes[0], p.W = sizes[1], p.P = sizes[2], p.maps = sizes[3], p.compute = compute, p.threads = threads;
  p.x = tensor(x), p.weight = pointer(weight);
  if (y.size() != size_t(p.maps) || p.maps > 3) throw nb::value_error("one to three maps, an output for each");
  for (size_t i = 0; i < y.size(); ++i) p.y[i] = tensor(y[i]);
  return p;
}

// sizes: rows, W, groups; flags: centred, norm_first
GatedNorm gated_norm(const std::array<int64_t, 3>& sizes, const std::array<bool, 2>& flags, double eps,
                     int64_t compute, int threads, const Arg& y, const Arg& z, const Arg& u, int64_t weight,
                     int64_t skip) {
  GatedNorm p{};
  p.rows = sizes[0], p.W = sizes[1], p.groups = sizes[2], p.centred = flags[0], p.norm_first = flags[1], p.eps = eps;
  p.compute = compute, p.threads = threads, p.y = tensor(y), p.z = tensor(z), p.u = tensor(u);
  p.weight = pointer(weight), p.skip = pointer(skip);
  return p;
}

// sizes: B, L, G, H, K, V, T, decay; rows: q, k, v, beta, g
DeltaRule delta(const std::array<int64_t, 8>& sizes, double scale, int64_t compute, int threads,
                const std::array<Arg, 5>& rows, int64_t resets, int64_t marks) {
  DeltaRule p{};
  p.B = sizes[0], p.L = sizes[1], p.G = sizes[2], p.H = sizes[3], p.K = sizes[4], p.V = sizes[5], p.T = sizes[6];
  p.decay = sizes[7], p.scale = scale, p.compute = compute, p.threads = threads;
  p.q = tensor(rows[0]), p.k = tensor(rows[1]), p.v = tensor(rows[2]), p.beta = tensor(rows[3]), p.g = tensor(rows[4]);
  p.resets = pointer<uint8_t>(resets), p.marks = pointer(marks);
  return p;
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Compiled CPU kernels; called through longseq.core.ops.";
  const char* wanted = std::getenv("LONGSEQ_CPU_ISA");
  if (!wanted || !select(wanted)) current = available().front();
  m.attr("CHUNK") = kChunk;
  m.attr("PAD") = kPad;
  m.attr("MARK") = kMark;

  m.def("isa", [] { return std::string(current->name); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Kernels* k : available()) names.emplace_back(k->name);
    return names;
  });
  m.def("select_isa", [](const std::string& name) {
    if (!select(name)) throw nb::value_error(("instruction set not available on this machine: " + name).c_str());
  });
  m.def("advise_huge_pages", &advise_huge_pages);
  m.def("thread_runtime", [] { return std::string(thread_runtime()); });

  m.def("selective_scan_forward",
        [](std::array<int64_t, 5> sizes, bool softplus, bool complex, int64_t compute, int threads, Wide u, Wide delta,
           int64_t A, Wide B, Wide C, int64_t skip, Wide z, int64_t bias, int64_t initial, int64_t resets, int64_t states,
           Wide y, int64_t final_state) {
          SelectiveScan p = scan(sizes, softplus, complex, compute, threads, u, delta, A, B, C, skip, z, bias, initial,
                                 resets, states);
          p.y = strided(y), p.final_state = pointer(final_state);
          nb::gil_scoped_release release;
          current->selective_scan_forward(p);
        });
  m.def("selective_scan_backward",
        [](std::array<int64_t, 5> sizes, bool softplus, bool complex, int64_t compute, int threads, Wide u, Wide delta,
           int64_t A, Wide B, Wide C, int64_t skip, Wide z, int64_t bias, int64_t initial, int64_t resets, int64_t states,
           Wide dy, int64_t dfinal, Wide du, Wide ddelta, Wide dz, int64_t dA, int64_t dB, int64_t dC, int64_t dskip,
           int64_t dbias, int64_t dinitial) {
          SelectiveScan p = scan(sizes, softplus, complex, compute, threads, u, delta, A, B, C, skip, z, bias, initial,
                                 resets, states);
          p.dy = strided(dy), p.dfinal = pointer(dfinal), p.du = strided(du), p.ddelta = strided(ddelta);
          p.dz = strided(dz), p.dA = pointer(dA), p.dB = pointer(dB), p.dC = pointer(dC), p.dskip = pointer(dskip);
          p.dbias = pointer(dbias), p.dinitial = pointer(dinitial);
          nb::gil_scoped_release release;
          current->selective_scan_backward(p);
        });
  m.def("linear_scan_forward", [](std::array<int64_t, 3> sizes, bool complex, int64_t compute, int threads, Arg a,
                                  Arg b, int64_t initial, Arg h) {
    LinearScan p{};
    p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.complex = complex, p.compute = compute, p.threads = threads;
    p.a = tensor(a), p.b = tensor(b), p.initial = pointer(initial), p.h = tensor(h);
    nb::gil_scoped_release release;
    current->linear_scan_forward(p);
  });
  m.def("linear_scan_backward", [](std::array<int64_t, 3> sizes, bool complex, int64_t compute, int threads, Arg a,
                                   int64_t initial, Arg h, Arg dh, Arg da, Arg db, int64_t dinitial) {
    LinearScan p{};
    p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.complex = complex, p.compute = compute, p.threads = threads;
    p.a = tensor(a), p.initial = pointer(initial), p.h = tensor(h), p.dh = tensor(dh), p.da = tensor(da);
    p.db = tensor(db), p.dinitial = pointer(dinitial);
    nb::gil_scoped_release release;
    current->linear_scan_backward(p);
  });
  // sizes: B, L, D, W
  m.def("causal_conv_forward", [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Wide x,
                                  int64_t weight, int64_t bias, Arg initial, int64_t resets, Wide y) {
    CausalConv p = short_conv(sizes, silu, compute, threads, weight, bias);
    p.x = strided(x), p.initial = strided(initial), p.resets = pointer<uint8_t>(resets), p.y = strided(y);
    nb::gil_scoped_release release;
    current->causal_conv_forward(p);
  });
  m.def("causal_conv_backward", [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Wide x,
                                   int64_t weight, int64_t bias, Arg initial, int64_t resets, Wide dy, Wide dx,
                                   Arg dinitial, int64_t dweight, int64_t dbias) {
    CausalConv p = short_conv(sizes, silu, compute, threads, weight, bias);
    p.x = strided(x), p.initial = strided(initial), p.resets = pointer<uint8_t>(resets), p.dy = strided(dy);
    p.dx = strided(dx), p.dinitial = strided(dinitial), p.dweight = pointer(dweight), p.dbias = pointer(dbias);
    nb::gil_scoped_release release;
    current->causal_conv_backward(p);
  });
  m.def("causal_conv_update", [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Arg x,
                                 int64_t weight, int64_t bias, Arg initial, Arg y, Arg next) {
    CausalConv p = short_conv(sizes, silu, compute, threads, weight, bias);
    p.x = strided(x), p.initial = strided(initial), p.y = strided(y), p.next = strided(next);
    nb::gil_scoped_release release;
    current->causal_conv_update(p);
  });
  m.def("causal_conv_shift", [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Wide x,
                                int64_t weight, int64_t bias, int64_t T, Wide buffer, Wide y) {
    CausalConv p = short_conv(sizes, silu, compute, threads, weight, bias);
    p.x = strided(x), p.y = strided(y), p.T = T, p.buffer = strided(buffer);
    nb::gil_scoped_release release;
    current->causal_conv_shift(p);
  });
  // sizes: B, D, N, G, width; flags: softplus, log_decay, scalar, skip_per_head
  m.def("state_update", [](std::array<int64_t, 5> sizes, std::array<bool, 4> flags, double low, double high,
                           int64_t compute, int threads, Arg x, Arg dt, int64_t A, Arg B, Arg C, int64_t skip, Arg z,
                           int64_t bias, int64_t state, Arg y, int64_t next) {
    StateUpdate p{};
    p.B = sizes[0], p.D = sizes[1], p.N = sizes[2], p.G = sizes[3], p.width = sizes[4];
    p.softplus = flags[0], p.log_decay = flags[1], p.scalar = flags[2], p.skip_per_head = flags[3];
    p.low = low, p.high = high, p.compute = compute, p.threads = threads, p.x = tensor(x), p.dt = tensor(dt);
    p.A = pointer(A), p.Bm = tensor(B), p.Cm = tensor(C), p.skip = pointer(skip), p.z = tensor(z);
    p.bias = pointer(bias), p.state = pointer(state), p.y = tensor(y), p.next = pointer(next);
    nb::gil_scoped_release release;
    current->state_update(p);
  });
  // sizes: B, model, D, N, rank, W; addresses: in the order of MambaStep
  m.def("mamba_step", [](std::array<int64_t, 6> sizes, int64_t compute, int threads, std::array<int64_t, 17> at) {
    MambaStep p{};
    p.B = sizes[0], p.model = sizes[1], p.D = sizes[2], p.N = sizes[3], p.rank = sizes[4], p.W = sizes[5];
    p.compute = compute, p.threads = threads;
    const void** inputs[] = {&p.x, &p.conv, &p.state, &p.in_proj, &p.in_bias, &p.taps, &p.conv_bias, &p.x_proj, &p.dt_proj,
                             &p.dt_bias, &p.A_log, &p.skip, &p.out_proj, &p.out_bias};
    for (int i = 0; i < 14; ++i) *inputs[i] = pointer(at[i]);
    p.y = pointer(at[14]), p.next_conv = pointer(at[15]), p.next = pointer(at[16]);
    nb::gil_scoped_release release;
    current->mamba_step(p);
  });
  m.def("slstm_forward", [](std::array<int64_t, 4> sizes, int64_t compute, int threads, int64_t recurrent,
                            int64_t resets, int64_t raw, int64_t marks, int64_t gates, int64_t first, int64_t hs,
                            int64_t last) {
    SLSTM p = cells(sizes, compute, threads, recurrent, resets, raw, marks);
    p.gates = pointer(gates), p.first = pointer(first), p.hs = pointer(hs), p.last = pointer(last);
    nb::gil_scoped_release release;
    current->slstm_forward(p);
  });
  m.def("slstm_backward", [](std::array<int64_t, 4> sizes, int64_t compute, int threads, int64_t recurrent,
                             int64_t resets, int64_t raw, int64_t marks, int64_t dhs, int64_t dlast, int64_t dgates,
                             int64_t dfirst) {
    SLSTM p = cells(sizes, compute, threads, recurrent, resets, raw, marks);
    p.dhs = pointer(dhs), p.dlast = pointer(dlast), p.dgates = pointer(dgates), p.dfirst = pointer(dfirst);
    nb::gil_scoped_release release;
    current->slstm_backward(p);
  });
  m.def("long_conv_forward", [](std::array<int64_t, 6> sizes, int64_t compute, int threads, Arg x,
                                std::array<int64_t, 4> kernel, int64_t skip, Arg y) {
    LongConv p = long_conv(sizes, compute, threads, x);
    p.kernel = taps(kernel, skip), p.y = tensor(y);
    nb::gil_scoped_release release;
    current->long_conv_forward(p);
  });
  m.def("long_conv_backward", [](std::array<int64_t, 6> sizes, int64_t compute, int threads, Arg x,
                                 std::array<int64_t, 4> kernel, int64_t skip, Arg dy, Arg dx, int64_t dkernel) {
    LongConv p = long_conv(sizes, compute, threads, x);
    p.kernel = taps(kernel, skip, dkernel), p.dy = tensor(dy), p.dx = tensor(dx);
    nb::gil_scoped_release release;
    current->long_conv_backward(p);
  });
  m.def("gated_conv_forward", [](std::array<int64_t, 5> sizes, int64_t compute, int threads, Arg x,
                                 std::array<int64_t, 3> short_taps, std::array<int64_t, 4> kernel, int64_t skip, Arg y,
                                 Arg u) {
    GatedConv p = gated_conv(sizes, compute, threads, x, short_taps);
    p.kernel = taps(kernel, skip), p.y = tensor(y), p.u = tensor(u);
    nb::gil_scoped_release release;
    current->gated_conv_forward(p);
  });
  m.def("gated_conv_backward", [](std::array<int64_t, 5> sizes, int64_t compute, int threads, Arg x,
                                  std::array<int64_t, 3> short_taps, std::array<int64_t, 4> kernel, int64_t skip,
                                  Arg dy, Arg du, Arg dx, std::array<int64_t, 3> gradients, int64_t dkernel) {
    GatedConv p = gated_conv(sizes, compute, threads, x, short_taps);
    p.kernel = taps(kernel, skip, dkernel), p.dy = tensor(dy), p.du = tensor(du), p.dx = tensor(dx);
    p.dweight = pointer(gradients[0]), p.dbias = pointer(gradients[1]), p.dshift = pointer(gradients[2]);
    nb::gil_scoped_release release;
    current->gated_conv_backward(p);
  });
  m.def("glu_forward", [](int64_t rows, int64_t W, int64_t compute, int threads, int64_t x, int64_t bias, int64_t y) {
    const GLU p{rows, W, compute, threads, pointer(x), pointer(bias), pointer(y), nullptr, nullptr};
    nb::gil_scoped_release release;
    current->glu_forward(p);
  });
  m.def("glu_backward", [](int64_t rows, int64_t W, int64_t compute, int threads, int64_t x, int64_t bias, int64_t dy,
                           int64_t dx, int64_t dbias) {
    const GLU p{rows, W, compute, threads, pointer(x), pointer(bias), pointer(dy), pointer(dx), pointer(dbias)};
    nb::gil_scoped_release release;
    current->glu_backward(p);
  });
  m.def("decay_weights", [](std::array<int64_t, 3> sizes, int64_t compute, int threads, int64_t i, int64_t scores,
                            int64_t weights, int64_t sums, int64_t winners, int64_t g, int64_t first, int64_t through,
                            int64_t behind, int64_t units) {
    ChunkDecay p = chunk_decay(sizes, compute, threads, i, scores, weights, sums, winners);
    p.g = pointer(g), p.first = pointer(first), p.through = pointer(through), p.behind = pointer(behind);
    p.units = pointer(units);
    nb::gil_scoped_release release;
    current->decay_weights(p);
  });
  m.def("decay_slopes", [](std::array<int64_t, 3> sizes, int64_t compute, int threads, int64_t i, int64_t scores,
                           int64_t weights, int64_t sums, int64_t winners, int64_t slopes, int64_t entering,
                           int64_t leaving, int64_t whole, int64_t dunits, int64_t dg, int64_t di, int64_t dfirst) {
    ChunkDecay p = chunk_decay(sizes, compute, threads, i, scores, weights, sums, winners);
    p.slopes = pointer(slopes), p.entering = pointer(entering), p.leaving = pointer(leaving);
    p.whole = pointer(whole), p.dunits = pointer(dunits), p.dg = pointer(dg), p.di = pointer(di);
    p.dfirst = pointer(dfirst);
    nb::gil_scoped_release release;
    current->decay_slopes(p);
  });
  m.attr("BLOCK_ROWS") = kBlockRows;
  m.attr("NORM_ROWS") = kNormRows;
  m.def("block_linear_forward", [](std::array<int64_t, 4> sizes, int64_t compute, int threads, Arg x, int64_t weight,
                                   std::vector<Arg> y) {
    BlockLinear p = block_linear(sizes, compute, threads, x, weight, y);
    nb::gil_scoped_release release;
    current->block_linear_forward(p);
  });
  m.def("block_linear_backward", [](std::array<int64_t, 4> sizes, int64_t compute, int threads, Arg x, int64_t weight,
                                    std::vector<Arg> dy, Arg dx, int64_t dweight) {
    BlockLinear p = block_linear(sizes, compute, threads, x, weight, dy);
    p.dx = tensor(dx), p.dweight = pointer(dweight);
    nb::gil_scoped_release release;
    current->block_linear_backward(p);
  });
  m.def("gated_norm_forward", [](std::array<int64_t, 3> sizes, std::array<bool, 2> flags, double eps, int64_t compute,
                                 int threads, Arg y, Arg z, Arg u, int64_t weight, int64_t skip, Arg out) {
    GatedNorm p = gated_norm(sizes, flags, eps, compute, threads, y, z, u, weight, skip);
    p.out = tensor(out);
    nb::gil_scoped_release release;
    current->gated_norm_forward(p);
  });
  m.def("gated_norm_backward", [](std::array<int64_t, 3> sizes, std::array<bool, 2> flags, double eps, int64_t compute,
                                  int threads, Arg y, Arg z, Arg u, int64_t weight, int64_t skip, Arg dout, Arg dy,
                                  Arg dz, Arg du, int64_t dweight, int64_t dskip) {
    GatedNorm p = gated_norm(sizes, flags, eps, compute, threads, y, z, u, weight, skip);
    p.dout = tensor(dout), p.dy = tensor(dy), p.dz = tensor(dz), p.du = tensor(du), p.dweight = pointer(dweight);
    p.dskip = pointer(dskip);
    nb::gil_scoped_release release;
    current->gated_norm_backward(p);
  });
  m.attr("DELTA_MARK") = kDeltaMark;
  m.def("delta_rule_forward", [](std::array<int64_t, 8> sizes, double scale, int64_t compute, int threads,
                                 std::array<Arg, 5> rows, int64_t resets, int64_t marks, int64_t initial, Arg y,
                                 int64_t last) {
    DeltaRule p = delta(sizes, scale, compute, threads, rows, resets, marks);
    p.initial = pointer(initial), p.y = tensor(y), p.final_state = pointer(last);
    nb::gil_scoped_release release;
    current->delta_rule_forward(p);
  });
  m.def("delta_rule_backward", [](std::array<int64_t, 8> sizes, double scale, int64_t compute, int threads,
                                  std::array<Arg, 5> rows, int64_t resets, int64_t marks, Arg dy, int64_t dlast,
                                  std::array<Arg, 5> grads, int64_t dfirst) {
    DeltaRule p = delta(sizes, scale, compute, threads, rows, resets, marks);
    p.dy = tensor(dy), p.dfinal = pointer(dlast), p.dinitial = pointer(dfirst);
    p.dq = tensor(grads[0]), p.dk = tensor(grads[1]), p.dv = tensor(grads[2]), p.dbeta = tensor(grads[3]);
    p.dg = tensor(grads[4]);
    nb::gil_scoped_release release;
    current->delta_rule_backward(p);
  });
}
