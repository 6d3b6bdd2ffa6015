/* Python's side of native/: memdec_edge._native, described in memdec_edge/_native.pyi.
 *
 * Checks what comes in, releases the GIL around the arithmetic, and hands out the addresses that llama.cpp calls.
 * Wrong arguments are TypeError and ValueError, numbers that are no distribution FloatingPointError.
 */
#include "module.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "abort.h"
#include "mix.h"
#include "sample.h"
#include "sampler.h"
#include "tap.h"

#define STATE_NAME "memdec_edge._native.sampler"

/* --- the mixture ---------------------------------------------------------------------------------------------- */

static PyObject *mix(md_row *rows, const Py_buffer *views, Py_ssize_t n_rows, const md_weights *weights,
                     PyObject *found, Py_ssize_t n_sparse, const Py_buffer *out) {
    md_matches matches;
    md_stats stats[MD_MAX_ROWS];
    md_status status;
    for (Py_ssize_t k = 0; k < n_rows; k++) {
        if (md_check_apart(out, &views[k]) < 0) return NULL;
        rows[k].logits = views[k].buf;
        rows[k].length = (size_t)views[k].len / sizeof(float);
    }
    if (out->len != views[0].len) {
        PyErr_Format(PyExc_ValueError, "out has %zd bytes and the base row %zd", out->len, views[0].len);
        return NULL;
    }
    if (md_get_matches(found, 1, n_sparse, rows[0].length, &matches) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    (void)md_speak(weights, rows, (size_t)n_rows, matches.of, (size_t)n_sparse);
    status = md_mix(rows, (size_t)n_rows, matches.of, (size_t)n_sparse, out->buf, rows[0].length, stats);
    Py_END_ALLOW_THREADS
    md_drop_matches(&matches);
    return status == MD_OK ? md_stats_list(stats, (size_t)n_rows) : md_bad_numbers();
}

static PyObject *native_mix(PyObject *module, PyObject *args) {
    PyObject *base, *memories, *vectors, *temperatures, *target, *matches, *result = NULL;
    md_row rows[MD_MAX_ROWS];
    md_weights weights;
    Py_ssize_t n_sparse;
    Py_buffer views[MD_MAX_ROWS], out;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOOO:mix", &base, &memories, &vectors, &temperatures, &target, &matches)) return NULL;
    const Py_ssize_t n_rows = md_get_voices(vectors, temperatures, &weights, rows, &n_sparse);
    if (n_rows < 0 || md_get_floats(target, "out", 1, PyBUF_WRITABLE, &out) < 0) return NULL;
    Py_ssize_t held = md_get_rows(base, memories, n_rows, 1, views);
    if (held == n_rows) result = mix(rows, views, n_rows, &weights, matches, n_sparse, &out);
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
    if (md_get_floats(object, "row", 1, 0, &view) < 0) return NULL;
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
    return status == MD_OK ? md_stats_tuple(&stats) : md_bad_numbers();
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

/* Python lets go: it may free its rows next, and the chain may live on. */
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
    PyObject *weights, *temperatures, *learning, *address;
    md_row rows[MD_MAX_ROWS] = {{NULL, 0, 0.0, 0.0}};
    md_rule rule;
    (void)module;
    if (!PyArg_ParseTuple(args, "nOOOO:sampler_new", &n_vocab, &weights, &temperatures, &learning, &address))
        return NULL;
    void *init = PyLong_AsVoidPtr(address);
    if (init == NULL && PyErr_Occurred()) return NULL;
    if (init == NULL || n_vocab < 1 || n_vocab > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a sampler needs a vocabulary and the address of llama_sampler_init");
        return NULL;
    }
    const Py_ssize_t n_rows = md_get_mixture(weights, temperatures, rows);
    const int has_rule = n_rows < 0 ? -1 : md_get_rule(learning, n_rows, 0, &rule);
    if (has_rule < 0) return NULL;
    rows[0].length = (size_t)n_vocab;
    md_sampler_init init_function;
    memcpy(&init_function, &init, sizeof init); /* ISO C casts no void pointer to a function */
    md_sampler *state = md_sampler_new(rows, (size_t)n_rows, has_rule ? &rule : NULL, init_function);
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
    size_t n_rows;
    (void)module;
    if (!PyArg_ParseTuple(args, "OnO:sampler_set_row", &capsule, &index, &object)) return NULL;
    md_sampler *state = state_of(capsule);
    if (state == NULL) return NULL;
    (void)md_sampler_rows(state, &n_rows);
    if (index < 0 || (size_t)index + 1 >= n_rows) {
        PyErr_Format(PyExc_ValueError, "the sampler has no memory %zd", index);
        return NULL;
    }
    if (md_get_floats(object, "a memory's row", 1, 0, &view) < 0) return NULL;
    md_sampler_set_row(state, (size_t)index + 1, view.buf, (size_t)view.len / sizeof(float));
    PyBuffer_Release(&view); /* MixtureSampler keeps the array */
    Py_RETURN_NONE;
}

static PyObject *native_sampler_mixture(PyObject *module, PyObject *capsule) {
    double weights[MD_MAX_ROWS], temperatures[MD_MAX_ROWS];
    size_t n_rows;
    (void)module;
    md_sampler *state = state_of(capsule);
    if (state == NULL) return NULL;
    const md_row *rows = md_sampler_rows(state, &n_rows);
    for (size_t k = 1; k < n_rows; k++) {
        weights[k] = rows[k].weight;
        temperatures[k] = rows[k].temperature;
    }
    PyObject *first = md_numbers_tuple(weights + 1, n_rows - 1);
    PyObject *second = first == NULL ? NULL : md_numbers_tuple(temperatures + 1, n_rows - 1);
    if (second == NULL) Py_CLEAR(first);
    return second == NULL ? NULL : Py_BuildValue("(NN)", first, second);
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
    PyObject *functions = PyDict_New(), *names = PyModule_GetDict(module); /* borrowed */
    int failed = functions == NULL || names == NULL || md_abort_setup() < 0;
    failed = failed || add_address(functions, "name", ADDRESS(md_sampler_name)) < 0;
    failed = failed || add_address(functions, "accept", ADDRESS(md_sampler_accept)) < 0;
    failed = failed || add_address(functions, "apply", ADDRESS(md_sampler_apply)) < 0;
    failed = failed || add_address(functions, "reset", ADDRESS(md_sampler_reset)) < 0;
    failed = failed || add_address(functions, "clone", ADDRESS(md_sampler_clone)) < 0;
    failed = failed || add_address(functions, "free", ADDRESS(md_sampler_free)) < 0;
    failed = failed || PyModule_AddObjectRef(module, "SAMPLER_FUNCTIONS", functions) < 0;
    failed = failed || add_address(names, "ABORT_CALLBACK", ADDRESS(md_abort_callback)) < 0;
    failed = failed || add_address(names, "TAP_CALLBACK", ADDRESS(md_tap_callback)) < 0;
    failed = failed || PyModule_AddIntConstant(module, "MAX_MEMORIES", MD_MAX_ROWS - 1) < 0;
    failed = failed || PyModule_AddFunctions(module, md_sample_methods) < 0;
    failed = failed || PyModule_AddFunctions(module, md_learn_methods) < 0;
    failed = failed || PyModule_AddFunctions(module, md_match_methods) < 0;
    failed = failed || PyModule_AddIntConstant(module, "MAX_VERIFIED", MD_MAX_VERIFIED) < 0;
    Py_XDECREF(functions);
    return failed ? -1 : 0;
}

static PyMethodDef methods[] = {
    {"mix", native_mix, METH_VARARGS, NULL},
    {"row_stats", native_row_stats, METH_VARARGS, NULL},
    {"variants", native_variants, METH_NOARGS, NULL},
    {"select", native_select, METH_VARARGS, NULL},
    {"selected", native_selected, METH_NOARGS, NULL},
    {"sampler_new", native_sampler_new, METH_VARARGS, NULL},
    {"sampler_hold", native_sampler_hold, METH_O, NULL},
    {"sampler_context", native_sampler_context, METH_O, NULL},
    {"sampler_set_row", native_sampler_set_row, METH_VARARGS, NULL},
    {"sampler_mixture", native_sampler_mixture, METH_O, NULL},
    {"sampler_take_status", native_sampler_take_status, METH_O, NULL},
    {"layout", native_layout, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* ISO C: no function pointer is a void pointer, yet PyModuleDef_Slot wants one. */
static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)native_exec}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "memdec_edge._native", "The mixture in C; memdec_edge/mixture/ wraps it.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void);
PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
