// Long open reading frames: with what the gene model begins where no annotation is given.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "history.h"

namespace genomics {

constexpr int64_t kShortest = 500;  // bases without a stop codon that are taken for a gene
constexpr int64_t kDoubtful = 200;  // and that might be one
constexpr int64_t kOverlap = 60;    // that two genes may share

// Labels bases with states: 1 to 6 in long open frames, the longest first, -1 where a shorter one
// might be a gene.
inline bool mark_open_frames(const History& h, std::vector<int8_t>& label) {
  struct Frame {
    int64_t start, end;
    int strand;
  };
  std::vector<Frame> found;
  const auto stop = [&](int64_t i, bool back) {
    const int a = h[i], b = h[i + 1], c = h[i + 2];
    if (a > 3 || b > 3 || c > 3) return true;
    const int x = back ? 3 - c : a, y = back ? 3 - b : b, z = back ? 3 - a : c;
    return x == 3 && ((y == 0 && (z == 0 || z == 2)) || (y == 2 && z == 0));
  };
  for (int back = 0; back < 2; ++back)
    for (int phase = 0; phase < 3; ++phase) {
      int64_t start = phase;
      for (int64_t i = phase; i + 3 <= h.size(); i += 3)
        if (stop(i, back) || i + 6 > h.size()) {
          if (i - start >= kDoubtful) found.push_back({start, i, back});
          start = i + 3;
        }
    }
  std::stable_sort(found.begin(), found.end(), [](const Frame& a, const Frame& b) {
    return a.end - a.start > b.end - b.start;
  });
  bool any = false;
  std::vector<bool> taken(label.size(), false);
  for (const Frame& f : found) {
    if (f.end - f.start < kShortest) {
      for (int64_t i = f.start; i < f.end; ++i)
        if (!taken[size_t(i)]) label[size_t(i)] = -1;
      continue;
    }
    int64_t clash = 0;
    for (int64_t i = f.start; i < f.end; ++i) clash += taken[size_t(i)];
    if (clash > kOverlap) continue;
    any = true;
    for (int64_t i = f.start; i < f.end; ++i) {
      if (taken[size_t(i)]) continue;
      taken[size_t(i)] = true;
      const int j = int((i - f.start) % 3);
      label[size_t(i)] = int8_t(f.strand == 0 ? 1 + j : 4 + (2 - j));
    }
  }
  return any;
}

}  // namespace genomics
