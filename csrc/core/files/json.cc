// Reading and writing JSON.
#include "core/files/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <system_error>

#if !defined(__cpp_lib_to_chars) && defined(__APPLE__)
#include <xlocale.h>
#elif !defined(__cpp_lib_to_chars)
#include <locale.h>
#endif

namespace tidegate {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The length in bytes of the UTF-8 character at the beginning of the text; 0 if there is none.
// Overlong forms, surrogates and code points above U+10FFFF are refused (Unicode, table 3-7).
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const unsigned first = byte(0);
  const unsigned second = byte(1);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4 || !follows(1)) return 0;
  if (first < 0xE0) return 2;
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || !follows(2)) return 0;
  if (first < 0xF0) return 3;
  if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F) || !follows(3)) return 0;
  return 4;
}

// The length of the longest beginning of the text that is UTF-8.
std::size_t utf8_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t length = utf8_length(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

void append_utf8(unsigned code, std::string& out) {
  const auto add = [&](unsigned byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0 | code >> 6);
    add(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    add(0xE0 | code >> 12);
    add(0x80 | (code >> 6 & 0x3F));
    add(0x80 | (code & 0x3F));
  } else {
    add(0xF0 | code >> 18);
    add(0x80 | (code >> 12 & 0x3F));
    add(0x80 | (code >> 6 & 0x3F));
    add(0x80 | (code & 0x3F));
  }
}

#ifdef __cpp_lib_to_chars

// The power of ten of a number's first nonzero digit; 0 for zero. Its absolute value is limited to
// about INT_MAX / 2.
int decimal_exponent(std::string_view number) {
  constexpr int kMost = std::numeric_limits<int>::max() / 4;
  const std::size_t e = std::min(number.find_first_of("eE"), number.size());
  const std::string_view digits = number.substr(0, e);
  const std::size_t first = digits.find_first_of("123456789");
  if (first == digits.npos) return 0;
  const auto point = static_cast<std::ptrdiff_t>(std::min(digits.find('.'), digits.size()));
  std::ptrdiff_t power = point - static_cast<std::ptrdiff_t>(first);
  if (power > 0) --power;
  std::string_view exponent = number.substr(std::min(e + 1, number.size()));
  if (!exponent.empty() && exponent[0] == '+') exponent.remove_prefix(1);
  int written = 0;
  const auto result = std::from_chars(exponent.data(), exponent.data() + exponent.size(), written);
  if (result.ec == std::errc::result_out_of_range) written = exponent[0] == '-' ? -kMost : kMost;
  return static_cast<int>(std::clamp<std::ptrdiff_t>(power, -kMost, kMost)) +
         std::clamp(written, -kMost, kMost);
}

// The double nearest to a JSON number, regardless of the program's locale; infinite if it is too
// large.
double to_double(std::string_view number) {
  double value = 0;
  const auto result = std::from_chars(number.data(), number.data() + number.size(), value);
  if (result.ec != std::errc::result_out_of_range) return value;
  return decimal_exponent(number) < 0 ? 0 : std::numeric_limits<double>::infinity();
}

#else  // std::from_chars of libc++ before version 20 reads only integers

double to_double(std::string_view number) {
  static const locale_t classic = newlocale(LC_ALL_MASK, "C", nullptr);
  return strtod_l(std::string(number).c_str(), nullptr, classic);
}

#endif

}  // namespace

JsonReader::JsonReader(std::string_view text) : text_(text) {
  at_ = utf8_prefix(text);
  if (at_ < text.size()) fail("not UTF-8");
  at_ = 0;
}

void JsonReader::fail(const std::string& reason) const {
  std::string where = "byte " + std::to_string(at_);
  for (const std::string* key : keys_) where += ", " + quoted_name(*key);
  throw std::invalid_argument(where + ": " + reason);
}

void JsonReader::fail_wanted(const char* wanted) const {
  if (at_ >= text_.size()) fail(std::string("the text ends, wanted ") + wanted);
  const std::size_t length = utf8_length(text_.substr(at_));
  fail("got " + json_string(text_.substr(at_, length)) + ", wanted " + wanted);
}

void JsonReader::skip_space() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
    ++at_;
  }
}

bool JsonReader::at_string() {
  skip_space();
  return at_ < text_.size() && text_[at_] == '"';
}

void JsonReader::open(char bracket, const char* wanted) {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != bracket) fail_wanted(wanted);
  ++at_;
}

bool JsonReader::close_empty(char bracket) {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != bracket) return false;
  ++at_;
  return true;
}

bool JsonReader::another(char bracket) {
  skip_space();
  if (at_ >= text_.size() || (text_[at_] != ',' && text_[at_] != bracket))
    fail_wanted(bracket == '}' ? "',' or '}'" : "',' or ']'");
  return text_[at_++] == ',';
}

