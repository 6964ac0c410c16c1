#include "apps/progress_bar.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <initializer_list>

#include "apps/sizes.h"
#include "apps/terminal.h"
#include "base/error.h"

namespace kvcal::apps {
namespace {

using base::concat;

constexpr std::chrono::milliseconds kBarInterval(100);
constexpr std::chrono::seconds kLineInterval(5);

double fraction_done(const StageState& state) {
  if (state.total <= 0) return 0;
  return std::clamp(static_cast<double>(state.done) / static_cast<double>(state.total), 0.0, 1.0);
}

std::string rate_text(double rate, const std::string& unit) {
  if (rate <= 0) return {};
  const std::string number = rate >= 100 ? format_count(std::llround(rate)) : format_number(rate, 3);
  return concat(number, " ", unit, "/s");
}

std::string rate_text(const StageState& state) {
  return rate_text(steps_per_second(state), state.unit);
}

std::string left_text(const StageState& state) {
  const double rate = steps_per_second(state);
  if (rate <= 0 || state.total <= 0 || state.done >= state.total) return {};
  return concat(format_duration(static_cast<double>(state.total - state.done) / rate), " left");
}

std::string percent_text(const StageState& state) {
  if (state.total <= 0) return concat(format_count(state.done), " ", state.unit);
  return concat(static_cast<int>(100 * fraction_done(state)), " %");
}

// Details may be long (a path); what is cut is shown as "...".
std::string shortened(const std::string& text, std::size_t width) {
  if (text.size() <= width) return text;
  if (width <= 3) return text.substr(0, width);
  return text.substr(0, width - 3) + "...";
}

std::string joined(std::initializer_list<std::string> parts, const std::string& between) {
  std::string text;
  for (const std::string& part : parts) {
    if (!part.empty()) text += (text.empty() ? "" : between) + part;
  }
  return text;
}

// The name and what follows it; where they are too long, the name is cut.
std::string with_name(const StageState& state, const std::string& rest, std::size_t width) {
  constexpr std::size_t kLeastName = 8;
  const std::size_t room = width - std::min(width, rest.size());
  return shortened(shortened(state.name, std::max(room, kLeastName)) + rest, width);
}

// The stage in words, without the rate and then without the detail where there is no room.
std::string in_words(const StageState& state, const std::string& after_name, const std::string& between,
                     std::size_t width) {
  const std::string percent = percent_text(state), rate = rate_text(state), remaining = left_text(state);
  std::string rest;
  for (const std::string& parts :
       {joined({state.detail, percent, rate, remaining}, between),
        joined({state.detail, percent, remaining}, between), joined({percent, remaining}, between)}) {
    rest = after_name + parts;
    if (state.name.size() + rest.size() <= width) break;
  }
  return with_name(state, rest, width);
}

}  // namespace

double steps_per_second(const StageState& state) {
  if (state.seconds <= 0 || state.done <= state.first) return 0;
  return static_cast<double>(state.done - state.first) / state.seconds;
}

std::string format_bar(const StageState& state, int width) {
  constexpr int kLeastBar = 10, kMostBar = 40;
  const std::string left = joined({state.name, state.detail}, "  ");
  const std::string percent = percent_text(state), rate = rate_text(state), remaining = left_text(state);
  // Where there is no room for all, the rate goes first: the bar and the time left say more.
  for (const std::string& right :
       {joined({percent, rate, remaining}, "  "), joined({percent, remaining}, "  ")}) {
    const int room = width - static_cast<int>(left.size() + right.size()) - 6;  // two gaps and two brackets
    if (room < kLeastBar || state.total <= 0) continue;
    const int length = std::min(room, kMostBar);
    const int filled = static_cast<int>(length * fraction_done(state));
    return concat(left, "  [", std::string(static_cast<std::size_t>(filled), '#'),
                  std::string(static_cast<std::size_t>(length - filled), '.'), "]  ", right);
  }
  return in_words(state, "  ", "  ", static_cast<std::size_t>(std::max(width, 0)));
}

std::string format_line(const StageState& state) {
  return in_words(state, ": ", ", ", kColumns);
}

std::string format_end(const StageState& state) {
  double rate = steps_per_second(state);
  // One report only: the whole stage is all that was measured.
  if (rate <= 0 && state.elapsed > 0) rate = static_cast<double>(state.done) / state.elapsed;
  const std::string text = rate_text(rate, state.unit);
  const std::string work =
      concat(": ", format_count(state.done), " ", state.unit, " in ", format_duration(state.elapsed));
  const std::string with_rate = text.empty() ? work : concat(work, " (", text, ")");
  return with_name(state, state.name.size() + with_rate.size() <= kColumns ? with_rate : work, kColumns);
}

ProgressBar::ProgressBar(Verbosity verbosity)
    : verbosity_(verbosity), on_terminal_(is_capable_terminal(Stream::kError)) {}

ProgressBar::~ProgressBar() {
  clear();
}

void ProgressBar::begin_stage(std::string_view name, std::int64_t total, std::string_view unit) {
  const std::scoped_lock lock(mutex_);
  if (in_stage_) finish_stage();
  state_ = StageState{};
  state_.name = name;
  state_.unit = unit;
  state_.total = total;
  in_stage_ = true;
  reported_ = false;
  start_ = last_drawn_ = Clock::now();
  log_debug(concat(state_.name, ": begins, ", format_count(total), " ", state_.unit));
  draw(on_terminal_);
}

void ProgressBar::advance(std::int64_t done, std::string_view detail) {
  const std::scoped_lock lock(mutex_);
  if (!in_stage_) return;
  const Clock::time_point now = Clock::now();
  if (!reported_) {
    reported_ = true;
    state_.first = done;
    first_report_ = now;
  }
  state_.done = done;
  state_.detail = detail;
  state_.seconds = std::chrono::duration<double>(now - first_report_).count();
  draw(false);
}

void ProgressBar::end_stage() {
  const std::scoped_lock lock(mutex_);
  if (in_stage_) finish_stage();
}

void ProgressBar::finish_stage() {
  state_.elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  erase_bar();
  in_stage_ = false;
  log_info(format_end(state_));
}

void ProgressBar::warning(std::string_view text) {
  const std::scoped_lock lock(mutex_);
  erase_bar();
  log_warning(std::string(text));
  draw(true);
}

void ProgressBar::info(std::string_view text) {
  const std::scoped_lock lock(mutex_);
  erase_bar();
  log_info(std::string(text));
  draw(true);
}

void ProgressBar::clear() {
  const std::scoped_lock lock(mutex_);
  erase_bar();
}

void ProgressBar::draw(bool forced) {
  if (!in_stage_ || verbosity_ == Verbosity::kQuiet) return;
  const Clock::time_point now = Clock::now();
  const bool due = on_terminal_ ? now - last_drawn_ >= kBarInterval : now - last_drawn_ >= kLineInterval;
  if (!due && !(forced && on_terminal_)) return;
  last_drawn_ = now;
  if (!on_terminal_) {
    log_info(format_line(state_));
    return;
  }
  // One column less than there is: some terminals wrap after the last.
  // "\x1b[K" clears what an earlier, longer bar left.
  const auto width = static_cast<int>(terminal_columns(Stream::kError).value_or(kColumns));
  const std::string bar = "\r" + format_bar(state_, width - 1) + "\x1b[K";
  std::fwrite(bar.data(), 1, bar.size(), stderr);
  std::fflush(stderr);
  bar_shown_ = true;
}

void ProgressBar::erase_bar() {
  if (!bar_shown_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  bar_shown_ = false;
}

}  // namespace kvcal::apps
