// fuzz/target.h: what a target of tests/fuzz is: one reader of input from outside, given any bytes.
//
// Each NAME.cpp defines read_input(). libfuzzer.cpp makes a fuzzer of it (fuzz_NAME, built with KVCAL_FUZZ), replay.cpp a program that
// reads files once (replay_NAME, always built). A refusal is InvalidInput, SystemError or WrongUsage; anything else that escapes is a
// finding, as are a crash, more than 10 s and more than 1 GiB.
#pragma once

#include <cstddef>
#include <exception>
#include <span>
#include <string>

#include "base/error.h"

namespace kvcal::fuzz {

/// Reads the bytes as the program would read a file of them, and looks at all that came out. Throws what the reader throws, and
/// base::Error itself where what was read contradicts what its header promises.
void read_input(std::span<const std::byte> bytes);

/// read_input(): the reason of a refusal; empty where the input was taken. Lets every other exception through.
inline std::string refusal(std::span<const std::byte> bytes) {
  const auto reason = [](const std::exception& error) {
    return *error.what() != '\0' ? std::string(error.what()) : "(no reason given)";
  };
  try {
    read_input(bytes);
  } catch (const base::InvalidInput& error) {
    return reason(error);
  } catch (const base::SystemError& error) {
    return reason(error);
  } catch (const base::WrongUsage& error) {
    return reason(error);
  }
  return {};
}

}  // namespace kvcal::fuzz
