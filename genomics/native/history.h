// The bases seen so far, one per byte and also 32 in a word, and where each 12-mer occurred.
#pragma once

#include <cstdint>
#include <vector>

namespace genomics {

constexpr uint8_t kUnknown = 4;

// Reverse complement of a word of 32 bases, the earliest in the lowest bits.
inline uint64_t reverse_complement32(uint64_t x) {
  x = ~x;
  x = (x >> 2 & 0x3333333333333333ull) | (x & 0x3333333333333333ull) << 2;
  x = (x >> 4 & 0x0f0f0f0f0f0f0f0full) | (x & 0x0f0f0f0f0f0f0f0full) << 4;
  return __builtin_bswap64(x);
}

// Of two words of 32 bases: a bit in an even place for each base in which they differ.
inline uint64_t differences(uint64_t a, uint64_t b) {
  const uint64_t x = a ^ b;
  return (x | x >> 1) & 0x5555555555555555ull;
}

class History {
 public:
  int64_t size() const { return int64_t(bases_.size()); }
  uint8_t operator[](int64_t i) const { return bases_[size_t(i)]; }
  int64_t known() const { return known_; }                // bases since the last unknown one
  // the last `order` <= 16 bases, the newest in the lowest bits
  uint32_t context(int order) const {
    return order == 0 ? 0 : uint32_t(recent_ & ((uint64_t(1) << 2 * order) - 1));
  }
  // The reverse complement of the last `order` bases, read so that the oldest one's complement is
  // the newest.
  uint32_t reverse_context(int order) const {
    return order == 0 ? 0 : uint32_t(reverse_ >> (64 - 2 * order));
  }
  uint64_t recent() const { return recent_; }

  void push(uint8_t base) {
    const size_t i = bases_.size();
    bases_.push_back(base);
    if (i % 32 == 0) words_.push_back(0);
    const uint64_t two = base & 3;
    words_[i / 32] |= two << 2 * (i % 32);
    recent_ = recent_ << 2 | two;
    reverse_ = reverse_ >> 2 | (3 - two) << 62;
    known_ = base == kUnknown ? 0 : known_ + 1;
  }

  // The 32 bases from `start` on, the first in the lowest bits; 0 <= start <= size - 32.
  uint64_t window(int64_t start) const {
    const size_t w = size_t(start) / 32, shift = 2 * (size_t(start) % 32);
    return shift == 0 ? words_[w] : words_[w] >> shift | words_[w + 1] << (64 - shift);
  }

 private:
  std::vector<uint8_t> bases_;
  std::vector<uint64_t> words_;
  uint64_t recent_ = 0, reverse_ = 0;
  int64_t known_ = 0;
};

}  // namespace genomics
