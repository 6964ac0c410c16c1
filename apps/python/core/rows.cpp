#include "cuda/row_codec.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "apps/python/core/bindings.h"
#include "base/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcal::python {
namespace {

template <typename T, typename... Shape>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu, Shape...>;
template <typename T, typename... Shape>
using Out = nb::ndarray<nb::numpy, T, Shape...>;
using Floats = In<float, nb::ndim<1>>;
using Halves = In<std::uint16_t, nb::ndim<1>>;

template <typename T, typename... Shape>
std::span<const T> span_of(const In<T, Shape...>& array) {
  return {array.data(), array.size()};
}

/// An array that owns the vector.
template <typename Array, typename T>
Array to_numpy(std::vector<T> values, std::initializer_list<std::size_t> shape) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  T* const data = owned->data();
  const nb::capsule owner(owned.get(),
                          [](void* vector) noexcept { delete static_cast<std::vector<T>*>(vector); });
  (void)owned.release();
  return Array(data, shape, owner);
}

codec::Datatype datatype_of(int bits, const Floats& midpoints, const Floats& levels) {
  codec::Datatype datatype;
  if (bits < 2 || bits > 4 || midpoints.size() + 1 != std::size_t{1} << bits ||
      levels.size() != midpoints.size() + 1)
    throw base::WrongUsage(base::concat("a datatype of ", bits, " bits with ", midpoints.size(),
                                        " midpoints and ", levels.size(), " levels"));
  datatype.bits = bits;
  std::ranges::copy(span_of(midpoints), datatype.midpoints);
  std::ranges::copy(span_of(levels), datatype.levels);
  return datatype;
}

// Codes; scale and zero of each row and group, fp16; counts; channels and values (fp16) of outliers, row by row. Where the rows
// have none of a part, it is empty.
using Parts = std::tuple<Out<std::uint8_t, nb::ndim<2>>, Out<std::uint16_t, nb::ndim<3>>,
                         Out<std::uint32_t, nb::ndim<1>>, Out<std::uint32_t, nb::ndim<1>>,
                         Out<std::uint16_t, nb::ndim<1>>>;

Parts parts_of(codec::PackedRows packed) {
  const std::size_t rows = packed.rows(), groups = rows == 0 ? 0 : packed.affines.size() / rows,
                    row_bytes = packed.row_bytes();
  std::vector<std::uint16_t> affines, values;
  std::vector<std::uint32_t> counts, channels;
  affines.reserve(2 * packed.affines.size());
  for (const codec::Affine& affine : packed.affines)
    affines.insert(affines.end(), {affine.scale, affine.zero});
  for (std::size_t r = 0; r + 1 < packed.first_outlier.size(); ++r)
    counts.push_back(static_cast<std::uint32_t>(packed.first_outlier[r + 1] - packed.first_outlier[r]));
  channels.reserve(packed.outliers.size());
  values.reserve(packed.outliers.size());
  for (const codec::Outlier& outlier : packed.outliers) {
    channels.push_back(outlier.index);
    values.push_back(outlier.value);
  }
  const std::size_t counted = counts.size(), outliers = values.size();
  return {to_numpy<Out<std::uint8_t, nb::ndim<2>>>(std::move(packed.codes), {rows, row_bytes}),
          to_numpy<Out<std::uint16_t, nb::ndim<3>>>(std::move(affines), {rows, groups, 2}),
          to_numpy<Out<std::uint32_t, nb::ndim<1>>>(std::move(counts), {counted}),
          to_numpy<Out<std::uint32_t, nb::ndim<1>>>(std::move(channels), {outliers}),
          to_numpy<Out<std::uint16_t, nb::ndim<1>>>(std::move(values), {outliers})};
}

std::vector<float> widened(const Halves& halves) {
  std::vector<float> numbers(halves.size());
  std::transform(halves.data(), halves.data() + halves.size(), numbers.begin(), codec::half_to_float);
  return numbers;
}

/// What a layer's keys or values are coded with.
class RowTables {
 public:
  RowTables(int bits, std::size_t channels, double fraction, int groups, const Floats& midpoints,
            const Floats& levels, const std::optional<Halves>& scale, const std::optional<Halves>& zero,
            const std::optional<Floats>& lower, const std::optional<Floats>& upper)
      : datatype_(datatype_of(bits, midpoints, levels)), channels_(channels), value_{fraction, groups} {
    if (groups > 0) return;
    if (lower && upper && scale && zero) {
      normaliser_.emplace(span_of(*lower), span_of(*upper), fraction, widened(*scale), widened(*zero));
    } else if (scale && zero && scale->size() == zero->size()) {
      std::vector<codec::Affine> affines;
      for (std::size_t c = 0; c < scale->size(); ++c) affines.push_back({scale->data()[c], zero->data()[c]});
      normaliser_.emplace(affines);
    }
    if (!normaliser_ || normaliser_->channels() != channels)
      throw base::WrongUsage(
          base::concat("rows of ", channels, " channels need as many thresholds or scales and zeros"));
  }

