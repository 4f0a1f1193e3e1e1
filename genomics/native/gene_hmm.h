// A hidden Markov model of genes that learns without annotation: between genes, and three codon
// positions on each strand.
//
// States: 0 between genes; 1 + i codon position i on this strand; 4 + i the complement of codon
// position i. Every state has emission models of order 0 to K, each smoothed by the next shorter
// one. What follows the last base of a codon, or a base between genes, depends on the last three
// bases: start and stop codons.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "history.h"
#include "open_frames.h"
#include "vec4.h"

namespace genomics {

constexpr int kStates = 7;
typedef std::array<float, kStates> PerState;

struct GeneOptions {
  int order = 8;         // of the longest emission context K
  int decide = 5;        // of the emissions that decide on the states
  int block = 4096;      // bases whose states are smoothed and counted at once
  int ahead = 512;       // and the bases after them that are seen for it
  // bases at which all is learnt anew from open reading frames, doubling
  int64_t first = 1 << 14, last = 1 << 17;
  int passes = 2;        // of expectation-maximisation then
  // how many bases the recent counts remember, and what is added to them
  float near_limit = 100, near_weight = 30;
  std::vector<int> near_orders = {1, 2, 3, 4};
};

// Pseudo-counts with which a context of k bases is smoothed by that of k - 1.
inline float smoothing(int k) { return k < 3 ? 4.0f : k < 5 ? 32.0f : 128.0f; }

// Emission counts by state and context, and transition counts by the last three bases.
class GeneCounts {
 public:
  explicit GeneCounts(int order) : order_(order) {
    for (int k = 0; k <= order; ++k) emitted_.emplace_back(size_t(kStates) << 2 * k, all4(0.0f));
    for (auto& t : moved_) t.fill(0.0f);
  }
  const V4* at(int k, uint64_t context) const {
    return &emitted_[size_t(k)][size_t(context & ((uint64_t(1) << 2 * k) - 1)) * kStates];
  }
  // Position t belongs to the states with these weights: counts its base there, and the other
  // strand's where that ends.
  void add(uint64_t recent, uint64_t reverse, const PerState& weight) {
    const int base = int(recent & 3);
    for (int s = 0; s < kStates; ++s) {
      const float w = weight[size_t(s)];
      if (w < 0.02f) continue;
      for (int k = 0; k <= order_; ++k) {
        V4* here =
            &emitted_[size_t(k)][size_t(recent >> 2 & ((uint64_t(1) << 2 * k) - 1)) * kStates];
        here[s][base] += w;
        const uint64_t context = k == 0 ? 0 : reverse >> (64 - 2 * k);
        V4* there = &emitted_[size_t(k)][size_t(context) * kStates];
        const int mirror = s == 0 ? 0 : s < 4 ? 4 + (s - 1 + 3 * 8 - k) % 3 : 1 + (s - 4 + k) % 3;
        there[mirror][3 - int(recent >> 2 * k & 3)] += w;
      }
    }
  }
  PerState& moved(int from, int last) { return moved_[size_t(from * 65 + last)]; }
  const PerState& moved(int from, int last) const { return moved_[size_t(from * 65 + last)]; }

 private:
  int order_;
  std::vector<std::vector<V4>> emitted_;
  // from 0: between genes, 1: third position, 2: first position of the other strand
  std::array<PerState, 3 * 65> moved_;
};

class GeneModel {
 public:
  explicit GeneModel(GeneOptions o = {}) : o_(o), counts_(o.order), next_(o.first) {
    for (int k : o.near_orders) near_.emplace_back(size_t(kStates) << 2 * k, all4(0.0f));
    set_prior();
    refresh();
    reset();
  }

  int near_count() const { return int(near_.size()); }
  bool trained() const { return trained_; }
  // The codon position at which the next base most likely lies: 0 none or unsure, 1 + i position i
  // on either strand.
  int frame() const { return frame_; }
  int state() const { return state_; }      // most likely state of the next base
  int certainty() const { return certainty_; }  // of it, 0 to 3

