// The Python module _vokenray_search: pack a bank of keys, search it. Arrays come and go through the buffer protocol.
// Nothing is kept between calls but the banks that the caller holds; the interpreter lock is released while working.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "exact.h"
#include "search.h"

namespace {

using vokenray::Bank;
using vokenray::Kernels;
using vokenray::Kind;

constexpr const char* kBankName = "_vokenray_search.bank";

// A C-contiguous, aligned buffer of one item type, released when it goes out of scope. A Python error is set on failure.
class Buffer {
 public:
  Buffer(PyObject* object, const char* name, char kind, Py_ssize_t item, int dimensions, bool writable) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &view_, flags) != 0) return;
    held_ = true;
    const char* format = view_.format ? view_.format : "B";
    if (*format == '@' || *format == '=') ++format;
    const bool is_integer = std::strchr("lq", *format) != nullptr && *format;
    const bool right_kind = kind == 'f' ? *format == 'f' : is_integer;
    const bool aligned = reinterpret_cast<uintptr_t>(view_.buf) % static_cast<uintptr_t>(item) == 0;
    ok_ = right_kind && format[1] == 0 && view_.itemsize == item && view_.ndim == dimensions && aligned;
    if (!ok_) {
      PyErr_Format(PyExc_ValueError, "%s must be an aligned, C-contiguous array of %d dimensions and type %s", name,
                   dimensions, kind == 'f' ? "float32" : "int64");
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

 private:
  Py_buffer view_ = {};
  bool held_ = false, ok_ = false;
};

PyObject* refuse(const std::string& why) {
  PyErr_SetString(PyExc_ValueError, why.c_str());
  return nullptr;
}

const Kernels* kernels_named(const std::string& name) {
  if (name == "portable") return &vokenray::portable_kernels();
  if (name == "avx512") return vokenray::avx512_kernels();
  if (name == "amx") return vokenray::amx_kernels();
  return nullptr;
}

bool kind_named(const char* name, Kind* kind) {
  if (std::strcmp(name, "int8") == 0) return *kind = Kind::int8, true;
  if (std::strcmp(name, "bf16") == 0) return *kind = Kind::bf16, true;
  refuse(std::string("kind must be int8 or bf16, got ") + name);
  return false;
}

void free_bank(PyObject* capsule) { delete static_cast<Bank*>(PyCapsule_GetPointer(capsule, kBankName)); }

PyObject* py_instruction_sets(PyObject*, PyObject* args) {
  const char* name;
  Kind kind;
  if (!PyArg_ParseTuple(args, "s", &name) || !kind_named(name, &kind)) return nullptr;
  PyObject* found = PyList_New(0);
  if (!found) return nullptr;
  for (const char* set : {"portable", "avx512", "amx"}) {
    const Kernels* kernels = kernels_named(set);
    if (!kernels || !(kind == Kind::int8 ? kernels->int8 : kernels->bf16)) continue;
    PyObject* text = PyUnicode_FromString(set);
    const int failed = text ? PyList_Append(found, text) : -1;
    Py_XDECREF(text);
    if (failed) {
      Py_DECREF(found);
      return nullptr;
    }
  }
  PyObject* names = PyList_AsTuple(found);
  Py_DECREF(found);
  return names;
}

PyObject* py_pack(PyObject*, PyObject* args) {
  PyObject* keys_object;
  const char* name;
  Kind kind;
  if (!PyArg_ParseTuple(args, "Os", &keys_object, &name) || !kind_named(name, &kind)) return nullptr;
  Buffer keys(keys_object, "keys", 'f', 4, 2, false);
  if (!keys) return nullptr;
  if (keys.shape(0) < 1 || keys.shape(1) < 1) return refuse("keys must have at least one row and one column");
  if (keys.shape(0) > INT32_MAX - vokenray::kBlock) return refuse("keys must have fewer than 2^31 rows; use shards");
  if (keys.shape(1) > (kind == Kind::int8 ? vokenray::kWidestInt8 : 1 << 24)) return refuse("keys are too wide");
  std::unique_ptr<Bank> bank;
  bool no_memory = false;
  Py_BEGIN_ALLOW_THREADS;
  try {
    bank = vokenray::pack(keys.data<const float>(), keys.shape(0), keys.shape(1), kind);
  } catch (const std::exception&) {
    no_memory = true;
  }
  Py_END_ALLOW_THREADS;
  if (no_memory) return PyErr_NoMemory();
  PyObject* capsule = PyCapsule_New(bank.get(), kBankName, free_bank);
  if (capsule) bank.release();
  return capsule;
}

