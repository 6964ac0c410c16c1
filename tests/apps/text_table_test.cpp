#include "apps/text_table.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace kvcal::apps {
namespace {

TEST(TextTable, NumbersAreBelowEachOtherAndLinesEndWithoutBlanks) {
  TextTable table({{"layer"}, {"tensor", Align::kLeft}, {"KL mean"}, {"note", Align::kLeft}});
  table.add_row({"3", "key", "0.0125"});
  table.add_row({"12", "value", "-", "late"});
  EXPECT_EQ(table.text(),
            "layer  tensor  KL mean  note\n"
            "    3  key      0.0125\n"
            "   12  value         -  late\n");
  EXPECT_EQ(table.columns(), 28);
}

TEST(TextTable, TheLastColumnGoesOnBelowItselfWithinTheWidth) {
  EXPECT_EQ(labelled_text({{"Model", "llama with 32 layers and 8 heads"}, {"Time", "2 min"}}, 2, 32),
            "  Model  llama with 32 layers\n"
            "         and 8 heads\n"
            "  Time   2 min\n");
}

TEST(TextTable, ALongNameIsWholeAndTheTableSaysThatItDoesNotFit) {
  TextTable table({{"method", Align::kLeft}, {"bits"}}, 20);
  table.add_row({"nuq3-1%", "3.42"});
  EXPECT_TRUE(table.fits());
  table.add_row({"nuq3-0.5%-qn-kernels", "3.25"});
  EXPECT_FALSE(table.fits());
  EXPECT_EQ(table.text(),
            "method                bits\n"
            "nuq3-1%               3.42\n"
            "nuq3-0.5%-qn-kernels  3.25\n");
}

TEST(TextTable, ColoursAndCharactersOfManyBytesTakeTheColumnsThatOneSees) {
  TextTable table({{"", Align::kLeft}, {""}});
  table.add_row({"\x1b[33mé\x1b[0m", "1"});
  table.add_row({"ab", "2"});
  EXPECT_EQ(table.text(), "\x1b[33mé\x1b[0m   1\nab  2\n");
}

TEST(TextTable, ARowHasNoMoreCellsThanColumns) {
  TextTable table({{"a"}, {"b"}});
  EXPECT_THROW(table.add_row({"1", "2", "3"}), std::invalid_argument);
}

}  // namespace
}  // namespace kvcal::apps
