/* Arguments of memdec_edge._native that indexes have: a vector of weights for each class, packed matches. */
#include "module.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Vectors of one class or of all: weights->of. Voices without the indexes; *n_sparse: the indexes. -1: an exception. */
static Py_ssize_t get_classes(PyObject *vectors, md_weights *weights, Py_ssize_t *n_sparse) {
    const Py_ssize_t n_classes = PySequence_Size(vectors);
    Py_ssize_t n_rows = -1, n_voices = -1;
    if (n_classes < 0) return -1;
    if (n_classes != 1 && n_classes != MD_CLASSES) {
        PyErr_Format(PyExc_ValueError, "weights of %zd classes, neither of 1 nor of %d", n_classes, MD_CLASSES);
        return -1;
    }
    for (Py_ssize_t c = 0; c < n_classes; c++) {
        PyObject *vector = PySequence_GetItem(vectors, c);
        const Py_ssize_t n = vector == NULL ? -1 : md_get_weights(vector, weights->of[c]);
        Py_XDECREF(vector);
        if (n < 0) return -1;
        if (c == 0) n_rows = n_voices = n;
        if (c == 1) n_voices = n;
        if (n != (c == 0 ? n_rows : n_voices) || n_voices < n_rows) {
            PyErr_Format(PyExc_ValueError, "class %zd has weights of %zd voices", c, n);
            return -1;
        }
    }
    *n_sparse = n_voices - n_rows;
    return n_rows;
}

Py_ssize_t md_get_voices(PyObject *vectors, PyObject *temperatures, md_weights *weights, md_row *rows,
                         Py_ssize_t *n_sparse) {
    double t[MD_MAX_ROWS] = {1.0}; /* the base's temperature is 1 */
    const Py_ssize_t n_rows = get_classes(vectors, weights, n_sparse);
    if (n_rows < 0) return -1;
    const Py_ssize_t n = temperatures == NULL ? n_rows - 1 : md_get_memories(temperatures, "temperatures", t);
    if (n < 0) return -1;
    if (n != n_rows - 1) {
        PyErr_Format(PyExc_ValueError, "%zd weights and %zd temperatures", n_rows - 1, n);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n_rows; k++) {
        rows[k].weight = weights->of[0][k];
        rows[k].temperature = t[k];
    }
    return n_rows;
}

int md_get_rule(PyObject *object, Py_ssize_t n_rows, Py_ssize_t n_sparse, md_rule *rule) {
    PyObject *initial;
    Py_ssize_t sparse;
    if (object == Py_None) return 0;
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "rule must be None or a tuple (initial weights, eta, share)");
        return -1;
    }
    if (!PyArg_ParseTuple(object, "Odd:rule", &initial, &rule->eta, &rule->share)) return -1;
    const Py_ssize_t n = get_classes(initial, &rule->initial, &sparse);
    if (n < 0 || (n == n_rows && sparse == n_sparse)) return n < 0 ? -1 : 1;
    PyErr_Format(PyExc_ValueError, "initial weights for %zd memories and %zd indexes, not for %zd and %zd", n - 1, sparse,
                 n_rows - 1, n_sparse);
    return -1;
}

/* A C-contiguous array of 4-byte numbers, maybe empty. */
static int get_numbers(PyObject *object, const char *what, const char *formats, int n_dims, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0) return -1;
    const char *format = view->format ? view->format : "B";
    if (strlen(format) == 1 && strchr(formats, *format) != NULL && view->itemsize == 4 && view->ndim == n_dims &&
        (uintptr_t)view->buf % 4 == 0)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s must hold %s32 in %d dimensions, aligned to 4 bytes", what,
                 *formats == 'f' ? "float" : "int", n_dims);
    PyBuffer_Release(view);
    return -1;
}

