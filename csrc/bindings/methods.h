// Methods of bound classes without pybind11's dispatcher. For one keyword, the dispatcher takes as
// long as a small step (0.3 us), and its error message for a wrong call prints every argument.
#ifndef TIDEGATE_BINDINGS_METHODS_H_
#define TIDEGATE_BINDINGS_METHODS_H_

#include <cstddef>
#include <type_traits>
#include <utility>

#include "module.h"

namespace tidegate::bindings {

// A parameter of a method, other than self.
struct MethodParameter {
  const char* name;
  py::object default_value{};  // null: the caller must give a value
  bool keyword_only = false;   // keyword-only parameters are the last ones
};

// The parameters of a method, and the parser of its arguments. Its Python objects are never freed.
template <std::size_t count>
class MethodParameters {
 public:
  using Values = PyObject* [count];

  void set(const char* method, const MethodParameter (&parameters)[count]) {
    method_ = method;
    positional_ = 0;
    for (std::size_t i = 0; i < count; ++i) {
      // Interned, like the keywords that Python code passes, so that find() can compare pointers.
      names_[i] = PyUnicode_InternFromString(parameters[i].name);
      if (names_[i] == nullptr) throw py::error_already_set();
      defaults_[i] = py::object(parameters[i].default_value).release().ptr();
      if (!parameters[i].keyword_only) ++positional_;
    }
  }

  // Writes the arguments of a call, positional or by keyword, to `values` in the order of the
  // parameters. Returns false, with a TypeError set, if the arguments are wrong.
  bool parse(PyObject* const* args, Py_ssize_t positional, PyObject* keywords,
             Values& values) const {
    if (positional > positional_) {
      PyErr_Format(PyExc_TypeError,
                   "%s() takes at most %zd positional argument%s, but %zd were given", method_,
                   positional_, positional_ == 1 ? "" : "s", positional);
      return false;
    }
    // Loops of constant length, because their time counts in a small step.
    for (std::size_t i = 0; i < count; ++i)
      values[i] = static_cast<Py_ssize_t>(i) < positional ? args[i] : defaults_[i];
    const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
    for (Py_ssize_t k = 0; k < named; ++k) {
      PyObject* const name = PyTuple_GET_ITEM(keywords, k);
      const std::size_t i = find(name);
      if (i == count) {
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", method_,
                     name);
        return false;
      }
      if (static_cast<Py_ssize_t>(i) < positional) {
        PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'", method_, name);
        return false;
      }
      values[i] = args[positional + k];
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (values[i] != nullptr) continue;
      PyErr_Format(PyExc_TypeError, "%s() missing the argument '%U'", method_, names_[i]);
      return false;
    }
    return true;
  }

 private:
  // The index of the parameter with this name, or `count` if there is none.
  std::size_t find(PyObject* name) const {
    for (std::size_t i = 0; i < count; ++i) {
      if (names_[i] == name) return i;
    }
    std::size_t i = 0;
    while (i < count && PyUnicode_Compare(name, names_[i]) != 0) ++i;
    return i;
  }

  const char* method_ = nullptr;
  Py_ssize_t positional_ = 0;
  PyObject* names_[count] = {};
  PyObject* defaults_[count] = {};
};

// The class, the result and the number of parameters of a member function.
template <class>
struct Member;
template <class R, class T, class... Arguments>
struct Member<R (T::*)(Arguments...)> {
  using Class = T;
  using Result = R;
  static constexpr std::size_t count = sizeof...(Arguments);
};
template <class R, class T, class... Arguments>
struct Member<R (T::*)(Arguments...) const> : Member<R (T::*)(Arguments...)> {};

// The function that Python calls for a member function, whose parameters are all py::handle.
template <auto member>
struct Method {
  using T = typename Member<decltype(member)>::Class;
  using Result = typename Member<decltype(member)>::Result;
  static constexpr std::size_t count = Member<decltype(member)>::count;

  static inline MethodParameters<count> parameters;
  static inline PyMethodDef definition;

  static PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t positional,
                        PyObject* keywords) {
    PyObject* values[count];
    if (!parameters.parse(args, positional, keywords, values)) return nullptr;
    try {
      return invoke(object(self), values, std::make_index_sequence<count>());
    } catch (...) {
      py::detail::try_translate_exceptions();
      return nullptr;
    }
  }

 private:
  static T& object(PyObject* self) {
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    // Python has checked that self is a T, possibly of a class with several bases.
    auto* const plain = instance->simple_layout
                            ? static_cast<T*>(instance->get_value_and_holder().value_ptr())
                            : nullptr;
    return plain != nullptr ? *plain : py::handle(self).cast<T&>();  // cast() may throw
  }

  template <std::size_t... i>
  static PyObject* invoke(T& self, PyObject* const (&values)[count], std::index_sequence<i...>) {
    if constexpr (std::is_void_v<Result>) {
      (self.*member)(values[i]...);
      return py::none().release().ptr();
    } else {
      return (self.*member)(values[i]...).release().ptr();
    }
  }
};

// Adds a method to a bound class. `doc` begins with its signature, "name($self, x)\n--\n\n". `name`
// and `doc` must outlive the class.
template <auto member>
void add_method(py::class_<typename Method<member>::T>& bound, const char* name, const char* doc,
                const MethodParameter (&parameters)[Method<member>::count]) {
  using M = Method<member>;
  M::parameters.set(name, parameters);
  M::definition = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&M::call)),
                   METH_FASTCALL | METH_KEYWORDS, doc};
  PyObject* const descriptor =
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(bound.ptr()), &M::definition);
  if (descriptor == nullptr) throw py::error_already_set();
  bound.attr(name) = py::reinterpret_steal<py::object>(descriptor);
}

}  // namespace tidegate::bindings

#endif  // TIDEGATE_BINDINGS_METHODS_H_
