// The whole codebook as one safetensors file (docs/exports/safetensors.md is its schema).
//
// What the HDF5 file would hold, under the same names: a dataset is a tensor under its path, attributes are
// JSON in __metadata__. So whatever a later schema adds to the codebook is here as well.
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "formats/export/export_target.h"
#include "formats/internal/codebook_rules.h"
#include "formats/internal/hdf5_tree.h"
#include "formats/internal/json.h"
#include "formats/internal/shell_word.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace kvcal::formats {

ExportTarget safetensors_target();

namespace {

// Attributes that hold JSON: written as what it says, not as text within text.
bool holds_json(std::string_view name) {
  return name == "rope" || name == "options" || name == "texts";
}

template <typename Number>
Number scalar(const Hdf5Value& value) {
  Number number{};
  std::memcpy(&number, value.data.data(), sizeof(number));
  return number;
}

nlohmann::json attribute_json(const std::string& key, std::string_view name, const Hdf5Value& value) {
  if (value.type == "string") {
    const std::string_view text = value.text();
    return holds_json(name) ? parse_json(text, key) : nlohmann::json(text);
  }
  if (value.type == "float64") return scalar<double>(value);
  if (value.type == "int64") return scalar<std::int64_t>(value);
  if (value.type == "uint8") return scalar<std::uint8_t>(value);
  throw base::Error(base::concat(key, ": an attribute of type ", value.type, " has no form in JSON"));
}

// The object's path without the leading slash; the root is "/".
std::string object_name(std::string_view path) {
  return std::string(path.size() > 1 ? path.substr(1) : path);
}

struct Content {
  std::vector<TensorView> tensors;  // into the tree
  nlohmann::json attributes = nlohmann::json::object();
};

Content content_of(const Hdf5Tree& tree) {
  Content content;
  for (const auto& [key, value] : tree.values) {
    const std::size_t at = key.find('@');
    if (at != std::string::npos) {
      const std::string name = key.substr(at + 1);
      content.attributes[object_name(std::string_view(key).substr(0, at))][name] =
          attribute_json(key, name, value);
      continue;
    }
    if (value.type != "float32")
      throw base::Error(base::concat(key, ": a dataset of type ", value.type, "; expected float32"));
    content.tensors.push_back({object_name(key), Dtype::F32, value.shape, value.data, {}});
  }
  return content;
}

ExportReport write(const ExportRequest& request) {
  const Codebook& codebook = request.codebook;
  const Hdf5Tree tree = codebook_tree(codebook);
  Content content = content_of(tree);
  // The schema of the file that was exported and its hash: what a reader compares with the original.
  nlohmann::json& root = content.attributes["/"];
  root["schema_minor"] = codebook.schema_minor;
  if (!codebook.content_sha256.empty()) root["content_sha256"] = codebook.content_sha256;
  const std::string sha256 = root["content_sha256"].get<std::string>();
  write_safetensors(request.out, content.tensors,
                    {{"format", std::string(kCodebookFormat)},
                     {"schema", base::concat(codebook.schema_major, ".", codebook.schema_minor)},
                     {"content_sha256", sha256},
                     {"kvcal", content.attributes.dump()}});
  ExportReport report;
  report.files = {request.out};
  report.serve =
      base::concat("python -c ",
                   shell_word(base::concat("import json, safetensors; f = safetensors.safe_open(",
                                           python_string(request.out.string()),
                                           ", \"np\"); print(json.loads(f.metadata()[\"kvcal\"])[\"model\"], "
                                           "list(f.keys()))")));
  report.needs = "any reader of safetensors; tested with safetensors 0.8.0";
  report.beware =
      "centroids are in units of a channel's or token's range, before Q-Norm: qnorm_scale and qnorm_offset "
      "are in "
      "__metadata__, which tools that rewrite tensors may drop";
  return report;
}

}  // namespace

ExportTarget safetensors_target() {
  return {.name = "safetensors",
          .about = "the whole codebook, for readers without HDF5",
          .content = ExportContent::codebook,
          .write = write};
}

}  // namespace kvcal::formats
