// The Python module _vokenray_search: pack a bank of keys, search it. Arrays come and go through the buffer protocol.
// Nothing is kept between calls but the banks that the caller holds; the interpreter lock is released while working.
#include <array>
#include <exception>
#include <string>

#include "exact.h"
#include "py_bank.h"
#include "py_buffer.h"
#include "search.h"

namespace {

using vokenray::Bank;
using vokenray::Buffer;
using vokenray::kAnyFloat;
using vokenray::kFloat32;
using vokenray::kInt64;
using vokenray::Kernels;
using vokenray::Kind;
using vokenray::refuse;

// Slowest first; null where this machine lacks it.
std::array<const Kernels*, 5> all_kernels() {
  return {&vokenray::portable_kernels(), vokenray::avx2_kernels(), vokenray::avx_vnni_kernels(),
          vokenray::avx512_kernels(), vokenray::amx_kernels()};
}

const vokenray::Scans& scans_of(const Kernels& kernels, Kind kind) {
  return kind == Kind::int8 ? kernels.int8 : kernels.bf16;
}

const Kernels* kernels_named(const std::string& name, Kind kind) {
  for (const Kernels* kernels : all_kernels()) {
    if (kernels && name == kernels->name && scans_of(*kernels, kind).scan) return kernels;
  }
  return nullptr;
}

PyObject* py_instruction_sets(PyObject*, PyObject* args) {
  const char* name;
  Kind kind;
  if (!PyArg_ParseTuple(args, "s", &name) || !vokenray::kind_named(name, &kind)) return nullptr;
  PyObject* found = PyList_New(0);
  if (!found) return nullptr;
  for (const Kernels* kernels : all_kernels()) {
    if (!kernels || !scans_of(*kernels, kind).scan) continue;
    PyObject* text = PyUnicode_FromString(kernels->name);
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

PyObject* py_search(PyObject* module, PyObject* args) {
  PyObject *bank_object, *keys_object, *queries_object, *scores_object, *ids_object;
  int threads;
  const char* set;
  if (!PyArg_ParseTuple(args, "OOOisOO", &bank_object, &keys_object, &queries_object, &threads, &set, &scores_object,
                        &ids_object)) {
    return nullptr;
  }
  const Bank* bank = vokenray::bank_of(module, bank_object);
  if (!bank) return nullptr;
  Buffer keys(keys_object, "keys", kAnyFloat, 2, false);
  if (!keys) return nullptr;
  Buffer queries(queries_object, "queries", kFloat32, 2, false);
  if (!queries) return nullptr;
  Buffer scores(scores_object, "scores", kFloat32, 2, true);
  if (!scores) return nullptr;
  Buffer ids(ids_object, "ids", kInt64, 2, true);
  if (!ids) return nullptr;
  const Kernels* kernels = kernels_named(set, bank->kind);
  if (!kernels) return refuse(std::string("this machine has no instruction set ") + set + " for this bank");
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
    counts = vokenray::search(*bank, keys.rows(), queries.data<const float>(), queries.shape(0), k, threads, *kernels,
                              scores.data<float>(), ids.data<int64_t>());
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
  Buffer left(left_object, "left", kFloat32, 1, false);
  if (!left) return nullptr;
  Buffer right(right_object, "right", kFloat32, 1, false);
  if (!right) return nullptr;
  if (left.shape(0) != right.shape(0)) return refuse("vectors must have one width");
  const auto* a = left.data<const float>();
  return PyFloat_FromDouble(vokenray::exact_product(a, right.data<const float>(), left.shape(0)));
}

PyMethodDef methods[] = {
    {"instruction_sets", py_instruction_sets, METH_VARARGS,
     "instruction_sets(kind) -> tuple of names that this machine can scan banks of a kind with, fastest last."},
    {"pack", vokenray::py_pack, METH_VARARGS,
     "pack(keys (N, D), kind) -> Bank, for search. Keys are float32, float16, or uint16: the bits of bfloat16."},
    {"restore", vokenray::py_restore, METH_VARARGS,
     "restore(header bytes, tiles) -> Bank of another bank's header() and tiles. The tiles are used where they lie, "
     "which must be a multiple of 64 bytes."},
    {"search", py_search, METH_VARARGS,
     "search(bank, keys, queries (Q, D), threads, instruction_set, scores (Q, k), ids (Q, k)) -> (candidates, "
     "rescored, exact sums, fallbacks). Fills scores and ids."},
    {"exact_product", py_exact_product, METH_VARARGS,
     "exact_product(left (D,), right (D,)) -> the exact inner product, rounded to float32."},
    {nullptr, nullptr, 0, nullptr}};

void clear(void* module) { Py_CLEAR(*static_cast<PyObject**>(PyModule_GetState(static_cast<PyObject*>(module)))); }

int fill(PyObject* module) { return vokenray::add_bank_type(module) ? 0 : -1; }

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(fill)}, {0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_vokenray_search", "Certified exact search in low precision.",
                          sizeof(PyTypeObject*), methods, slots, nullptr, nullptr, clear};

}  // namespace

PyMODINIT_FUNC PyInit__vokenray_search() { return PyModuleDef_Init(&definition); }