PyObject* py_search(PyObject*, PyObject* args) {
  PyObject *capsule, *keys_object, *queries_object, *scores_object, *ids_object;
  int threads;
  const char* set;
  if (!PyArg_ParseTuple(args, "OOOisOO", &capsule, &keys_object, &queries_object, &threads, &set, &scores_object,
                        &ids_object)) {
    return nullptr;
  }
  const auto* bank = static_cast<const Bank*>(PyCapsule_GetPointer(capsule, kBankName));
  if (!bank) return nullptr;
  Buffer keys(keys_object, "keys", 'f', 4, 2, false);
  if (!keys) return nullptr;
  Buffer queries(queries_object, "queries", 'f', 4, 2, false);
  if (!queries) return nullptr;
  Buffer scores(scores_object, "scores", 'f', 4, 2, true);
  if (!scores) return nullptr;
  Buffer ids(ids_object, "ids", 'q', 8, 2, true);
  if (!ids) return nullptr;
  const Kernels* kernels = kernels_named(set);
  if (!kernels || !(bank->kind == Kind::int8 ? kernels->int8 : kernels->bf16)) {
    return refuse(std::string("this machine has no instruction set ") + set + " for this bank");
  }
  const int64_t k = scores.shape(1);
  if (keys.shape(0) != bank->count || keys.shape(1) != bank->width) return refuse("keys are not those of the bank");
  if (queries.shape(1) != bank->width) return refuse("queries are of another width than the keys");
  if (scores.shape(0) != queries.shape(0) || ids.shape(0) != queries.shape(0) || ids.shape(1) != k) {
    return refuse("scores and ids must be (queries, k)");
  }
  if (k < 1 || k > bank->count) return refuse("k must be between 1 and the number of keys");
  if (threads < 1 || threads > 4096) return refuse("threads must be between 1 and 4096");
  vokenray::Counts counts;
  std::string failure;
  Py_BEGIN_ALLOW_THREADS;
  try {
    counts = vokenray::search(*bank, keys.data<const float>(), queries.data<const float>(), queries.shape(0), k,
                              threads, *kernels, scores.data<float>(), ids.data<int64_t>());
  } catch (const std::exception& error) {
    failure = error.what();
  }
  Py_END_ALLOW_THREADS;
  if (!failure.empty()) {
    PyErr_Format(PyExc_RuntimeError, "native search failed: %s", failure.c_str());
    return nullptr;
  }
  return Py_BuildValue("(LLLL)", static_cast<long long>(counts.candidates), static_cast<long long>(counts.rescored),
                       static_cast<long long>(counts.exact_sums), static_cast<long long>(counts.fallbacks));
}

PyObject* py_exact_product(PyObject*, PyObject* args) {
  PyObject *left_object, *right_object;
  if (!PyArg_ParseTuple(args, "OO", &left_object, &right_object)) return nullptr;
  Buffer left(left_object, "left", 'f', 4, 1, false);
  if (!left) return nullptr;
  Buffer right(right_object, "right", 'f', 4, 1, false);
  if (!right) return nullptr;
  if (left.shape(0) != right.shape(0)) return refuse("vectors must have one width");
  const auto* a = left.data<const float>();
  return PyFloat_FromDouble(vokenray::exact_product(a, right.data<const float>(), left.shape(0)));
}

PyMethodDef methods[] = {
    {"instruction_sets", py_instruction_sets, METH_VARARGS,
     "instruction_sets(kind) -> tuple of names that this machine can scan int8 or bf16 with, fastest last."},
    {"pack", py_pack, METH_VARARGS, "pack(keys (N, D) float32, kind) -> bank, for search."},
    {"search", py_search, METH_VARARGS,
     "search(bank, keys, queries (Q, D), threads, instruction_set, scores (Q, k), ids (Q, k)) -> (candidates, rescored, "
     "exact sums, fallbacks). Fills scores and ids."},
    {"exact_product", py_exact_product, METH_VARARGS,
     "exact_product(left (D,), right (D,)) -> the exact inner product, rounded to float32."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_vokenray_search", "Certified exact search in low precision.", 0,
                          methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__vokenray_search() { return PyModule_Create(&definition); }
