// Arrays from Python through the buffer protocol, and how the module refuses.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "rows.h"

namespace vokenray {

inline PyObject* refuse(const std::string& why) {
  PyErr_SetString(PyExc_ValueError, why.c_str());
  return nullptr;
}

// What an array may hold: the format characters of its numbers, and how to say that.
struct Numbers {
  const char* formats;
  const char* name;
};
constexpr Numbers kFloat32 = {"f", "float32"};
constexpr Numbers kInt64 = {"lq", "int64"};
constexpr Numbers kAnyFloat = {"feH", "float32, float16 or uint16 (the bits of bfloat16)"};

inline Py_ssize_t size_of(char format) { return std::strchr("eH", format) ? 2 : format == 'f' ? 4 : 8; }

// A C-contiguous, aligned buffer of one item type, released when it goes out of scope. Sets a Python error on failure.
class Buffer {
 public:
  Buffer(PyObject* object, const char* name, Numbers numbers, int dimensions, bool writable) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &view_, flags) != 0) return;
    held_ = true;
    const char* format = view_.format ? view_.format : "B";
    if (*format == '@' || *format == '=') ++format;
    const bool right_kind = *format && std::strchr(numbers.formats, *format) && format[1] == 0;
    ok_ = right_kind && view_.itemsize == size_of(*format) && view_.ndim == dimensions &&
          reinterpret_cast<uintptr_t>(view_.buf) % static_cast<uintptr_t>(view_.itemsize) == 0;
    format_ = *format;
    if (!ok_) {
      PyErr_Format(PyExc_ValueError, "%s must be an aligned, C-contiguous array of %d dimensions and type %s", name,
                   dimensions, numbers.name);
    }
  }
  ~Buffer() {
    if (held_) PyBuffer_Release(&view_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  explicit operator bool() const { return ok_; }
  Py_ssize_t shape(int axis) const { return view_.shape[axis]; }
  template <class Item>
  Item* data() const {
    return static_cast<Item*>(view_.buf);
  }
  Rows rows() const {
    const Number number = format_ == 'f' ? Number::float32 : format_ == 'e' ? Number::float16 : Number::bfloat16;
    return {view_.buf, number, shape(0), shape(1)};
  }

 private:
  Py_buffer view_ = {};
  bool held_ = false, ok_ = false;
  char format_ = 0;
};

}  // namespace vokenray
