// apps/text_table.h: the one kind of table that the program prints: columns two blanks apart, right-aligned
// numbers, left-aligned words, the last column wrapped where asked.
//
//   TextTable table({{"layer"}, {"tensor", Align::kLeft}, {"KL mean"}});
//   table.add_row({"3", "key", "0.012"});
//   print(table.text());
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "apps/terminal.h"

namespace kvcal::apps {

enum class Align { kLeft, kRight };

class TextTable {
 public:
  struct Column {
    std::string heading;
    Align align = Align::kRight;
    /// Only of the last column, and left-aligned: its cells go on below themselves.
    bool wraps = false;
  };

  /// `width`: what the table should fit into with its `indent`; what wraps keeps to it.
  /// Where no column has a heading, none is printed: labels and their texts.
  explicit TextTable(std::vector<Column> columns, std::size_t width = kColumns, std::size_t indent = 0);

  /// Cells may be coloured (terminal.h). Those missing at the end are empty. Throws std::invalid_argument
  /// where there are more than columns.
  void add_row(std::vector<std::string> cells);

  [[nodiscard]] bool empty() const { return rows_.empty(); }

  /// Columns of its longest line.
  [[nodiscard]] std::size_t columns() const;
  /// Whether that is within the width; only a long name in a cell should make it false.
  [[nodiscard]] bool fits() const { return columns() <= width_; }

  /// The heading (bold on a terminal) and the rows, without blanks at the ends of lines. Every line ends with a
  /// line break.
  [[nodiscard]] std::string text() const;

 private:
  [[nodiscard]] bool has_heading() const;
  [[nodiscard]] std::vector<std::size_t> column_widths() const;
  [[nodiscard]] std::string row_text(const std::vector<std::string>& cells,
                                     const std::vector<std::size_t>& widths, bool is_heading) const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
  std::size_t width_, indent_;
};

/// Two columns, label and text, the text wrapped at `width`: [{"Model", "..."}, ...].
struct Labelled {
  std::string label, text;
};
[[nodiscard]] std::string labelled_text(const std::vector<Labelled>& lines, std::size_t indent = 0,
                                        std::size_t width = kColumns);

}  // namespace kvcal::apps
