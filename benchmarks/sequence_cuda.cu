// SPDX-License-Identifier: Apache-2.0
// Checks and times the CUDA sequence kernels (scan, ssd, affine_scan) by themselves, without the
// engine: against the f64 references over many shapes, options and types, every result twice for
// equal bits; then medians of 20 runs with the L2 cache flushed between.
//   cmake --preset release -DMAMBA_CUDA=ON && cmake --build --preset release --target sequence_cuda
//   sequence_cuda [check] [time] [short] [scan] [ssd] [affine] [few] [once]
#include "sequence_cuda_scan.cuh"
#include "sequence_cuda_ssd.cuh"

namespace {

// ---- affine_scan ----

void check_affine() {
  for (int64_t L : {0, 1, 3, 65, 1000, 3000}) {
    for (int mode = 0; mode < 8; ++mode) {
      const int64_t B = 2, D = mode & 4 ? 37 : 64;
      const DType F = DType::kF32;
      Tensor a(B * L, D, F), x(B * L, D, F), h0(B, D, F), h(B * L, D, F), dh(B * L, D, F),
          da(B * L, D, F), dx(B * L, D, F), dh0(B, D, F);
      a.fill(0.2, 1), x.fill(-1, 1), h0.fill(-1, 1), dh.fill(-1, 1);
      const auto forward = [&](bool g) {
        AffineScanArgs f{B,
                         L,
                         D,
                         mode & 1 ? ScanOrder::kParallel : ScanOrder::kSequential,
                         (mode & 2) != 0,
                         a.at(g),
                         x.at(g),
                         h0.at(g),
                         h.at(g)};
        return f;
      };
      char where[40];
      std::snprintf(where, sizeof(where), "L%ld mode%d", long(L), mode);
      check(
          "affine_forward f32", where, {{"h", &h}},
          [&] { cuda::affine_scan_forward(gpu(), forward(true)); },
          [&] { ref::affine_scan_forward(cpu(), forward(false)); });
      h.upload();
      const auto backward = [&](bool g) {
        AffineScanBackwardArgs f{};
        f.B = B, f.L = L, f.D = D,
        f.order = mode & 1 ? ScanOrder::kParallel : ScanOrder::kSequential,
        f.reverse = (mode & 2) != 0;
        f.a = a.at(g), f.h = h.at(g), f.h0 = h0.at(g), f.dh = dh.at(g), f.da = da.at(g),
        f.dx = dx.at(g), f.dh0 = dh0.at(g);
        return f;
      };
      check(
          "affine_backward f32", where, {{"da", &da}, {"dx", &dx}, {"dh0", &dh0}},
          [&] { cuda::affine_scan_backward(gpu(), backward(true)); },
          [&] { ref::affine_scan_backward(cpu(), backward(false)); });
    }
  }
}

// ---- times ----

size_t repeats = 20;
bool forward_only = false;

double median_ms(const std::function<void()>& call) {
  static void* flush = [] {
    void* p = nullptr;
    require(cudaMalloc(&p, 256 << 20), "cudaMalloc");
    return p;
  }();
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "event"), require(cudaEventCreate(&end), "event");
  for (int i = 0; i < 3; ++i) call();
  sync("warm-up");
  // As a graph, as the engine runs them: without the time that launches take on the host.
  static cudaStream_t stream = [] {
    cudaStream_t made = nullptr;
    require(cudaStreamCreate(&made), "cudaStreamCreate");
    return made;
  }();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t run = nullptr;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capture");
  gpu().cuda = stream;
  call();
  gpu().cuda = nullptr;
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&run, graph, 0), "graph");
  std::vector<float> times;
  for (size_t i = 0; i < repeats; ++i) {
    require(cudaMemsetAsync(flush, static_cast<int>(i), 256 << 20, stream), "flush");
    require(cudaEventRecord(begin, stream), "event");
    require(cudaGraphLaunch(run, stream), "graph");
    require(cudaEventRecord(end, stream), "event");
    sync("timed run");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin, end), "event");
    times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  cudaGraphExecDestroy(run), cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return times[repeats / 2];
}

constexpr double kCopy = 4.25e12, kExp = 132 * 16 * 1.98e9;  // of one H200

