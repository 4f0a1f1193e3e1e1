// Runs CUDA kernels on a CPU, a block at a time: its threads are fibers that switch at barriers and
// shuffles. Shared memory starts as NaN; `order` picks in which order threads run between barriers
// (a missing barrier shows).
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define LONGSEQ_EMULATE
#define __align__(n) alignas(n)

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

static inline float __fdividef(float a, float b) { return a / b; }
static inline float __uint_as_float(unsigned v) {
  float r;
  memcpy(&r, &v, 4);
  return r;
}
static inline unsigned __float_as_uint(float v) {
  unsigned r;
  memcpy(&r, &v, 4);
  return r;
}

namespace emulator {

enum Wait { kReady, kWarp, kBlock, kDone };
struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  std::vector<char> stack;
  bool started;
  Wait wait;
  unsigned shuffles;
  float slots[2];
};
static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static unsigned current;
static const std::function<void()>* body;
static std::vector<double> memory;

static void poison(size_t bytes) {
  memory.resize(bytes / 8 + 1);
  memset(memory.data(), 0xff, memory.size() * 8);
}
template <class T> T& shared() {
  if (memory.size() * 8 < sizeof(T)) poison(sizeof(T));
  return *reinterpret_cast<T*>(memory.data());
}
static float* dynamic_shared() { return reinterpret_cast<float*>(memory.data()); }

static void pause(Wait wait) {
  Fiber& fiber = fibers[current];
  fiber.wait = wait;
  if (!_setjmp(fiber.jump)) _longjmp(scheduler, 1);
}
static void enter() {
  (*body)();
  pause(kDone);
  abort();
}
static void resume(unsigned index) {
  current = index;
  threadIdx.x = index;
  if (_setjmp(scheduler)) return;
  Fiber& fiber = fibers[index];
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

static bool release(unsigned first, unsigned last, Wait wait) {
  bool some = false;
  for (unsigned i = first; i < last; ++i) {
    if (fibers[i].wait == wait) some = true;
    else if (fibers[i].wait != kDone) return false;
  }
  for (unsigned i = first; i < last; ++i)
    if (fibers[i].wait == wait) fibers[i].wait = kReady;
  return some;
}

static void run_block(unsigned threads, unsigned order) {
  fibers.resize(threads);
  for (Fiber& fiber : fibers) {
    fiber.stack.resize(1 << 16);
    fiber.started = false;
    fiber.wait = kReady;
    fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    for (unsigned i = 0; i < threads; ++i) {
      // Ascending, descending, or odd ones first.
      const unsigned j = order == 0   ? i
                         : order == 1 ? threads - 1 - i
                                      : (2 * i + 1) % (threads | 1);
      const unsigned index = j < threads ? j : 0;
      if (fibers[index].wait == kReady) resume(index);
    }
    for (unsigned i = 0; i < threads; ++i)
      if (fibers[i].wait == kReady) resume(i);
    bool some = false, all_done = true;
    // One warp goes on alone as far as it can, the first or the last one: others may not rely on
    // its shuffles.
    const unsigned warps = (threads + 31) / 32;
    for (unsigned k = 0; k < warps && !some; ++k) {
      const unsigned w = 32 * (order == 1 ? warps - 1 - k : k);
      some = release(w, w + 32 < threads ? w + 32 : threads, kWarp);
    }
    if (!some) some = release(0, threads, kBlock);
    for (const Fiber& fiber : fibers) all_done &= fiber.wait == kDone;
    if (all_done) return;
    if (!some) {
      fprintf(stderr, "emulator: threads of block %u,%u wait at different barriers\n", blockIdx.x,
              blockIdx.y);
      abort();
    }
  }
}

static void launch(const std::function<void()>& kernel, const unsigned* grid, unsigned block,
                   unsigned bytes, unsigned order) {
  body = &kernel;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block, 1, 1};
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        if (bytes) poison(bytes);
        else if (!memory.empty()) poison(memory.size() * 8 - 8);
        run_block(block, order);
      }
}

static float shuffle(float value, int source) {
  Fiber& mine = fibers[current];
  const unsigned parity = mine.shuffles++ & 1, warp = current & ~31u;
  mine.slots[parity] = value;
  pause(kWarp);
  return fibers[warp + unsigned(source)].slots[parity];
}

}  // namespace emulator

static inline void __syncthreads() { emulator::pause(emulator::kBlock); }
static inline void __syncwarp() { emulator::pause(emulator::kWarp); }
static inline float __shfl_up_sync(unsigned, float v, int by) {
  const int lane = int(emulator::current & 31u);
  return emulator::shuffle(v, lane >= by ? lane - by : lane);
}
static inline float __shfl_down_sync(unsigned, float v, int by) {
  const int lane = int(emulator::current & 31u);
  return emulator::shuffle(v, lane + by < 32 ? lane + by : lane);
}
static inline float __shfl_xor_sync(unsigned, float v, int by) {
  return emulator::shuffle(v, int(emulator::current & 31u) ^ by);
}
