// A matrix turned round, block by block of whole lines of the caches.
#pragma once
#include "tiles.h"

namespace LONGSEQ_ISA {

template <class R> void turned_as(const Turned& p) {
  const R* const from = static_cast<const R*>(p.from);
  R* const to = static_cast<R*>(p.to);
  const auto singly = [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; ++j)
      for (int64_t i = i0; i < i1; ++i) to[j * p.rows + i] = from[i * p.columns + j];
  };
  const int64_t blocks = (p.columns + kTile - 1) / kTile, whole = p.rows / kTile * kTile;
  parallel(blocks, p.threads, [&](int64_t block) {
    const int64_t j = block * kTile, end = std::min<int64_t>(p.columns, j + kTile);
    if (end - j < kTile) return singly(0, p.rows, j, end);
    transpose(whole, kTile, from + j, p.columns, to + j * p.rows, p.rows);
    singly(whole, p.rows, j, end);
  });
}

}  // namespace LONGSEQ_ISA
