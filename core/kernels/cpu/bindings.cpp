// Python's view of the kernels: sizes, pointers and strides. Arguments are checked in core/ops, not
// here.
#include "bindings.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>

const Kernels* current = nullptr;

namespace {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> list;
#if defined(LONGSEQ_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma"))
    list.push_back(&kernels_avx512);
#endif
#if defined(LONGSEQ_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    list.push_back(&kernels_avx2);
#endif
  list.push_back(&kernels_baseline);
  return list;
}

bool select(const std::string& name) {
  for (const Kernels* k : available())
    if (name == k->name) {
      current = k;
      return true;
    }
  return false;
}

// Asks for large pages under memory that was not touched yet: its first writing then takes hundreds
// of times fewer faults.
void advise_huge_pages(int64_t address, int64_t bytes) {
#if defined(__linux__)
  const int64_t page = 4096, start = (address + page - 1) / page * page,
                end = (address + bytes) / page * page;
  // may be refused: no harm
  if (end > start) madvise(reinterpret_cast<void*>(start), size_t(end - start), MADV_HUGEPAGE);
#endif
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
    if (!select(name))
      throw nb::value_error(("instruction set not available on this machine: " + name).c_str());
  });
  // A processor's maker says how well a BLAS made by another serves it.
  m.def("is_amd", [] {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd") != 0;
#else
    return false;
#endif
  });
  m.def("advise_huge_pages", &advise_huge_pages);
  m.def("thread_runtime", [] { return std::string(thread_runtime()); });

  bind_recurrences(m);
  bind_convolutions(m);
  bind_blocks(m);
}