  void reset() {
    alpha_.fill(1.0f / kStates);
    if (trained_) alpha_ = {0.3f, 0.116f, 0.117f, 0.117f, 0.116f, 0.117f, 0.117f};
  }

  // Probabilities of the next base with emissions up to each of these orders (ascending), the last
  // deciding on the states.
  void predict(const History& h, const int* orders, int n, V4* out) {
    if (!trained_) {
      for (int i = 0; i < n + int(near_.size()); ++i) out[i] = all4(0.25f);
      frame_ = state_ = certainty_ = 0;
      return;
    }
    move(alpha_, last_three(h.context(3), h.known()), prior_);
    V4 e[kStates];
    for (int i = 0; i < n; ++i) out[i] = all4(0.0f);
    for (int s = 0; s < kStates; ++s) e[s] = all4(0.25f);
    int next = 0;
    const int most = int(std::min<int64_t>(h.known(), o_.order));
    for (int k = 0; k <= o_.order; ++k) {
      if (k <= most) chain(k, h.recent(), e);
      while (next < n && orders[next] == k) {
        for (int s = 0; s < kStates; ++s) out[next] += prior_[size_t(s)] * e[s];
        out[next] = normalised(out[next] + 1e-6f);
        ++next;
      }
      if (k == std::min(o_.decide, o_.order)) std::copy(e, e + kStates, emission_);
    }
    for (size_t j = 0; j < near_.size(); ++j) {
      const V4* c = &near_[j][near_row(h.recent(), j)];
      V4 p = all4(1e-6f);
      for (int s = 0; s < kStates; ++s) {
        p += prior_[size_t(s)] * (c[s] + o_.near_weight * emission_[s]) *
             (1.0f / (sum4(c[s]) + o_.near_weight));
      }
      out[n + int(j)] = normalised(p);
    }
    state_ = int(std::max_element(prior_.begin(), prior_.end()) - prior_.begin());
    const float top = prior_[size_t(state_)];
    certainty_ = top < 0.6f ? 0 : top < 0.9f ? 1 : top < 0.99f ? 2 : 3;
    frame_ = state_ == 0 || top < 0.6f ? 0 : 1 + (state_ - 1) % 3;
  }

  // After `base` was pushed.
  void update(const History& h, uint8_t base) {
    PerState seen;
    if (trained_) {
      float sum = 0;
      for (int s = 0; s < kStates; ++s) {
        seen[size_t(s)] = emission_[s][base];
        alpha_[size_t(s)] = prior_[size_t(s)] * seen[size_t(s)];
        sum += alpha_[size_t(s)];
      }
      for (float& a : alpha_) a /= sum;
      for (size_t j = 0; j < near_.size(); ++j) {
        V4* c = &near_[j][near_row(h.recent() >> 2, j)];
        for (int s = 0; s < kStates; ++s) {
          const float w = alpha_[size_t(s)];
          if (w < 0.02f) continue;
          c[s] *= 1.0f - w / o_.near_limit;
          c[s][base] += w;
        }
      }
      steps_.push_back({alpha_, seen, h.size() - 1, h.known()});
      if (int(steps_.size()) >= o_.block + o_.ahead) {
        learn(h, o_.block, counts_);
        steps_.erase(steps_.begin(), steps_.begin() + o_.block);
        refresh();
      }
    }
    if (h.size() == next_) {
      bootstrap(h);
      next_ = next_ * 2 > o_.last ? -1 : next_ * 2;
    }
  }

 private:
  struct Step {
    PerState alpha, seen;  // of the states after the base; probability of the base in each
    int64_t at, known;
  };

  size_t near_row(uint64_t recent, size_t j) const {
    return size_t(recent & ((uint64_t(1) << 2 * o_.near_orders[j]) - 1)) * kStates;
  }

  static int last_three(uint32_t context, int64_t known) {
    return known < 3 ? 64 : int(context & 63);
  }

  void chain(int k, uint64_t recent, V4* e) const {
    const V4* c = counts_.at(k, recent);
    const float b = smoothing(k);
    for (int s = 0; s < kStates; ++s) e[s] = (c[s] + b * e[s]) * (1.0f / (sum4(c[s]) + b));
  }

