// Python's view of the recurrences: selective and linear scan, one position of state-space layers,
// sLSTM, the diagonal-plus-rank-one recurrence.
#include "bindings.h"

namespace {

// walk: whether steps go backwards, and the height of a grid whose columns they go down, or 0
typedef std::array<int64_t, 2> Walk;
constexpr Wide kAbsent = {0, 0, 0, 0, 1};

// sizes: B, L, D, N, G
SelectiveScan scan(const std::array<int64_t, 5>& sizes, bool softplus, bool complex,
                   int64_t compute, int threads, const Wide& u, const Wide& delta, int64_t A,
                   const Wide& B, const Wide& C, int64_t skip, const Wide& z, int64_t bias,
                   int64_t initial, int64_t resets, int64_t states, const Wide& add,
                   const Walk& walk) {
  SelectiveScan p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.N = sizes[3], p.G = sizes[4];
  p.softplus = softplus, p.complex = complex, p.compute = compute, p.threads = threads;
  p.u = strided(u), p.delta = strided(delta), p.z = strided(z), p.Bm = strided(B),
  p.Cm = strided(C);
  p.A = pointer(A), p.skip = pointer(skip), p.delta_bias = pointer(bias),
  p.initial = pointer(initial);
  p.resets = pointer<uint8_t>(resets), p.states = pointer(states);
  p.add = strided(add), p.reverse = walk[0] != 0, p.height = walk[1];
  return p;
}

// sizes: B, L, H, P
SLSTM cells(const std::array<int64_t, 4>& sizes, int64_t compute, int threads, int64_t recurrent,
            int64_t resets, int64_t raw, int64_t marks) {
  SLSTM p{};
  p.B = sizes[0], p.L = sizes[1], p.H = sizes[2], p.P = sizes[3], p.compute = compute,
  p.threads = threads;
  p.recurrent = pointer(recurrent), p.resets = pointer<uint8_t>(resets), p.raw = pointer(raw);
  p.marks = pointer(marks);
  return p;
}

// sizes: B, L, D, N, rank, W
MambaInner inner(const std::array<int64_t, 6>& sizes, double scale, int64_t compute, int threads,
                 const Arg& x, const Arg& z) {
  MambaInner p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.N = sizes[3], p.rank = sizes[4],
  p.W = sizes[5];
  p.scale = scale, p.compute = compute, p.threads = threads;
  p.x = tensor(x), p.z = tensor(z);
  return p;
}
template <size_t n> MambaWay way(const std::array<int64_t, n>& at) {
  MambaWay w{};
  const void** inputs[] = {&w.taps,    &w.conv_bias, &w.x_proj, &w.dt_proj,
                           &w.dt_bias, &w.A_log,     &w.skip};
  w.reverse = at[0] != 0;
  for (int i = 0; i < 7; ++i) *inputs[i] = pointer(at[1 + i]);
  w.states = pointer(at[8]), w.values = pointer(at[9]);
  return w;
}

// sizes: B, L, H, K, V; rows: q, k, v, a, b, g
Dplr dplr(const std::array<int64_t, 5>& sizes, double scale, int64_t compute, int threads,
          const std::array<Arg, 6>& rows, int64_t resets, int64_t marks) {
  Dplr p{};
  p.B = sizes[0], p.L = sizes[1], p.H = sizes[2], p.K = sizes[3], p.V = sizes[4];
  p.scale = scale, p.compute = compute, p.threads = threads;
  Tensor3* to[] = {&p.q, &p.k, &p.v, &p.a, &p.b, &p.g};
  for (int i = 0; i < 6; ++i) *to[i] = tensor(rows[i]);
  p.resets = pointer<uint8_t>(resets), p.marks = pointer(marks);
  return p;
}

CrossScan crossing(const std::array<int64_t, 5>& sizes, int64_t compute, int threads, const Arg& x,
                   const Arg& low, const std::array<int64_t, 5>& at,
                   const std::vector<int64_t>& reverse, const std::vector<int64_t>& height) {
  CrossScan p{};
  p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.N = sizes[3], p.rank = sizes[4];
  p.compute = compute, p.threads = threads, p.x = tensor(x), p.low = tensor(low);
  p.weight = pointer(at[0]), p.bias = pointer(at[1]), p.A = pointer(at[2]),
  p.skip = pointer(at[3]), p.states = pointer(at[4]);
  p.ways = int64_t(reverse.size()), p.reverse = reverse.data(), p.height = height.data();
  return p;
}

}  // namespace

