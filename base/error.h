// base/error.h: the exceptions of every kvcal library, and the text helper that builds their messages.
//
// A message says what was wrong, where (file, tensor, layer), which value was met, what was expected and what
// to do. Libraries throw; only apps/ catches, prints and turns the type into an exit code.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace kvcal::base {

/// The data or the machine failed: exit code 1. The base of all the others.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Input from outside (a file, an array, a model) is not what its format or this program needs. Exit code 1.
class InvalidInput : public Error {
 public:
  using Error::Error;
};

/// The operating system refused: a file cannot be opened, a disk is full, memory is short. Exit code 1.
class SystemError : public Error {
 public:
  using Error::Error;
};

/// The caller asked for something that contradicts itself or the manual. Exit code 2.
class WrongUsage : public Error {
 public:
  using Error::Error;
};

/// The work was stopped by a signal: exit code 128 + signal.
class Interrupted : public Error {
 public:
  explicit Interrupted(int signal);
  [[nodiscard]] int signal() const { return signal_; }

 private:
  int signal_;
};

/// The arguments written one after the other with operator<<: concat("layer ", 3, " has no keys").
template <typename... Parts>
[[nodiscard]] std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// The text of an errno value, thread-safe: "No space left on device".
[[nodiscard]] std::string errno_text(int error_number);

}  // namespace kvcal::base