  void move(const PerState& from, int last, PerState& to) const {
    const PerState &a = moves_[size_t(last)], &b = moves_[size_t(65 + last)],
                   &c = moves_[size_t(130 + last)];
    for (int s = 0; s < kStates; ++s)
      to[size_t(s)] = from[0] * a[size_t(s)] + from[3] * b[size_t(s)] + from[4] * c[size_t(s)];
    to[2] += from[1];
    to[3] += from[2];
    to[5] += from[6];
    to[4] += from[5];
  }

  void set_prior() {
    const auto code = [](const char* three) {
      int out = 0;
      for (int i = 0; i < 3; ++i)
        out = out * 4 + (three[i] == 'A' ? 0 : three[i] == 'C' ? 1 : three[i] == 'G' ? 2 : 3);
      return out;
    };
    for (int last = 0; last < 65; ++last) {
      const auto is = [&](const char* a, const char* b, const char* c) {
        return last == code(a) || last == code(b) || last == code(c);
      };
      const bool start = is("ATG", "GTG", "TTG"), stop = is("TAA", "TAG", "TGA");
      const bool start_back = is("CAT", "CAC", "CAA"), stop_back = is("TTA", "CTA", "TCA");
      const float in = last == code("ATG") ? 0.02f
                       : start             ? 0.004f
                                           : 1e-4f,
                  back = stop_back ? 0.008f : 1e-4f;
      prior_moves_[size_t(last)] = {1 - in - back, in, 0, 0, 0, 0, back};
      if (stop)
        prior_moves_[size_t(65 + last)] = {0.8f, 0.02f, 0.06f, 0.06f, 0.02f, 0.02f, 0.02f};
      else
        prior_moves_[size_t(65 + last)] = {1e-4f, 0.9997f, 5e-5f, 5e-5f, 3e-5f, 3e-5f, 4e-5f};
      const float out = last == code("CAT") ? 0.03f : start_back ? 0.004f : 1e-4f;
      prior_moves_[size_t(130 + last)] = {out,         out * 0.02f, out * 0.02f,    out * 0.02f,
                                          out * 0.05f, out * 0.05f, 1 - out * 1.16f};
    }
  }

  void refresh() {
    for (int from = 0; from < 3; ++from)
      for (int last = 0; last < 65; ++last) {
        const PerState& n = counts_.moved(from, last);
        const PerState& p = prior_moves_[size_t(from * 65 + last)];
        PerState& m = moves_[size_t(from * 65 + last)];
        float sum = 0;
        for (int s = 0; s < kStates; ++s) sum += m[size_t(s)] = n[size_t(s)] + 20.0f * p[size_t(s)];
        for (float& x : m) x /= sum;
      }
  }

  // Smooths the states of the steps backwards and counts the first `n` of them.
  void learn(const History& h, int n, GeneCounts& counts) {
    PerState beta;
    beta.fill(1.0f);
    for (int i = int(steps_.size()) - 1; i >= 0; --i) {
      const Step& step = steps_[size_t(i)];
      PerState weight;
      float sum = 0;
      for (int s = 0; s < kStates; ++s)
        sum += weight[size_t(s)] = step.alpha[size_t(s)] * beta[size_t(s)];
      for (float& w : weight) w /= sum;
      if (i < n && step.known > o_.order && step.at >= 32) {
        const uint64_t window = h.window(step.at - 31);
        counts.add(reverse_complement32(~window), ~window, weight);
      }
      if (i == 0) break;
      // Over the move into this position: from the states after the one before.
      const Step& before = steps_[size_t(i - 1)];
      PerState next;
      for (int s = 0; s < kStates; ++s) next[size_t(s)] = step.seen[size_t(s)] * beta[size_t(s)];
      if (before.at + 1 != step.at || step.known < 2) {  // another record begins here
        beta.fill(1.0f);
        continue;
      }
      const uint64_t w = before.at >= 32 ? reverse_complement32(~h.window(before.at - 31)) : 0;
      const int last = before.at >= 32 ? last_three(uint32_t(w), before.known) : 64;
      const int sources[3] = {0, 3, 4};
      PerState out;
      out[1] = next[2], out[2] = next[3], out[6] = next[5], out[5] = next[4];
      for (int j = 0; j < 3; ++j) {
        const PerState& m = moves_[size_t(j * 65 + last)];
        float total = 0;
        for (int s = 0; s < kStates; ++s) total += m[size_t(s)] * next[size_t(s)];
        out[size_t(sources[j])] = total;
      }
      float all = 0;
      for (int s = 0; s < kStates; ++s) all += before.alpha[size_t(s)] * out[size_t(s)];
      if (i <= n)
        for (int j = 0; j < 3; ++j) {
          const PerState& m = moves_[size_t(j * 65 + last)];
          PerState& count = counts.moved(j, last);
          const float from = before.alpha[size_t(sources[j])] / all;
          for (int s = 0; s < kStates; ++s)
            count[size_t(s)] += from * m[size_t(s)] * next[size_t(s)];
        }
      float scale = 0;
      for (float x : out) scale = std::max(scale, x);
      for (int s = 0; s < kStates; ++s) beta[size_t(s)] = out[size_t(s)] / scale;
    }
  }

