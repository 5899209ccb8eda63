#include "data/example_lines.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>
#include <string>

namespace qcompile {
namespace {

constexpr size_t kShown = 40;  // bytes of a faulty token that a message repeats

// Whether rounding to float gives a finite number: below the middle of the largest float and 2^128.
// False for NaN.
bool fits_float(double value) { return std::abs(value) < 0x1.ffffffp127; }

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

// What a message shows of bytes that may be anything.
std::string quoted(std::string_view token) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string shown = "'";
  for (unsigned char c : token.substr(0, kShown)) {
    if (c >= 0x20 && c < 0x7f) {
      shown += static_cast<char>(c);
    } else {
      shown += {'\\', 'x', kDigits[c >> 4], kDigits[c & 15]};
    }
  }
  return shown + (token.size() > kShown ? "…'" : "'");
}

[[noreturn]] void fail(std::string_view token, const std::string& why) {
  throw std::invalid_argument(quoted(token) + " " + why);
}

// The next run of bytes that are not blank, taken off the front of `line`; empty at its end.
std::string_view take_token(std::string_view& line) {
  size_t begin = 0;
  while (begin < line.size() && is_blank(line[begin])) ++begin;
  size_t end = begin;
  while (end < line.size() && !is_blank(line[end])) ++end;
  const std::string_view token = line.substr(begin, end - begin);
  line.remove_prefix(end);
  return token;
}

// Parses an index out of base … base + limit − 1 and returns it counted from zero.
int32_t parse_index(std::string_view digits, std::string_view token, const char* what, int64_t base,
                    int64_t limit) {
  int64_t index = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  const bool whole = end == digits.data() + digits.size();
  if (error == std::errc::invalid_argument || !whole) {
    fail(token, std::string("has no whole number as its ") + what);
  }
  if (error != std::errc() || index < base || index - base >= limit) {
    fail(token,
         std::string(what[0] == 'i' ? "has an " : "has a ") + what + " out of range: expected " +
             (limit == 0 ? "none"
                         : std::to_string(base) + " to " + std::to_string(base + limit - 1)));
  }
  return static_cast<int32_t>(index - base);
}

double parse_value(std::string_view text, std::string_view token) {
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::invalid_argument || end != text.data() + text.size()) {
    fail(token, "has no number as its value");
  }
  if (error != std::errc() || !fits_float(value)) {
    fail(token, "has a value that is not finite or does not fit float32");
  }
  return value;
}

struct Entry {
  int32_t index;
  double value;
};

// Parses the lines of one call; keeps what a line needs from one line to the next.
class Parser {
 public:
  explicit Parser(const LineSyntax& syntax) : syntax_(syntax) {}

  void add(std::string_view line) {
    if (syntax_.comments) line = line.substr(0, line.find('#'));
    labels_.clear();
    entries_.clear();
    if (syntax_.labels && !line.empty() && !is_blank(line.front())) read_labels(line);
    for (auto token = take_token(line); !token.empty(); token = take_token(line)) {
      read_entry(token);
    }
    if (syntax_.comments && labels_.empty() && entries_.empty()) return;
    store_labels();
    store_entries();
  }

  ParsedLines result;

 private:
  // The first token, unless it is an entry: then the example has no labels.
  void read_labels(std::string_view& line) {
    std::string_view rest = line;
    const std::string_view token = take_token(rest);
    if (token.find(':') != std::string_view::npos) return;
    line = rest;
    for (size_t begin = 0; begin <= token.size();) {
      const size_t end = std::min(token.find(',', begin), token.size());
      labels_.push_back(
          parse_index(token.substr(begin, end - begin), token, "label", 0, syntax_.label_limit));
      begin = end + 1;
    }
  }

  void read_entry(std::string_view token) {
    const size_t colon = token.find(':');
    if (colon == std::string_view::npos) fail(token, "is not index:value");
    // Rows without labels may be those of a file of labels.
    const char* what = syntax_.labels ? "feature index" : "index";
    const int32_t index = parse_index(token.substr(0, colon), token, what, syntax_.feature_base,
                                      syntax_.feature_limit);
    entries_.push_back({index, parse_value(token.substr(colon + 1), token)});
  }

  void store_labels() {
    std::sort(labels_.begin(), labels_.end());
    const auto end = std::unique(labels_.begin(), labels_.end());
    result.merged += labels_.end() - end;
    result.labels.insert(result.labels.end(), labels_.begin(), end);
    result.label_ends.push_back(static_cast<int64_t>(result.labels.size()));
  }

  void store_entries() {
    const auto before = [](const Entry& a, const Entry& b) { return a.index < b.index; };
    if (!std::is_sorted(entries_.begin(), entries_.end(), before)) {
      std::stable_sort(entries_.begin(), entries_.end(), before);
    }
    for (size_t i = 0; i < entries_.size();) {
      const int32_t index = entries_[i].index;
      double sum = entries_[i].value;
      for (++i; i < entries_.size() && entries_[i].index == index; ++i) {
        sum += entries_[i].value;
        ++result.merged;
      }
      if (!fits_float(sum)) {
        fail(std::to_string(index), "is a feature whose values sum to more than fits float32");
      }
      result.features.push_back(index);
      result.values.push_back(static_cast<float>(sum));
    }
    result.feature_ends.push_back(static_cast<int64_t>(result.features.size()));
  }

  const LineSyntax syntax_;
  std::vector<int32_t> labels_;
  std::vector<Entry> entries_;
};

}  // namespace

ParsedLines parse_lines(std::string_view text, const LineSyntax& syntax, int64_t first_line) {
  Parser parser(syntax);
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    try {
      parser.add(text.substr(0, end));
    } catch (const std::invalid_argument& error) {
      const int64_t line = first_line + parser.result.lines;
      throw std::invalid_argument("line " + std::to_string(line) + ": " + error.what());
    }
    ++parser.result.lines;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return std::move(parser.result);
}

}  // namespace qcompile
