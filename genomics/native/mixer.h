// A learnt mixture of distributions over the four bases: softmax of weighted log-probabilities, one
// step of gradient descent a base.
#pragma once

#include <vector>

#include "vec4.h"

namespace genomics {

// Log-probabilities by base, inputs side by side, in groups of four.
class Inputs {
 public:
  explicit Inputs(int n)
      : size_(n), groups_((n + 3) / 4), values_(size_t(4 * groups_), all4(0.0f)) {}
  int size() const { return size_; }
  int groups() const { return groups_; }
  void set(int i, V4 logs) {
    for (int base = 0; base < 4; ++base)
      values_[size_t(base * groups_ + i / 4)][i % 4] = logs[base];
  }
  V4 get(int i) const {
    V4 logs;
    for (int base = 0; base < 4; ++base)
      logs[base] = values_[size_t(base * groups_ + i / 4)][i % 4];
    return logs;
  }
  const V4* of(int base) const { return &values_[size_t(base * groups_)]; }

 private:
  int size_, groups_;
  std::vector<V4> values_;
};

class Mixer {
 public:
  Mixer(int inputs, int sets, float weight, float rate, float last_rate)
      : groups_((inputs + 3) / 4),
        weights_(size_t(groups_ * sets), all4(weight)),
        seen_(size_t(sets), 0),
        rate_(rate),
        last_rate_(last_rate) {}

  V4 mix(const Inputs& in, int set) {
    set_ = set;
    const V4* w = &weights_[size_t(set * groups_)];
    V4 z;
    for (int base = 0; base < 4; ++base) {
      const V4* x = in.of(base);
      V4 s = all4(0.0f);
      for (int g = 0; g < groups_; ++g) s += w[g] * x[g];
      z[base] = sum4(s);
    }
    return p_ = softmax4(z);
  }

  // The gradient of ln p(base) in the weight of input i is l_i(base) - sum over c of p(c) l_i(c).
  void update(const Inputs& in, int base) {
    uint32_t& n = seen_[size_t(set_)];
    ++n;
    const float rate = last_rate_ + (rate_ - last_rate_) / (1.0f + float(n) * 0.002f);
    V4 e = -p_;
    e[base] += 1.0f;
    e *= rate;
    V4* w = &weights_[size_t(set_ * groups_)];
    const V4 *a = in.of(0), *c = in.of(1), *g = in.of(2), *t = in.of(3);
    for (int i = 0; i < groups_; ++i) w[i] += e[0] * a[i] + e[1] * c[i] + e[2] * g[i] + e[3] * t[i];
  }

 private:
  int groups_;
  std::vector<V4> weights_;
  std::vector<uint32_t> seen_;
  float rate_, last_rate_;
  int set_ = 0;
  V4 p_ = all4(0.25f);
};

}  // namespace genomics
