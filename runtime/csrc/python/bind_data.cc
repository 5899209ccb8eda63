#include "data/example_lines.h"
#include "python/arrays.h"
#include "python/module.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

nb::tuple parse(nb::bytes text, int64_t first_line, bool labels, bool comments,
                int64_t feature_base, int64_t feature_limit, int64_t label_limit) {
  const std::string_view view(text.c_str(), text.size());
  const LineSyntax syntax{.labels = labels,
                          .comments = comments,
                          .feature_base = feature_base,
                          .feature_limit = feature_limit,
                          .label_limit = label_limit};
  ParsedLines parsed = without_gil([&] { return parse_lines(view, syntax, first_line); });
  return nb::make_tuple(to_array(std::move(parsed.feature_ends)),
                        to_array(std::move(parsed.features)), to_array(std::move(parsed.values)),
                        to_array(std::move(parsed.label_ends)), to_array(std::move(parsed.labels)),
                        parsed.lines, parsed.merged);
}

}  // namespace

void bind_data(nb::module_& module) {
  module.def("parse_lines", &parse, nb::arg("text"), nb::arg("first_line"), nb::arg("labels"),
             nb::arg("comments"), nb::arg("feature_base"), nb::arg("feature_limit"),
             nb::arg("label_limit"),
             "Parse whole lines 'label,label index:value …', one example each: (feature ends "
             "int64, features int32, values float32, label ends int64, labels int32, lines read, "
             "entries merged).");
}

}  // namespace qcompile
