// SPDX-License-Identifier: Apache-2.0
// The cases of ssd: problems of random values, and their checks against the reference.
#pragma once

#include "sequence_cuda_scan.cuh"

namespace {

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
  {
    SsdProblem p(o, false, false);
    check(
        "ssd_forward " + type, where, {{"y", &p.y}, {"ST", &p.ST}},
        [&] { cuda::ssd_forward(gpu(), p.forward(true)); },
        [&] { ref::ssd_forward(cpu(), p.forward(false)); });
    if (o.L > 0 && o.initial && o.docs == 0) {
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
  if (o.type == DType::kF16) return;
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
  cuda::ssd_backward(gpu(), p.backward(true));
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
    cuda::ssd_backward(gpu(), q.backward(true));
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
  // Few heads: rounds of 1,024 tokens, with rows that are not full.
  add([&](SsdCase& o) { o.L = 1030, o.H = 6, o.P = 64, o.N = 96, o.gap = 8; });
  add([&](SsdCase& o) { o.B = 1, o.L = 2100, o.H = 3, o.P = 72, o.N = 128, o.G = 1; });
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
  for (DType t : {DType::kF32, DType::kBF16}) {
    check_ssd_rows({.B = 3, .L = 60, .H = 8, .P = 9, .N = 18, .docs = 2, .type = t});
    check_ssd_rows(
        {.B = 4, .L = 270, .H = 12, .P = 24, .N = 40, .G = 1, .docs = 2, .mean = 90, .type = t});
  }
}

}  // namespace
