// SPDX-License-Identifier: Apache-2.0
// Checks and times the CUDA sequence kernels (scan, ssd, affine_scan) by themselves, without the
// engine: against the f64 references over many shapes, options and types, every result twice for
// equal bits; then medians of 20 runs with the L2 cache flushed between.
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -Iinclude -Isrc
//        benchmarks/sequence_cuda.cu
//        src/kernels/{scan,scan_backward,ssd,ssd_backward,affine_scan}_cuda.cu
//        src/kernels/{scan,ssd,affine_scan}_ref.cpp -DMAMBA_ISA=ref -o sequence_cuda
//   sequence_cuda [check] [time] [scan] [ssd] [affine] [few]
#include "sequence_cuda.cuh"

namespace {

// ---- scan ----

struct ScanCase {
  int64_t B = 2, L = 33, E = 64, N = 16, G = 1;
  bool constant = false, softplus = true, bias = true, D = true, z = true, state = true;
  int docs = 0;  // 1 packed, 2 with padding
  int64_t gap = 0, offset = 0;
  DType type = DType::kF32;
  std::string text() const {
    char s[200];
    std::snprintf(
        s, sizeof(s),
        "B%ld L%ld E%ld N%ld G%ld const%d sp%d bias%d D%d z%d state%d docs%d gap%ld off%ld",
        long(B), long(L), long(E), long(N), long(G), constant, softplus, bias, D, z, state, docs,
        long(gap), long(offset));
    return s;
  }
};

std::vector<int32_t> make_ids(int64_t B, int64_t L, int docs, int64_t mean) {
  std::vector<int32_t> ids;
  int32_t id = 3;
  for (int64_t i = 0; i < B * L && docs != 0; ++i) {
    if (below(mean) == 0) id = (id + 1) % 5;
    ids.push_back(docs == 2 && (i % L < 2 || below(5) == 0) ? -1 : id);
  }
  return ids;
}
int32_t* upload_ids(const std::vector<int32_t>& ids) {
  int32_t* p = nullptr;
  if (ids.empty()) return p;
  require(cudaMalloc(&p, ids.size() * 4), "cudaMalloc");
  require(cudaMemcpy(p, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice), "ids");
  return p;
}

struct ScanProblem {
  ScanCase o;
  Tensor u, delta, bias, A, Bm, Cm, D, z, h0, hT, y, dy, dhT, du, ddelta, dbias, dA, dB, dC, dD, dz,
      dh0;
  std::vector<int32_t> ids;
  int32_t* device_ids = nullptr;

