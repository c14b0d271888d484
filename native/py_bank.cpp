#include "py_bank.h"

#include <exception>
#include <new>

#include "py_buffer.h"

namespace vokenray {
namespace {

struct PyBank {
  PyObject_HEAD
  Bank* bank;
  Py_buffer kept;  // the tiles of a restored bank; no object otherwise
};

Bank& bank_in(PyObject* self) { return *reinterpret_cast<PyBank*>(self)->bank; }

void free_bank(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  auto* held = reinterpret_cast<PyBank*>(self);
  delete held->bank;
  if (held->kept.obj) PyBuffer_Release(&held->kept);
  PyObject_Free(self);
  Py_DECREF(type);
}

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  const Bank& bank = bank_in(self);
  return PyBuffer_FillInfo(view, self, const_cast<uint8_t*>(bank.tiles), static_cast<Py_ssize_t>(bank.tile_bytes()), 1,
                           flags);
}

PyObject* py_header(PyObject* self, PyObject*) {
  try {
    const std::string header = write_header(bank_in(self));
    return PyBytes_FromStringAndSize(header.data(), static_cast<Py_ssize_t>(header.size()));
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyObject* get_tiles(PyObject* self, void*) { return PyMemoryView_FromObject(self); }
PyObject* get_count(PyObject* self, void*) { return PyLong_FromLongLong(bank_in(self).count); }
PyObject* get_width(PyObject* self, void*) { return PyLong_FromLongLong(bank_in(self).width); }
PyObject* get_kind(PyObject* self, void*) { return PyUnicode_FromString(kind_name(bank_in(self).kind)); }

PyMethodDef methods[] = {
    {"header", py_header, METH_NOARGS, "header() -> bytes: all of the bank but its tiles, for restore."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef attributes[] = {
    {"tiles", get_tiles, nullptr, "A read-only view of the packed keys, in place.", nullptr},
    {"count", get_count, nullptr, "Number of keys.", nullptr},
    {"width", get_width, nullptr, "Width of a key.", nullptr},
    {"kind", get_kind, nullptr, "How keys are rounded.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(free_bank)},
                       {Py_tp_methods, methods},
                       {Py_tp_getset, attributes},
                       {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
                       {Py_tp_doc, const_cast<char*>("A packed bank of keys, made by pack or restore.")},
                       {0, nullptr}};

PyType_Spec spec = {"_vokenray_search.Bank", sizeof(PyBank), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

PyTypeObject* bank_type(PyObject* module) { return *static_cast<PyTypeObject**>(PyModule_GetState(module)); }

// Takes the bank, and the view of its tiles if that has an object, whether or not it succeeds.
PyObject* wrap(PyObject* module, std::unique_ptr<Bank> bank, Py_buffer* kept) {
  PyTypeObject* type = bank_type(module);
  auto* self = PyObject_New(PyBank, type);
  if (!self) {
    if (kept) PyBuffer_Release(kept);
    return nullptr;
  }
  self->bank = bank.release();
  self->kept = kept ? *kept : Py_buffer{};
  return reinterpret_cast<PyObject*>(self);
}

}  // namespace

bool add_bank_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&spec);
  if (!type) return false;
  *static_cast<PyTypeObject**>(PyModule_GetState(module)) = reinterpret_cast<PyTypeObject*>(type);
  return PyModule_AddObjectRef(module, "Bank", type) == 0;
}

const Bank* bank_of(PyObject* module, PyObject* object) {
  if (Py_TYPE(object) == bank_type(module)) return &bank_in(object);
  refuse("expected a bank made by pack or restore");
  return nullptr;
}

bool kind_named(const char* name, Kind* kind) {
  for (Kind known : kKinds) {
    if (std::strcmp(name, kind_name(known)) == 0) return *kind = known, true;
  }
  refuse(std::string("kind must be int8, bf16 or split, got ") + name);
  return false;
}

PyObject* py_pack(PyObject* module, PyObject* args) {
  PyObject* keys_object;
  const char* name;
  Kind kind;
  if (!PyArg_ParseTuple(args, "Os", &keys_object, &name) || !kind_named(name, &kind)) return nullptr;
  Buffer keys(keys_object, "keys", kAnyFloat, 2, false);
  if (!keys) return nullptr;
  if (keys.shape(0) < 1 || keys.shape(1) < 1) return refuse("keys must have at least one row and one column");
  if (keys.shape(0) > kMostKeys) return refuse("keys must have fewer than 2^31 rows; use shards");
  if (keys.shape(1) > widest(kind)) return refuse("keys are too wide");
  std::unique_ptr<Bank> bank;
  Py_BEGIN_ALLOW_THREADS;
  try {
    bank = pack(keys.rows(), kind);
  } catch (const std::exception&) {  // of memory, or of lengths beyond it
  }
  Py_END_ALLOW_THREADS;
  return bank ? wrap(module, std::move(bank), nullptr) : PyErr_NoMemory();
}

PyObject* py_restore(PyObject* module, PyObject* args) {
  const char* bytes;
  Py_ssize_t size;
  PyObject* tiles_object;
  if (!PyArg_ParseTuple(args, "y#O", &bytes, &size, &tiles_object)) return nullptr;
  Py_buffer tiles;
  if (PyObject_GetBuffer(tiles_object, &tiles, PyBUF_SIMPLE) != 0) return nullptr;
  std::unique_ptr<Bank> bank;
  try {
    bank = restore(std::string(bytes, static_cast<size_t>(size)), static_cast<const uint8_t*>(tiles.buf),
                   static_cast<size_t>(tiles.len));
  } catch (const std::invalid_argument& error) {
    refuse(error.what());
  } catch (const std::exception&) {
    PyErr_NoMemory();
  }
  if (bank) return wrap(module, std::move(bank), &tiles);
  PyBuffer_Release(&tiles);
  return nullptr;
}

}  // namespace vokenray
