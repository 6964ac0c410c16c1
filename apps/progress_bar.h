// apps/progress_bar.h: progress and messages on standard error: a bar on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "apps/log.h"
#include "apps/progress.h"

namespace kvcal::apps {

/// Where a stage stands.
struct StageState {
  std::string name;        ///< "forward"
  std::string unit;        ///< "tokens"
  std::string detail;      ///< "layer 3 of 32"
  std::int64_t total = 0;  ///< 0: not known
  std::int64_t done = 0;
  /// Done at the first report: an earlier run's work may be in it, so the rate counts from there.
  std::int64_t first = 0;
  double seconds = 0;  ///< since the first report
  double elapsed = 0;  ///< since the stage began
};

/// Steps per second; 0 where nothing is done yet.
[[nodiscard]] double steps_per_second(const StageState& state);

/// One line of at most `width` columns:
/// "forward  layer 3 of 32  [####......]  41 %  1,234 tokens/s  2 min 5 s left".
[[nodiscard]] std::string format_bar(const StageState& state, int width);

/// The same without a bar, in kColumns columns (terminal.h):
/// "forward: layer 3 of 32, 41 %, 1,234 tokens/s, 5 s left". Where there is no room, the rate goes first, as in the
/// bar, then the detail and the end of the name.
[[nodiscard]] std::string format_line(const StageState& state);

/// The end of a stage: "forward: 8,192 tokens in 12 s (683 tokens/s)".
[[nodiscard]] std::string format_end(const StageState& state);

/// Draws on standard error. On a terminal the bar is redrawn in place, ten times a second at most; elsewhere
/// a line comes every five seconds at most. Safe to call from several threads.
class ProgressBar : public ShownProgress {
 public:
  explicit ProgressBar(Verbosity verbosity);
  ~ProgressBar() override;
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void begin_stage(std::string_view name, std::int64_t total, std::string_view unit) override;
  void advance(std::int64_t done, std::string_view detail) override;
  void end_stage() override;
  void warning(std::string_view text) override;
  void info(std::string_view text) override;
  void clear() override;

 private:
  using Clock = std::chrono::steady_clock;

  void draw(bool forced);
  void erase_bar();
  void finish_stage();

  std::mutex mutex_;
  Verbosity verbosity_;
  bool on_terminal_;
  bool in_stage_ = false;
  bool bar_shown_ = false;
  StageState state_;
  Clock::time_point start_;
  Clock::time_point first_report_;
  bool reported_ = false;
  Clock::time_point last_drawn_;
};

}  // namespace kvcal::apps