  explicit ScanProblem(const ScanCase& c, bool big = false, bool gradients = true) : o(c) {
    const auto fill = [&](Tensor& t, double lo, double hi) {
      big ? t.fill_fast(lo, hi) : t.fill(lo, hi);
    };
    const int64_t n = o.B * o.L, g = o.gap, f = o.offset;
    const DType T = o.type, F = DType::kF32;
    const auto tokens = [&](int64_t w, int64_t extra = 0) {
      return Tensor(n, w, T, g ? g + extra : 0, f);
    };
    const auto bc = [&](int64_t extra) {
      return o.constant ? Tensor(o.E, o.N, F, 0, f) : tokens(o.G * o.N, extra);
    };
    u = tokens(o.E), delta = tokens(o.E, 8), y = tokens(o.E, 16);
    Bm = bc(8), Cm = bc(16), A = Tensor(o.N, o.E, F, 0, f);
    fill(u, -1, 1), fill(Bm, -1, 1), fill(Cm, -1, 1);
    fill(delta, o.softplus ? (big ? -6 : -5) : 0.01, o.softplus ? (big ? -2 : 1) : 0.7);
    if (big)
      A.fill_fast(-16, -1);
    else
      A.fill(-8, -0.25);
    if (o.bias) bias = Tensor(1, o.E, F, 0, f), bias.fill(-0.5, 0.5);
    if (o.D) D = Tensor(1, o.E, F, 0, f), D.fill(-1, 1);
    if (o.z) z = tokens(o.E, 24), fill(z, -4, 4);
    if (o.state) {
      h0 = Tensor(o.B, o.N * o.E, F, g, f), hT = Tensor(o.B, o.N * o.E, F, g, f);
      h0.fill(-1, 1);
    }
    if (gradients) {
      dy = tokens(o.E), du = tokens(o.E, 8), ddelta = tokens(o.E, 16);
      dA = Tensor(o.N, o.E, F, 0, f), dB = bc(24), dC = bc(32);
      fill(dy, -1, 1), dA.fill(-1, 1);
      if (o.constant)
        dB = Tensor(o.E, o.N, F, 0, f), dC = Tensor(o.E, o.N, F, 0, f), dB.fill(-1, 1),
        dC.fill(-1, 1);
      if (o.bias) dbias = Tensor(1, o.E, F, 0, f), dbias.fill(-1, 1);
      if (o.D) dD = Tensor(1, o.E, F, 0, f), dD.fill(-1, 1);
      if (o.z) dz = tokens(o.E, 8);
      if (o.state) {
        dhT = Tensor(o.B, o.N * o.E, F, 0, f), dh0 = Tensor(o.B, o.N * o.E, F, 0, f);
        dhT.fill(-1, 1);
      }
    }
    ids = make_ids(o.B, o.L, o.docs, o.L > 200 ? 90 : 7);
    for (size_t i = 0; i < ids.size() && !big; ++i) {
      if (ids[i] >= 0) continue;
      for (Tensor* t : {&u, &delta, &z, &dy, &Bm, &Cm}) {
        if (t->empty() || t->rows != n) continue;
        for (int64_t c2 = 0; c2 < t->width; ++c2) t->host[i * t->stride + c2] = std::nan("");
      }
    }
    if (o.docs == 2)
      for (Tensor* t : {&u, &delta, &z, &dy, &Bm, &Cm})
        if (!t->empty()) t->upload();
    device_ids = upload_ids(ids);
  }
  ~ScanProblem() { cudaFree(device_ids); }
  template <class Args>
  void inputs(Args& a, bool g) {
    a.B = o.B, a.E = o.E, a.N = o.N, a.G = o.G;
    a.bc = o.constant ? ScanBC::kConstant : ScanBC::kGrouped;
    a.delta_softplus = o.softplus;
    a.u = u.at(g), a.u_stride = u.stride, a.delta = delta.at(g), a.delta_stride = delta.stride;
    a.delta_bias = bias.at(g), a.A_t = A.at(g), a.Bm = Bm.at(g), a.Cm = Cm.at(g);
    a.B_stride = Bm.stride, a.C_stride = Cm.stride, a.D = D.at(g), a.z = z.at(g),
    a.z_stride = z.stride;
    a.h_stride = o.state ? h0.stride : o.N * o.E;
  }
  CBuf docs(bool g) { return ids.empty() ? CBuf() : CBuf(g ? device_ids : ids.data()); }
  ScanArgs forward(bool g) {
    ScanArgs a{};
    inputs(a, g);
    a.L = o.L, a.doc_ids = docs(g), a.h0 = h0.at(g), a.hT = hT.at(g), a.y = y.at(g),
    a.y_stride = y.stride;
    return a;
  }
  ScanBackwardArgs backward(bool g) {
    ScanBackwardArgs a{};
    inputs(a, g);
    a.L = o.L, a.doc_ids = docs(g), a.h0 = h0.at(g);
    a.dy = dy.at(g), a.dy_stride = dy.stride, a.dhT = dhT.at(g), a.du = du.at(g),
    a.du_stride = du.stride;
    a.ddelta = ddelta.at(g), a.ddelta_stride = ddelta.stride, a.ddelta_bias = dbias.at(g),
    a.dA_t = dA.at(g);
    a.dBm = dB.at(g), a.dCm = dC.at(g), a.dB_stride = dB.stride, a.dC_stride = dC.stride,
    a.dD = dD.at(g);
    a.dz = dz.at(g), a.dz_stride = dz.stride, a.dh0 = dh0.at(g);
    return a;
  }
};

const char* type_name(DType t) {
  return t == DType::kF32 ? "f32" : t == DType::kBF16 ? "bf16" : "f16";
}

using Named = std::vector<std::pair<const char*, Tensor*>>;

// Runs `call` twice from the same outputs and compares bits, then `want` and compares values.
void check(const std::string& kernel, const std::string& where, const Named& outputs,
           const std::function<void()>& call, const std::function<void()>& want) {
  call();
  sync((kernel + " " + where).c_str());
  std::vector<std::vector<unsigned char>> first;
  for (auto& [n, t] : outputs)
    first.push_back(t->empty() ? std::vector<unsigned char>() : t->raw());
  for (auto& [n, t] : outputs)
    if (!t->empty()) t->upload();
  call();
  sync((kernel + " " + where).c_str());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].second->empty() && outputs[i].second->raw() != first[i]) {
      ++failures;
      std::printf("FAIL %s %s: another run, other bits | %s\n", kernel.c_str(), outputs[i].first,
                  where.c_str());
    }
  }
  want();
  for (auto& [n, t] : outputs) compare(kernel, n, where, *t);
}

