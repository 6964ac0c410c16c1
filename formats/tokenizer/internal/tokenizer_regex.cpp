#define PCRE2_CODE_UNIT_WIDTH 8
#include "formats/tokenizer/internal/tokenizer_regex.h"

#include <pcre2.h>

#include <array>
#include <cstdint>
#include <new>
#include <utility>

#include "base/error.h"
#include "formats/tokenizer/internal/utf8.h"

namespace kvcal::formats {
namespace {

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using Code = std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Deleter<pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>>;

constexpr std::size_t kJitStackStart = std::size_t{64} << 10;
// A run of a million characters in a group needs tens of MiB.
constexpr std::size_t kJitStackMost = std::size_t{64} << 20;

}  // namespace

struct TokenizerRegex::Compiled {
  std::string source;  ///< as the user wrote it, for messages
  Code code;
  bool jit = false;
};

namespace {

Code compile(const std::string& translated, std::string_view source) {
  const CompileContext context(pcre2_compile_context_create(nullptr));
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_bsr(context.get(), PCRE2_BSR_UNICODE);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                          context.get()));
  if (!code) {
    throw base::InvalidInput(base::concat("the regular expression '", source, "' does not compile: ",
                                          error_text(error), " (in its PCRE2 form, at byte ", offset, ")"));
  }
  return code;
}

}  // namespace

TokenizerRegex::TokenizerRegex(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
TokenizerRegex::~TokenizerRegex() = default;
TokenizerRegex::TokenizerRegex(TokenizerRegex&&) noexcept = default;
TokenizerRegex& TokenizerRegex::operator=(TokenizerRegex&&) noexcept = default;

TokenizerRegex TokenizerRegex::from_oniguruma(std::string_view pattern) {
  auto compiled = std::make_unique<Compiled>();
  compiled->source = pattern;
  compiled->code = compile(pcre2_from_oniguruma(pattern), pattern);
  compiled->jit = pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE) == 0;
  return TokenizerRegex(std::move(compiled));
}

TokenizerRegex TokenizerRegex::from_literal(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    const bool punctuation =
        c > ' ' && c < 0x7F && !(c >= '0' && c <= '9') && !((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
    if (punctuation) escaped += '\\';
    escaped += c;
  }
  auto compiled = std::make_unique<Compiled>();
  compiled->source = text;
  compiled->code = compile(escaped, text);
  compiled->jit = pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE) == 0;
  return TokenizerRegex(std::move(compiled));
}

std::vector<PatternSpan> TokenizerRegex::find_spans(std::string_view text) const {
  if (text.empty()) return {{0, 0, false}};
  const MatchData data(pcre2_match_data_create_from_pattern(compiled_->code.get(), nullptr));
  const MatchContext context(pcre2_match_context_create(nullptr));
  if (!data || !context) throw std::bad_alloc();
  // A pattern that runs wild does so in the reference, too: there is no limit there.
  pcre2_set_match_limit(context.get(), UINT32_MAX);
  pcre2_set_depth_limit(context.get(), UINT32_MAX);
  JitStack stack;
  if (compiled_->jit) {
    stack.reset(pcre2_jit_stack_create(kJitStackStart, kJitStackMost, nullptr));
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
  std::vector<PatternSpan> spans;
  std::size_t done = 0;                   // up to here the spans cover the text
  std::size_t from = 0;                   // where the next search begins
  std::size_t last_match_end = SIZE_MAX;  // an empty match right behind a match does not count
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  while (from <= text.size()) {
    const auto match = [&](std::uint32_t options) {
      return pcre2_match(compiled_->code.get(), subject, text.size(), from, options, data.get(),
                         context.get());
    };
    int found = match(PCRE2_NO_UTF_CHECK);
    // The interpreter keeps its state on the heap.
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      throw base::InvalidInput(base::concat("the regular expression '", compiled_->source,
                                            "' fails on a text of ", text.size(), " bytes, at byte ", from,
                                            ": ", error_text(found)));
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    const std::size_t begin = ends[0];
    const std::size_t end = ends[1];
    if (begin > end || begin < done) {  // \K in a lookahead
      throw base::InvalidInput(
          base::concat("the regular expression '", compiled_->source, "' gives matches that go backwards"));
    }
    if (begin == end && end == last_match_end) {
      from = end < text.size() ? end + utf8_at(text, end).length : end + 1;
      continue;
    }
    if (done != begin) spans.push_back({done, begin, false});
    spans.push_back({begin, end, true});
    done = from = last_match_end = end;
  }
  if (done != text.size()) spans.push_back({done, text.size(), false});
  return spans;
}

}  // namespace kvcal::formats
