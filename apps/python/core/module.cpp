// kvcal._core: what the Python package takes from the C++ libraries in its own process. No libtorch.
#include "apps/python/core/bindings.h"
#include "base/error.h"

namespace nb = nanobind;

namespace {

/// kvcal.Error and kvcal.UsageError; the module lives as long as the interpreter, and so do they.
struct ErrorTypes {
  nb::object error, usage_error;
};

void translate(const std::exception_ptr& thrown, void* payload) {
  const auto& types = *static_cast<ErrorTypes*>(payload);
  try {
    std::rethrow_exception(thrown);
  } catch (const kvcal::base::WrongUsage& error) {
    PyErr_SetString(types.usage_error.ptr(), error.what());
  } catch (const kvcal::base::Error& error) {
    PyErr_SetString(types.error.ptr(), error.what());
  }
}

}  // namespace

NB_MODULE(_core, module) {
  module.doc() = "The C++ side of kvcal: reading codebooks, the solver, the codec by rows.";
  const nb::module_ errors = nb::module_::import_("kvcal.errors");
  // Never freed: exceptions may be translated while the interpreter ends.
  static auto* const types = new ErrorTypes{errors.attr("Error"), errors.attr("UsageError")};
  nb::register_exception_translator(translate, types);
  module.attr("__version__") = KVCAL_VERSION;
  kvcal::python::bind_codebook(module);
  kvcal::python::bind_kmeans(module);
  kvcal::python::bind_rows(module);
}