void check_scan(const ScanCase& o) {
  const std::string type = type_name(o.type), where = o.text();
  {
    ScanProblem p(o, false, false);
    check(
        "scan_forward " + type, where, {{"y", &p.y}, {"hT", &p.hT}},
        [&] { cuda::scan_forward(gpu(), p.forward(true)); },
        [&] { ref::scan_forward(cpu(), p.forward(false)); });
    if (o.L > 0 && o.state && o.docs == 0 && cuda::scan_step) {  // tokens one by one: the same bits
      const auto y = p.y.download(), h = p.hT.download();
      p.y.upload();
      for (int64_t t = 0; t < std::min<int64_t>(o.L, 40); ++t) {
        ScanStepArgs a{};
        p.inputs(a, true);
        a.h = p.h0.on_gpu(), a.y = p.y.on_gpu() + t * p.y.stride, a.y_stride = p.y.stride * o.L;
        a.u = a.u + t * a.u_stride, a.delta = a.delta + t * a.delta_stride,
        a.z = a.z + t * a.z_stride;
        if (!o.constant) a.Bm = a.Bm + t * a.B_stride, a.Cm = a.Cm + t * a.C_stride;
        a.u_stride *= o.L, a.delta_stride *= o.L, a.z_stride *= o.L, a.B_stride *= o.L,
            a.C_stride *= o.L;
        cuda::scan_step(gpu(), a);
      }
      sync("scan_step");
      const auto y2 = p.y.download(), h2 = p.h0.download();
      bool same = true;
      for (int64_t i = 0; i < o.B * o.L; ++i) {
        for (int64_t c = 0; c < o.E && i % o.L < 40; ++c)
          same &= y[i * p.y.stride + c] == y2[i * p.y.stride + c];
      }
      if (o.L <= 40)
        for (size_t i = 0; i < h.size(); ++i) same &= h[i] == h2[i] || std::isnan(h[i]);
      ++checks;
      if (!same)
        ++failures, std::printf("FAIL scan_step %s: other bits than the scan | %s\n", type.c_str(),
                                where.c_str());
    }
  }
  if (cuda::scan_backward == nullptr || o.type == DType::kF16) return;
  ScanProblem p(o);
  check(
      "scan_backward " + type, where,
      {{"du", &p.du},
       {"ddelta", &p.ddelta},
       {"dbias", &p.dbias},
       {"dA", &p.dA},
       {"dB", &p.dB},
       {"dC", &p.dC},
       {"dD", &p.dD},
       {"dz", &p.dz},
       {"dh0", &p.dh0}},
      [&] { cuda::scan_backward(gpu(), p.backward(true)); },
      [&] { ref::scan_backward(cpu(), p.backward(false)); });
}