  // From long open reading frames, then some passes of expectation-maximisation over all that was
  // seen.
  void bootstrap(const History& h) {
    std::vector<int8_t> label(size_t(h.size()), 0);
    if (!mark_open_frames(h, label)) return;  // no long one so far
    GeneCounts fresh(o_.order);
    int64_t known = 0;
    for (int64_t t = 0; t < h.size(); ++t) {
      known = h[t] == kUnknown ? 0 : known + 1;
      if (label[size_t(t)] < 0 || t < 32 || known <= o_.order) continue;
      PerState weight{};
      weight[size_t(label[size_t(t)])] = 1.0f;
      const uint64_t window = h.window(t - 31);
      fresh.add(reverse_complement32(~window), ~window, weight);
    }
    counts_ = std::move(fresh);
    refresh();
    trained_ = true;
    for (int pass = 0; pass < o_.passes; ++pass) {
      GeneCounts again(o_.order);
      walk(h, again);
      counts_ = std::move(again);
      refresh();
    }
    steps_.clear();
  }

  // One forward-backward pass over everything.
  void walk(const History& h, GeneCounts& into) {
    steps_.clear();
    reset();
    int64_t known = 0;
    for (int64_t t = 0; t < h.size(); ++t) {
      if (h[t] == kUnknown) {
        known = 0;
        reset();
        continue;
      }
      const uint64_t recent = t >= 32 ? reverse_complement32(~h.window(t - 32)) : 0;
      PerState prior, seen;
      V4 e[kStates];
      for (V4& one : e) one = all4(0.25f);
      move(alpha_, t >= 32 ? last_three(uint32_t(recent), known) : 64, prior);
      const int most = t >= 32 ? int(std::min<int64_t>(known, o_.order)) : 0;
      for (int k = 0; k <= std::min(most, o_.decide); ++k) chain(k, recent, e);
      float sum = 0;
      for (int s = 0; s < kStates; ++s) {
        seen[size_t(s)] = e[s][h[t]];
        sum += alpha_[size_t(s)] = prior[size_t(s)] * seen[size_t(s)];
      }
      for (float& a : alpha_) a /= sum;
      steps_.push_back({alpha_, seen, t, ++known});
      const bool end = t + 1 == h.size();
      if (int(steps_.size()) >= o_.block + o_.ahead || end) {
        const int n = end ? int(steps_.size()) : o_.block;
        learn(h, n, into);
        steps_.erase(steps_.begin(), steps_.begin() + n);
      }
    }
  }

  GeneOptions o_;
  GeneCounts counts_;
  std::vector<std::vector<V4>> near_;  // counts of the recent past, of this strand alone
  std::array<PerState, 3 * 65> prior_moves_, moves_;
  PerState alpha_, prior_;
  V4 emission_[kStates];
  std::vector<Step> steps_;
  int64_t next_;
  bool trained_ = false;
  int frame_ = 0, state_ = 0, certainty_ = 0;
};

}  // namespace genomics
