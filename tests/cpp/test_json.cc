// JSON: reading, refusals with their positions, and writing.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/files/json.h"
#include "errors.h"

namespace {

using tidegate::json_number;
using tidegate::json_string;
using tidegate::JsonReader;

std::string read_string(const std::string& text) {
  JsonReader json(text);
  std::string value = json.string();
  json.end();
  return value;
}

double read_number(const std::string& text) {
  JsonReader json(text);
  const double value = json.number();
  json.end();
  return value;
}

std::int64_t read_integer(const std::string& text) {
  JsonReader json(text);
  const std::int64_t value = json.integer();
  json.end();
  return value;
}

template <class F>
bool refuses(const F& f, const char* where) {
  return begins_with(invalid_argument_of(f), where);
}

}  // namespace

TEST(strings) {
  CHECK(read_string(R"("")").empty());
  CHECK(read_string(R"( "a b" )") == "a b");
  CHECK(read_string(R"("\"\\\/\b\f\n\r\t")") == "\"\\/\b\f\n\r\t");
  CHECK(read_string(R"("\u0041\u00e9\u20AC\ud83d\ude00")") == "A\u00e9\u20ac\U0001f600");
  CHECK(read_string(R"("\u0000")") == std::string(1, '\0'));
  for (const char* text : {"\"", "\"a", "\"\\", "\"\\u", "\"\\u12", "\"\\u123x\"", "\"\\u+123\"",
                           "\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\n\"", "\"\\ud800\\ud800\"",
                           "\"\\a\"", "\"\t\"", "a", "'a'", ""}) {
    CHECK(!invalid_argument_of([&] { read_string(text); }).empty());
  }
}

TEST(utf8) {
  for (const char* text : {"\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
                           "\xee\x80\x80", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    CHECK(read_string(std::string("\"") + text + "\"") == text);
    CHECK(tidegate::as_utf8(text) == text);
  }
  for (const char* text :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xc2", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xe2\x82",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    const std::string quoted = std::string("\"") + text + "\"";
    CHECK(refuses([&] { read_string(quoted); }, "byte 1: not UTF-8"));
    CHECK(tidegate::as_utf8(text).find('?') == 0);
    CHECK(!invalid_argument_of([&] { json_string(text); }).empty());
  }
}

TEST(numbers) {
  CHECK(read_integer("0") == 0);
  CHECK(read_integer("-0") == 0);
  CHECK(read_integer("9223372036854775807") == std::numeric_limits<std::int64_t>::max());
  CHECK(read_integer("-9223372036854775808") == std::numeric_limits<std::int64_t>::min());
  for (const char* text : {"9223372036854775808", "1.0", "1e2", "01", "+1", "--1", "-", "", "0x1",
                           "1 2", "true", "\"1\""}) {
    CHECK(!invalid_argument_of([&] { read_integer(text); }).empty());
  }
  CHECK(read_number("-12.5e-1") == -1.25);
  CHECK(read_number("1E+2") == 100);
  CHECK(read_number("0.1") == 0.1);
  const std::string zeros(400, '0');
  for (const std::string& text :
       std::vector<std::string>{"1e-400", "-0." + zeros + "1", "1" + zeros + "e-9999", "0.001e-321",
                                "2e-99999999999999999999", "0.0e999999999999"}) {
    CHECK(std::abs(read_number(text)) < 1e-320);
  }
  CHECK(read_number("0." + zeros + "1e401") == 1);
  CHECK(read_number("1" + zeros + "e-400") == 1);
  for (const std::string& text :
       {"1" + zeros, "0." + zeros + "1e+999", std::string("1e99999999999999999999")}) {
    CHECK(!invalid_argument_of([&] { read_number(text); }).empty());
  }
  for (const char* text : {"1e999", "-1e999", ".5", "1.", "1e", "1e+", "NaN", "Infinity", "1,5"}) {
    CHECK(!invalid_argument_of([&] { read_number(text); }).empty());
  }
}

TEST(a_number_reads_as_it_was_written) {
  for (const double value :
       {0.0, -0.0, 1.0 / 3, 0.1, 1e300, -2.5e-308, 5e-324, 1e17, 123456789.0}) {
    CHECK(read_number(json_number(value)) == value);
  }
  CHECK(json_number(0.2) == "0.2");
  CHECK(json_number(3) == "3");
}

TEST(a_string_reads_as_it_was_written) {
  std::string all;
  for (int c = 0; c < 128; ++c) all += static_cast<char>(c);
  all += "\u00e9\U0001f600";
  CHECK(read_string(json_string(all)) == all);
}

TEST(objects_and_arrays) {
  std::vector<std::string> keys;
  std::vector<std::int64_t> values;
  JsonReader json(" { \"a\" : [ 1 , 2 ] , \"\" : [ ] , \"b\":{} } \n");
  json.object([&](const std::string& key) {
    keys.push_back(key);
    if (key == "b") {
      json.object([](const std::string&) {});
    } else {
      json.array([&] { values.push_back(json.integer()); });
    }
  });
  json.end();
  CHECK(keys == std::vector<std::string>({"a", "", "b"}));
  CHECK(values == std::vector<std::int64_t>({1, 2}));

  const auto read = [](const std::string& text) {
    return invalid_argument_of([&] {
      JsonReader reader(text);
      reader.object([&](const std::string&) { reader.array([&] { reader.integer(); }); });
      reader.end();
    });
  };
  CHECK(read("{\"a\":[1]}").empty());
  for (const char* text :
       {"", "{", "{\"a\"", "{\"a\":", "{\"a\":[", "{\"a\":[1", "{\"a\":[1,", "{\"a\":[1]",
        "{\"a\":[1],", "{\"a\":[1],}", "{\"a\":[1,]}", "{\"a\":[,1]}", "{\"a\" [1]}", "{a:[1]}",
        "{\"a\":[1}}", "{\"a\":[1]} x", "{\"a\":[1] \"b\":[]}", "[]", "{\"a\":{}}"}) {
    CHECK(!read(text).empty());
  }
}

TEST(errors_say_where) {
  const auto read = [](const std::string& text) {
    return invalid_argument_of([&] {
      JsonReader json(text);
      json.object(
          [&](const std::string&) { json.object([&](const std::string&) { json.boolean(); }); });
    });
  };
  CHECK(read("{\"one\":{\"two\":1}}") ==
        "byte 14, \"one\", \"two\": got \"1\", wanted true or false");
  CHECK(begins_with(read("{\"one\":{\"two\":true,\"two\":true}}"),
                    "byte 24, \"one\": the key \"two\" is there twice"));
  // A long key is abbreviated to its ends.
  const std::string message = read("{\"" + std::string(5000, 'k') + "\":1}");
  CHECK(message.size() < 300);
  CHECK(message.find("k ... k") != std::string::npos);
}

TEST(a_string_comes_next) {
  CHECK(JsonReader(" \"\"").at_string());
  for (const char* text : {"[\"\"]", "7", "null", " ", ""}) CHECK(!JsonReader(text).at_string());
}

TEST(sizes_are_listed) {
  CHECK(tidegate::size_list(std::vector<std::int64_t>{}) == "[]");
  CHECK(tidegate::size_list(std::vector<std::int64_t>{3, 4}) == "[3, 4]");
  CHECK(tidegate::size_list(std::vector<std::int64_t>(1000, 1)).size() < 50);
}
