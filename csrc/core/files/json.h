// JSON (RFC 8259), as far as files and options need it: a reader that reads value by value and
// builds no tree, and the writing of strings and numbers. Nothing about tensors or layers.
#ifndef TIDEGATE_CORE_FILES_JSON_H_
#define TIDEGATE_CORE_FILES_JSON_H_

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace tidegate {

// Reads one text from beginning to end: call the function for the value that must come next.
// Strict: UTF-8, no comments, no trailing commas, no duplicate keys. No value can be skipped, so
// the depth of nesting is limited by the caller, not by the text. Every error is a
// std::invalid_argument that gives the byte and the keys of the value.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text);

  bool at_string();  // whether a string comes next
  std::string string();
  std::int64_t integer();  // of 64 bits, without fraction or exponent
  double number();         // finite
  bool boolean();
  void end();  // only white space may follow

  // Calls member(key) for each member, which must read its value.
  template <class Member>
  void object(const Member& member) {
    open('{', "an object");
    if (!close_empty('}')) {
      std::set<std::string> keys;
      do {
        const std::string key = new_key(keys);
        keys_.push_back(&key);
        member(key);
        keys_.pop_back();
      } while (another('}'));
    }
  }

  // Calls element() for each element, which must read it.
  template <class Element>
  void array(const Element& element) {
    open('[', "an array");
    if (!close_empty(']')) {
      do {
        element();
      } while (another(']'));
    }
  }

  // Throws the error of the value that was just read.
  [[noreturn]] void fail(const std::string& reason) const;

 private:
  void open(char bracket, const char* wanted);
  bool close_empty(char bracket);
  bool another(char bracket);
  std::string new_key(std::set<std::string>& keys);
  void skip_space();
  [[noreturn]] void fail_wanted(const char* wanted) const;
  std::string_view number_text(const char* wanted);
  std::size_t digits();
  unsigned hex4();
  void escape(std::string& out);
  bool word(std::string_view expected);

  std::string_view text_;
  std::size_t at_ = 0;
  std::vector<const std::string*> keys_;  // of the values that are being read, outermost first
};

// The text as a JSON string, with quotes. Control characters are escaped. Throws
// std::invalid_argument if the text is not UTF-8.
std::string json_string(std::string_view text);
// The shortest text from which this finite number is read back.
std::string json_number(double value);

// The text with a question mark for each byte that is not UTF-8, as paths may contain.
std::string as_utf8(std::string_view text);

// A name or a list of sizes from a file, as JSON for messages; a long one is abbreviated.
std::string quoted_name(std::string_view name);
std::string size_list(const std::vector<std::int64_t>& sizes);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FILES_JSON_H_
