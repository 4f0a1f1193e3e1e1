// Copy experts: earlier places, on either strand, that the recent bases resemble, followed with
// tolerance of differences.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "counts.h"
#include "history.h"
#include "vec4.h"

namespace genomics {

struct Copy {
  int64_t at;        // of the base it predicts
  int32_t direction; // 1, or -1 on the other strand
  uint32_t misses;   // of the last 32 predictions, the newest lowest
  float rate;        // misses, averaged over some hundred bases
  uint32_t age;
  V4 p;              // its prediction
  float hit;         // probability that it is right
  int key;
  uint8_t base;
};

struct CopyOptions {
  int seed = 12;        // bases that are looked up
  int candidates = 16;  // occurrences of them, the newest first, that are looked at on each strand
  int equal = 22;       // of the last 32 bases, from which on a place is followed
  int exact = 16;       // or bases without a difference up to the newest
  int drop = 8;         // differences in 16 bases, above which it is left
  int most = 24;        // copies at a time
  int slots = 6;        // of the best, each an input of the mixture
};

class Copies {
 public:
  explicit Copies(CopyOptions o = {})
      : o_(o),
        last_(size_t(1) << 2 * o.seed, 0),
        outcomes_(kKeys, V4{0.7f, 0.14f, 0.08f, 0.08f}),
        seen_(kKeys, 0),
        vote_map_(kVotes) {
    for (int key = 0; key < kKeys; ++key) {
      const int run = key / (kRates * kRecent * kFrames);
      const float hit = run == 0 ? 0.5f : run < 4 ? 0.6f + 0.08f * float(run) : 0.97f;
      outcomes_[size_t(key)] = V4{hit, (1 - hit) * 0.5f, (1 - hit) * 0.25f, (1 - hit) * 0.25f};
    }
  }

  int slots() const { return o_.slots; }
  int count() const { return int(copies_.size()); }
  // How sure the best copy is: 0 without one, to 7.
  int confidence() const { return confidence_; }
  int agreement() const { return agreement_; }

  void clear() { copies_.clear(); }
  void skip() { earlier_.push_back(0); }  // an unknown base

  // The log-probabilities of the best copies, then of their vote.
  void predict(const History& h, int frame, V4* logs) {
    for (Copy& c : copies_) {
      const uint8_t base = h[c.at];
      c.base = c.direction > 0 || base == kUnknown ? base : uint8_t(3 - base);
      c.key = key_of(c, frame);
      const V4 p = outcomes_[size_t(c.key)];
      c.hit = p[0];
      if (c.base == kUnknown) {
        c.p = all4(0.25f);
        c.hit = 0.25f;
      } else
        for (int b = 0; b < 4; ++b) c.p[b] = p[c.base ^ b];
    }
    std::stable_sort(copies_.begin(), copies_.end(),
                     [](const Copy& a, const Copy& b) { return a.hit > b.hit; });
    V4 score = all4(0.0f);
    for (int i = 0; i < int(copies_.size()); ++i) {
      const V4 l = log4(copies_[size_t(i)].p);
      score += l;
      if (i < o_.slots) logs[i] = l;
    }
    for (int i = int(copies_.size()); i < o_.slots; ++i) logs[i] = all4(-1.3862944f);
    vote(score, logs[o_.slots]);
    const float hit = copies_.empty() ? 0.0f : copies_[0].hit;
    confidence_ = copies_.empty() ? 0
                  : hit < 0.5f    ? 1
                  : hit < 0.7f    ? 2
                  : hit < 0.85f   ? 3
                  : hit < 0.95f   ? 4
                  : hit < 0.985f  ? 5
                  : hit < 0.995f  ? 6
                                  : 7;
  }

  // After `base` was pushed.
  void update(const History& h, uint8_t base) {
    if (!copies_.empty())
      for (int i = 0; i < 4; ++i)
        if (order_[i] == base) vote_map_.update(vote_key_, i);
    size_t kept = 0;
    for (size_t i = 0; i < copies_.size(); ++i) {
      Copy c = copies_[i];
      const bool miss = c.base != base;
      if (c.base != kUnknown) learn(c.key, c.base ^ base);
      c.misses = c.misses << 1 | uint32_t(miss);
      c.rate += (float(miss) - c.rate) * (1.0f / 64);
      ++c.age;
      c.at += c.direction;
      if (__builtin_popcount(c.misses & 0xffff) > o_.drop || c.at < 0 || c.at >= h.size() - 1)
        continue;
      bool twin = false;  // two may meet after an insertion
      for (size_t j = 0; j < kept; ++j)
        twin |= copies_[j].at == c.at && copies_[j].direction == c.direction;
      if (!twin) copies_[kept++] = c;
    }
    copies_.resize(kept);
    index(h);
    find(h);
  }

 private:
  static constexpr int kRuns = 9, kRates = 7, kRecent = 7, kFrames = 4,
                       kKeys = kRuns * kRates * kRecent * kFrames;
  static constexpr int kVotes = 24 * 5 * 4;

