// SPDX-License-Identifier: Apache-2.0
// Stop strings over a stream of bytes, also where they span tokens.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mamba {

// Lets bytes through up to the first stop string; holds back what could still become one.
class StopMatcher {
 public:
  // Throws invalid_argument for an empty stop string.
  explicit StopMatcher(std::vector<std::string> stops);
  // Takes bytes and returns those that are certain to stand before any stop string.
  std::string push(std::string_view bytes);
  // What was held back, when the text ends without a stop string.
  std::string finish();
  // A stop string was seen; push() lets nothing through from then on.
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace mamba