void check_scans() {
  std::vector<ScanCase> list;
  const auto add = [&](const std::function<void(ScanCase&)>& change) {
    ScanCase o;
    change(o);
    list.push_back(o);
  };
  add([](ScanCase&) {});
  add([](ScanCase& o) { o.softplus = false; });
  add([](ScanCase& o) { o.bias = false, o.D = false; });
  add([](ScanCase& o) { o.z = false; });
  add([](ScanCase& o) { o.state = false; });
  add([](ScanCase& o) { o.constant = true; });
  add([](ScanCase& o) { o.docs = 1; });
  add([](ScanCase& o) { o.docs = 2; });
  add([](ScanCase& o) { o.docs = 2, o.L = 1000, o.B = 1; });
  add([](ScanCase& o) { o.docs = 1, o.L = 1000, o.B = 1, o.E = 48; });
  add([](ScanCase& o) { o.gap = 5; });
  add([](ScanCase& o) { o.gap = 8; });
  add([](ScanCase& o) { o.offset = 1; });
  add([](ScanCase& o) { o.N = 8, o.gap = 16; });
  for (int64_t L : {0, 1, 3, 15, 16, 17, 65, 1000}) add([&](ScanCase& o) { o.L = L; });
  for (int64_t L : {0, 1, 3, 65, 1000})
    add([&](ScanCase& o) { o.L = L, o.E = 17, o.N = 7, o.docs = L % 2 ? 2 : 0; });
  for (int64_t N : {1, 7, 8, 17, 64, 128, 256}) add([&](ScanCase& o) { o.N = N, o.L = 20; });
  for (int64_t G : {2, 4, 8, 64}) add([&](ScanCase& o) { o.G = G; });
  for (int64_t E : {1, 5, 31, 33, 100, 129}) add([&](ScanCase& o) { o.E = E, o.L = 20; });
  add([](ScanCase& o) { o.E = 512, o.L = 600, o.B = 1; });
  add([](ScanCase& o) { o.E = 512, o.L = 70, o.B = 3, o.G = 2; });
  for (int i = 0; i < 16; ++i) {
    add([&](ScanCase& o) {
      o.G = 1 + below(3), o.E = o.G * (1 + below(60)), o.B = 1 + below(3), o.L = below(70),
      o.N = 1 + below(20);
      o.constant = below(4) == 0, o.softplus = below(2), o.bias = below(2), o.D = below(2),
      o.z = below(2);
      o.state = below(2), o.docs = static_cast<int>(below(3)), o.gap = below(2) * 3,
      o.offset = below(4);
    });
  }
  int64_t at = 0;
  for (DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (ScanCase o : list) {
      if (++at % every != 0) continue;
      if (t == DType::kF16 && !o.softplus) continue;  // growing states leave its range
      o.type = t;
      check_scan(o);
    }
  }
}

// ---- ssd ----

struct SsdCase {
  int64_t B = 2, L = 33, H = 4, P = 5, N = 7, G = 2, chunk = 64;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
  int skip = 1;  // 0 none, 1 per head, 2 per channel
  bool initial = true, reset = true, final = true;
  int docs = 0;
  int64_t mean = 7, gap = 0, offset = 0;
  double A_low = -2, dt_high = 1;
  DType type = DType::kF32;
  std::string text() const {
    char s[200];
    std::snprintf(s, sizeof(s),
                  "B%ld L%ld H%ld P%ld N%ld G%ld skip%d states%d%d%d docs%d gap%ld off%ld", long(B),
                  long(L), long(H), long(P), long(N), long(G), skip, initial, reset, final, docs,
                  long(gap), long(offset));
    return s;
  }
};