void bind_recurrences(nb::module_& m) {
  const auto forward = [](int64_t rank, int64_t delta_weight, Wide add, Walk walk,
                          std::array<int64_t, 5> sizes, bool softplus,
                          bool complex, int64_t compute, int threads, Wide u, Wide delta,
                          int64_t A, Wide B, Wide C, int64_t skip, Wide z, int64_t bias,
                          int64_t initial, int64_t resets, int64_t states, Wide y,
                          int64_t final_state) {
    SelectiveScan p = scan(sizes, softplus, complex, compute, threads, u, delta, A, B, C, skip, z,
                           bias, initial, resets, states, add, walk);
    p.rank = rank, p.delta_weight = pointer(delta_weight);
    p.y = strided(y), p.final_state = pointer(final_state);
    nb::gil_scoped_release release;
    current->selective_scan_forward(p);
  };
  m.def("selective_scan_along_forward", forward);
  m.def("selective_scan_forward",
        [forward](std::array<int64_t, 5> sizes, bool softplus, bool complex, int64_t compute,
                  int threads, Wide u, Wide delta, int64_t A, Wide B, Wide C, int64_t skip, Wide z,
                  int64_t bias, int64_t initial, int64_t resets, int64_t states, Wide y,
                  int64_t final_state) {
          forward(0, 0, kAbsent, {}, sizes, softplus, complex, compute, threads, u, delta, A, B, C,
                  skip, z, bias, initial, resets, states, y, final_state);
        });
  const auto backward = [](Wide add, Walk walk, Wide dadd, std::array<int64_t, 5> sizes,
                           bool softplus, bool complex, int64_t compute, int threads, Wide u,
                           Wide delta, int64_t A, Wide B, Wide C, int64_t skip, Wide z,
                           int64_t bias, int64_t initial, int64_t resets, int64_t states, Wide dy,
                           int64_t dfinal, Wide du, Wide ddelta, Wide dz, int64_t dA, int64_t dB,
                           int64_t dC, int64_t dskip, int64_t dbias, int64_t dinitial) {
    SelectiveScan p = scan(sizes, softplus, complex, compute, threads, u, delta, A, B, C, skip, z,
                           bias, initial, resets, states, add, walk);
    p.dy = strided(dy), p.dfinal = pointer(dfinal), p.du = strided(du);
    p.ddelta = strided(ddelta), p.dz = strided(dz), p.dadd = strided(dadd);
    p.dA = pointer(dA), p.dB = pointer(dB), p.dC = pointer(dC), p.dskip = pointer(dskip);
    p.dbias = pointer(dbias), p.dinitial = pointer(dinitial);
    nb::gil_scoped_release release;
    current->selective_scan_backward(p);
  };
  m.def("selective_scan_along_backward", backward);
  m.def("selective_scan_backward",
        [backward](std::array<int64_t, 5> sizes, bool softplus, bool complex, int64_t compute,
                   int threads, Wide u, Wide delta, int64_t A, Wide B, Wide C, int64_t skip,
                   Wide z, int64_t bias, int64_t initial, int64_t resets, int64_t states, Wide dy,
                   int64_t dfinal, Wide du, Wide ddelta, Wide dz, int64_t dA, int64_t dB,
                   int64_t dC, int64_t dskip, int64_t dbias, int64_t dinitial) {
          backward(kAbsent, {}, kAbsent, sizes, softplus, complex, compute, threads, u, delta, A,
                   B, C, skip, z, bias, initial, resets, states, dy, dfinal, du, ddelta, dz, dA,
                   dB, dC, dskip, dbias, dinitial);
        });
  m.def("linear_scan_forward", [](std::array<int64_t, 3> sizes, bool complex, int64_t compute,
                                  int threads, Arg a, Arg b, int64_t initial, Arg h) {
    LinearScan p{};
    p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.complex = complex, p.compute = compute,
    p.threads = threads;
    p.a = tensor(a), p.b = tensor(b), p.initial = pointer(initial), p.h = tensor(h);
    nb::gil_scoped_release release;
    current->linear_scan_forward(p);
  });
  m.def("linear_scan_backward",
        [](std::array<int64_t, 3> sizes, bool complex, int64_t compute, int threads, Arg a,
           int64_t initial, Arg h, Arg dh, Arg da, Arg db, int64_t dinitial) {
          LinearScan p{};
          p.B = sizes[0], p.L = sizes[1], p.D = sizes[2], p.complex = complex, p.compute = compute,
          p.threads = threads;
          p.a = tensor(a), p.initial = pointer(initial), p.h = tensor(h), p.dh = tensor(dh),
          p.da = tensor(da);
          p.db = tensor(db), p.dinitial = pointer(dinitial);
          nb::gil_scoped_release release;
          current->linear_scan_backward(p);
        });
  m.def("two_way_forward",
        [](std::array<int64_t, 3> sizes, int64_t compute, int threads, Arg x, Arg y) {
          const TwoWay p{sizes[0], sizes[1],  sizes[2],  compute, threads,
                         tensor(x), tensor(y), Tensor3{}, Tensor3{}};
          nb::gil_scoped_release release;
          current->two_way_forward(p);
        });
  m.def("two_way_backward",
        [](std::array<int64_t, 3> sizes, int64_t compute, int threads, Arg x, Arg dy, Arg dx) {
          const TwoWay p{sizes[0], sizes[1],  sizes[2],   compute, threads,
                         tensor(x), Tensor3{}, tensor(dy), tensor(dx)};
          nb::gil_scoped_release release;
          current->two_way_backward(p);
        });
  // sizes: B, D, N, G, width; flags: softplus, log_decay, scalar, skip_per_head
  m.def("state_update", [](std::array<int64_t, 5> sizes, std::array<bool, 4> flags, double low,
                           double high, int64_t compute, int threads, Arg x, Arg dt, int64_t A,
                           Arg B, Arg C, int64_t skip, Arg z, int64_t bias, int64_t state, Arg y,
                           int64_t next) {
    StateUpdate p{};
    p.B = sizes[0], p.D = sizes[1], p.N = sizes[2], p.G = sizes[3], p.width = sizes[4];
    p.softplus = flags[0], p.log_decay = flags[1], p.scalar = flags[2], p.skip_per_head = flags[3];
    p.low = low, p.high = high, p.compute = compute, p.threads = threads, p.x = tensor(x),
    p.dt = tensor(dt);
    p.A = pointer(A), p.Bm = tensor(B), p.Cm = tensor(C), p.skip = pointer(skip), p.z = tensor(z);
    p.bias = pointer(bias), p.state = pointer(state), p.y = tensor(y), p.next = pointer(next);
    nb::gil_scoped_release release;
    current->state_update(p);
  });
  // sizes: B, model, D, N, rank, W; addresses: in the order of MambaStep
  m.def("mamba_step",
        [](std::array<int64_t, 6> sizes, int64_t compute, int threads, std::array<int64_t, 17> at) {
          MambaStep p{};
          p.B = sizes[0], p.model = sizes[1], p.D = sizes[2], p.N = sizes[3], p.rank = sizes[4],
          p.W = sizes[5];
          p.compute = compute, p.threads = threads;
          const void** inputs[] = {&p.x,     &p.conv,      &p.state,    &p.in_proj, &p.in_bias,
                                   &p.taps,  &p.conv_bias, &p.x_proj,   &p.dt_proj, &p.dt_bias,
                                   &p.A_log, &p.skip,      &p.out_proj, &p.out_bias};
          for (int i = 0; i < 14; ++i) *inputs[i] = pointer(at[i]);
          p.y = pointer(at[14]), p.next_conv = pointer(at[15]), p.next = pointer(at[16]);
          nb::gil_scoped_release release;
          current->mamba_step(p);
        });
  // sizes: B, L, D, N, rank, W; rows: x, z, and y or dy, dx, dz; of a way: reverse, then addresses
  // in the order of MambaWay
  m.def("mamba_inner", [](std::array<int64_t, 6> sizes, double scale, int64_t compute, int threads,
                          Arg x, Arg z, Arg y, std::vector<std::array<int64_t, 10>> at) {
    MambaInner p = inner(sizes, scale, compute, threads, x, z);
    p.y = tensor(y);
    std::vector<MambaWay> ways;
    for (const auto& a : at) ways.push_back(way(a));
    p.ways = int64_t(ways.size()), p.way = ways.data();
    nb::gil_scoped_release release;
    current->mamba_inner(p);
  });
  m.def("mamba_inner_backward",
        [](std::array<int64_t, 6> sizes, double scale, int64_t compute, int threads, Arg x, Arg z,
           Arg dy, Arg dx, Arg dz, std::vector<std::array<int64_t, 17>> at) {
          MambaInner p = inner(sizes, scale, compute, threads, x, z);
          p.dy = tensor(dy), p.dx = tensor(dx), p.dz = tensor(dz);
          std::vector<MambaWay> ways;
          for (const auto& a : at) {
            ways.push_back(way(a));
            MambaWay& w = ways.back();
            void** to[] = {&w.dtaps,    &w.dconv_bias, &w.dx_proj, &w.ddt_proj,
                           &w.ddt_bias, &w.dA_log,     &w.dskip};
            for (int i = 0; i < 7; ++i) *to[i] = pointer(a[10 + i]);
          }
          p.ways = int64_t(ways.size()), p.way = ways.data();
          nb::gil_scoped_release release;
          current->mamba_inner_backward(p);
        });
  // sizes: B, L, D, N, rank; rows: x, low, and y or dy, dx, dlow; addresses: weight, bias, A, skip,
  // states, and of the gradients of the first four; of a way: reverse, height
  m.def("cross_scan", [](std::array<int64_t, 5> sizes, int64_t compute, int threads, Arg x, Arg low,
                         Arg y, std::array<int64_t, 5> at, std::vector<int64_t> reverse,
                         std::vector<int64_t> height) {
    CrossScan p = crossing(sizes, compute, threads, x, low, at, reverse, height);
    p.y = tensor(y);
    nb::gil_scoped_release release;
    current->cross_scan(p);
  });
  m.def("cross_scan_backward",
        [](std::array<int64_t, 5> sizes, int64_t compute, int threads, Arg x, Arg low, Arg dy,
           Arg dx, Arg dlow, std::array<int64_t, 5> at, std::array<int64_t, 4> into,
           std::vector<int64_t> reverse, std::vector<int64_t> height) {
          CrossScan p = crossing(sizes, compute, threads, x, low, at, reverse, height);
          p.dy = tensor(dy), p.dx = tensor(dx), p.dlow = tensor(dlow);
          p.dweight = pointer(into[0]), p.dbias = pointer(into[1]), p.dA = pointer(into[2]),
          p.dskip = pointer(into[3]);
          nb::gil_scoped_release release;
          current->cross_scan_backward(p);
        });
  m.def("slstm_forward", [](std::array<int64_t, 4> sizes, int64_t compute, int threads,
                            int64_t recurrent, int64_t resets, int64_t raw, int64_t marks,
                            int64_t gates, int64_t first, int64_t hs, int64_t last) {
    SLSTM p = cells(sizes, compute, threads, recurrent, resets, raw, marks);
    p.gates = pointer(gates), p.first = pointer(first), p.hs = pointer(hs), p.last = pointer(last);
    nb::gil_scoped_release release;
    current->slstm_forward(p);
  });
  m.def("slstm_backward", [](std::array<int64_t, 4> sizes, int64_t compute, int threads,
                             int64_t recurrent, int64_t resets, int64_t raw, int64_t marks,
                             int64_t dhs, int64_t dlast, int64_t dgates, int64_t dfirst) {
    SLSTM p = cells(sizes, compute, threads, recurrent, resets, raw, marks);
    p.dhs = pointer(dhs), p.dlast = pointer(dlast), p.dgates = pointer(dgates),
    p.dfirst = pointer(dfirst);
    nb::gil_scoped_release release;
    current->slstm_backward(p);
  });
  m.attr("DPLR_MARK") = kDplrMark;
  m.def("dplr_forward", [](std::array<int64_t, 5> sizes, double scale, int64_t compute, int threads,
                           std::array<Arg, 6> rows, int64_t resets, int64_t marks, int64_t initial,
                           Arg y, int64_t last) {
    Dplr p = dplr(sizes, scale, compute, threads, rows, resets, marks);
    p.initial = pointer(initial), p.y = tensor(y), p.final_state = pointer(last);
    nb::gil_scoped_release release;
    current->dplr_forward(p);
  });
  m.def("dplr_backward", [](std::array<int64_t, 5> sizes, double scale, int64_t compute,
                            int threads, std::array<Arg, 6> rows, int64_t resets, int64_t marks,
                            Arg dy, int64_t dlast, std::array<Arg, 6> grads, int64_t dfirst) {
    Dplr p = dplr(sizes, scale, compute, threads, rows, resets, marks);
    p.dy = tensor(dy), p.dfinal = pointer(dlast), p.dinitial = pointer(dfirst);
    Tensor3* to[] = {&p.dq, &p.dk, &p.dv, &p.da, &p.db, &p.dg};
    for (int i = 0; i < 6; ++i) *to[i] = tensor(grads[i]);
    nb::gil_scoped_release release;
    current->dplr_backward(p);
  });
}
