// formats/export/pickle_writer.h: Python pickles of protocol 2, written; there is nothing here that reads one.
//
// What comes out holds dicts, lists, tuples, text, floats and float32 tensors, and names one callable,
// torch.FloatTensor, which makes a tensor of nested lists. Any Python 3 loads it; torch must be installed where it
// holds a tensor. The opcodes are those that pickletools documents; no memo, no bytes, no object state.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kvcal::formats {

/// Objects are written in the order in which they stand. A container takes all that is written between its begin
/// and its end(); a dict takes key, value, key, value.
class PickleWriter {
 public:
  PickleWriter();

  void begin_dict();
  void begin_list();
  void begin_tuple();
  /// Closes the innermost container. Throws Error where none is open.
  void end();

  /// A str. `text` is UTF-8.
  void text(std::string_view text);
  /// A float, exact: also infinities, NaN and -0.
  void number(double value);
  /// A torch.Tensor of float32 on the CPU, row-major. `shape` has at least one extent, all of them at least 1, and
  /// holds values.size() elements, else InvalidInput: nested lists cannot say a tensor without extents, nor what
  /// follows an extent of 0.
  void float_tensor(std::span<const float> values, std::span<const std::int64_t> shape);

  /// The pickle of the one object written. Throws Error where a container is open. Nothing may follow.
  [[nodiscard]] std::string finish();

 private:
  void begin(char empty, char close);
  void nested_lists(std::span<const float> values, std::span<const std::int64_t> shape);

  std::string bytes_;
  std::string open_;  // the opcodes that will close the open containers, the innermost last
};

}  // namespace kvcal::formats