struct SsdProblem {
  SsdCase o;
  Tensor x, dt, bias, A, Bm, Cm, D, S0, ST, Sr, y, dy, dST, dx, ddt, dbias, dA, dB, dC, dD, dS0,
      dSr;
  std::vector<int32_t> ids;
  int32_t* device_ids = nullptr;
  explicit SsdProblem(const SsdCase& c, bool big = false, bool gradients = true) : o(c) {
    const auto fill = [&](Tensor& t, double lo, double hi) {
      big ? t.fill_fast(lo, hi) : t.fill(lo, hi);
    };
    const int64_t n = o.B * o.L, g = o.gap, f = o.offset, PN = o.P * o.N;
    const DType T = o.type, F = DType::kF32;
    const auto tokens = [&](int64_t w, int64_t extra = 0) {
      return Tensor(n, w, T, g ? g + extra : 0, f);
    };
    x = tokens(o.H * o.P), dt = tokens(o.H, 1), Bm = tokens(o.G * o.N, 8),
    Cm = tokens(o.G * o.N, 16), y = tokens(o.H * o.P, 8);
    bias = Tensor(1, o.H, F, 0, f), A = Tensor(1, o.H, F, 0, f);
    fill(x, -1, 1), fill(dt, -4, o.dt_high), fill(Bm, -1, 1), fill(Cm, -1, 1), bias.fill(-1, 1),
        A.fill(o.A_low, -0.05);
    if (o.skip) D = Tensor(1, o.skip == 1 ? o.H : o.H * o.P, F, 0, f), D.fill(-1, 1);
    if (o.initial) S0 = Tensor(o.B, o.H * PN, F, g, f), S0.fill(-1, 1);
    if (o.final) ST = Tensor(o.B, o.H * PN, F, g, f);
    if (o.reset) Sr = Tensor(1, o.H * PN, F, 0, f), Sr.fill(-1, 1);
    if (gradients) {
      dy = tokens(o.H * o.P, 16), dx = tokens(o.H * o.P, 24), ddt = tokens(o.H, 3),
      dB = tokens(o.G * o.N, 24), dC = tokens(o.G * o.N);
      fill(dy, -1, 1);
      dbias = Tensor(1, o.H, F, 0, f), dA = Tensor(1, o.H, F, 0, f), dbias.fill(-1, 1),
      dA.fill(-1, 1);
      if (o.skip) dD = Tensor(1, o.skip == 1 ? o.H : o.H * o.P, F, 0, f), dD.fill(-1, 1);
      if (o.initial) dS0 = Tensor(o.B, o.H * PN, F, 0, f);
      if (o.final) dST = Tensor(o.B, o.H * PN, F, 0, f), dST.fill(-1, 1);
      if (o.reset) dSr = Tensor(1, o.H * PN, F, 0, f), dSr.fill(-1, 1);
    }
    ids = make_ids(o.B, o.L, o.docs, o.mean);
    for (size_t i = 0; i < ids.size() && o.docs == 2; ++i) {
      if (ids[i] >= 0) continue;
      for (Tensor* t : {&x, &dt, &dy, &Bm, &Cm}) {
        if (t->empty()) continue;
        for (int64_t k = 0; k < t->width; ++k) t->host[i * t->stride + k] = std::nan("");
      }
    }
    if (o.docs == 2)
      for (Tensor* t : {&x, &dt, &dy, &Bm, &Cm})
        if (!t->empty()) t->upload();
    device_ids = upload_ids(ids);
  }
  ~SsdProblem() { cudaFree(device_ids); }
  template <class Args>
  void inputs(Args& a, bool g) {
    a.B = o.B, a.H = o.H, a.P = o.P, a.N = o.N, a.G = o.G;
    a.dt_min = o.dt_min, a.dt_max = o.dt_max;
    a.x = x.at(g), a.x_stride = x.stride, a.dt = dt.at(g), a.dt_stride = dt.stride,
    a.dt_bias = bias.at(g), a.A = A.at(g);
    a.Bm = Bm.at(g), a.B_stride = Bm.stride, a.Cm = Cm.at(g), a.C_stride = Cm.stride, a.D = D.at(g),
    a.D_has_hdim = o.skip == 2;
    a.s_stride = o.initial ? S0.stride : o.H * o.P * o.N + o.gap;
  }
  template <class Args>
  void full_inputs(Args& a, bool g) {
    inputs(a, g);
    a.L = o.L, a.chunk = o.chunk, a.S0 = S0.at(g), a.S_reset = Sr.at(g);
    a.doc_ids = ids.empty() ? CBuf() : CBuf(g ? device_ids : ids.data());
  }
  SsdArgs forward(bool g) {
    SsdArgs a{};
    full_inputs(a, g);
    a.ST = ST.at(g), a.y = y.at(g), a.y_stride = y.stride;
    return a;
  }
  SsdBackwardArgs backward(bool g) {
    SsdBackwardArgs a{};
    full_inputs(a, g);
    a.dy = dy.at(g), a.dy_stride = dy.stride, a.dST = dST.at(g), a.dx = dx.at(g),
    a.dx_stride = dx.stride;
    a.ddt = ddt.at(g), a.ddt_stride = ddt.stride, a.ddt_bias = dbias.at(g), a.dA = dA.at(g),
    a.dBm = dB.at(g), a.dB_stride = dB.stride;
    a.dCm = dC.at(g), a.dC_stride = dC.stride, a.dD = dD.at(g), a.dS0 = dS0.at(g),
    a.dS_reset = dSr.at(g);
    return a;
  }
};