void time_scan(int64_t B, int64_t E, int64_t L, double want_forward, double want_both,
               DType type = DType::kBF16) {
  ScanCase o;
  o.B = B, o.E = E, o.L = L, o.type = type, o.state = false;
  lean = true;
  {
    ScanProblem p(o, true);
    const double n = double(B) * L * E, size = double(dtype_size(type));
    const double forward = median_ms([&] { cuda::scan_forward(gpu(), p.forward(true)); });
    std::printf(
        "scan %s B%ld D%ld N16 L%ld forward %.3f ms (target %.2f; bytes %.3f ms, exps %.3f ms)\n",
        type_name(type), long(B), long(E), long(L), forward, want_forward,
        4 * n * size / kCopy * 1e3, n * 20 / kExp * 1e3);
    if (!forward_only) {
      const double backward = median_ms([&] { cuda::scan_backward(gpu(), p.backward(true)); });
      std::printf("    backward %.3f ms, both %.3f ms (target %.2f; bytes of backward %.3f ms)\n",
                  backward, forward + backward, want_both, 7 * n * size / kCopy * 1e3);
    }
  }
  lean = false;
}

void time_ssd(int64_t B, int64_t L, int64_t H, int64_t P, int64_t N, double want_forward,
              double want_both, DType type = DType::kBF16) {
  SsdCase o;
  o.B = B, o.L = L, o.H = H, o.P = P, o.N = N, o.G = 1, o.type = type,
  o.initial = o.reset = o.final = false;
  lean = true;
  {
    SsdProblem p(o, true);
    const double n = double(B) * L * H * P, size = double(dtype_size(type));
    const double forward = median_ms([&] { cuda::ssd_forward(gpu(), p.forward(true)); });
    std::printf("ssd %s B%ld L%ld H%ld P%ld N%ld forward %.3f ms (target %.2f; bytes %.3f ms)\n",
                type_name(type), long(B), long(L), long(H), long(P), long(N), forward, want_forward,
                2 * n * size / kCopy * 1e3);
    if (!forward_only) {
      const double backward = median_ms([&] { cuda::ssd_backward(gpu(), p.backward(true)); });
      std::printf("    backward %.3f ms, both %.3f ms (target %.2f; bytes of backward %.3f ms)\n",
                  backward, forward + backward, want_both, 3 * n * size / kCopy * 1e3);
    }
  }
  lean = false;
}

}  // namespace

int main(int argc, char** argv) {
  const auto asked = [&](const char* word) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], word) == 0) return true;
    }
    return argc == 1;
  };
  if (asked("few")) every = 9;
  if (argc > 1 && asked("once")) repeats = 1;  // for profilers
  if (asked("check")) {
    if (argc < 3 || asked("scan")) check_scans();
    if (argc < 3 || asked("ssd")) check_ssds();
    if (argc < 3 || asked("affine")) check_affine();
    for (const Worst& w : worsts)
      std::printf("%-28s worst %.2e  %s\n", w.name.c_str(), w.error, w.where.c_str());
    std::printf("%d checks, %d failures\n", checks, failures);
  }
  if (argc > 1 && asked("short")) {  // forward of one prompt
    forward_only = true;
    const bool scan = argc < 3 || asked("scan"), ssd = argc < 3 || asked("ssd");
    for (int64_t L : {1024, 4096}) {
      if (scan) time_scan(1, 1536, L, 0, 0);
      if (ssd) time_ssd(1, L, 24, 64, 128, 0, 0);
    }
    forward_only = false;
  }
  if (argc > 1 && asked("forward")) forward_only = true;
  if (asked("time") || forward_only) {
    if (argc < 3 || asked("scan")) {
      time_scan(8, 2048, 2048, 0.25, 1.0);
      time_scan(1, 5120, 16384, 0.95, 3.2);
      time_scan(1, 2048, 65536, 1.5, 5);
      time_scan(1, 5120, 65536, 1.5, 5);
      time_scan(1, 1536, 1024, 0, 0);
      time_scan(1, 1536, 4096, 0, 0);
      time_scan(8, 1536, 2048, 0, 0);
      time_scan(8, 2048, 2048, 0, 0, DType::kF32);
      time_scan(8, 1536, 2048, 0, 0, DType::kF32);
      time_scan(1, 1536, 1024, 0, 0, DType::kF32);
    }
    if (argc < 3 || asked("ssd")) {
      time_ssd(8, 2048, 32, 64, 128, 0.18, 0.9);
      time_ssd(1, 16384, 80, 64, 128, 0, 0);
      time_ssd(1, 1024, 24, 64, 128, 0, 0);
      time_ssd(1, 4096, 24, 64, 128, 0, 0);
      time_ssd(8, 2048, 24, 64, 128, 0, 0);
      time_ssd(8, 2048, 32, 64, 128, 0, 0, DType::kF32);
      time_ssd(8, 2048, 24, 64, 128, 0, 0, DType::kF32);
      time_ssd(1, 1024, 24, 64, 128, 0, 0, DType::kF32);
      time_ssd(1, 4096, 24, 64, 128, 0, 0, DType::kF32);
    }
  }
  return failures > 0;
}
