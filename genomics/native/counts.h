// Direct context models: how often each base followed the last k, on both strands; and what such
// counts are worth.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "history.h"
#include "vec4.h"

namespace genomics {

// Learns the probabilities of the most, second, ... least seen base from how the four counts look.
class RankMap {
 public:
  explicit RankMap(int keys)
      : table_(size_t(keys), V4{0.4f, 0.25f, 0.2f, 0.15f}), seen_(size_t(keys), 0) {}
  void start(int key, V4 p) { table_[size_t(key)] = p; }
  V4 get(int key) const { return table_[size_t(key)]; }
  void update(int key, int rank, int limit = 1000) {
    uint16_t& n = seen_[size_t(key)];
    const float rate = 1.0f / (float(n) + 1.6f);
    if (n < limit) ++n;
    V4& p = table_[size_t(key)];
    V4 target = all4(0.0f);
    target[rank] = 1.0f;
    p += (target - p) * rate;
    p = normalised(p + 1e-5f);
  }

 private:
  std::vector<V4> table_;
  std::vector<uint16_t> seen_;
};

// Counts of order k in 16 bits each, halved where one is full.
class CountModel {
 public:
  CountModel(int order, float alpha, bool ranked)
      : order_(order),
        alpha_(alpha),
        ranked_(ranked),
        counts_(size_t(4) << 2 * order, 0),
        map_(ranked ? 4096 : 1) {}

  int order() const { return order_; }
  bool ranked() const { return ranked_; }

  // Sets `direct` (and `learnt`, if ranked) to the probabilities of the next base.
  void predict(const History& h, V4& direct, V4& learnt) {
    if (h.known() < order_) {
      active_ = false;
      direct = learnt = all4(0.25f);
      return;
    }
    active_ = true;
    const uint16_t* c = &counts_[size_t(h.context(order_)) * 4];
    const V4 n = {float(c[0]), float(c[1]), float(c[2]), float(c[3])};
    direct = (n + alpha_) * (1.0f / (sum4(n) + 4 * alpha_));
    if (!ranked_) return;
    for (int i = 0; i < 4; ++i) rank_[i] = i;
    const auto swap = [&](int a, int b) {
      if (c[rank_[a]] < c[rank_[b]]) std::swap(rank_[a], rank_[b]);
    };
    swap(0, 1), swap(2, 3), swap(0, 2), swap(1, 3), swap(1, 2);
    key_ = 0;
    for (int i = 0; i < 4; ++i) key_ = key_ * 8 + level(c[rank_[i]]);
    const V4 by_rank = map_.get(key_);
    for (int i = 0; i < 4;) {  // bases with equal counts share
      int j = i + 1;
      float sum = by_rank[i];
      while (j < 4 && c[rank_[j]] == c[rank_[i]]) sum += by_rank[j++];
      for (int k = i; k < j; ++k) learnt[rank_[k]] = sum / float(j - i);
      i = j;
    }
  }

  // After `base` was pushed: counts it after its context, and what preceded on the other strand.
  void update(const History& h, uint8_t base) {
    if (!active_) return;
    if (ranked_)
      for (int i = 0; i < 4; ++i)
        if (rank_[i] == base) map_.update(key_, i);
    const uint64_t recent = h.recent();
    add(uint32_t(recent >> 2) & ((uint32_t(1) << 2 * order_) - 1), base);
    add(h.reverse_context(order_), uint8_t(3 - (recent >> 2 * order_ & 3)));
  }

 private:
  static int level(uint16_t n) { return n < 4 ? n : n < 6 ? 4 : n < 9 ? 5 : n < 16 ? 6 : 7; }
  void add(uint32_t context, uint8_t base) {
    uint16_t* c = &counts_[size_t(context) * 4];
    if (++c[base] == 65535)
      for (int i = 0; i < 4; ++i) c[i] /= 2;
  }

  int order_;
  float alpha_;
  bool ranked_, active_ = false;
  std::vector<uint16_t> counts_;
  RankMap map_;
  int rank_[4] = {0, 1, 2, 3}, key_ = 0;
};

}  // namespace genomics
