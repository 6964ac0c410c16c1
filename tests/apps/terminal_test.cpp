#include "apps/terminal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

namespace kvcal::apps {
namespace {

// Standard output goes to a terminal of so many columns, or with 0 to a pipe, as long as it lives.
class Output {
 public:
  explicit Output(unsigned short columns) {
    std::fflush(stdout);
    saved_ = ::dup(STDOUT_FILENO);
    if (columns > 0) {
      ends_[0] = ::posix_openpt(O_RDWR | O_NOCTTY);
      ::grantpt(ends_[0]);
      ::unlockpt(ends_[0]);
      ends_[1] = ::open(::ptsname(ends_[0]), O_RDWR | O_NOCTTY);
      winsize size{};
      size.ws_col = columns;
      ::ioctl(ends_[1], TIOCSWINSZ, &size);
    } else if (::pipe(ends_) != 0) {
      ends_[1] = -1;
    }
    ok_ = ::dup2(ends_[1], STDOUT_FILENO) == STDOUT_FILENO;
  }
  ~Output() {
    ::dup2(saved_, STDOUT_FILENO);
    for (const int file : {saved_, ends_[0], ends_[1]}) ::close(file);
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  [[nodiscard]] bool ok() const { return ok_; }

 private:
  int saved_ = -1, ends_[2] = {-1, -1};
  bool ok_ = false;
};

std::size_t help_width_on(unsigned short columns) {
  const Output output(columns);
  return output.ok() ? help_width(Stream::kOutput) : 0;
}

std::string bold_on(unsigned short columns, const char* terminal, const char* no_colour) {
  ::setenv("TERM", terminal, 1);
  ::setenv("NO_COLOR", no_colour, 1);
  const Output output(columns);
  return output.ok() ? bold("x") : "no terminal could be made";
}

TEST(Terminal, HelpTakesTheTerminalsWidthFromSixtyToAHundred) {
  EXPECT_EQ(help_width_on(0), 60);
  EXPECT_EQ(help_width_on(40), 60);
  EXPECT_EQ(help_width_on(72), 72);
  EXPECT_EQ(help_width_on(240), 100);
}

TEST(Terminal, ColoursAreForTerminalsThatCanAndUsersThatWant) {
  EXPECT_EQ(bold_on(80, "xterm", ""), "\x1b[1mx\x1b[0m");
  EXPECT_EQ(bold_on(80, "xterm", "1"), "x");
  EXPECT_EQ(bold_on(80, "dumb", ""), "x");
  EXPECT_EQ(bold_on(0, "xterm", ""), "x");
}

TEST(Terminal, LinesBreakAtBlanksAndLongWordsStayWhole) {
  EXPECT_EQ(wrapped("one two  three", 9, 2), "  one two\n  three");
  EXPECT_EQ(hanging("Needs a/path/longer/than/that now", 12, 4),
            "Needs\n    a/path/longer/than/that\n    now");
  EXPECT_EQ(wrapped("first\n\nlast one", 8), "first\n\nlast one");
  EXPECT_EQ(wrapped("é é é", 5), "é é é");
  EXPECT_EQ(wrapped("", 10, 4), "");
}

}  // namespace
}  // namespace kvcal::apps
