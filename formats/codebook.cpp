#include "formats/codebook.h"

#include <array>
#include <charconv>

#include "base/error.h"
#include "formats/internal/codebook_rules.h"

namespace kvcal::formats {

std::string outlier_group_name(double fraction) {
  std::array<char, 64> text{};
  constexpr int kPercentGDigits = 6;
  const auto result = std::to_chars(text.data(), text.data() + text.size(), fraction,
                                    std::chars_format::general, kPercentGDigits);
  return base::concat("outliers_", std::string_view(text.data(), result.ptr));
}

std::string layer_path(int index) {
  std::string digits = std::to_string(index);
  digits.insert(0, digits.size() < 4 ? 4 - digits.size() : 0, '0');
  return "/layers/" + digits;
}

}  // namespace kvcal::formats