void check_ssd(const SsdCase& o) {
  const std::string type = type_name(o.type), where = o.text();
  if (cuda::ssd_forward) {
    SsdProblem p(o, false, false);
    check(
        "ssd_forward " + type, where, {{"y", &p.y}, {"ST", &p.ST}},
        [&] { cuda::ssd_forward(gpu(), p.forward(true)); },
        [&] { ref::ssd_forward(cpu(), p.forward(false)); });
    if (o.L > 0 && o.initial && o.docs == 0 && cuda::ssd_step) {
      p.y = Tensor(o.B, o.H * o.P, o.type, o.gap, o.offset);
      Tensor S(o.B, o.H * o.P * o.N, DType::kF32, o.gap, o.offset);
      S.host = p.S0.host;
      S.upload();
      const auto args = [&](bool g) {
        SsdStepArgs a{};
        p.inputs(a, g);
        a.S = S.at(g), a.y = p.y.at(g), a.y_stride = p.y.stride;
        a.x_stride *= o.L, a.dt_stride *= o.L, a.B_stride *= o.L, a.C_stride *= o.L;
        return a;
      };
      check(
          "ssd_step " + type, where, {{"y", &p.y}, {"S", &S}},
          [&] { cuda::ssd_step(gpu(), args(true)); }, [&] { ref::ssd_step(cpu(), args(false)); });
    }
  }
  if (cuda::ssd_backward == nullptr || o.type == DType::kF16) return;
  SsdProblem p(o);
  check(
      "ssd_backward " + type, where,
      {{"dx", &p.dx},
       {"ddt", &p.ddt},
       {"dbias", &p.dbias},
       {"dA", &p.dA},
       {"dB", &p.dB},
       {"dC", &p.dC},
       {"dD", &p.dD},
       {"dS0", &p.dS0},
       {"dSr", &p.dSr}},
      [&] { cuda::ssd_backward(gpu(), p.backward(true)); },
      [&] { ref::ssd_backward(cpu(), p.backward(false)); });
}

// With documents, a row is that of the row alone without padding, bit for bit.
void check_ssd_rows(const SsdCase& o) {
  SsdProblem p(o);
  cuda::ssd_forward(gpu(), p.forward(true));
  if (cuda::ssd_backward) cuda::ssd_backward(gpu(), p.backward(true));
  sync("ssd rows");
  for (int64_t b = 0; b < o.B; ++b) {
    std::vector<int64_t> keep;
    for (int64_t t = 0; t < o.L; ++t)
      if (p.ids[b * o.L + t] >= 0) keep.push_back(b * o.L + t);
    SsdCase alone = o;
    alone.B = 1, alone.L = static_cast<int64_t>(keep.size()), alone.docs = 0;
    SsdProblem q(alone);
    const auto rows = [&](Tensor& to, const Tensor& from, int64_t first, bool whole) {
      if (to.empty()) return;
      for (int64_t r = 0; r < to.rows; ++r) {
        const int64_t src = whole ? first + r : keep[r];
        for (int64_t i = 0; i < to.width; ++i)
          to.host[r * to.stride + i] = from.host[src * from.stride + i];
      }
      to.upload();
    };
    rows(q.x, p.x, 0, false), rows(q.dt, p.dt, 0, false), rows(q.Bm, p.Bm, 0, false),
        rows(q.Cm, p.Cm, 0, false), rows(q.dy, p.dy, 0, false);
    rows(q.S0, p.S0, b, true), rows(q.Sr, p.Sr, 0, true), rows(q.bias, p.bias, 0, true),
        rows(q.A, p.A, 0, true), rows(q.D, p.D, 0, true);
    if (!q.dST.empty()) {
      const int64_t n = o.H * o.P * o.N;
      q.dST = Tensor(1, n, DType::kF32, 0, o.offset);
      for (int64_t i = 0; i < n; ++i) q.dST.host[i] = p.dST.host[b * p.dST.stride + i];
      q.dST.upload();
    }
    for (int64_t t : keep) q.ids.push_back(p.ids[t]);
    q.device_ids = upload_ids(q.ids);
    cuda::ssd_forward(gpu(), q.forward(true));
    if (cuda::ssd_backward) cuda::ssd_backward(gpu(), q.backward(true));
    sync("ssd row alone");
    const auto same = [&](const char* name, const Tensor& whole, const Tensor& one) {
      const auto w = whole.download(), a = one.download();
      bool equal = true;
      for (size_t r = 0; r < keep.size(); ++r) {
        for (int64_t i = 0; i < one.width; ++i)
          equal &= w[keep[r] * whole.stride + i] == a[r * one.stride + i];
      }
      ++checks;
      if (!equal) ++failures, std::printf("FAIL ssd row alone: %s | %s\n", name, o.text().c_str());
    };
    same("y", p.y, q.y);
    if (cuda::ssd_backward)
      same("dx", p.dx, q.dx), same("ddt", p.ddt, q.ddt), same("dB", p.dB, q.dB),
          same("dC", p.dC, q.dC);
  }
}