int md_get_class_array(PyObject *object, Py_ssize_t rows, Py_ssize_t columns, Py_buffer *view) {
    if (get_numbers(object, "classes", "il", 2, view) < 0) return -1;
    const int32_t *classes = view->buf;
    int fits = view->shape[0] == rows && view->shape[1] == columns;
    for (Py_ssize_t i = 0; fits && i < rows * columns; i++) fits = classes[i] >= 0 && classes[i] < MD_CLASSES;
    if (fits) return 0;
    PyErr_Format(PyExc_ValueError, "classes must be from 0 to %d, %zd by %zd of them", MD_CLASSES - 1, rows, columns);
    PyBuffer_Release(view);
    return -1;
}

/* Points of[n] at what the arrays hold. */
static int unpack(md_matches *m, Py_ssize_t n, size_t n_vocab) {
    const int32_t *classes = m->views[0].buf, *ends = m->views[1].buf, *ids = m->views[2].buf;
    const float *probs = m->views[3].buf;
    const Py_ssize_t most = m->views[2].shape[0] < m->views[3].shape[0] ? m->views[2].shape[0] : m->views[3].shape[0];
    int32_t begin = 0;
    for (Py_ssize_t k = 0; k < n; k++) {
        if (ends[k] < begin || ends[k] > most || (ends[k] > begin) != (classes[k] > 0)) return -1;
        const md_sparse match = {ids + begin, probs + begin, (size_t)(ends[k] - begin), 0.0, classes[k]};
        for (int32_t i = begin; i < ends[k]; i++)
            if (ids[i] < 0 || (size_t)ids[i] >= n_vocab || !(probs[i] > 0.0f && probs[i] <= 1.0f)) return -1;
        m->of[k] = match;
        begin = ends[k];
    }
    return 0;
}

int md_get_matches(PyObject *object, Py_ssize_t n_positions, Py_ssize_t n_sparse, size_t n_vocab, md_matches *m) {
    PyObject *classes, *ends, *ids, *probs;
    m->n_views = 0;
    if (object == Py_None && n_sparse == 0) return 0;
    if (!PyTuple_Check(object)) {
        PyErr_Format(PyExc_TypeError, "matches of %zd indexes must be a tuple (classes, ends, ids, probs)", n_sparse);
        return -1;
    }
    if (!PyArg_ParseTuple(object, "OOOO:matches", &classes, &ends, &ids, &probs)) return -1;
    if (md_get_class_array(classes, n_positions, n_sparse, &m->views[m->n_views]) == 0) m->n_views++;
    if (m->n_views == 1 && get_numbers(ends, "ends", "il", 2, &m->views[1]) == 0) m->n_views++;
    if (m->n_views == 2 && get_numbers(ids, "ids", "il", 1, &m->views[2]) == 0) m->n_views++;
    if (m->n_views == 3 && get_numbers(probs, "probs", "f", 1, &m->views[3]) == 0) m->n_views++;
    if (m->n_views == 4) {
        const Py_buffer *at = &m->views[1];
        if (at->shape[0] == n_positions && at->shape[1] == n_sparse && unpack(m, n_positions * n_sparse, n_vocab) == 0)
            return 0;
        PyErr_SetString(PyExc_ValueError, "matches whose classes, ends, ids and probabilities do not fit each other");
    }
    md_drop_matches(m);
    return -1;
}

void md_drop_matches(md_matches *m) {
    while (m->n_views > 0) PyBuffer_Release(&m->views[--m->n_views]);
}

PyObject *md_classes_tuple(const md_weights *weights, size_t n_rows, size_t n_sparse) {
    const Py_ssize_t n_classes = n_sparse > 0 ? MD_CLASSES : 1;
    PyObject *tuple = PyTuple_New(n_classes);
    for (Py_ssize_t c = 0; tuple != NULL && c < n_classes; c++) {
        PyObject *item = md_numbers_tuple(weights->of[c] + 1, n_rows - 1 + (c > 0 ? n_sparse : 0));
        if (item == NULL || PyTuple_SetItem(tuple, c, item) < 0) Py_CLEAR(tuple);
    }
    return tuple;
}
