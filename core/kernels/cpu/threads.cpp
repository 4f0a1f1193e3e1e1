// Threads without a second runtime: work is handed to the OpenMP runtime that torch already has in
// the process.
#include "kernels.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace longseq {
namespace {

typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);

// torch loads its OpenMP runtime with global visibility; libgomp and LLVM's libomp both export this
// entry.
GompParallel find_gomp() {
#if defined(LONGSEQ_STD_THREADS)
  return nullptr;
#endif
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

GompParallel gomp() {
  static const GompParallel found = find_gomp();
  return found;
}

struct Job {
  void (*work)(void*, int64_t);
  void* context;
  int64_t n;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex lock;
};

// Units are taken in any order by any thread: every unit writes only its own outputs, so results do
// not depend on it.
void drain(void* data) {
  Job& job = *static_cast<Job*>(data);
  try {
    for (int64_t i; (i = job.next.fetch_add(1)) < job.n;) job.work(job.context, i);
  } catch (...) {
    std::lock_guard<std::mutex> hold(job.lock);
    job.error = std::current_exception();
    job.next = job.n;
  }
}

}  // namespace

void parallel_for(int64_t n, int threads, void (*work)(void*, int64_t), void* context) {
  threads = int(std::min<int64_t>(threads, n));
  Job job;
  job.work = work;
  job.context = context;
  job.n = n;
  if (threads <= 1) {
    drain(&job);
  } else if (gomp()) {
    gomp()(drain, &job, unsigned(threads), 0);
  } else {
#if defined(LONGSEQ_STD_THREADS)
    // Every thread has units of its own and nothing in between orders them: two units that touch one place are reported
    // in every run, not only in one where the threads happen to meet.
    std::vector<std::thread> team;
    const auto share = [&job, threads](int64_t first) {
      for (int64_t i = first; i < job.n; i += threads) job.work(job.context, i);
    };
    for (int i = 1; i < threads; ++i) team.emplace_back(share, i);
    share(0);
    for (auto& t : team) t.join();
    return;
#endif
    std::vector<std::thread> pool;
    for (int i = 1; i < threads; ++i) pool.emplace_back(drain, &job);
    drain(&job);
    for (auto& t : pool) t.join();
  }
  if (job.error) std::rethrow_exception(job.error);
}

const char* thread_runtime() {
  return gomp() ? "the OpenMP runtime of torch" : "std::thread, one team per call";
}

}  // namespace longseq
