// Parsing of example lines: what is read, what is refused, and that no bytes read past the text.
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>

#include "data/example_lines.h"
#include "tests/index_testing.h"

namespace qcompile {
namespace {

constexpr LineSyntax kSyntax{.feature_limit = 10, .label_limit = 5};

// From a copy on the heap without a terminator, so that sanitizers see every byte beyond.
ParsedLines parse(const std::string& text, const LineSyntax& syntax = kSyntax) {
  const auto copy = std::make_unique<char[]>(text.size());
  std::copy(text.begin(), text.end(), copy.get());
  return parse_lines({copy.get(), text.size()}, syntax, 7);
}

bool refuses(const std::string& text, const std::string& message) {
  try {
    parse(text);
  } catch (const std::invalid_argument& error) {
    return std::string(error.what()).find(message) != std::string::npos;
  }
  return false;
}

void test_reads_sorts_and_merges() {
  const ParsedLines p = parse("3,1,3 7:1.5 2:-1e-2\t7:+2\r\n\n 0:1\n4");
  EXPECT((p.labels == std::vector<int32_t>{1, 3, 4}));
  EXPECT((p.label_ends == std::vector<int64_t>{2, 2, 2, 3}));
  EXPECT((p.features == std::vector<int32_t>{2, 7, 0}));
  EXPECT((p.values == std::vector<float>{-0.01f, 3.5f, 1}));
  EXPECT((p.feature_ends == std::vector<int64_t>{2, 2, 3, 3}));
  EXPECT(p.lines == 4 && p.merged == 2);
  EXPECT(parse("").lines == 0);
  // The largest float, printed with nine digits, is larger than it.
  EXPECT(parse("1 2:3.40282347e+38").values.front() == std::numeric_limits<float>::max());
}

void test_comments_and_entries_alone() {
  const ParsedLines with_comments =
      parse("# head\n1 2:3 # tail\n\n", {.comments = true, .feature_limit = 3, .label_limit = 2});
  EXPECT(with_comments.lines == 3 && with_comments.feature_ends.size() == 1);
  const ParsedLines one_based =
      parse("1 2:3", {.feature_base = 1, .feature_limit = 2, .label_limit = 2});
  EXPECT(one_based.features.front() == 1);
  const ParsedLines alone = parse("2:3\n\n", {.labels = false, .feature_limit = 3});
  EXPECT(alone.feature_ends.size() == 2 && alone.features.size() == 1);
}

void test_names_the_first_faulty_line() {
  EXPECT(refuses("1 2:3\n1 2:x\n1 y", "line 8: '2:x' has no number"));
  EXPECT(refuses("1 2:nan", "not finite"));
  EXPECT(refuses("1 2:1e39", "float32"));
  EXPECT(refuses("1 2:3.4028236e+38", "float32"));
  EXPECT(refuses("1 2:1e999", "float32"));
  EXPECT(refuses("1 2:3e38 2:3e38", "sum"));
  EXPECT(refuses("1 10:1", "0 to 9"));
  EXPECT(refuses("1 -1:1", "0 to 9"));
  EXPECT(refuses("1 99999999999999999999:1", "0 to 9"));
  EXPECT(refuses("5 1:1", "0 to 4"));
  EXPECT(refuses("1, 1:1", "label"));
  EXPECT(refuses("1 2", "index:value"));
  EXPECT(refuses("1 2:", "value"));
  EXPECT(refuses(std::string("1 2:3\0", 6), "\\x00"));
}

void test_survives_any_bytes() {
  std::mt19937 generator(1);
  const std::string alphabet = "0123456789,:.-+e \n\r\t#nif\xff";
  for (int trial = 0; trial < 20000; ++trial) {
    std::string text = "3,1 7:1.5 2:-1e-2\n4 1:2 9:0\n";
    for (int edit = 0; edit < 1 + trial % 4; ++edit) {
      text[generator() % text.size()] = alphabet[generator() % alphabet.size()];
    }
    text.resize(generator() % (text.size() + 1));
    try {
      const ParsedLines p = parse(text);
      for (int32_t feature : p.features) EXPECT(feature >= 0 && feature < 10);
      for (int32_t label : p.labels) EXPECT(label >= 0 && label < 5);
    } catch (const std::invalid_argument&) {
    }
  }
}

}  // namespace
}  // namespace qcompile

int main() {
  qcompile::test_reads_sorts_and_merges();
  qcompile::test_comments_and_entries_alone();
  qcompile::test_names_the_first_faulty_line();
  qcompile::test_survives_any_bytes();
}
