// SPDX-License-Identifier: Apache-2.0
// mamba-cpp version: what was built in and what runs on this machine.
#include <dnnl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "device/cpu_features.h"
#include "device/device.h"
#include "mamba/version.h"

namespace mamba::cli {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "g++ " __VERSION__;
#endif

#ifdef MAMBA_BUILD_TYPE
constexpr const char* kBuildType = MAMBA_BUILD_TYPE;
#else
constexpr const char* kBuildType = "unknown";
#endif

struct VersionFlags {
  RunOptions run;
  bool json = false;
};

int run_version(const VersionFlags& flags) {
  const ModelOptions options = model_options(flags.run);
  const std::unique_ptr<Device> device = Device::create({options.device, options.threads});
  const dnnl_version_t* dnnl = dnnl_version();
  const std::string dnnl_text = fmt::format("{}.{}.{}", dnnl->major, dnnl->minor, dnnl->patch);
  const std::vector<std::string> built = {
      ref_kernels().name,    base_kernels().name,        avx2_kernels().name,
      avx512_kernels().name, avx512_bf16_kernels().name,
  };
  if (flags.json) {
    const nlohmann::ordered_json json = {
        {"version", MAMBA_VERSION},
        {"compiler", kCompiler},
        {"build_type", kBuildType},
        {"onednn", dnnl_text},
        {"isas", built},
        {"available", Device::available()},
        {"device", device->name()},
        {"kernels", device->kernels().name},
        {"threads", device->threads()},
        {"cpu", cpu_model_name()},
        {"amx", cpu_features().amx},
    };
    write_output(json_text(json));
    return 0;
  }
  write_output(fmt::format(
      "mamba-cpp {}\ncompiler    {}, {} build\noneDNN      {}\nbuilt in    {}\nruns here   {}\n"
      "device      {} with {} threads\ncpu         {}{}\n",
      MAMBA_VERSION, kCompiler, kBuildType, dnnl_text, fmt::join(built, ", "),
      fmt::join(Device::available(), ", "), device->name(), device->threads(), cpu_model_name(),
      cpu_features().amx ? ", AMX (through oneDNN)" : ""));
  return 0;
}

}  // namespace

CommandRun add_version(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("version", "Say what was built in and which path runs");
  auto flags = std::make_shared<VersionFlags>();
  add_run_options(*app, &flags->run, false);
  app->add_flag("--json", flags->json, "Print JSON");
  add_examples(*app, {{"Which instruction sets run here", "mamba-cpp version --json"}});
  return [flags] { return run_version(*flags); };
}

}  // namespace mamba::cli
