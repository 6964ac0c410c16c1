#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "apps/python/core/bindings.h"
#include "kmeans/weighted_kmeans.h"

namespace nb = nanobind;

namespace kvcal::python {
namespace {

template <typename Real>
using Numbers = nb::ndarray<const Real, nb::c_contig, nb::device::cpu>;
using Centroids = nb::ndarray<nb::numpy, double, nb::ndim<1>>;

template <typename Real>
std::span<const Real> span_of(const Numbers<Real>& numbers) {
  return {numbers.data(), numbers.size()};
}

Centroids moved_to_numpy(std::vector<double> values) {
  auto owned = std::make_unique<std::vector<double>>(std::move(values));
  double* const data = owned->data();
  const std::size_t size = owned->size();
  const nb::capsule owner(owned.get(),
                          [](void* vector) noexcept { delete static_cast<std::vector<double>*>(vector); });
  (void)owned.release();
  return Centroids(data, {size}, owner);
}

/// points, weights: any shape, of the same size.
template <typename Real>
std::tuple<Centroids, double, double> solve(const Numbers<Real>& points, const Numbers<Real>& weights,
                                            int clusters, double gap, int threads) {
  kmeans::Solution solution;
  {
    const nb::gil_scoped_release others_may_run;
    solution = kmeans::solve(span_of(points), span_of(weights), {clusters, gap, threads});
  }
  return {moved_to_numpy(std::move(solution.centroids)), solution.objective, solution.lower_bound};
}

template <typename Real>
void bind(nb::module_& module) {
  module.def("solve_kmeans", &solve<Real>, nb::arg("points").noconvert(), nb::arg("weights").noconvert(),
             nb::arg("clusters"), nb::arg("gap"), nb::arg("threads"),
             "Centroids [clusters], objective and lower bound. points, weights: C-contiguous arrays of one "
             "size, both float32 or "
             "both float64, read where they lie.");
}

}  // namespace

void bind_kmeans(nb::module_& module) {
  bind<float>(module);
  bind<double>(module);
}

}  // namespace kvcal::python