  static int key_of(const Copy& c, int frame) {
    const int run = c.misses == 0 ? 32 : __builtin_ctz(c.misses);
    const int r = run < 4 ? run : run < 6 ? 4 : run < 9 ? 5 : run < 16 ? 6 : run < 32 ? 7 : 8;
    const int m = __builtin_popcount(c.misses);
    const int recent = m < 3 ? m : m < 5 ? 3 : m < 7 ? 4 : m < 10 ? 5 : 6;
    const float x = c.rate;
    const int rate = x < 0.004f   ? 0
                     : x < 0.01f  ? 1
                     : x < 0.025f ? 2
                     : x < 0.05f  ? 3
                     : x < 0.1f   ? 4
                     : x < 0.18f  ? 5
                                  : 6;
    return ((r * kRates + rate) * kRecent + recent) * kFrames + frame;
  }

  void learn(int key, int outcome) {
    uint16_t& n = seen_[size_t(key)];
    const float rate = 1.0f / (float(n) + 4.0f);
    if (n < 4000) ++n;
    V4& p = outcomes_[size_t(key)];
    V4 target = all4(0.0f);
    target[outcome] = 1.0f;
    p += (target - p) * rate;
    p = normalised(p + 2e-6f);
  }

  // All copies' log-probabilities added up, and what such a sum has been worth.
  void vote(V4 score, V4& logs) {
    if (copies_.empty()) {
      logs = all4(-1.3862944f);
      agreement_ = 0;
      return;
    }
    for (int i = 0; i < 4; ++i) order_[i] = i;
    const auto swap = [&](int a, int b) {
      if (score[order_[a]] < score[order_[b]]) std::swap(order_[a], order_[b]);
    };
    swap(0, 1), swap(2, 3), swap(0, 2), swap(1, 3), swap(1, 2);
    const float first = score[order_[0]] - score[order_[1]],
                second = score[order_[1]] - score[order_[2]];
    const int a =
        first < 12.0f ? int(first * 1.5f) : std::min(23, 18 + int((first - 12.0f) * 0.2f));
    const int b = second < 0.5f ? 0 : second < 1.5f ? 1 : second < 3.0f ? 2 : second < 6.0f ? 3 : 4;
    const int n = count() < 3 ? count() - 1 : count() < 5 ? 2 : 3;
    vote_key_ = (a * 5 + b) * 4 + n;
    agreement_ = 1 + std::min(a / 3, 6);
    const V4 by_rank = vote_map_.get(vote_key_);
    V4 p;
    for (int i = 0; i < 4; ++i) p[order_[i]] = by_rank[i];
    logs = log4(p);
  }

  void index(const History& h) {
    earlier_.push_back(0);
    if (h.known() < o_.seed) return;
    const uint32_t key = h.context(o_.seed);
    earlier_.back() = last_[key];
    last_[key] = uint32_t(h.size());
  }

  // Looks up the last bases, and their reverse complement; what differs little over 32 bases is
  // followed.
  void find(const History& h) {
    const int64_t n = h.size();
    if (h.known() < 32 || count() >= o_.most) return;
    const uint64_t mine = h.window(n - 32), other = reverse_complement32(mine);
    int tries = o_.candidates;
    for (uint32_t end = earlier_.back(); end != 0 && tries > 0; end = earlier_[end - 1], --tries) {
      if (end < 32 || int64_t(end) >= n) continue;
      const uint64_t d = differences(mine, h.window(int64_t(end) - 32));
      const int run = d == 0 ? 32 : __builtin_clzll(d) / 2;  // the newest bases are the highest
      if (accept(d, run)) follow(int64_t(end), 1, d);
    }
    tries = o_.candidates;
    for (uint32_t end = last_[h.reverse_context(o_.seed)]; end != 0 && tries > 0;
         end = earlier_[end - 1], --tries) {
      const int64_t start = int64_t(end) - o_.seed;
      if (start < 1 || start + 32 > n) continue;
      const uint64_t d = differences(other, h.window(start));
      const int run = d == 0 ? 32 : __builtin_ctzll(d) / 2;
      if (accept(d, run)) follow(start - 1, -1, d);
    }
  }

  bool accept(uint64_t d, int run) const {
    return run >= o_.exact || __builtin_popcountll(d) <= 32 - o_.equal;
  }

  void follow(int64_t at, int direction, uint64_t d) {
    if (count() >= o_.most) return;
    for (const Copy& c : copies_)
      if (c.at == at && c.direction == direction) return;
    // base i of the window is i from the oldest (forwards) or the newest (backwards)
    uint32_t misses = 0;
    for (int i = 0; i < 32; ++i)
      if (d >> 2 * i & 1) misses |= uint32_t(1) << (direction > 0 ? 31 - i : i);
    Copy c{};
    c.at = at;
    c.direction = direction;
    c.misses = misses;
    c.rate = float(__builtin_popcount(misses)) / 32.0f * 0.5f + 0.05f;
    copies_.push_back(c);
  }

  CopyOptions o_;
  // one past the last base of the newest, and of the next older, occurrence
  std::vector<uint32_t> last_, earlier_;
  std::vector<Copy> copies_;
  std::vector<V4> outcomes_;
  std::vector<uint16_t> seen_;
  RankMap vote_map_;
  int order_[4] = {0, 1, 2, 3}, vote_key_ = 0, confidence_ = 0, agreement_ = 0;
};

}  // namespace genomics
