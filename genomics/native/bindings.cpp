// Python's view of the experts; arguments are checked in genomics/experts.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "mixture.h"

namespace nb = nanobind;
using namespace nb::literals;

typedef nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> Bases;
typedef nb::ndarray<float, nb::c_contig, nb::device::cpu> Floats;

NB_MODULE(_experts, m) {
  nb::class_<genomics::Mixture>(m, "Mixture")
      .def(
          "__init__",
          [](genomics::Mixture* self, std::vector<int> orders, bool copies, bool genes,
             int networks) {
            genomics::MixtureOptions o;
            o.orders = std::move(orders), o.copies = copies, o.genes = genes, o.networks = networks;
            new (self) genomics::Mixture(o);
          },
          "orders"_a, "copies"_a, "genes"_a, "networks"_a)
      .def("names", &genomics::Mixture::names)
      .def(
          "run",
          [](genomics::Mixture& self, Bases bases, nb::object networks, Floats bits,
             nb::object each) {
            const int64_t n = int64_t(bases.shape(0));
            Floats outside, costs;
            if (!networks.is_none()) outside = nb::cast<Floats>(networks);
            if (!each.is_none()) costs = nb::cast<Floats>(each);
            const float* given = networks.is_none() ? nullptr : outside.data();
            float* wanted = each.is_none() ? nullptr : costs.data();
            nb::gil_scoped_release release;
            self.run(bases.data(), n, given, bits.data(), wanted);
          },
          "bases"_a, "networks"_a.none(), "bits"_a, "each"_a.none());
}