std::string JsonReader::new_key(std::set<std::string>& keys) {
  std::string key = string();
  if (!keys.insert(key).second) fail("the key " + quoted_name(key) + " is there twice");
  skip_space();
  if (at_ >= text_.size() || text_[at_] != ':') fail_wanted("':'");
  ++at_;
  return key;
}

std::string JsonReader::string() {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != '"') fail_wanted("a string");
  ++at_;
  std::string out;
  for (;;) {
    if (at_ >= text_.size()) fail("the text ends within a string");
    const char c = text_[at_];
    if (static_cast<unsigned char>(c) < 0x20) fail("a control character within a string");
    ++at_;
    if (c == '"') return out;
    if (c == '\\') {
      escape(out);
    } else {
      out += c;
    }
  }
}

void JsonReader::escape(std::string& out) {
  constexpr std::string_view kLetters = "\"\\/bfnrt";
  constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
  const char letter = at_ < text_.size() ? text_[at_] : '\0';
  ++at_;
  if (const std::size_t i = kLetters.find(letter); i != std::string_view::npos) {
    out += kMeanings[i];
    return;
  }
  if (letter != 'u') fail("an escape that JSON does not have");
  unsigned code = hex4();
  if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
    at_ += 2;
    const unsigned low = hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  } else if (code >= 0xD800 && code <= 0xDFFF) {
    fail("half of a surrogate pair");
  }
  append_utf8(code, out);
}

unsigned JsonReader::hex4() {
  const std::string_view digits = text_.substr(at_, 4);
  unsigned code = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
  if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4)
    fail("wanted four hexadecimal digits after \\u");
  at_ += 4;
  return code;
}

std::size_t JsonReader::digits() {
  const std::size_t begin = at_;
  while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
  return at_ - begin;
}

std::string_view JsonReader::number_text(const char* wanted) {
  skip_space();
  if (at_ >= text_.size() || (text_[at_] != '-' && !is_digit(text_[at_]))) fail_wanted(wanted);
  const std::size_t begin = at_;
  if (text_[at_] == '-') ++at_;
  const bool zero = at_ < text_.size() && text_[at_] == '0';
  const std::size_t whole = digits();
  if (whole == 0 || (zero && whole > 1)) fail("a number that JSON does not have");
  if (at_ < text_.size() && text_[at_] == '.') {
    ++at_;
    if (digits() == 0) fail("a number that JSON does not have");
  }
  if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
    ++at_;
    if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
    if (digits() == 0) fail("a number that JSON does not have");
  }
  return text_.substr(begin, at_ - begin);
}

std::int64_t JsonReader::integer() {
  const std::string_view number = number_text("an integer");
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
  if (error != std::errc() || end != number.data() + number.size())
    fail("got " + quoted_name(number) + ", wanted an integer of 64 bits");
  return value;
}

double JsonReader::number() {
  const std::string_view text = number_text("a number");
  const double value = to_double(text);
  if (!std::isfinite(value))
    fail("got " + quoted_name(text) + ", wanted a number that a double can hold");
  return value;
}

bool JsonReader::word(std::string_view expected) {
  if (text_.substr(at_, expected.size()) != expected) return false;
  at_ += expected.size();
  return true;
}

bool JsonReader::boolean() {
  skip_space();
  if (word("true")) return true;
  if (word("false")) return false;
  fail_wanted("true or false");
}

void JsonReader::end() {
  skip_space();
  if (at_ < text_.size()) fail_wanted("the end of the text");
}

std::string json_string(std::string_view text) {
  if (utf8_prefix(text) < text.size()) throw std::invalid_argument("got a text that is not UTF-8");
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      out += "\\u00";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string json_number(double value) {
  char text[std::numeric_limits<double>::max_digits10 + 16];
  const std::to_chars_result result = std::to_chars(text, text + sizeof text, value);
  return {text, result.ptr};
}

std::string as_utf8(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t good = utf8_prefix(text);
    out += text.substr(0, good);
    text.remove_prefix(good);
    if (text.empty()) break;
    out += '?';
    text.remove_prefix(1);
  }
  return out;
}

std::string size_list(const std::vector<std::int64_t>& sizes) {
  constexpr std::size_t kMost = 10;
  std::string text = "[";
  for (std::size_t i = 0; i < std::min(sizes.size(), kMost); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return text + (sizes.size() > kMost ? ", ...]" : "]");
}

std::string quoted_name(std::string_view name) {
  constexpr std::size_t kMost = 100;
  if (name.size() <= kMost) return json_string(as_utf8(name));
  // Cut at the boundaries of characters.
  const auto is_inside = [&](std::size_t i) {
    return (static_cast<unsigned char>(name[i]) & 0xC0) == 0x80;
  };
  std::size_t head = kMost / 2, tail = name.size() - kMost / 2;
  while (head > 0 && is_inside(head)) --head;
  while (tail < name.size() && is_inside(tail)) ++tail;
  return json_string(as_utf8(name.substr(0, head)) + " ... " + as_utf8(name.substr(tail)));
}

}  // namespace tidegate