void check_ssds() {
  std::vector<SsdCase> list;
  const auto add = [&](const std::function<void(SsdCase&)>& change) {
    SsdCase o;
    change(o);
    list.push_back(o);
  };
  for (int64_t P : {1, 5, 8, 16, 33, 64, 80, 100, 128})
    add([&](SsdCase& o) { o.P = P, o.B = 1, o.L = 19; });
  for (int64_t N : {1, 7, 16, 33, 64, 100, 128, 200, 256})
    add([&](SsdCase& o) { o.N = N, o.B = 1, o.L = 70; });
  for (int64_t L : {0, 1, 3, 15, 16, 17, 63, 64, 65, 128, 300, 1000})
    add([&](SsdCase& o) { o.L = L, o.H = 2, o.P = 16, o.N = 16; });
  for (int64_t L : {1, 65, 150, 1000})
    add([&](SsdCase& o) { o.B = 1, o.L = L, o.H = 4, o.P = 64, o.N = 128, o.G = 1; });
  for (int64_t L : {65, 200})
    add([&](SsdCase& o) { o.B = 1, o.L = L, o.H = 4, o.P = 64, o.N = 256, o.G = 2; });
  add([&](SsdCase& o) { o.B = 1, o.L = 200, o.H = 2, o.P = 80, o.N = 128, o.G = 1; });
  for (int skip : {0, 2}) add([&](SsdCase& o) { o.skip = skip; });
  for (int docs : {0, 1, 2}) {
    for (int bits = 0; bits < 8; ++bits) {
      add([&](SsdCase& o) {
        o.docs = docs, o.initial = bits & 1, o.reset = bits & 2, o.final = bits & 4;
      });
    }
    add([&](SsdCase& o) { o.docs = docs, o.L = 330, o.mean = 60, o.P = 24, o.N = 40; });
    add([&](SsdCase& o) { o.docs = docs, o.L = 1000, o.mean = 100, o.P = 64, o.N = 64, o.B = 1; });
  }
  for (auto [H, G] : {std::pair<int64_t, int64_t>{1, 1}, {6, 1}, {6, 3}, {6, 6}, {40, 1}})
    add([&](SsdCase& o) { o.H = H, o.G = G, o.docs = 1; });
  add([](SsdCase& o) { o.dt_min = 0.1, o.dt_max = 0.4; });
  add([](SsdCase& o) { o.gap = 5; });
  add([](SsdCase& o) { o.gap = 8, o.P = 64, o.N = 64, o.L = 100; });
  add([](SsdCase& o) { o.offset = 1, o.P = 64, o.N = 64, o.L = 100; });
  add([](SsdCase& o) { o.A_low = -16, o.dt_high = 30, o.L = 200, o.B = 1; });
  int64_t at = 0;
  for (DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (SsdCase o : list) {
      if (++at % every != 0) continue;
      o.type = t;
      check_ssd(o);
    }
  }
  if (cuda::ssd_forward == nullptr) return;
  for (DType t : {DType::kF32, DType::kBF16}) {
    check_ssd_rows({.B = 3, .L = 60, .H = 8, .P = 9, .N = 18, .docs = 2, .type = t});
    check_ssd_rows(
        {.B = 4, .L = 270, .H = 12, .P = 24, .N = 40, .G = 1, .docs = 2, .mean = 90, .type = t});
  }
}

// ---- affine_scan ----

