#include "apps/text_table.h"

#include <algorithm>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace kvcal::apps {
namespace {

constexpr std::size_t kGap = 2;

}  // namespace

TextTable::TextTable(std::vector<Column> columns, std::size_t width, std::size_t indent)
    : columns_(std::move(columns)), width_(width), indent_(indent) {}

void TextTable::add_row(std::vector<std::string> cells) {
  if (cells.size() > columns_.size())
    throw std::invalid_argument("a row has more cells than the table columns");
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

bool TextTable::has_heading() const {
  return std::ranges::any_of(columns_, [](const Column& column) { return !column.heading.empty(); });
}

std::vector<std::size_t> TextTable::column_widths() const {
  constexpr std::size_t kLeastWrapped = 20;  // narrower text is no text
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    std::size_t width = columns_of(columns_[c].heading);
    for (const auto& row : rows_) width = std::max(width, columns_of(row[c]));
    widths.push_back(width);
  }
  if (!widths.empty() && columns_.back().wraps) {
    const std::size_t before =
        std::accumulate(widths.begin(), widths.end() - 1, indent_ + kGap * (widths.size() - 1));
    widths.back() = std::max(kLeastWrapped, width_ - std::min(width_, before));
  }
  return widths;
}

std::string TextTable::row_text(const std::vector<std::string>& cells, const std::vector<std::size_t>& widths,
                                bool is_heading) const {
  std::string line(indent_, ' ');
  for (std::size_t c = 0; c < cells.size(); ++c) {
    if (columns_[c].wraps) {
      const std::size_t begin = columns_of(line);
      std::string cell = wrapped(cells[c], begin + widths[c], begin);
      cell.erase(0, begin);  // the first of its lines goes on with this one
      line += is_heading ? bold(cell) : cell;
      continue;
    }
    const std::string blanks(widths[c] - columns_of(cells[c]), ' ');
    const std::string cell = is_heading ? bold(cells[c]) : cells[c];
    line += columns_[c].align == Align::kLeft ? cell + blanks : blanks + cell;
    if (c + 1 < cells.size()) line.append(kGap, ' ');
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line + "\n";
}

std::string TextTable::text() const {
  const std::vector<std::size_t> widths = column_widths();
  std::string text;
  if (has_heading()) {
    std::vector<std::string> headings;
    for (const Column& column : columns_) headings.push_back(column.heading);
    text = row_text(headings, widths, true);
  }
  for (const auto& row : rows_) text += row_text(row, widths, false);
  return text;
}

std::size_t TextTable::columns() const {
  std::size_t most = 0;
  std::istringstream lines(text());
  for (std::string line; std::getline(lines, line);) most = std::max(most, columns_of(line));
  return most;
}

std::string labelled_text(const std::vector<Labelled>& lines, std::size_t indent, std::size_t width) {
  TextTable table({{"", Align::kLeft}, {"", Align::kLeft, true}}, width, indent);
  for (const auto& [label, text] : lines) table.add_row({label, text});
  return table.text();
}

}  // namespace kvcal::apps
