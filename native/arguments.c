/* Arguments of memdec_edge._native: checks what Python gives before the kernels read it. */
#include "module.h"

#include <stdint.h>
#include <string.h>

static int has_format(const char *format, const char *wanted) {
    const uint16_t one = 1;
    const int little = *(const unsigned char *)&one == 1;
    if (format == NULL) return 0;
    if (*format == '@' || *format == '=' || *format == (little ? '<' : '>')) format++;
    return strcmp(format, wanted) == 0;
}

static int get_array(PyObject *object, const char *what, const char *format, Py_ssize_t size, int n_dims, int flags,
                     Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | flags) < 0) return -1;
    if (!has_format(view->format, format) || view->itemsize != size) {
        PyErr_Format(PyExc_TypeError, "%s must hold float%zd, not format '%s'", what, 8 * size,
                     view->format ? view->format : "B");
    } else if (view->ndim != n_dims || view->len == 0) {
        PyErr_Format(PyExc_ValueError, "%s must have %s and at least one element", what,
                     n_dims == 1 ? "one dimension" : "two dimensions");
    } else if ((uintptr_t)view->buf % (uintptr_t)size != 0) {
        PyErr_Format(PyExc_ValueError, "%s must be aligned to %zd bytes", what, size);
    } else {
        return 0;
    }
    PyBuffer_Release(view);
    return -1;
}

int md_get_floats(PyObject *object, const char *what, int n_dims, int flags, Py_buffer *view) {
    return get_array(object, what, "f", (Py_ssize_t)sizeof(float), n_dims, flags, view);
}

int md_get_doubles(PyObject *object, const char *what, int n_dims, int flags, Py_buffer *view) {
    return get_array(object, what, "d", (Py_ssize_t)sizeof(double), n_dims, flags, view);
}

/* NumPy calls a type of 4 bytes by the one or the other C type, as the platform has it. */
static const struct {
    const char *kind, *format, *other;
    Py_ssize_t size;
} KINDS[] = {
    {"uint16", "H", "H", 2}, {"uint32", "I", "L", 4}, {"int32", "i", "l", 4}, {"uint64", "L", "Q", 8},
    {"float32", "f", "f", 4},
};

int md_get_numbers(PyObject *object, const char *what, const char *kind, int flags, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | flags) < 0) return -1;
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) {
        const int wanted = strcmp(kind, KINDS[i].kind) == 0 && view->itemsize == KINDS[i].size;
        if (wanted && (has_format(view->format, KINDS[i].format) || has_format(view->format, KINDS[i].other)) &&
            view->ndim == 1 && (view->len == 0 || (uintptr_t)view->buf % (uintptr_t)view->itemsize == 0))
            return 0;
    }
    PyErr_Format(PyExc_TypeError, "%s must hold %s in one dimension, aligned", what, kind);
    PyBuffer_Release(view);
    return -1;
}

Py_ssize_t md_get_memories(PyObject *sequence, const char *what, double *numbers) {
    const Py_ssize_t n = PySequence_Size(sequence);
    if (n < 0) return -1;
    if (n >= MD_MAX_ROWS) {
        PyErr_Format(PyExc_ValueError, "%zd %s for at most %d memories and indexes", n, what, MD_MAX_ROWS - 1);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n; k++) {
        PyObject *item = PySequence_GetItem(sequence, k);
        if (item == NULL) return -1;
        numbers[k + 1] = PyFloat_AsDouble(item);
        Py_DECREF(item);
        if (numbers[k + 1] == -1.0 && PyErr_Occurred()) return -1;
    }
    return n;
}

Py_ssize_t md_get_weights(PyObject *sequence, double *weights) {
    const Py_ssize_t n = md_get_memories(sequence, "weights", weights);
    if (n < 0) return -1;
    weights[0] = md_rest(weights, (size_t)n + 1);
    return n + 1;
}

Py_ssize_t md_get_mixture(PyObject *weights, PyObject *temperatures, md_row *rows) {
    double w[MD_MAX_ROWS], t[MD_MAX_ROWS] = {1.0}; /* the base's temperature is 1 */
    const Py_ssize_t n_rows = md_get_weights(weights, w);
    if (n_rows < 0) return -1;
    const Py_ssize_t n_temperatures = md_get_memories(temperatures, "temperatures", t);
    if (n_temperatures < 0) return -1;
    if (n_temperatures != n_rows - 1) {
        PyErr_Format(PyExc_ValueError, "%zd weights and %zd temperatures", n_rows - 1, n_temperatures);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n_rows; k++) {
        rows[k].weight = w[k];
        rows[k].temperature = t[k];
    }
    return n_rows;
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

PyObject *md_numbers_tuple(const double *numbers, size_t n) {
    PyObject *tuple = PyTuple_New((Py_ssize_t)n);
    for (size_t k = 0; tuple != NULL && k < n; k++) {
        PyObject *item = PyFloat_FromDouble(numbers[k]);
        if (item == NULL || PyTuple_SetItem(tuple, (Py_ssize_t)k, item) < 0) Py_CLEAR(tuple);
    }
    return tuple;
}

PyObject *md_bad_numbers(void) {
    PyErr_SetString(PyExc_FloatingPointError, "a row holds NaN or +infinity, or no finite number");
    return NULL;
}
