// SPDX-License-Identifier: Apache-2.0
// The cases of scan: problems of random values, and their checks against the reference.
#pragma once

#include "sequence_cuda.cuh"

namespace {

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
    // Tokens one by one: the same bits where time is not cut.
    if (o.L > 0 && o.L < 512 && o.state && o.docs == 0) {
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
  if (o.type == DType::kF16) return;
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
  // In chunks of 512 tokens.
  add([](ScanCase& o) { o.E = 1584, o.L = 512, o.B = 1; });
  add([](ScanCase& o) { o.E = 1536, o.L = 1030, o.B = 1, o.z = false, o.D = false; });
  add([](ScanCase& o) { o.E = 792, o.L = 601, o.G = 2, o.gap = 8, o.state = false; });
  add([](ScanCase& o) { o.E = 1536, o.L = 517, o.B = 1, o.G = 4, o.softplus = o.bias = false; });
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

}  // namespace
