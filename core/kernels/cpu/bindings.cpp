// Python's view of the kernels: sizes, pointers and strides. Arguments are checked in core/ops, not here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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

// sizes: B, L, D, N, G
SelectiveScan scan(const std::array<int64_t, 5>& sizes, bool softplus, bool complex, int64_t compute, int threads,
                   const Arg& u, const Arg& delta, int64_t A, const Arg& B, const Arg& C, int64_t skip, const Arg& z,
                   int64_t bias, int64_t initial, int64_t resets, int64_t states) {
  SelectiveScan p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.N = sizes[3], p.G = sizes[4];
  p.softplus = softplus, p.complex = complex, p.compute = compute, p.threads = threads;
  p.u = tensor(u), p.delta = tensor(delta), p.z = tensor(z), p.Bm = tensor(B), p.Cm = tensor(C);
  p.A = pointer(A), p.skip = pointer(skip), p.delta_bias = pointer(bias), p.initial = pointer(initial);
  p.resets = pointer<uint8_t>(resets), p.states = pointer(states);
  return p;
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Compiled CPU kernels; called through longseq.core.ops.";
  const char* wanted = std::getenv("LONGSEQ_CPU_ISA");
  if (!wanted || !select(wanted)) current = available().front();
  m.attr("CHUNK") = kChunk;
  m.attr("PAD") = kPad;

  m.def("isa", [] { return std::string(current->name); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Kernels* k : available()) names.emplace_back(k->name);
    return names;
  });
  m.def("select_isa", [](const std::string& name) {
    if (!select(name)) throw nb::value_error(("instruction set not available on this machine: " + name).c_str());
  });
  m.def("thread_runtime", [] { return std::string(thread_runtime()); });

  m.def("selective_scan_forward",
        [](std::array<int64_t, 5> sizes, bool softplus, bool complex, int64_t compute, int threads, Arg u, Arg delta,
           int64_t A, Arg B, Arg C, int64_t skip, Arg z, int64_t bias, int64_t initial, int64_t resets, int64_t states,
           Arg y, int64_t final_state) {
          SelectiveScan p = scan(sizes, softplus, complex, compute, threads, u, delta, A, B, C, skip, z, bias, initial,
                                 resets, states);
          p.y = tensor(y), p.final_state = pointer(final_state);
          nb::gil_scoped_release release;
          current->selective_scan_forward(p);
        });
  m.def("selective_scan_backward",
        [](std::array<int64_t, 5> sizes, bool softplus, bool complex, int64_t compute, int threads, Arg u, Arg delta,
           int64_t A, Arg B, Arg C, int64_t skip, Arg z, int64_t bias, int64_t initial, int64_t resets, int64_t states,
           Arg dy, int64_t dfinal, Arg du, Arg ddelta, Arg dz, int64_t dA, int64_t dB, int64_t dC, int64_t dskip,
           int64_t dbias, int64_t dinitial) {
          SelectiveScan p = scan(sizes, softplus, complex, compute, threads, u, delta, A, B, C, skip, z, bias, initial,
                                 resets, states);
          p.dy = tensor(dy), p.dfinal = pointer(dfinal), p.du = tensor(du), p.ddelta = tensor(ddelta);
          p.dz = tensor(dz), p.dA = pointer(dA), p.dB = pointer(dB), p.dC = pointer(dC), p.dskip = pointer(dskip);
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
  m.def("causal_conv_forward", [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Arg x,
                                  int64_t weight, int64_t bias, Arg initial, int64_t resets, Arg y) {
    CausalConv p{};
    p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.W = sizes[3], p.silu = silu, p.compute = compute;
    p.threads = threads, p.x = tensor(x), p.weight = pointer(weight), p.bias = pointer(bias);
    p.initial = tensor(initial), p.resets = pointer<uint8_t>(resets), p.y = tensor(y);
    nb::gil_scoped_release release;
    current->causal_conv_forward(p);
  });
  m.def("causal_conv_backward", [](std::array<int64_t, 4> sizes, bool silu, int64_t compute, int threads, Arg x,
                                   int64_t weight, int64_t bias, Arg initial, int64_t resets, Arg dy, Arg dx,
                                   Arg dinitial, int64_t dweight, int64_t dbias) {
    CausalConv p{};
    p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.W = sizes[3], p.silu = silu, p.compute = compute;
    p.threads = threads, p.x = tensor(x), p.weight = pointer(weight), p.bias = pointer(bias);
    p.initial = tensor(initial), p.resets = pointer<uint8_t>(resets), p.dy = tensor(dy), p.dx = tensor(dx);
    p.dinitial = tensor(dinitial), p.dweight = pointer(dweight), p.dbias = pointer(dbias);
    nb::gil_scoped_release release;
    current->causal_conv_backward(p);
  });
}
