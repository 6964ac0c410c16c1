// apps/python/core/bindings.h: the parts of the Python module kvcal._core.
#pragma once

#include <nanobind/nanobind.h>

namespace kvcal::python {

/// Codebook and what it is made of: views of the C++ ones, arrays without a copy.
void bind_codebook(nanobind::module_& module);

/// solve_kmeans: the solver on arrays.
void bind_kmeans(nanobind::module_& module);

/// RowTables: the codec by rows on arrays.
void bind_rows(nanobind::module_& module);

}  // namespace kvcal::python