  /// x: [rows, channels].
  [[nodiscard]] Parts encode(const In<float, nb::ndim<2>>& x, int threads) const {
    if (x.shape(1) != channels_)
      throw base::WrongUsage(base::concat("rows of ", x.shape(1), " channels, expected ", channels_));
    codec::PackedRows packed;
    {
      const nb::gil_scoped_release others_may_run;
      const codec::RowOptions options{0, threads};
      packed = normaliser_ ? codec::encode_keys(span_of(x), *normaliser_, datatype_, options)
                           : codec::encode_values(span_of(x), channels_, value_, datatype_, options);
    }
    return parts_of(std::move(packed));
  }

  /// What encode() gave, to [rows, channels].
  [[nodiscard]] Out<float, nb::ndim<2>> decode(const In<std::uint8_t, nb::ndim<2>>& codes,
                                               const In<std::uint16_t, nb::ndim<3>>& affines,
                                               const In<std::uint32_t, nb::ndim<1>>& counts,
                                               const In<std::uint32_t, nb::ndim<1>>& indices,
                                               const In<std::uint16_t, nb::ndim<1>>& values,
                                               int threads) const {
    codec::PackedRows packed;
    packed.bits = datatype_.bits;
    packed.tokens = codes.shape(0);
    packed.channels = channels_;
    packed.codes.assign(codes.data(), codes.data() + codes.size());
    for (std::size_t i = 0; i + 1 < affines.size(); i += 2)
      packed.affines.push_back({affines.data()[i], affines.data()[i + 1]});
    if (value_.outlier_fraction > 0) add_outliers(packed, counts, indices, values);
    std::vector<float> x(packed.tokens * channels_);
    {
      const nb::gil_scoped_release others_may_run;
      if (normaliser_) {
        codec::decode_keys(packed, *normaliser_, datatype_, x, threads);
      } else {
        codec::decode_values(packed, datatype_, x, threads);
      }
    }
    return to_numpy<Out<float, nb::ndim<2>>>(std::move(x), {packed.tokens, channels_});
  }

 private:
  static void add_outliers(codec::PackedRows& packed, const In<std::uint32_t, nb::ndim<1>>& counts,
                           const In<std::uint32_t, nb::ndim<1>>& indices,
                           const In<std::uint16_t, nb::ndim<1>>& values) {
    if (counts.size() != packed.tokens || indices.size() != values.size())
      throw base::WrongUsage(base::concat(counts.size(), " counts of ", packed.tokens, " rows, ",
                                          indices.size(), " channels and ", values.size(),
                                          " values of outliers"));
    packed.keeps_outliers = true;
    packed.first_outlier.push_back(0);
    for (const std::uint32_t count : span_of(counts))
      packed.first_outlier.push_back(packed.first_outlier.back() + count);
    packed.outliers.reserve(values.size());
    for (std::size_t i = 0; i < values.size(); ++i)
      packed.outliers.push_back({indices.data()[i], values.data()[i]});
  }

  codec::Datatype datatype_;
  std::size_t channels_;
  codec::ValueOptions value_;
  std::optional<codec::KeyNormaliser> normaliser_;  // of keys
};

}  // namespace

void bind_rows(nb::module_& module) {
  nb::class_<RowTables>(
      module, "RowTables",
      "The codec of one layer's keys (groups 0: scale and zero [channels], fp16 bits, or lower and upper "
      "[channels] "
      "where outliers are kept) or values (groups of channels that find thresholds in each token).")
      .def(nb::init<int, std::size_t, double, int, const Floats&, const Floats&, const std::optional<Halves>&,
                    const std::optional<Halves>&, const std::optional<Floats>&,
                    const std::optional<Floats>&>(),
           "bits"_a, "channels"_a, "fraction"_a, "groups"_a, "midpoints"_a, "levels"_a, "scale"_a.none(),
           "zero"_a.none(), "lower"_a.none(), "upper"_a.none())
      .def("encode", &RowTables::encode, "x"_a, "threads"_a,
           "x: float32 [rows, channels]. Codes [rows, bytes]; scale and zero [rows, groups, 2], fp16 bits; "
           "counts of outliers [rows]; "
           "their channels and values, fp16 bits, row by row. Raises kvcal.Error where a number is not "
           "finite or overflows fp16.")
      .def("decode", &RowTables::decode, "codes"_a, "affines"_a, "counts"_a, "indices"_a, "values"_a,
           "threads"_a, "What encode() gave, to float32 [rows, channels].");
}

}  // namespace kvcal::python
