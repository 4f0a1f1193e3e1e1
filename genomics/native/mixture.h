// All experts and their mixture, one base after the other: predict, then learn.
#pragma once

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "copies.h"
#include "counts.h"
#include "gene_hmm.h"
#include "history.h"
#include "mixer.h"
#include "vec4.h"

namespace genomics {

struct MixtureOptions {
  std::vector<int> orders = {1, 2, 3, 4, 6, 8, 9, 10, 11, 12};  // of the direct counts
  // of the gene model's emissions that are inputs
  std::vector<int> gene_orders = {2, 3, 5, 8};
  bool copies = true, genes = true;
  int networks = 0;  // distributions from outside
  CopyOptions copy;
  GeneOptions gene;
};

class Mixture {
 public:
  explicit Mixture(const MixtureOptions& o) : o_(o) {
    names_.push_back("composition");
    for (int k : o.orders) {
      const bool high = k >= 9;  // sparse counts are also read through a learnt map
      counts_.emplace_back(k, !high ? 1.0f : k < 11 ? 0.25f : 0.0625f, high);
      names_.push_back("order-" + std::to_string(k));
      if (high) names_.push_back("order-" + std::to_string(k) + " ranked");
    }
    if (o.genes) {
      genes_.reset(new GeneModel(o.gene));
      for (int k : o.gene_orders) names_.push_back("genes order-" + std::to_string(k));
      for (int k : o.gene.near_orders) names_.push_back("near genes order-" + std::to_string(k));
    }
    if (o.copies) {
      copies_.reset(new Copies(o.copy));
      for (int i = 0; i < o.copy.slots; ++i) names_.push_back("copy " + std::to_string(i + 1));
      names_.push_back("copies");
    }
    for (int i = 0; i < o.networks; ++i) names_.push_back("network " + std::to_string(i + 1));
    const int n = int(names_.size());
    logs_.resize(size_t(n));
    in_.reset(new Inputs(n));
    for (int sets : {256, kStates * 4 * 4, 8 * 8, 8 * kStates * 4, 4 * 64})
      mixers_.emplace_back(n, sets, 1.6f / float(n), 0.02f, 0.0015f);
    const int m = int(mixers_.size());
    out_.reset(new Inputs(m));
    last_.reset(new Mixer(m, 64, 1.0f / float(m), 0.001f, 0.0001f));
  }

  const std::vector<std::string>& names() const { return names_; }

  // Reads n bases (0 to 3; others are unknown) and learns from each after it was predicted.
  // networks: natural log-probabilities (n, networks, 4). bits: cost of each base under the mixture
  // (n), 0 for unknown ones; each: under every input (n, inputs), or null.
  void run(const uint8_t* bases, int64_t n, const float* networks, float* bits, float* each) {
    if (h_.size() + n >= int64_t(UINT32_MAX))
      throw std::length_error("more than 2^32 bases are too many for the copies");
    const int64_t inputs = int64_t(names_.size());
    for (int64_t t = 0; t < n; ++t) {
      float* costs = each ? each + t * inputs : nullptr;
      if (bases[t] >= kUnknown) {
        bits[t] = 0;
        if (costs) std::fill(costs, costs + inputs, 0.0f);
        skip();
        continue;
      }
      const V4 p = predict(networks ? networks + 4 * t * o_.networks : nullptr);
      bits[t] = -std::log2(p[bases[t]]);
      if (costs)
        for (int64_t i = 0; i < inputs; ++i) costs[i] = -logs_[size_t(i)][bases[t]] * 1.442695041f;
      update(bases[t], bits[t]);
    }
  }

 private:
  // An unknown base, or many in a row: every context ends.
  void skip() {
    if (h_.known() > 0 || h_.size() == 0) {
      h_.push(kUnknown);
      if (copies_) copies_->skip();
    }
    if (genes_) genes_->reset();
  }

  V4 predict(const float* networks) {
    size_t i = 0;
    logs_[i++] = V4{0.0f, -1.0f, -1.0f, 0.0f};
    for (CountModel& c : counts_) {
      V4 direct, learnt;
      c.predict(h_, direct, learnt);
      logs_[i++] = log4(direct);
      if (c.ranked()) logs_[i++] = log4(learnt);
    }
    int frame = 0, state = 0, certainty = 0, confidence = 0, agreement = 0, copying = 0;
    if (genes_) {
      V4 p[16];
      genes_->predict(h_, o_.gene_orders.data(), int(o_.gene_orders.size()), p);
      const size_t n = o_.gene_orders.size() + size_t(genes_->near_count());
      for (size_t j = 0; j < n; ++j) logs_[i++] = log4(p[j]);
      frame = genes_->frame(), state = genes_->state(), certainty = genes_->certainty();
    }
    if (copies_) {
      copies_->predict(h_, frame, &logs_[i]);
      i += size_t(copies_->slots()) + 1;
      confidence = copies_->confidence(), agreement = copies_->agreement(),
      copying = std::min(copies_->count(), 3);
    }
    for (int j = 0; j < o_.networks; ++j, networks += 4)
      logs_[i++] = V4{networks[0], networks[1], networks[2], networks[3]};
    for (size_t j = 0; j < i; ++j) in_->set(int(j), logs_[j]);
    const int sets[] = {int(h_.context(4)), (state * 4 + certainty) * 4 + copying,
                        confidence * 8 + agreement, (confidence * kStates + state) * 4 + certainty,
                        ease_ * 64 + int(h_.context(3))};
    for (size_t m = 0; m < mixers_.size(); ++m) {
      const V4 p = mixers_[m].mix(*in_, sets[m]);
      out_->set(int(m), log4(p * 0.9999f + 0.000025f));
    }
    return last_->mix(*out_, confidence * 8 + agreement) * 0.9998f + 0.00005f;
  }

  void update(uint8_t base, float cost) {
    last_->update(*out_, base);
    for (Mixer& m : mixers_) m.update(*in_, base);
    recent_cost_ += (cost - recent_cost_) * 0.05f;
    ease_ = recent_cost_ < 0.5f ? 0 : recent_cost_ < 1.4f ? 1 : recent_cost_ < 1.8f ? 2 : 3;
    h_.push(base);
    for (CountModel& c : counts_) c.update(h_, base);
    if (copies_) copies_->update(h_, base);
    if (genes_) genes_->update(h_, base);
  }

  MixtureOptions o_;
  History h_;
  std::vector<std::string> names_;
  std::vector<CountModel> counts_;
  std::unique_ptr<Copies> copies_;
  std::unique_ptr<GeneModel> genes_;
  std::vector<V4> logs_;
  std::unique_ptr<Inputs> in_, out_;
  std::vector<Mixer> mixers_;
  std::unique_ptr<Mixer> last_;
  float recent_cost_ = 2.0f;
  int ease_ = 3;
};

}  // namespace genomics
