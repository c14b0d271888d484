// The Python type Bank, and the two ways to come by one.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "bank.h"

namespace vokenray {

// Makes the type and adds it to the module. False with a Python error set.
bool add_bank_type(PyObject* module);

// The bank of a Python object, or null with a Python error set.
const Bank* bank_of(PyObject* module, PyObject* object);

bool kind_named(const char* name, Kind* kind);
PyObject* py_pack(PyObject* module, PyObject* args);
PyObject* py_restore(PyObject* module, PyObject* args);

}  // namespace vokenray
