// What the backward pass of a selective scan holds while it walks.
#pragma once
#include "scan_tiles.h"

namespace LONGSEQ_ISA {

// Tiles and states of each that go through a chunk together: what they give B and C is added in
// registers.
constexpr int kTilesAtOnce = kBytes == 64 ? 2 : 1, kStatesAtOnce = kBytes == 64 ? 4 : 2;

// Working memory of one unit, for one tile and one group of states at a time.
template <class R> struct Gradients {
  static constexpr int W = kLanes<R>;
  alignas(64) R dy[kChunk * W], ddt[kChunk * W], ddu[kChunk * W];
  R a[kChunk * kStatesAtOnce * W], h[(kChunk + 1) * kStatesAtOnce * W];
};

// Working memory that the blocks of a team share.
template <class R> struct BackwardScratch {
  Buffer<R> sumB, sumC;
  Buffer<Tile<R>> tiles;
  Buffer<Gradients<R>> gradients;
  Unit<R>* shared = nullptr;        // that B, C, step values and resets are read into, for all
  int64_t held = -1;                // the chunk whose they are
  const uint8_t* resets = nullptr;
  BackwardScratch()
      : sumB(kChunk * kStatesAtOnce * kLanes<R>), sumC(kChunk * kStatesAtOnce * kLanes<R>),
        tiles(kTilesAtOnce), gradients(kTilesAtOnce) {}
  void read(int64_t chunk, int64_t t0, int64_t T) {
    if (held == chunk) return;
    shared->read_BC(t0, T);
    resets = shared->resets(t0, T);
    held = chunk;
  }
};

}  // namespace LONGSEQ_ISA
