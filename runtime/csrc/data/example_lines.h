// Parses lines of text that hold one example each: "label,label index:value index:value".
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace qcompile {

struct LineSyntax {
  bool labels = true;         // a line may begin with labels; otherwise it is entries alone
  bool comments = false;      // '#' begins a comment, and lines without any entry do not count
  int64_t feature_base = 0;   // the index of the first feature, subtracted from every index
  int64_t feature_limit = 0;  // number of features; at most 2^31 − 1
  int64_t label_limit = 0;    // number of labels, likewise
};

// Examples as compressed rows: those of example i end at position ends[i].
struct ParsedLines {
  std::vector<int64_t> feature_ends;
  std::vector<int32_t> features;  // ascending within an example
  std::vector<float> values;
  std::vector<int64_t> label_ends;
  std::vector<int32_t> labels;  // ascending within an example
  int64_t lines = 0;            // lines read, those without an example included
  int64_t merged = 0;           // features or labels that an example named again
};

// Parses whole lines; the last one may lack its line break. A repeated feature counts with the sum
// of its values. `first_line` is the number of the first line in its file, for messages.
// Throws std::invalid_argument naming the first faulty line.
ParsedLines parse_lines(std::string_view text, const LineSyntax& syntax, int64_t first_line);

}  // namespace qcompile
