#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "base/error.h"
#include "base/new_file.h"
#include "formats/internal/json.h"
#include "formats/safetensors.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;

std::vector<const TensorView*> in_file_order(std::span<const TensorView> tensors) {
  std::vector<const TensorView*> order;
  for (const TensorView& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, {}, [](const TensorView* t) {
    return std::pair(-dtype_bits(t->dtype), std::string_view(t->name));
  });
  return order;
}

void check_tensors(const std::filesystem::path& path, std::span<const TensorView> tensors) {
  std::vector<std::string_view> names;
  for (const TensorView& tensor : tensors) {
    const std::string what = concat(path.string(), ": tensor '", tensor.name, "'");
    if (tensor.name == "__metadata__" || !is_utf8(tensor.name))
      throw InvalidInput(concat(what, ": not a name for a tensor"));
    const std::int64_t bytes = dtype_bytes(tensor.dtype, base::element_count(tensor.shape, what), what);
    if (static_cast<std::uint64_t>(bytes) != tensor.data.size()) {
      throw InvalidInput(
          concat(what, ": given ", tensor.data.size(), " bytes, but dtype and shape need ", bytes));
    }
    names.push_back(tensor.name);
  }
  std::ranges::sort(names);
  if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) {
    throw InvalidInput(concat(path.string(), ": the tensor '", *twice, "' is given twice"));
  }
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                       const SafetensorsMetadata& metadata) {
  check_tensors(path, tensors);
  const std::vector<const TensorView*> order = in_file_order(tensors);
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const TensorView* tensor : order) {
    // Added without a search for the name:
    // names are known to differ, and an ordered object searches from the start.
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(
        tensor->name, nlohmann::ordered_json{{"dtype", dtype_name(tensor->dtype)},
                                             {"shape", tensor->shape},
                                             {"data_offsets", {offset, offset + tensor->data.size()}}});
    offset += tensor->data.size();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& error) {
    throw InvalidInput(concat(path.string(), ": the metadata is not UTF-8: ", json_reason(error)));
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxSafetensorsHeaderBytes) {
    throw InvalidInput(
        concat(path.string(), ": ", tensors.size(), " tensors need a longer header than the format allows"));
  }
  std::string length;
  for (int shift = 0; shift < 64; shift += 8)
    length.push_back(static_cast<char>((text.size() >> shift) & 0xffU));

  base::NewFile writer(path);
  writer.write(length);
  writer.write(text);
  for (const TensorView* tensor : order) writer.write(tensor->data);
  writer.publish();
}

}  // namespace kvcal::formats
