// JSON (RFC 8259), as far as files and options need it: read value by value, with no tree in
// memory, and the few texts that are written. Nothing of tensors or layers.
#ifndef TIDEGATE_CORE_FILES_JSON_H_
#define TIDEGATE_CORE_FILES_JSON_H_

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace tidegate {

// Reads one text in the order in which it is written: ask for the value that must come next.
// Strict: UTF-8, no comments, no trailing commas, no key twice. Nothing is skipped, so that the
// caller, not the text, says how deep it nests. Every failure is a std::invalid_argument that says
// where: at which byte, in the value of which keys.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text);

  bool at_string();  // whether a string comes next
  std::string string();
  std::int64_t integer();  // without fraction or exponent, that fits
  double number();         // that is finite
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

  // For the caller too: what is wrong with the value that was just read.
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
  std::vector<const std::string*> keys_;  // whose value is being read
};

// The text as a JSON string, quotes included: ASCII and UTF-8 as they are, control characters
// escaped. std::invalid_argument if it is not UTF-8.
std::string json_string(std::string_view text);
// The shortest text that reads as this finite number.
std::string json_number(double value);

// The text with a question mark for each byte that is not UTF-8: paths may be anything.
std::string as_utf8(std::string_view text);

// From a file, for messages: as JSON, but a part left out where it is long.
std::string shown(std::string_view name);
std::string shown(const std::vector<std::int64_t>& sizes);

}  // namespace tidegate

#endif  // TIDEGATE_CORE_FILES_JSON_H_
