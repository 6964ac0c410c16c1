#include "calib/validate/cache_method.h"

#include "base/error.h"

namespace kvcal::calib {

#define KVCAL_METHODS(family) MethodFamily family##_methods();
#include "calib/validate/methods/methods.inc"
#undef KVCAL_METHODS

namespace {

std::vector<std::string> of_families(
    std::vector<std::string> (*MethodFamily::*list)(const formats::Codebook*),
    const formats::Codebook* codebook) {
  std::vector<std::string> names = {kFullPrecision};
  for (const MethodFamily& family : method_families()) {
    for (std::string& name : (family.*list)(codebook)) names.push_back(std::move(name));
  }
  return names;
}

}  // namespace

const std::vector<MethodFamily>& method_families() {
  static const std::vector<MethodFamily> known = {
#define KVCAL_METHODS(family) family##_methods(),
#include "calib/validate/methods/methods.inc"
#undef KVCAL_METHODS
  };
  return known;
}

std::vector<MethodNames> method_names() {
  std::vector<MethodNames> names;
  for (const MethodFamily& family : method_families()) names.push_back(family.names);
  return names;
}

std::unique_ptr<CacheMethod> make_method(std::string_view name, const formats::Codebook* codebook) {
  if (name == kFullPrecision) return nullptr;
  for (const MethodFamily& family : method_families()) {
    if (auto method = family.make(name, codebook)) return method;
  }
  std::string known;
  for (const std::string& served : served_methods(codebook)) known += (known.empty() ? "" : ", ") + served;
  throw base::WrongUsage(base::concat("--methods has '", name, "', which is none; there are ", known));
}

std::vector<std::string> default_methods(const formats::Codebook* codebook) {
  return of_families(&MethodFamily::by_default, codebook);
}

std::vector<std::string> served_methods(const formats::Codebook* codebook) {
  return of_families(&MethodFamily::served, codebook);
}

}  // namespace kvcal::calib
