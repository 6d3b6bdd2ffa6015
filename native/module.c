/* Python's side of native/: memdec_edge._native, described in memdec_edge/_native.pyi.
 *
 * Checks what comes in, releases the GIL around the arithmetic, and hands out the addresses that llama.cpp calls.
 * Wrong arguments are TypeError and ValueError, numbers that are no distribution FloatingPointError.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "abort.h"
#include "fusion.h"
#include "sampler.h"

#define STATE_NAME "memdec_edge._native.sampler"

/* --- arguments ------------------------------------------------------------------------------------------------ */

static int is_float32(const char *format) {
    const uint16_t one = 1;
    const int little = *(const unsigned char *)&one == 1;
    if (format == NULL) return 0;
    if (*format == '@' || *format == '=' || *format == (little ? '<' : '>')) format++;
    return strcmp(format, "f") == 0;
}

/* A one-dimensional C-contiguous float32 buffer of at least one element. */
static int get_row(PyObject *object, const char *what, int flags, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | flags) < 0) return -1;
    if (!is_float32(view->format) || view->itemsize != (Py_ssize_t)sizeof(float)) {
        PyErr_Format(PyExc_TypeError, "%s must hold float32, not format '%s'", what, view->format ? view->format : "B");
    } else if (view->ndim != 1 || view->len == 0) {
        PyErr_Format(PyExc_ValueError, "%s must have one dimension and at least one element", what);
    } else if ((uintptr_t)view->buf % sizeof(float) != 0) {
        PyErr_Format(PyExc_ValueError, "%s must be aligned to 4 bytes", what);
    } else {
        return 0;
    }
    PyBuffer_Release(view);
    return -1;
}

static int get_number(PyObject *sequence, Py_ssize_t index, const char *what, double low, double high, double *value) {
    PyObject *item = PySequence_GetItem(sequence, index);
    if (item == NULL) return -1;
    *value = PyFloat_AsDouble(item);
    Py_DECREF(item);
    if (*value == -1.0 && PyErr_Occurred()) return -1;
    if (*value >= low && *value <= high) return 0;
    PyErr_Format(PyExc_ValueError, "%s %zd is out of range", what, index);
    return -1;
}

/* rows[1 ..]: weights and temperatures. The number of rows, the base among them, or -1. */
static Py_ssize_t get_mixture(PyObject *weights, PyObject *temperatures, md_row *rows) {
    const Py_ssize_t n = PySequence_Size(weights), n_temperatures = PySequence_Size(temperatures);
    double sum = 0.0;
    if (n < 0 || n_temperatures < 0) return -1;
    if (n != n_temperatures || n >= MD_MAX_ROWS) {
        PyErr_Format(PyExc_ValueError, "%zd weights and %zd temperatures for at most %d memories", n, n_temperatures,
                     MD_MAX_ROWS - 1);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n; k++) {
        if (get_number(weights, k, "weight", 0.0, 1.0, &rows[k + 1].weight) < 0) return -1;
        if (get_number(temperatures, k, "temperature", MD_COLDEST, MD_HOTTEST, &rows[k + 1].temperature) < 0) return -1;
        sum += rows[k + 1].weight;
    }
    if (sum > 1.0 + 1e-6) {
        PyErr_SetString(PyExc_ValueError, "the weights sum to more than 1");
        return -1;
    }
    rows[0].weight = 0.0;
    rows[0].temperature = 1.0;
    return n + 1;
}

static PyObject *stats_tuple(const md_stats *stats) {
    return Py_BuildValue("(ddd)", stats->maximum, stats->lse, stats->entropy);
}

static PyObject *bad_numbers(void) {
    PyErr_SetString(PyExc_FloatingPointError, "a row holds NaN or +infinity, or no finite logit");
    return NULL;
}

/* --- the mixture ---------------------------------------------------------------------------------------------- */

static int overlap(const Py_buffer *a, const Py_buffer *b) {
    const uintptr_t p = (uintptr_t)a->buf, q = (uintptr_t)b->buf;
    return p < q + (uintptr_t)b->len && q < p + (uintptr_t)a->len;
}

