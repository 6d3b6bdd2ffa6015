/* Arguments of memdec_edge._native: what Python gives is checked here before C looks at it. */
#include "module.h"

#include <stdint.h>
#include <string.h>

static int is_float32(const char *format) {
    const uint16_t one = 1;
    const int little = *(const unsigned char *)&one == 1;
    if (format == NULL) return 0;
    if (*format == '@' || *format == '=' || *format == (little ? '<' : '>')) format++;
    return strcmp(format, "f") == 0;
}

int md_get_floats(PyObject *object, const char *what, int n_dims, int flags, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | flags) < 0) return -1;
    if (!is_float32(view->format) || view->itemsize != (Py_ssize_t)sizeof(float)) {
        PyErr_Format(PyExc_TypeError, "%s must hold float32, not format '%s'", what, view->format ? view->format : "B");
    } else if (view->ndim != n_dims || view->len == 0) {
        PyErr_Format(PyExc_ValueError, "%s must have %s and at least one element", what,
                     n_dims == 1 ? "one dimension" : "two dimensions");
    } else if ((uintptr_t)view->buf % sizeof(float) != 0) {
        PyErr_Format(PyExc_ValueError, "%s must be aligned to 4 bytes", what);
    } else {
        return 0;
    }
    PyBuffer_Release(view);
    return -1;
}

static int get_number(PyObject *sequence, Py_ssize_t index, double *value) {
    PyObject *item = PySequence_GetItem(sequence, index);
    if (item == NULL) return -1;
    *value = PyFloat_AsDouble(item);
    Py_DECREF(item);
    return *value == -1.0 && PyErr_Occurred() ? -1 : 0;
}

Py_ssize_t md_get_mixture(PyObject *weights, PyObject *temperatures, md_row *rows) {
    const Py_ssize_t n = PySequence_Size(weights), n_temperatures = PySequence_Size(temperatures);
    double sum = 0.0;
    if (n < 0 || n_temperatures < 0) return -1;
    if (n != n_temperatures || n >= MD_MAX_ROWS) {
        PyErr_Format(PyExc_ValueError, "%zd weights and %zd temperatures for at most %d memories", n, n_temperatures,
                     MD_MAX_ROWS - 1);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n; k++) {
        if (get_number(weights, k, &rows[k + 1].weight) < 0) return -1;
        if (get_number(temperatures, k, &rows[k + 1].temperature) < 0) return -1;
        sum += rows[k + 1].weight;
    }
    rows[0].weight = sum < 1.0 ? 1.0 - sum : 0.0;
    rows[0].temperature = 1.0;
    return n + 1;
}

Py_ssize_t md_get_rows(PyObject *base, PyObject *memories, Py_ssize_t n_rows, int n_dims, Py_buffer *views) {
    const Py_ssize_t n_memories = PySequence_Size(memories), n_bases = base != NULL;
    Py_ssize_t held = 0;
    if (n_memories < 0) return 0;
    if (n_memories != n_rows - n_bases) {
        PyErr_Format(PyExc_ValueError, "%zd memories and %zd weights", n_memories, n_rows - n_bases);
        return 0;
    }
    for (; held < n_rows; held++) {
        PyObject *item = held < n_bases ? Py_NewRef(base) : PySequence_GetItem(memories, held - n_bases);
        const char *what = held < n_bases ? "base" : "a memory's row";
        const int taken = item == NULL ? -1 : md_get_floats(item, what, n_dims, 0, &views[held]);
        Py_XDECREF(item); /* the view holds what it needs */
        if (taken < 0) break;
    }
    return held;
}

int md_check_apart(const Py_buffer *out, const Py_buffer *input) {
    const uintptr_t p = (uintptr_t)out->buf, q = (uintptr_t)input->buf;
    if (p >= q + (uintptr_t)input->len || q >= p + (uintptr_t)out->len) return 0;
    PyErr_SetString(PyExc_ValueError, "an output overlaps an input");
    return -1;
}

PyObject *md_stats_tuple(const md_stats *stats) {
    return Py_BuildValue("(ddd)", stats->maximum, stats->logsumexp, stats->entropy);
}

PyObject *md_stats_list(const md_stats *stats, size_t n) {
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t k = 0; list != NULL && k < n; k++) {
        PyObject *item = md_stats_tuple(&stats[k]);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)k, item) < 0) Py_CLEAR(list);
    }
    return list;
}

PyObject *md_bad_numbers(void) {
    PyErr_SetString(PyExc_FloatingPointError, "a row holds NaN or +infinity, or no finite logit");
    return NULL;
}
