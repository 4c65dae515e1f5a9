// SPDX-License-Identifier: Apache-2.0
// A table of kernels that times the device's own.
#include "bench/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>

namespace mamba {
namespace {

struct Watching : Kernels {
  const Kernels* real;
  std::map<std::string, ProfileLine>* lines;
};

template <class Args>
std::string sizes_of(const Args& a) {
  if constexpr (requires { a.M, a.N, a.K; }) return fmt::format(" {}x{}x{}", a.M, a.N, a.K);
  if constexpr (requires { a.product.M; }) return sizes_of(a.product);
  return "";
}

template <auto kernel, class Args>
void time_kernel(Stream& stream, const Args& args, const char* name) {
  Device& device = *static_cast<Device*>(stream.owner);
  const auto& table = static_cast<const Watching&>(device.kernels());
  try {
    const double seconds = device.time([&] { (table.real->*kernel)(stream, args); });
    ProfileLine& line = (*table.lines)[name + sizes_of(args)];
    ++line.calls;
    line.seconds += seconds;
  } catch (const std::exception&) {  // the device failed, or memory for a line
    if (stream.failed == nullptr) stream.failed = name;
  }
}

#define MAMBA_KERNEL(function, Args)                                 \
  void watch_##function(Stream& stream, const Args& args) noexcept { \
    time_kernel<&Kernels::function>(stream, args, #function);        \
  }
#include "kernels/kernels.def"
#undef MAMBA_KERNEL

// Puts the table back whatever happens.
class Watch {
 public:
  Watch(Device& device, std::map<std::string, ProfileLine>& lines)
      : device_(device), real_(device.kernels()) {
    table_.name = real_.name;
    table_.real = &real_;
    table_.lines = &lines;
#define MAMBA_KERNEL(function, Args) table_.function = watch_##function;
#include "kernels/kernels.def"
#undef MAMBA_KERNEL
    device.set_kernels(table_);
  }
  ~Watch() { device_.set_kernels(real_); }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  Device& device_;
  const Kernels& real_;
  Watching table_{};
};

}  // namespace

std::vector<ProfileLine> profile_kernels(Device& device, const std::function<void()>& body) {
  std::map<std::string, ProfileLine> lines;
  {
    const Watch watch(device, lines);
    body();
    device.sync();
  }
  std::vector<ProfileLine> sorted;
  for (auto& [name, line] : lines) {
    line.kernel = name;
    sorted.push_back(line);
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const ProfileLine& a, const ProfileLine& b) {
    return a.seconds > b.seconds;
  });
  return sorted;
}

}  // namespace mamba