static PyObject *mix(md_row *rows, const Py_buffer *views, Py_ssize_t n_rows, const Py_buffer *out) {
    md_stats stats[MD_MAX_ROWS];
    md_status status;
    for (Py_ssize_t k = 0; k < n_rows; k++) {
        if (overlap(&views[k], out)) {
            PyErr_SetString(PyExc_ValueError, "out overlaps an input");
            return NULL;
        }
        rows[k].logits = views[k].buf;
        rows[k].length = (size_t)views[k].len / sizeof(float);
    }
    if (out->len != views[0].len) {
        PyErr_Format(PyExc_ValueError, "out has %zd bytes and the base row %zd", out->len, views[0].len);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = md_fuse(rows, (size_t)n_rows, out->buf, stats);
    Py_END_ALLOW_THREADS
    if (status != MD_OK) return bad_numbers();
    PyObject *result = PyList_New(n_rows);
    for (Py_ssize_t k = 0; result != NULL && k < n_rows; k++) {
        PyObject *item = stats_tuple(&stats[k]);
        if (item == NULL || PyList_SetItem(result, k, item) < 0) Py_CLEAR(result);
    }
    return result;
}

static PyObject *native_fuse(PyObject *module, PyObject *args) {
    PyObject *base, *memories, *weights, *temperatures, *target, *result = NULL;
    md_row rows[MD_MAX_ROWS];
    Py_buffer views[MD_MAX_ROWS], out;
    Py_ssize_t held = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOO:fuse", &base, &memories, &weights, &temperatures, &target)) return NULL;
    const Py_ssize_t n_rows = get_mixture(weights, temperatures, rows), n_memories = PySequence_Size(memories);
    if (n_rows < 0 || n_memories < 0) return NULL;
    if (n_memories != n_rows - 1) {
        PyErr_Format(PyExc_ValueError, "%zd memories and %zd weights", n_memories, n_rows - 1);
        return NULL;
    }
    if (get_row(target, "out", PyBUF_WRITABLE, &out) < 0) return NULL;
    for (; held < n_rows; held++) {
        PyObject *item = held == 0 ? Py_NewRef(base) : PySequence_GetItem(memories, held - 1);
        const int taken = item == NULL ? -1 : get_row(item, held == 0 ? "base" : "a memory's row", 0, &views[held]);
        Py_XDECREF(item); /* the view holds what it needs */
        if (taken < 0) break;
    }
    if (held == n_rows) result = mix(rows, views, n_rows, &out);
    while (held > 0) PyBuffer_Release(&views[--held]);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *native_row_stats(PyObject *module, PyObject *args) {
    PyObject *object;
    Py_ssize_t length;
    Py_buffer view;
    md_row row = {NULL, 0, 0.0, 0.0};
    md_stats stats;
    md_status status;
    (void)module;
    if (!PyArg_ParseTuple(args, "Ond:row_stats", &object, &length, &row.temperature)) return NULL;
    if (!(row.temperature >= MD_COLDEST && row.temperature <= MD_HOTTEST)) {
        PyErr_SetString(PyExc_ValueError, "temperature 0 is out of range");
        return NULL;
    }
    if (get_row(object, "row", 0, &view) < 0) return NULL;
    row.logits = view.buf;
    row.length = (size_t)view.len / sizeof(float);
    if (length < 1 || (size_t)length > row.length) {
        PyErr_Format(PyExc_ValueError, "length %zd is not from 1 to %zd", length, (Py_ssize_t)row.length);
        PyBuffer_Release(&view);
        return NULL;
    }
    row.length = (size_t)length;
    Py_BEGIN_ALLOW_THREADS
    status = md_row_stats(&row, &stats);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return status == MD_OK ? stats_tuple(&stats) : bad_numbers();
}

static PyObject *native_variants(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names != NULL && i < md_variant_count(); i++) {
        PyObject *name = PyUnicode_FromString(md_variant_name(i));
        if (name == NULL || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *native_select(PyObject *module, PyObject *args) {
    const char *name;
    (void)module;
    if (!PyArg_ParseTuple(args, "s:select", &name)) return NULL;
    for (size_t i = 0; i < md_variant_count(); i++) {
        if (strcmp(name, md_variant_name(i)) == 0) {
            md_variant_select(i);
            Py_RETURN_NONE;
        }
    }
    return PyErr_Format(PyExc_ValueError, "this machine has no variant '%s'", name);
}

static PyObject *native_selected(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyUnicode_FromString(md_variant_name(md_variant_selected()));
}

/* --- the llama.cpp sampler ------------------------------------------------------------------------------------ */

static md_sampler *state_of(PyObject *capsule) { return PyCapsule_GetPointer(capsule, STATE_NAME); }

/* Python lets go: its rows may be freed next, and the chain may live on. */
static void drop_state(PyObject *capsule) {
    md_sampler *state = state_of(capsule);
    md_sampler_forget_rows(state);
    md_sampler_release(state);
}

static PyObject *wrap_state(md_sampler *state) {
    PyObject *capsule = PyCapsule_New(state, STATE_NAME, drop_state);
    if (capsule == NULL) md_sampler_release(state);
    return capsule;
}

static PyObject *native_sampler_new(PyObject *module, PyObject *args) {
    Py_ssize_t n_vocab;
    PyObject *weights, *temperatures, *address;
    md_row rows[MD_MAX_ROWS] = {{NULL, 0, 0.0, 0.0}};
    (void)module;
    if (!PyArg_ParseTuple(args, "nOOO:sampler_new", &n_vocab, &weights, &temperatures, &address)) return NULL;
    void *init = PyLong_AsVoidPtr(address);
    if (init == NULL && PyErr_Occurred()) return NULL;
    if (init == NULL || n_vocab < 1 || n_vocab > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a sampler needs a vocabulary and the address of llama_sampler_init");
        return NULL;
    }
    const Py_ssize_t n_rows = get_mixture(weights, temperatures, rows);
    if (n_rows < 0) return NULL;
    rows[0].length = (size_t)n_vocab;
    md_sampler_init init_function;
    memcpy(&init_function, &init, sizeof init); /* ISO C casts no void pointer to a function */
    md_sampler *state = md_sampler_new(rows, (size_t)n_rows, init_function);
    return state == NULL ? PyErr_NoMemory() : wrap_state(state);
}

static PyObject *native_sampler_hold(PyObject *module, PyObject *address) {
    (void)module;
    md_sampler *state = PyLong_AsVoidPtr(address);
    if (state == NULL && PyErr_Occurred()) return NULL;
    return wrap_state(md_sampler_hold(state));
}

/* The context for llama_sampler_init; the sampler that is made of it holds the state until llama.cpp frees it. */
static PyObject *native_sampler_context(PyObject *module, PyObject *capsule) {
    (void)module;
    md_sampler *state = state_of(capsule);
    return state == NULL ? NULL : PyLong_FromVoidPtr(md_sampler_hold(state));
}

static PyObject *native_sampler_set_row(PyObject *module, PyObject *args) {
    PyObject *capsule, *object;
    Py_ssize_t index;
    Py_buffer view;
    (void)module;
    if (!PyArg_ParseTuple(args, "OnO:sampler_set_row", &capsule, &index, &object)) return NULL;
    md_sampler *state = state_of(capsule);
    if (state == NULL) return NULL;
    if (index < 0 || (size_t)index + 1 >= md_sampler_rows(state)) {
        PyErr_Format(PyExc_ValueError, "the sampler has no memory %zd", index);
        return NULL;
    }
    if (get_row(object, "a memory's row", 0, &view) < 0) return NULL;
    md_sampler_set_row(state, (size_t)index + 1, view.buf, (size_t)view.len / sizeof(float));
    PyBuffer_Release(&view); /* FusionSampler keeps the array */
    Py_RETURN_NONE;
}

static PyObject *native_sampler_memories(PyObject *module, PyObject *capsule) {
    (void)module;
    md_sampler *state = state_of(capsule);
    return state == NULL ? NULL : PyLong_FromSize_t(md_sampler_rows(state) - 1);
}

static PyObject *native_sampler_take_status(PyObject *module, PyObject *capsule) {
    (void)module;
    md_sampler *state = state_of(capsule);
    return state == NULL ? NULL : PyLong_FromLong((long)md_sampler_take_status(state));
}

#define FIELD(type, name) #name, (Py_ssize_t)offsetof(type, name)

static PyObject *native_layout(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return Py_BuildValue(
        "{s:{s:n,s:n,s:n,s:n},s:{s:n,s:n,s:n,s:n,s:n},s:{s:n,s:n,s:n},s:{s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n}}",
        "llama_token_data", "sizeof", (Py_ssize_t)sizeof(llama_token_data), FIELD(llama_token_data, id),
        FIELD(llama_token_data, logit), FIELD(llama_token_data, p),
        "llama_token_data_array", "sizeof", (Py_ssize_t)sizeof(llama_token_data_array),
        FIELD(llama_token_data_array, data), FIELD(llama_token_data_array, size),
        FIELD(llama_token_data_array, selected), FIELD(llama_token_data_array, sorted),
        "llama_sampler", "sizeof", (Py_ssize_t)sizeof(llama_sampler), FIELD(llama_sampler, iface),
        FIELD(llama_sampler, ctx),
        "llama_sampler_i", "sizeof", (Py_ssize_t)sizeof(llama_sampler_i), FIELD(llama_sampler_i, name),
        FIELD(llama_sampler_i, accept), FIELD(llama_sampler_i, apply), FIELD(llama_sampler_i, reset),
        FIELD(llama_sampler_i, clone), FIELD(llama_sampler_i, free), FIELD(llama_sampler_i, copy_state));
}

/* --- the module ----------------------------------------------------------------------------------------------- */

#define ADDRESS(function) (uintptr_t)(function)

static int add_address(PyObject *dict, const char *name, uintptr_t address) {
    PyObject *number = PyLong_FromVoidPtr((void *)address);
    const int failed = number == NULL || PyDict_SetItemString(dict, name, number) < 0;
    Py_XDECREF(number);
    return failed ? -1 : 0;
}

static int native_exec(PyObject *module) {
    (void)md_variant_count(); /* fills the table while one thread is here */
    PyObject *functions = PyDict_New(), *abort_address = PyLong_FromVoidPtr((void *)ADDRESS(md_abort_callback));
    int failed = functions == NULL || abort_address == NULL || md_abort_setup() < 0;
    failed = failed || add_address(functions, "name", ADDRESS(md_sampler_name)) < 0;
    failed = failed || add_address(functions, "apply", ADDRESS(md_sampler_apply)) < 0;
    failed = failed || add_address(functions, "reset", ADDRESS(md_sampler_reset)) < 0;
    failed = failed || add_address(functions, "clone", ADDRESS(md_sampler_clone)) < 0;
    failed = failed || add_address(functions, "free", ADDRESS(md_sampler_free)) < 0;
    failed = failed || PyModule_AddObjectRef(module, "SAMPLER_FUNCTIONS", functions) < 0;
    failed = failed || PyModule_AddObjectRef(module, "ABORT_CALLBACK", abort_address) < 0;
    failed = failed || PyModule_AddIntConstant(module, "MAX_MEMORIES", MD_MAX_ROWS - 1) < 0;
    Py_XDECREF(functions);
    Py_XDECREF(abort_address);
    return failed ? -1 : 0;
}

static PyMethodDef methods[] = {
    {"fuse", native_fuse, METH_VARARGS, NULL},
    {"row_stats", native_row_stats, METH_VARARGS, NULL},
    {"variants", native_variants, METH_NOARGS, NULL},
    {"select", native_select, METH_VARARGS, NULL},
    {"selected", native_selected, METH_NOARGS, NULL},
    {"sampler_new", native_sampler_new, METH_VARARGS, NULL},
    {"sampler_hold", native_sampler_hold, METH_O, NULL},
    {"sampler_context", native_sampler_context, METH_O, NULL},
    {"sampler_set_row", native_sampler_set_row, METH_VARARGS, NULL},
    {"sampler_memories", native_sampler_memories, METH_O, NULL},
    {"sampler_take_status", native_sampler_take_status, METH_O, NULL},
    {"layout", native_layout, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* ISO C: no function pointer is a void pointer, yet PyModuleDef_Slot wants one. */
static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)native_exec}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "memdec_edge._native", "The mixture in C; see fusion.py.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void);
PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
