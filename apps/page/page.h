// apps/page/page.h: one self-contained HTML file that shows a result: its pictures, its tables, and its data.
//
// The page is data and scripts: assets/ holds its HTML, style and JavaScript, which are compiled into the program
// together with plotly.js (embed_assets.py). It opens without a network, and needs a browser of 2023 or later for its
// pictures. The data stand in the element #kvcal-data as JSON (docs/page.md).
#pragma once

#include <string>

#include "apps/json_output.h"

namespace kvcal::apps {

/// What the page shows; parts that are null are left out.
struct PageData {
  std::string kind;            ///< the subcommand
  std::string model;           ///< for the title
  Json report = nullptr;       ///< what the subcommand's --json holds
  Json codebook = nullptr;     ///< page_codebook()
  Json plans = Json::array();  ///< what `kvcal plan --json` holds, by ascending context
};

/// The file's text: valid HTML, without a reference to anything outside of it.
[[nodiscard]] std::string page_html(const PageData& data);

/// The last line of what a command prints: where the page is; "" where none was asked for.
[[nodiscard]] std::string page_line(const OutputFile& html);

}  // namespace kvcal::apps
