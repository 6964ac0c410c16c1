#include "apps/page/page.h"

#include <array>
#include <utility>

#include "apps/page/page_assets.h"
#include "base/error.h"
#include "calib/version.h"

namespace kvcal::apps {
namespace {

std::string replaced(std::string_view text, char from, std::string_view to) {
  std::string result;
  result.reserve(text.size());
  for (const char letter : text) {
    if (letter == from)
      result += to;
    else
      result += letter;
  }
  return result;
}

std::string html_text(std::string_view text) {
  return replaced(replaced(replaced(text, '&', "&amp;"), '<', "&lt;"), '>', "&gt;");
}

// No "</script>" can stand in it, nor "<!--".
std::string script_json(const Json& value) {
  return replaced(value.dump(-1, ' ', false, Json::error_handler_t::replace), '<', "\\u003c");
}

// The template with each @NAME@ in the place of its part; no part is looked through for names.
std::string filled(std::string_view page, const auto& parts) {
  std::string result;
  while (!page.empty()) {
    const std::size_t at = page.find('@');
    result += page.substr(0, at);
    if (at == std::string_view::npos) break;
    const std::size_t end = page.find('@', at + 1);
    const std::string_view name = page.substr(at + 1, end - at - 1);
    bool known = false;
    for (const auto& [part, text] : parts) {
      if (part != name) continue;
      result += text;
      known = true;
    }
    if (!known)
      throw base::Error(base::concat("the page's template names a part '", name, "' that there is not"));
    page.remove_prefix(end + 1);
  }
  return result;
}

}  // namespace

std::string page_line(const OutputFile& html) {
  return html.wanted() ? base::concat("\nPage: ", html.file(), "\n") : "";
}

std::string page_html(const PageData& data) {
  const Json all = {{"kind", data.kind},
                    {"created_by", base::concat("kvcal ", calib::version())},
                    {"report", data.report},
                    {"codebook", data.codebook},
                    {"plans", data.plans}};
  const std::string title = html_text(base::concat(data.model, ": kvcal ", data.kind));
  const std::string json = script_json(all), licence = html_text(kPlotlyLicence);
  const std::array<std::pair<std::string_view, std::string_view>, 6> parts = {{{"TITLE", title},
                                                                               {"CSS", kPageStyle},
                                                                               {"DATA", json},
                                                                               {"SCRIPT", kPageScript},
                                                                               {"PLOTLY", kPlotly},
                                                                               {"PLOTLY_LICENCE", licence}}};
  return filled(kPageTemplate, parts);
}

}  // namespace kvcal::apps