void check_affine() {
  if (cuda::affine_scan_forward == nullptr) return;
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
  std::vector<float> times;
  for (int i = 0; i < 20; ++i) {
    require(cudaMemsetAsync(flush, i, 256 << 20), "flush");
    require(cudaEventRecord(begin), "event");
    call();
    require(cudaEventRecord(end), "event");
    sync("timed run");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin, end), "event");
    times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[10];
}

constexpr double kCopy = 4.25e12, kExp = 132 * 16 * 1.98e9;  // of one H200

void time_scan(int64_t B, int64_t E, int64_t L, double want_forward, double want_both,
               DType type = DType::kBF16) {
  ScanCase o;
  o.B = B, o.E = E, o.L = L, o.type = type, o.state = false;
  lean = true;
  {
    ScanProblem p(o, true, cuda::scan_backward != nullptr);
    const double n = double(B) * L * E, size = double(dtype_size(type));
    const double forward = median_ms([&] { cuda::scan_forward(gpu(), p.forward(true)); });
    std::printf(
        "scan %s B%ld D%ld N16 L%ld forward %.3f ms (target %.2f; bytes %.3f ms, exps %.3f ms)\n",
        type_name(type), long(B), long(E), long(L), forward, want_forward,
        4 * n * size / kCopy * 1e3, n * 20 / kExp * 1e3);
    if (cuda::scan_backward) {
      const double backward = median_ms([&] { cuda::scan_backward(gpu(), p.backward(true)); });
      std::printf("    backward %.3f ms, both %.3f ms (target %.2f; bytes of backward %.3f ms)\n",
                  backward, forward + backward, want_both, 7 * n * size / kCopy * 1e3);
    }
  }
  lean = false;
}

void time_ssd(int64_t B, int64_t L, int64_t H, int64_t P, int64_t N, double want_forward,
              double want_both, DType type = DType::kBF16) {
  if (cuda::ssd_forward == nullptr) return;
  SsdCase o;
  o.B = B, o.L = L, o.H = H, o.P = P, o.N = N, o.G = 1, o.type = type,
  o.initial = o.reset = o.final = false;
  lean = true;
  {
    SsdProblem p(o, true, cuda::ssd_backward != nullptr);
    const double n = double(B) * L * H * P, size = double(dtype_size(type));
    const double forward = median_ms([&] { cuda::ssd_forward(gpu(), p.forward(true)); });
    std::printf("ssd %s B%ld L%ld H%ld P%ld N%ld forward %.3f ms (target %.2f; bytes %.3f ms)\n",
                type_name(type), long(B), long(L), long(H), long(P), long(N), forward, want_forward,
                2 * n * size / kCopy * 1e3);
    if (cuda::ssd_backward) {
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
  if (asked("check")) {
    if (argc < 3 || asked("scan")) check_scans();
    if (argc < 3 || asked("ssd")) check_ssds();
    if (argc < 3 || asked("affine")) check_affine();
    for (const Worst& w : worsts)
      std::printf("%-28s worst %.2e  %s\n", w.name.c_str(), w.error, w.where.c_str());
    std::printf("%d checks, %d failures\n", checks, failures);
  }
  if (asked("time")) {
    if (argc < 3 || asked("scan")) {
      time_scan(8, 2048, 2048, 0.25, 1.0);
      time_scan(1, 5120, 16384, 0.95, 3.2);
      time_scan(1, 2048, 65536, 1.5, 5);
      time_scan(1, 5120, 65536, 1.5, 5);
      time_scan(1, 1536, 1024, 0, 0);
      time_scan(1, 1536, 4096, 0, 0);
      time_scan(8, 1536, 2048, 0, 0);
      time_scan(8, 2048, 2048, 0, 0, DType::kF32);
    }
    if (argc < 3 || asked("ssd")) {
      time_ssd(8, 2048, 32, 64, 128, 0.18, 0.9);
      time_ssd(1, 16384, 80, 64, 128, 0, 0);
      time_ssd(1, 1024, 24, 64, 128, 0, 0);
      time_ssd(1, 4096, 24, 64, 128, 0, 0);
      time_ssd(8, 2048, 24, 64, 128, 0, 0);
      time_ssd(8, 2048, 32, 64, 128, 0, 0, DType::kF32);
    }
  }
  return failures > 0;
}
